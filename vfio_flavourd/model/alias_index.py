"""modules.alias.bin, depmod's index of modules.alias: a radix tree of which only some nodes need to be read.

Its format is described in kmod's libkmod/libkmod-index.c. Numbers are big-endian, strings end with a NUL.
An offset's upper four bits say which parts its node has, in this order: a prefix; the first and the last
character of its children, and their offsets; values, each with its priority, which is the module's place in
modules.alias.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

_HEADER = struct.Struct(">3I")
_MAGIC = 0xB007F457
_MAJOR = 2

_HAS_PREFIX, _HAS_VALUES, _HAS_CHILDREN = 0x80000000, 0x40000000, 0x20000000
_OFFSET = 0x0FFFFFFF

_NUMBER = struct.Struct(">I")

# Bytes that are read at a time: depmod writes a subtree in one piece, its root last.
_CHUNK = 1 << 16

# A damaged index may lead in a circle, and a node in it be as long as the file. No flavour has so many nodes
# and values; modpost makes aliases of 500 characters at the most (scripts/mod/file2alias.c).
_MOST = 20_000
_LONGEST_NODE = 1 << 20
_LONGEST_ALIAS = 1000


@dataclass(frozen=True, slots=True)
class _Node:
    prefix: bytes
    first: int
    children: tuple[int, ...]
    values: tuple[tuple[int, bytes], ...]


class AliasIndex:
    """`read` is given an offset and how many bytes, and gives fewer at the end of the file."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        """Raises ValueError where it is no index of a version that is known."""
        self._read = read
        self._chunk = read(0, _CHUNK)
        self._start = 0
        if len(self._chunk) < _HEADER.size:
            raise ValueError("it is cut short")
        magic, version, self._root = _HEADER.unpack_from(self._chunk)
        if magic != _MAGIC or version >> 16 != _MAJOR:
            raise ValueError("it is no index of version 2")

    def find(self, start: bytes) -> list[tuple[bytes, bytes]]:
        """The aliases that begin so, each with its module, in the order of the modules. Raises ValueError for
        an index that is damaged there."""
        found = [
            (priority, path, module)
            for path, node in self._walk(start)
            if path.startswith(start)
            for priority, module in node.values
        ]
        return [(alias, module) for _, alias, module in sorted(found)]

    def _walk(self, start: bytes) -> Iterator[tuple[bytes, _Node]]:
        """The nodes whose path agrees with `start` as far as both go, each with its path."""
        ahead = [(b"", self._root)]
        seen = 0
        while ahead:
            path, offset = ahead.pop()
            node = self._read_node(offset)
            path += node.prefix
            seen += 1 + len(node.values)
            if max(seen, len(ahead)) > _MOST or len(path) > _LONGEST_ALIAS:
                raise ValueError("it has no end")
            if not (path.startswith(start) or start.startswith(path)):
                continue
            yield path, node
            for at, child in enumerate(node.children):
                character = bytes((node.first + at,))
                if child & _OFFSET and start[len(path) : len(path) + 1] in (b"", character):
                    ahead.append((path + character, child))

    def _read_node(self, offset: int) -> _Node:
        at = offset & _OFFSET
        size = _CHUNK
        while True:
            if self._start <= at <= self._start + len(self._chunk):  # one without parts is at the end
                with suppress(struct.error, ValueError):
                    return _parse_node(self._chunk, at - self._start, offset)
            if size > _LONGEST_NODE:
                raise ValueError(f"its node at {at} is damaged")
            # What is below a node stands before it.
            self._start = max(at - size // 2, 0)
            self._chunk = self._read(self._start, size)
            size *= 2


def _parse_node(data: bytes, at: int, offset: int) -> _Node:
    """Raises struct.error or ValueError where the data ends before it does."""
    prefix, first = b"", 0
    children: tuple[int, ...] = ()
    values = []
    if offset & _HAS_PREFIX:
        end = data.index(0, at)
        prefix, at = data[at:end], end + 1
    if offset & _HAS_CHILDREN:
        first, last = struct.unpack_from("2B", data, at)
        if not 0 < first <= last:
            raise ValueError("its children are damaged")
        children = struct.unpack_from(f">{last - first + 1}I", data, at + 2)
        at += 2 + 4 * len(children)
    if offset & _HAS_VALUES:
        (count,) = _NUMBER.unpack_from(data, at)
        at += 4
        for _ in range(count):
            (priority,) = _NUMBER.unpack_from(data, at)
            end = data.index(0, at + 4)
            values.append((priority, data[at + 4 : end]))
            at = end + 1
    return _Node(prefix, first, children, tuple(values))
