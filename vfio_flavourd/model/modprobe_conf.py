"""What modprobe.d and the kernel command line say about modules: text in, values out."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .alias_pattern import normalised

SHOWN_ORIGINS = 5

_MODULE = re.compile(r"[A-Za-z0-9_]{1,64}")
_LOGICAL_LINE = re.compile(rb"(?:[^\\\n]|\\.|\\\Z)*(?:\n|\Z)", re.DOTALL)
_CONTINUATION = re.compile(rb"\\(\n|.|\Z)", re.DOTALL)
_IGNORED = frozenset({"options", "remove", "softdep", "weakdep", "include", "config"})


@dataclass(frozen=True, slots=True)
class AliasLine:
    """One alias, normalised; `origin` says where it stands, for people."""

    pattern: str
    module: str
    origin: str


@dataclass(frozen=True, slots=True)
class InstallLine:
    """An `install` command; `modules` is a pattern of module names, as in kmod."""

    modules: str
    command: str
    origin: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many malformed lines there were, and where the first few of them stand."""

    count: int = 0
    origins: tuple[str, ...] = ()

    def joined(self, other: "Skipped") -> "Skipped":
        return Skipped(self.count + other.count, (self.origins + other.origins)[:SHOWN_ORIGINS])


@dataclass(frozen=True, slots=True)
class ModprobeConf:
    """`blacklist` maps a module to the place that blacklists it."""

    aliases: tuple[AliasLine, ...] = ()
    blacklist: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    installs: tuple[InstallLine, ...] = ()
    skipped: Skipped = Skipped()


def find_module_name(text: str) -> str | None:
    """The module's name as the kernel has it, with `_` for `-`; None for what can't be one."""
    name = text.replace("-", "_")
    return name if _MODULE.fullmatch(name) else None


def joined(confs: Iterable[ModprobeConf]) -> ModprobeConf:
    """All of them as one; what comes first is also looked at first."""
    aliases: list[AliasLine] = []
    installs: list[InstallLine] = []
    blacklist: dict[str, str] = {}
    skipped = Skipped()
    for conf in confs:
        aliases += conf.aliases
        installs += conf.installs
        blacklist = {**conf.blacklist, **blacklist}
        skipped = skipped.joined(conf.skipped)
    return ModprobeConf(tuple(aliases), MappingProxyType(blacklist), tuple(installs), skipped)


def parse_modprobe_conf(data: bytes, origin: str) -> ModprobeConf:
    """One file of modprobe.d, read as kmod_config_parse() does (libkmod/libkmod-config.c).

    A comment begins in the first column. Words after the last one expected are ignored, so a comment
    may follow an alias. A backslash joins lines, before anything else it vanishes; so no pattern here
    escapes anything. Unlike kmod this also takes lines that end in CR LF as they were meant.
    """
    aliases: list[AliasLine] = []
    installs: list[InstallLine] = []
    blacklist: dict[str, str] = {}
    bad: list[str] = []
    for number, line in _logical_lines(data):
        words = [word for word in re.split(r"[ \t]+", line) if word]
        if line.startswith("#") or not words:
            continue
        place = f"{origin}:{number}"
        match words:
            case ["alias", pattern, module, *_] if (normal := normalised(pattern)) and (
                name := find_module_name(module)
            ):
                aliases.append(AliasLine(normal, name, place))
            case ["blacklist", module, *_] if name := find_module_name(module):
                blacklist.setdefault(name, place)
            case ["install", modules, *command] if command and (normal := normalised(modules)):
                installs.append(InstallLine(normal, " ".join(command), place))
            case [verb, *_] if verb in _IGNORED:
                continue
            case _:
                bad.append(place)
    skipped = Skipped(len(bad), tuple(bad[:SHOWN_ORIGINS]))
    return ModprobeConf(tuple(aliases), MappingProxyType(blacklist), tuple(installs), skipped)


def parse_cmdline(text: str) -> ModprobeConf:
    """`module_blacklist=` (the kernel's, which ends at ` -- `) and `modprobe.blacklist=` (kmod's).

    The kernel keeps only the last `module_blacklist=`, and kmod takes the names as they are written.
    Here each one counts and `-` is `_`: somebody wanted that module kept out.
    """
    blacklist: dict[str, str] = {}
    for_kernel = True
    for word in re.findall(r'(?:"[^"]*"?|[^\s"])+', text):
        parameter, equals, value = word.replace('"', "").partition("=")
        for_kernel = for_kernel and word != "--"
        ours = parameter == "modprobe.blacklist" or (
            for_kernel and parameter.replace("-", "_") == "module_blacklist"
        )
        if not equals or not ours:
            continue
        for module in filter(None, map(find_module_name, value.split(","))):
            blacklist.setdefault(module, f"the kernel command line ({parameter}=)")
    return ModprobeConf(blacklist=MappingProxyType(blacklist))


def _logical_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """Each line with the number of its first physical line."""
    if b"\\" not in data:
        for number, line in enumerate(data.split(b"\n"), 1):
            yield number, _c_string(line)
        return
    number, at = 1, 0
    while at < len(data):
        found = _LOGICAL_LINE.match(data, at)
        if found is None or found.end() == at:
            return
        raw = found.group()
        at = found.end()
        unwrapped = _CONTINUATION.sub(lambda escaped: escaped.group(1).replace(b"\n", b""), raw)
        yield number, _c_string(unwrapped.removesuffix(b"\n"))
        number += raw.count(b"\n")


def _c_string(line: bytes) -> str:
    return line.partition(b"\0")[0].decode("latin-1").removesuffix("\r")
