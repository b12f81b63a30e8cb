"""A policy made from what other programs have been told, before it is a file."""

from dataclasses import dataclass

from .policy import FlavourKind


@dataclass(frozen=True, slots=True)
class DraftRule:
    """`match` has a policy's keys and their values as they are written in one; `origin` is where it comes
    from."""

    name: str
    match: tuple[tuple[str, str], ...]
    flavour: str
    driver: str
    origin: str


@dataclass(frozen=True, slots=True)
class Draft:
    """`remarks` is what a policy can't say, or what was left out; `undo` how the old settings are taken
    back, a step each."""

    source: str
    rules: tuple[DraftRule, ...] = ()
    flavours: tuple[FlavourKind, ...] = ()
    remarks: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
