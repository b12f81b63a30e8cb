"""From a modalias to the drivers that may serve it: matched as kmod does, ranked as kmod can't."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from .codes import Code
from .errors import FlavourError
from .modalias import FLAVOUR_PREFIX, flavoured, matches, parse_modalias, specificity
from .modprobe_conf import AliasLine, ModprobeConf, Skipped, find_module_name
from .module_files import (
    ModuleFiles,
    find_builtin_aliases,
    find_index_aliases,
    find_malformed,
    find_module_path,
    is_builtin,
)
from .ranking import Match, judged, ranked, tell_ties
from .resolution import Candidate, Resolution, Source

__all__ = ["AliasTable", "Candidate", "Resolution", "Source"]

MEMO_LIMIT = 4096

# Those with drivers that somebody named: a policy names few, and anybody else whatever comes to mind.
_NAMED_MEMO_LIMIT = 64

_REFUSALS = frozenset({"true", "false", "/bin/true", "/bin/false", "/usr/bin/true", "/usr/bin/false", ":"})


def _any(_path: str) -> bool:
    return True


class _Matched(NamedTuple):
    """What a request matches, before it is known which of the modules are loaded."""

    modalias: str
    matches: tuple[Match, ...]
    fallback: Match
    warnings: tuple[str, ...]
    modules: tuple[str, ...]
    resolutions: dict[tuple[bool, ...], Resolution]


_Key = tuple[str, str, str, tuple[str, ...], frozenset[str]]


class AliasTable:
    """The aliases of one module tree and one modprobe.d, and the answers already given.

    `has_file` is asked about paths out of modules.dep. Answers are remembered, so a table is for one
    state of the files; where they change, so must the table.
    """

    def __init__(
        self,
        files: ModuleFiles,
        conf: ModprobeConf | None = None,
        *,
        warnings: tuple[str, ...] = (),
        has_file: Callable[[str], bool] = _any,
    ) -> None:
        self.warnings = warnings
        self._files = files
        self._conf = conf or ModprobeConf()
        self._has_file = has_file
        self._knows_modules = b".ko" in (files.dep or b"")
        self._by_prefix: dict[str, dict[Source, tuple[AliasLine, ...]]] = {}
        self._memo: dict[_Key, _Matched] = {}
        self._named_memo: dict[_Key, _Matched] = {}

    @cached_property
    def skipped(self) -> Skipped:
        """Malformed lines of modprobe.d and, read in full for this, of modules.alias."""
        return self._conf.skipped.joined(find_malformed(self._files))

    def flavoured_modules(self, prefix: str = FLAVOUR_PREFIX, fallback: str = "vfio_pci") -> frozenset[str]:
        """Every module that has an alias with this prefix, and the fallback."""
        prefix = prefix.replace("-", "_")
        start = f"{prefix}:"
        lines = [line for of_source in self._lines(prefix).values() for line in of_source]
        return frozenset({fallback, *(line.module for line in lines if line.pattern.startswith(start))})

    def flavoured_aliases(self, prefix: str = FLAVOUR_PREFIX) -> tuple[AliasLine, ...]:
        """Every alias that may match something with this prefix."""
        return tuple(line for lines in self._lines(prefix.replace("-", "_")).values() for line in lines)

    def plain_aliases(self, modules: Collection[str]) -> tuple[AliasLine, ...]:
        """The `pci:` aliases of these modules. Looks at every one that there is, and keeps none."""
        every = (*find_index_aliases(self._files, "pci"), *find_builtin_aliases(self._files, "pci"))
        return tuple(line for line in every if line.module in modules)

    def resolve(
        self,
        modalias: str,
        *,
        prefix: str = FLAVOUR_PREFIX,
        fallback: str = "vfio_pci",
        named: tuple[str, ...] = (),
        denied: frozenset[str] = frozenset(),
        loaded: Collection[str] = (),
    ) -> Resolution:
        """Ranks what may serve a device. Raises FlavourError (EINVAL).

        `modalias` is the device's own or already flavoured. Where `named` (modules, or drivers called
        like their modules) is given, only these and then the fallback are candidates. An empty
        `prefix` is a flavour without aliases. `loaded` holds names as in /sys/module.
        """
        modalias = modalias.strip()  # what is kept is of the length that a modalias has
        memo, limit = (self._named_memo, _NAMED_MEMO_LIMIT) if named else (self._memo, MEMO_LIMIT)
        key = (modalias, prefix, fallback, named, denied)
        matched = memo.get(key)
        if matched is None:
            matched = self._match(modalias, prefix.replace("-", "_"), fallback, named)
            if len(memo) >= limit:
                memo.clear()
            memo[key] = matched
        present = tuple([module in loaded for module in matched.modules]) if loaded else ()
        resolution = matched.resolutions.get(present)
        if resolution is None:
            loaded_here = frozenset(module for module in matched.modules if module in loaded)
            denied_names = frozenset(module.replace("-", "_") for module in denied)
            resolution = self._rank(matched, denied_names, loaded_here)
            matched.resolutions[present] = resolution
        return resolution

    def _match(self, modalias: str, prefix: str, fallback: str, named: tuple[str, ...]) -> _Matched:
        text = flavoured(modalias, prefix) if prefix else parse_modalias(modalias).text
        generic = Match(Source.FALLBACK, AliasLine("", parse_driver_name(fallback), ""))
        found = [Match(Source.NAMED, AliasLine("", parse_driver_name(name), "")) for name in named]
        warnings = list(self.warnings)
        if prefix and not named:
            found = list(self._find_matches(text, prefix))
            if not any(self._lines(prefix).values()):
                warnings.append(f"no {prefix}: alias is known, so there is only {generic.module}")
            if _has_lower_case_digits(text.removeprefix(prefix)):
                warnings.append(f"{text} has lower-case digits, and aliases have none")
            catch_alls = [match for match in found if _is_catch_all_of(match, generic.module)]
            if catch_alls:
                found = [match for match in found if match not in catch_alls]
                generic = replace(generic, line=catch_alls[0].line)
        modules = tuple(dict.fromkeys(match.module for match in (*found, generic)))
        return _Matched(text, tuple(found), generic, tuple(warnings), modules, {})

    def _find_matches(self, text: str, prefix: str) -> Iterator[Match]:
        """In order of authority, then of the lines. As in kmod_module_new_from_lookup()
        (libkmod/libkmod-module.c) the index is asked only where modprobe.d has no answer."""
        for source, lines in self._lines(prefix).items():
            found = [
                Match(source, line, specificity(line.pattern))
                for line in lines
                if matches(line.pattern, text)
            ]
            yield from found
            if found and source is Source.MODPROBE_D:
                return

    def _lines(self, prefix: str) -> dict[Source, tuple[AliasLine, ...]]:
        lines = self._by_prefix.get(prefix)
        if lines is None:
            lines = self._by_prefix[prefix] = {
                Source.MODPROBE_D: tuple(
                    line for line in self._conf.aliases if _may_match(line.pattern, prefix)
                ),
                Source.MODULES_ALIAS: tuple(find_index_aliases(self._files, prefix)),
                Source.BUILTIN: tuple(find_builtin_aliases(self._files, prefix)),
            }
        return lines

    def _rank(self, matched: _Matched, denied: frozenset[str], loaded: frozenset[str]) -> Resolution:
        order = [*ranked(matched.matches, loaded), matched.fallback]
        candidates = judged(order, lambda match: self._find_rejection(match, denied, loaded))
        candidates, ties = tell_ties(order, candidates, loaded)
        warnings = [*matched.warnings, *ties]
        if not any(candidate.accepted for candidate in candidates):
            warnings.append("every candidate is rejected")
        return Resolution(matched.modalias, tuple(candidates), tuple(warnings))

    def _find_rejection(self, match: Match, denied: frozenset[str], loaded: frozenset[str]) -> str | None:
        """What only a load would need is not asked of a module that is there already."""
        module = match.module
        if module in denied:
            return "denied by policy"
        if place := self._conf.blacklist.get(module):
            return f"blacklisted by {place}"
        if module in loaded or match.source is Source.BUILTIN or is_builtin(self._files, module):
            return None
        # Of several install commands kmod runs the first (kmod_module_get_install_commands()).
        install = next((line for line in self._conf.installs if matches(line.modules, module)), None)
        if install is not None and install.command.partition(" ")[0] in _REFUSALS:
            return f"its install command is {install.command!r} ({install.origin})"
        if self._knows_modules:
            path = find_module_path(self._files, module)
            if path is None:
                return "module file missing: not in modules.dep"
            if not self._has_file(path):
                return f"module file missing: {path}"
        return None


def _is_catch_all_of(match: Match, module: str) -> bool:
    in_index = match.source in (Source.MODULES_ALIAS, Source.BUILTIN)
    return in_index and match.module == module and not any(match.ranks)


def _may_match(pattern: str, prefix: str) -> bool:
    """Whether the pattern agrees with the prefix as far as its first wildcard."""
    head = min((at for mark in "*?[" if (at := pattern.find(mark)) >= 0), default=len(pattern))
    start = f"{prefix}:"
    return pattern[:head].startswith(start) or start.startswith(pattern[:head])


def _has_lower_case_digits(fields: str) -> bool:
    parsed = parse_modalias(f"pci{fields}")
    digits = parsed.vendor + parsed.device + parsed.subvendor + parsed.subdevice
    digits += parsed.base_class + parsed.subclass + parsed.interface
    return digits != digits.upper()


def parse_driver_name(name: str) -> str:
    """The module that is called like a driver or a module. Raises FlavourError (EINVAL)."""
    module = find_module_name(name)
    if module is None:
        raise FlavourError(
            f"{name[:80]!a} can't be the name of a driver",
            code=Code.INVALID_ARGUMENT,
            hint="allowed: letters, digits, _ and -, at most 64 of them",
        )
    return module
