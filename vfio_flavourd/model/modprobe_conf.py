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
class OptionsLine:
    """What a module is given when it is loaded: `parameters` as they are written, for the kernel to parse."""

    module: str
    parameters: str
    origin: str


@dataclass(frozen=True, slots=True)
class SoftdepLine:
    """Modules to be loaded before or after another one; `rest` is as it is written."""

    module: str
    rest: str
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
    """`blacklist` maps a module to the place that blacklists it; of `options` the last one counts."""

    aliases: tuple[AliasLine, ...] = ()
    blacklist: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    installs: tuple[InstallLine, ...] = ()
    options: tuple[OptionsLine, ...] = ()
    softdeps: tuple[SoftdepLine, ...] = ()
    skipped: Skipped = Skipped()


def find_module_name(text: str) -> str | None:
    """The module's name as the kernel has it, with `_` for `-`; None for what can't be one."""
    name = text.replace("-", "_")
    return name if _MODULE.fullmatch(name) else None


def joined(confs: Iterable[ModprobeConf]) -> ModprobeConf:
    """All of them as one; what comes first is also looked at first."""
    aliases: list[AliasLine] = []
    installs: list[InstallLine] = []
    options: list[OptionsLine] = []
    softdeps: list[SoftdepLine] = []
    blacklist: dict[str, str] = {}
    skipped = Skipped()
    for conf in confs:
        aliases += conf.aliases
        installs += conf.installs
        options += conf.options
        softdeps += conf.softdeps
        blacklist = {**conf.blacklist, **blacklist}
        skipped = skipped.joined(conf.skipped)
    return ModprobeConf(
        tuple(aliases),
        MappingProxyType(blacklist),
        tuple(installs),
        tuple(options),
        tuple(softdeps),
        skipped,
    )


def parse_modprobe_conf(data: bytes, origin: str) -> ModprobeConf:
    """One file of modprobe.d, read as kmod_config_parse() does (libkmod/libkmod-config.c).

    A comment begins in the first column. Words after the last one expected are ignored, so a comment
    may follow an alias. A backslash joins lines, before anything else it vanishes; so no pattern here
    escapes anything. Unlike kmod this also takes lines that end in CR LF as they were meant.
    """
    aliases: list[AliasLine] = []
    installs: list[InstallLine] = []
    options: list[OptionsLine] = []
    softdeps: list[SoftdepLine] = []
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
            case ["options", module, *rest] if rest and (name := find_module_name(module)):
                options.append(OptionsLine(name, " ".join(rest), place))
            case ["softdep", module, *rest] if rest and (name := find_module_name(module)):
                softdeps.append(SoftdepLine(name, " ".join(rest), place))
            case [verb, *_] if verb in _IGNORED:
                continue
            case _:
                bad.append(place)
    return ModprobeConf(
        tuple(aliases),
        MappingProxyType(blacklist),
        tuple(installs),
        tuple(options),
        tuple(softdeps),
        Skipped(len(bad), tuple(bad[:SHOWN_ORIGINS])),
    )


def parse_cmdline(text: str) -> ModprobeConf:
    """`module_blacklist=` (the kernel's, which ends at ` -- `), `modprobe.blacklist=` (kmod's), and modules'
    parameters, which kmod takes as options after all of modprobe.d's (kmod_config_new()).

    The kernel keeps only the last `module_blacklist=`, and kmod takes the names as they are written.
    Here each one counts and `-` is `_`: somebody wanted that module kept out.
    """
    blacklist: dict[str, str] = {}
    options: list[OptionsLine] = []
    for_kernel = True
    for word in split_parameters(text):
        parameter, equals, value = word.replace('"', "").partition("=")
        for_kernel = for_kernel and word != "--"
        owner, dot, own = parameter.partition(".")
        if for_kernel and dot and equals and owner != "modprobe" and (name := find_module_name(owner)):
            options.append(OptionsLine(name, f'{own}="{value}"', "the kernel command line"))
        ours = parameter == "modprobe.blacklist" or (
            for_kernel and parameter.replace("-", "_") == "module_blacklist"
        )
        if not equals or not ours:
            continue
        for module in filter(None, map(find_module_name, value.split(","))):
            blacklist.setdefault(module, f"the kernel command line ({parameter}=)")
    return ModprobeConf(blacklist=MappingProxyType(blacklist), options=tuple(options))


def split_parameters(text: str) -> list[str]:
    """As next_arg() in lib/cmdline.c does: blanks within quotes are part of a value."""
    return re.findall(r'(?:"[^"]*"?|[^\s"])+', text)


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
