"""A switch as rows: what was done, in which part of it, for which candidate."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

# Where the lane is not called like the action. The driver that drivers_probe finds is bound as well.
_LANES = {"probe": "bind"}


@dataclass(frozen=True, slots=True)
class Row:
    """`start` and `end` are in seconds from when the switch was asked for."""

    lane: str
    what: str
    start: float
    end: float
    error: str


@dataclass(frozen=True, slots=True)
class Section:
    """What belongs together; `failed` where it did not do what it was for."""

    title: str
    failed: bool
    rows: tuple[Row, ...]


def find_sections(attempt: dict[str, Any]) -> list[Section]:
    """In the order in which it happened."""
    runs = [(part, tuple(map(_make_row, run))) for part, run in groupby(attempt["steps"], _find_part)]
    sections = []
    number = 0
    for at, ((part, candidate), rows) in enumerate(runs, 1):
        failed = any(row.error for row in rows)
        title = part
        if candidate:
            number += 1
            result = "failed" if failed else _tell_result(rows, is_last=at == len(runs))
            title = f"candidate {number}, {candidate}: {result}"
        sections.append(Section(title, failed, rows))
    return sections


def _tell_result(rows: tuple[Row, ...], *, is_last: bool) -> str:
    """A driver may take the device and be no VFIO driver, or give it back because of another device."""
    if not is_last:
        return "not kept"
    return "took the device" if rows[-1].lane == "verify" else "not brought to an end"


def _find_part(step: dict[str, Any]) -> tuple[str, str]:
    if step["phase"] == "undoing":
        return ("back to what it had", "")
    return ("", step["candidate"])


def _make_row(step: dict[str, Any]) -> Row:
    lane = _LANES.get(step["action"], step["action"])
    return Row(lane, step["what"], step["started"], step["started"] + step["duration"], step["error"])


def find_spans(attempt: dict[str, Any]) -> Iterator[tuple[float, float]]:
    """When something begins and ends."""
    yield 0.0, attempt["duration"]
    for step in attempt["steps"]:
        yield step["started"], step["started"] + step["duration"]
