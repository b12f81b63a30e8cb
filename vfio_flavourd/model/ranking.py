"""Which of the matches goes first, and how the place of each is explained."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from .modprobe_conf import AliasLine
from .resolution import Candidate, Source

_FIELDS = ("vendor", "device", "subvendor", "subdevice", "base class", "subclass", "interface")
_AUTHORITY = tuple(Source)


@dataclass(frozen=True, slots=True)
class Match:
    """`ranks` is the pattern's specificity, empty for a module that was named."""

    source: Source
    line: AliasLine
    ranks: tuple[int, ...] = ()

    @property
    def module(self) -> str:
        return self.line.module


def ranked(matches: Iterable[Match], loaded: Collection[str]) -> list[Match]:
    """The narrower pattern first within a source, then what is loaded, then as they came; each module
    at its best place, there with its longest pattern: depmod's index knows no order within a module."""
    best: dict[str, Match] = {}
    for match in sorted(
        matches, key=lambda match: (_rank(match), bool(match.ranks) and match.module not in loaded)
    ):
        first = best.setdefault(match.module, match)
        if _rank(match) == _rank(first) and _length(match) > _length(first):
            best[match.module] = match
    return list(best.values())


def _length(match: Match) -> tuple[int, str]:
    return len(match.line.pattern), match.line.pattern


def _rank(match: Match) -> tuple[int, tuple[int, ...]]:
    return _AUTHORITY.index(match.source), tuple(-rank for rank in match.ranks)


def judged(matches: Iterable[Match], find_rejection: Callable[[Match], str | None]) -> list[Candidate]:
    return [_judge(match, find_rejection(match)) for match in matches]


def _judge(match: Match, rejection: str | None) -> Candidate:
    line, reason = match.line, rejection or _describe(match)
    return Candidate(line.module, line.pattern, match.source, line.origin, rejection is None, reason)


def tell_ties(
    matches: list[Match], candidates: list[Candidate], loaded: Collection[str]
) -> tuple[list[Candidate], list[str]]:
    """The candidates with their ties in the reasons, and a warning for each tie.

    A rejected candidate ties with nobody, and nobody who was named does: those come in the order asked for.
    """
    told, warnings = [], []
    pairs = zip(matches, candidates, strict=True)
    for source_and_ranks, group in groupby(pairs, key=lambda pair: (pair[0].source, pair[0].ranks)):
        members = [candidate for _, candidate in group]
        tied = [candidate.module for candidate in members if candidate.accepted]
        if len(tied) > 1 and source_and_ranks[1]:
            names = " and ".join(tied)
            why = "already loaded" if tied[0] in loaded else f"first in {source_and_ranks[0]}"
            warnings.append(f"{names} match equally narrowly: {tied[0]} goes first, being {why}")
            members = [
                replace(member, reason=f"{member.reason}; a tie of {names}") if member.accepted else member
                for member in members
            ]
        told += members
    return told, warnings


def _describe(match: Match) -> str:
    if match.source is Source.NAMED:
        return "named by the request or the policy"
    if match.source is Source.FALLBACK:
        return "the generic fallback"
    literal = [name for name, rank in zip(_FIELDS, match.ranks, strict=True) if rank == 2]
    partial = [f"part of {name}" for name, rank in zip(_FIELDS, match.ranks, strict=True) if rank == 1]
    what = f"matches {', '.join((*literal, *partial)) or 'any device'}"
    return f"{what}; modprobe.d replaces the index" if match.source is Source.MODPROBE_D else what
