"""The terminal, if there is one: its colours, and how much of a text fits in."""

from __future__ import annotations

import os

# `typing` takes longer to import than this module; only mypy needs it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

BOLD, DIM, RED, GREEN, YELLOW, OFF = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"


def wants_color(stream: TextIO, *, refused: bool) -> bool:
    """no-color.org: any text in NO_COLOR counts. A dumb terminal has no escape codes."""
    if refused or os.environ.get("NO_COLOR"):
        return False
    return is_live(stream)


def is_live(stream: TextIO) -> bool:
    """Whether it understands escape codes."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def find_width(stream: TextIO) -> int | None:
    """In columns; None where nothing is to be cut, since it is no terminal or does not tell its size."""
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except OSError:
        return None


def paint(text: str, *codes: str, color: bool) -> str:
    given = "".join(codes)
    return f"{given}{text}{OFF}" if color and given else text


def measure(text: str) -> int:
    """In columns of a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """With an ellipsis where not all of it fits."""
    if measure(text) <= width:
        return text
    while text and measure(text) >= width:
        text = text[:-1]
    return f"{text.rstrip()}…" if width > 0 else ""


def pad(text: str, width: int) -> str:
    return text + " " * (width - measure(text))


def lay_out(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The last column gives way first. Where even the others are wider than the terminal, they are cut."""
    if not rows:
        return []
    widths = [max(map(measure, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    lines = ["  ".join(map(pad, row[:-1], widths)) for row in rows]
    lines = [f"{line}  {row[-1]}" if line else row[-1] for line, row in zip(lines, rows, strict=True)]
    return [(line if width is None else shorten(line, width)).rstrip() for line in lines]
