"""What was found out about one thing, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ..address import PciAddress


class State(StrEnum):
    """`problem`: something stands in the way. `warning`: it works, but not as it should, or not for long.
    `note`: good to know."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


# For whom something could not be looked at.
SUDO = "sudo flavourctl doctor"

_WORST_FIRST = (State.PROBLEM, State.WARNING, State.NOTE, State.OK)


@dataclass(frozen=True, slots=True)
class Finding:
    """`name` is stable, and several findings may have the same. `advice` is what to type, where there is
    something; it is empty where there is nothing to do."""

    name: str
    state: State
    what: str
    advice: str = ""


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """In their order otherwise."""
    return tuple(sorted(findings, key=lambda finding: _WORST_FIRST.index(finding.state)))


def name_some(addresses: Iterable[PciAddress]) -> str:
    """All of a few, or the first and how many more."""
    names = [str(address) for address in addresses]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
