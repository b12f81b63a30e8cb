"""The figures as a picture: a row for each side, on one axis of ratios.

A dot is the median of the ratios and the bar its spread; a tick is the aim. A dot left of its tick is
filled: the aim is met; one right of it is hollow. There are no colours, so that a print in grey tells the
same.
"""

import math
from collections.abc import Sequence

from vfio_flavourd.cli.svg import Svg

from .measure import LIMIT, Comparison, Row
from .table import format_figure, tell_limit

_AXIS = 440
# Pixels for a character of a label, rather too many than too few.
_CHARACTER = 6.2
_RIGHT = 24
_TOP = 46
_LINE = 22
_BOTTOM = 40
_INK, _PALE, _PAPER = "#222222", "#c8c8c8", "#ffffff"
_STEPS = (1, 2, 5)


def draw(title: str, rows: Sequence[Row]) -> str:
    """As SVG. What has no ratio has no place on the axis and is left to the table."""
    shown = [each for row in rows for each in row.comparisons() if each.ratio is not None]
    left = 20 + _CHARACTER * max((len(_label(each)) for each in shown), default=0)
    axis = _Axis(shown, left)
    svg = Svg(title)
    bottom = _TOP + _LINE * len(shown)
    svg.text(12, 20, title, size=15, font_weight="bold", fill=_INK)
    svg.text(
        12,
        36,
        "dots are medians: black where the aim (|) is met, white where it is missed, grey without one",
        size=11,
        fill=_INK,
    )
    for mark in axis.marks:
        x = axis.place(mark)
        svg.line(x, _TOP, x, bottom, stroke=_PALE, stroke_width=2 if mark == 1 else 1)
        svg.text(x, bottom + 15, format_figure(mark), size=11, text_anchor="middle", fill=_INK)
    svg.text(
        left + _AXIS / 2,
        bottom + 31,
        "ours / theirs, or ours / limit",
        size=11,
        text_anchor="middle",
        fill=_INK,
    )
    for number, comparison in enumerate(shown):
        _draw_line(svg, axis, comparison, _TOP + _LINE * (number + 0.5))
    return svg.render(left + _AXIS + _RIGHT, bottom + _BOTTOM)


class _Axis:
    """A logarithmic one that has room for all of them."""

    def __init__(self, shown: Sequence[Comparison], left: float) -> None:
        self.left = left
        found = [1.0]
        for each in shown:
            assert each.ratio is not None
            found += [each.ratio.low, each.ratio.high, *([each.aim] if each.aim else [])]
        self._low = math.log10(min(each for each in found if each > 0) * 0.9)
        self._high = math.log10(max(found) * 1.1)
        lowest, highest = math.floor(self._low), math.ceil(self._high)
        every = [step * 10.0**power for power in range(lowest, highest + 1) for step in _STEPS]
        self.marks = [mark for mark in every if self._low <= math.log10(mark) <= self._high]
        if len(self.marks) > 10:
            self.marks = [mark for mark in self.marks if math.log10(mark).is_integer()]

    def place(self, ratio: float) -> float:
        """Of nothing at all: the axis' end."""
        at = max(math.log10(ratio), self._low) if ratio > 0 else self._low
        return self.left + (at - self._low) / (self._high - self._low) * _AXIS


def _label(comparison: Comparison) -> str:
    row = comparison.row
    against = tell_limit(row) if comparison.against == LIMIT else f"/ {comparison.against}"
    return f"{row.what}: {row.ours} {against}"


def _draw_line(svg: Svg, axis: _Axis, comparison: Comparison, y: float) -> None:
    ratio, label = comparison.ratio, _label(comparison)
    assert ratio is not None
    with svg.titled(label):
        svg.text(axis.left - 10, y + 4, label, size=11, text_anchor="end", fill=_INK)
        left, right = axis.place(ratio.low), axis.place(ratio.high)
        svg.line(left, y, right, y, stroke=_INK, stroke_width=2)
        for end in (left, right):
            svg.line(end, y - 3, end, y + 3, stroke=_INK, stroke_width=1)
        if comparison.aim is not None:
            x = axis.place(comparison.aim)
            svg.line(x, y - 9, x, y + 9, stroke=_INK, stroke_width=3)
        fill = {None: _PALE, True: _INK, False: _PAPER}[comparison.is_met]
        # An arc of almost a whole turn: the project's pictures need no other round thing.
        x = axis.place(ratio.median)
        circle = f"M {x - 5:.2f} {y:.2f} a 5 5 0 1 1 10 0 a 5 5 0 1 1 -10 0 Z"
        svg.path(circle, fill=fill, stroke=_INK, stroke_width=2)
