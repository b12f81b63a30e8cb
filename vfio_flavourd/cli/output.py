"""How things are printed: for people, and as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from ..model.printable import printable

BOLD, DIM, RED, GREEN, OFF = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"


def print_json(data: dict[str, Any]) -> None:
    print(json.dumps({"version": 1, **data}, indent=2))


def print_candidates(resolution: dict[str, Any]) -> None:
    for number, candidate in enumerate(resolution["candidates"], start=1):
        mark = "->" if candidate["accepted"] and candidate["module"] == resolution.get("winner") else "  "
        print(f"  {mark} {number}. {candidate['module']}: {printable(candidate['reason'])}")
    for warning in resolution["warnings"]:
        print(f"  warning: {printable(warning)}")


def print_facts(rows: Sequence[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"  {name + ':':<11}{value}")


def text(value: object, absent: str = "-") -> str:
    return absent if value is None else str(value)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, color: bool) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    bold, green, off = (BOLD, GREEN, OFF) if color else ("",) * 3
    for row in [header, *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        paint = bold if row is header else green if row[1].startswith("vfio") else ""
        print(f"{paint}{line}{off if paint else ''}")
