"""The answer to which drivers may serve a device, with its reasons."""

from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """In order of authority."""

    NAMED = "named"
    MODPROBE_D = "modprobe.d"
    MODULES_ALIAS = "modules.alias"
    BUILTIN = "builtin"
    FALLBACK = "fallback"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module that may serve the device. `pattern` is empty where no alias brought it in; `origin`
    is for people, and `reason` one phrase: why at this rank, or why not at all."""

    module: str
    pattern: str
    source: Source
    origin: str
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """`modalias` is the flavoured one. `candidates` are ranked, the generic fallback last."""

    modalias: str
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...] = ()

    @property
    def winner(self) -> str | None:
        return next((candidate.module for candidate in self.candidates if candidate.accepted), None)

    @property
    def accepted(self) -> tuple[Candidate, ...]:
        """What to try, in this order; each module once."""
        first: dict[str, Candidate] = {}
        for candidate in self.candidates:
            if candidate.accepted:
                first.setdefault(candidate.module, candidate)
        return tuple(first.values())
