"""The files that depmod and the kernel's build leave in a module tree."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .alias_pattern import normalised
from .modprobe_conf import SHOWN_ORIGINS, AliasLine, Skipped, find_module_name


@dataclass(frozen=True, slots=True)
class ModuleFiles:
    """What a directory like /lib/modules/<release> holds, unparsed.

    `read_alias` gives the text of modules.alias. `indexed` are, by prefix, what modules.alias.bin has of it:
    each alias with its module. `dep` and `builtin` are None where nothing is known about which modules there
    are.
    """

    directory: str = "/lib/modules"
    read_alias: Callable[[], bytes] = bytes
    indexed: Mapping[str, Iterable[tuple[bytes, bytes]]] = field(default_factory=dict)
    builtin_modinfo: bytes = b""
    dep: bytes | None = None
    builtin: bytes | None = None


def find_index_aliases(files: ModuleFiles, prefix: str) -> Iterator[AliasLine]:
    """The aliases of one prefix in modules.alias, in its order.

    Without an index the text is searched for the prefix and not read line by line: a flavour has a handful
    of the tens of thousands of lines. So a pattern with a wildcard in its prefix is not found; modpost
    writes none (scripts/mod/file2alias.c). Nor are lines numbered, which would double the time.
    """
    origin = f"{files.directory}/modules.alias"
    if prefix in files.indexed:
        for pattern, module in files.indexed[prefix]:
            alias = _parse_alias(pattern, module)
            if alias is not None:
                yield AliasLine(*alias, origin)
        return
    data = files.read_alias()
    wanted = re.compile(re.escape(prefix.encode()).replace(b"_", b"[_-]") + b":")
    at = 0
    while found := wanted.search(data, at):
        start = data.rfind(b"\n", 0, found.start()) + 1
        end = data.find(b"\n", found.start())
        at = len(data) if end < 0 else end
        alias = _parse_index_line(data[start:at])
        if alias is not None and alias[0].startswith(f"{prefix}:"):
            yield AliasLine(*alias, origin)


def find_builtin_aliases(files: ModuleFiles, prefix: str) -> Iterator[AliasLine]:
    """The aliases of one prefix that built-in modules have: NUL-separated `module.alias=pattern`."""
    data = files.builtin_modinfo
    at = 0
    while (at := data.find(b".alias=", at)) >= 0:
        start = data.rfind(b"\0", 0, at) + 1
        end = data.find(b"\0", at)
        entry = data[start : len(data) if end < 0 else end].decode("latin-1")
        module, _, pattern = entry.partition(".alias=")
        at = len(data) if end < 0 else end
        normal, name = normalised(pattern), find_module_name(module)
        if normal and name and normal.startswith(f"{prefix}:"):
            yield AliasLine(normal, name, f"{files.directory}/modules.builtin.modinfo")


def find_malformed(files: ModuleFiles) -> Skipped:
    """Looks at every line of modules.alias, so it takes its time: 20 ms for a distribution's kernel."""
    count = 0
    origins: list[str] = []
    for number, line in enumerate(files.read_alias().split(b"\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith(b"#") and _parse_index_line(line) is None:
            count += 1
            if count <= SHOWN_ORIGINS:
                origins.append(f"{files.directory}/modules.alias:{number}")
    return Skipped(count, tuple(origins))


def is_builtin(files: ModuleFiles, module: str) -> bool:
    return _find_path(files.builtin or b"", module, end=rb"(?:\n|\Z)") is not None


def find_module_path(files: ModuleFiles, module: str) -> str | None:
    """The module's file as modules.dep names it, relative to the tree."""
    return _find_path(files.dep or b"", module, end=b":")


def _parse_index_line(line: bytes) -> tuple[str, str] | None:
    words = line.partition(b"#")[0].split()
    if len(words) < 3 or words[0] != b"alias":
        return None
    return _parse_alias(words[1], words[2])


def _parse_alias(pattern: bytes, module: bytes) -> tuple[str, str] | None:
    normal, name = normalised(pattern.decode("latin-1")), find_module_name(module.decode("latin-1"))
    return (normal, name) if normal and name else None


def _find_path(data: bytes, module: str, *, end: bytes) -> str | None:
    """A file's name may have `-` where the module's has `_`."""
    name = re.escape(module.encode("latin-1")).replace(b"_", b"[-_]")
    for found in re.finditer(name + rb"\.ko(?:\.(?:gz|xz|zst))?" + end, data):
        start = data.rfind(b"\n", 0, found.start()) + 1
        path = data[start : found.end()].rstrip(b":\n")
        if b":" not in path and path.rpartition(b"/")[2] == found.group().rstrip(b":\n"):
            return path.decode("latin-1")
    return None
