"""history: what has been tried since the boot."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from ..doors import blocking_client
from ..model.address import parse_address
from ..model.printable import printable
from .output import print_json
from .terminal import BOLD, GREEN, RED, YELLOW, find_width, lay_out, measure, paint

# `typing` takes longer to import than this module; only mypy needs it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Attempt = dict[str, Any]

_COLORS = {"done": GREEN, "unchanged": "", "given-up": "", "failed": RED, "stuck": RED}

# On a terminal that is too narrow these are left out, the first one first.
_SPARED = ("requester", "when", "duration")


def show_history(arguments: argparse.Namespace) -> int:
    device = None if arguments.device is None else str(parse_address(arguments.device))
    with blocking_client.connect(writes=False) as daemon:
        attempts = daemon.call("History", device=device)["attempts"]
    if arguments.number is not None:
        attempts = attempts[-arguments.number :]
    if arguments.json:
        print_json({"attempts": attempts})
    elif attempts:
        _print(attempts, color=arguments.color)
    else:
        of_it = f" for {device}" if device else ""
        print(f"flavourctl: nothing has been tried{of_it} since the boot", file=sys.stderr)
    return 0


def _print(attempts: list[Attempt], *, color: bool) -> None:
    columns = {name: [tell(attempt) for attempt in attempts] for name, tell in _COLUMNS.items()}
    width = find_width(sys.stdout)
    names = list(columns)
    for name in _SPARED:
        if width is not None and _measure(names, columns) > width:
            names.remove(name)
    rows = [[name.upper() for name in names], *zip(*(columns[name] for name in names), strict=True)]
    codes = [BOLD, *(_choose_color(attempt) for attempt in attempts)]
    for line, code in zip(lay_out(rows, width), codes, strict=True):
        print(paint(line, code, color=color))


def _measure(names: list[str], columns: dict[str, list[str]]) -> int:
    return sum(max(map(measure, [name, *columns[name]])) + 2 for name in names) - 2


def _tell_duration(attempt: Attempt) -> str:
    seconds = attempt["duration"]
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _tell_what(attempt: Attempt) -> str:
    """What was asked for, and the driver that came of it."""
    ways = {"done": f" ({attempt['previous_driver'] or 'no driver'} -> {attempt['driver'] or 'no driver'})"}
    return printable(f"to {attempt['flavour']}{ways.get(attempt['outcome'], '')}")


def _tell_outcome(attempt: Attempt) -> str:
    if attempt["outcome"] == "done":
        remarks = ["fell back"] * attempt["fallback"] + ["by force"] * bool(attempt["forced"])
        return ", ".join(["done", *remarks])
    if attempt["outcome"] in ("refused", "failed") and attempt["code"] != "failed":
        return printable(f"{attempt['outcome']}: {attempt['code']}")
    return str(attempt["outcome"])


_COLUMNS: dict[str, Callable[[Attempt], str]] = {
    "id": lambda attempt: str(attempt["id"]),
    "when": lambda attempt: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt["when"])),
    "device": lambda attempt: str(attempt["device"]),
    "what": _tell_what,
    "outcome": _tell_outcome,
    "duration": _tell_duration,
    "requester": lambda attempt: printable(attempt["requester"]) or "-",
}


def _choose_color(attempt: Attempt) -> str:
    if attempt["fallback"]:
        return YELLOW
    return _COLORS.get(attempt["outcome"], YELLOW)
