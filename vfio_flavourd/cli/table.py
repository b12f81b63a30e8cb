"""Columns that are as wide as what stands in them."""

from collections.abc import Sequence

from .terminal import measure, pad, shorten


def lay_out(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The last column gives way first. Where even the others are wider than the terminal, they are cut."""
    if not rows:
        return []
    widths = [max(map(measure, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    lines = ["  ".join(map(pad, row[:-1], widths)) for row in rows]
    lines = [f"{line}  {row[-1]}" if line else row[-1] for line, row in zip(lines, rows, strict=True)]
    return [(line if width is None else shorten(line, width)).rstrip() for line in lines]
