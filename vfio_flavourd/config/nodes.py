"""YAML text -> nodes, each scalar as it was written and with its place; the only importer of yaml.

What a policy has no use for is refused here, before anything is built of it: anchors, aliases, tags, more
documents than one, deep nesting. YAML's own idea of what a scalar is (`0101` is 65, `no` is false) is never
asked for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import yaml

from .problems import Place, shown, split_lines

# Twice what the deepest policy has.
_DEEPEST = 12
# What may stand in YAML (YAML 1.1, 5.1), less the controls that it would take for line breaks of old.
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)

# libyaml's is four times as fast (500 rules: 38 ms, 144 without); Debian's python3-yaml has it.
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Scalar:
    """Text, quoted or not."""

    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    items: tuple["Node", ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys with their values, in their order; a key may be there twice."""

    pairs: tuple[tuple[Scalar, "Node"], ...]
    place: Place


Node = Scalar | Sequence | Mapping


class _Mark(Protocol):
    """Of libyaml's bindings and of PyYAML's own; counts from 0."""

    line: int
    column: int


class UnreadableError(Exception):
    """Not a text that a policy can be read from."""

    def __init__(self, place: Place, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.place = place
        self.hint = hint


def decode(data: bytes, file: str) -> str:
    """Raises UnreadableError for what isn't text in UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8")
        raise UnreadableError(
            _place_after(before, file),
            f"byte 0x{error.object[error.start]:02x} is not UTF-8",
            "the file must be text in UTF-8",
        ) from error
    found = _UNPRINTABLE.search(text)
    if found is not None:
        raise UnreadableError(
            _place_after(text[: found.start()], file),
            f"the character U+{ord(found.group()):04X} can't be in a policy",
            "the file must be text in UTF-8, without control characters",
        )
    return text


def parse_nodes(text: str, file: str) -> Node:
    """Raises UnreadableError, for the first thing that is wrong. `text` comes from `decode`."""
    try:
        return _build(yaml.parse(text, Loader=_Loader), file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is not None and error.context_mark is not None and mark.line >= len(text.splitlines()):
            mark = error.context_mark  # where that which has no end begins
        place = _place(mark, file)
        said = ": ".join(part for part in (error.context, error.problem) if part)
        tab = "\t" in text and "cannot start any token" in said
        hint = "indent with spaces, not with tabs" if tab else ""
        raise UnreadableError(place, f"not valid YAML: {said}", hint) from error
    except yaml.YAMLError as error:
        raise UnreadableError(Place(file, 1, 1), f"not valid YAML: {shown(str(error))}") from error


def _build(events: Iterator[yaml.Event], file: str) -> Node:
    """Without recursion: how deep a file nests is its writer's choice."""
    documents = 0
    top: list[Node] = []
    open_nodes: list[tuple[yaml.Event, Place, list[Node]]] = []
    for event in events:
        here = open_nodes[-1][2] if open_nodes else top
        match event:
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    raise UnreadableError(
                        _place(event.start_mark, file),
                        "a second document begins here, but only one is allowed",
                        "put it in a file of its own",
                    )
            case yaml.ScalarEvent():
                here.append(Scalar(event.value, _check_plain(event, file)))
            case yaml.CollectionStartEvent():
                place = _check_plain(event, file)
                if len(open_nodes) >= _DEEPEST:
                    raise UnreadableError(place, f"nested deeper than {_DEEPEST} levels")
                open_nodes.append((event, place, []))
            case yaml.CollectionEndEvent():
                start, place, children = open_nodes.pop()
                closed = _close(start, place, children)
                (open_nodes[-1][2] if open_nodes else top).append(closed)
            case yaml.AliasEvent():
                raise UnreadableError(
                    _place(event.start_mark, file),
                    f"found the alias '*{event.anchor}', but a policy can't have aliases",
                    "write out what it stands for, or put it in quotes if the * is meant",
                )
    if not top:
        raise UnreadableError(
            Place(file, 1, 1),
            "the file is empty: it needs at least 'version: 1'",
            "to mask a file of the same name, link it to /dev/null",
        )
    return top[0]


def _check_plain(event: yaml.NodeEvent, file: str) -> Place:
    place = _place(event.start_mark, file)
    if event.anchor is not None:
        raise UnreadableError(
            place,
            f"found the anchor '&{event.anchor}', but a policy can't have anchors",
            "write it out where it is wanted",
        )
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise UnreadableError(
            place,
            f"found the tag {shown(tag)}, but a policy can't have tags",
            "leave it out: every value is taken as it is written",
        )
    return place


def _close(start: yaml.Event, place: Place, children: list[Node]) -> Node:
    if isinstance(start, yaml.SequenceStartEvent):
        return Sequence(tuple(children), place)
    pairs: list[tuple[Scalar, Node]] = []
    for key, value in zip(children[::2], children[1::2], strict=True):
        if not isinstance(key, Scalar):
            raise UnreadableError(key.place, "found a list or mapping as a key, expected a name")
        pairs.append((key, value))
    return Mapping(tuple(pairs), place)


def _place(mark: _Mark | None, file: str) -> Place:
    return Place(file, mark.line + 1, mark.column + 1) if mark else Place(file, 1, 1)


def _place_after(text: str, file: str) -> Place:
    lines = split_lines(text)
    return Place(file, len(lines), len(lines[-1]) + 1)
