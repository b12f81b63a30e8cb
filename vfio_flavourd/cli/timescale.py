"""From seconds to places in a picture.

The scale is linear but for breaks: a stretch in which nothing begins or ends, and beside which something else
would be too small to be seen, is cut short.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from .glyphs import measure

# What is left beside a stretch, as a part of all: below it the stretch is cut.
_TOO_LITTLE = 1 / 12
_MOST_BREAKS = 5
_BREAK_WIDTH = 70.0
# Digits of a second: what is nearer to another than a microsecond is drawn at the same place.
_FINEST = 6
_BETWEEN_LABELS = 14.0


Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Stretch:
    """From `start` to `end` (seconds), drawn from `left` to `right`."""

    start: float
    end: float
    left: float
    right: float
    is_break: bool


@dataclass(frozen=True, slots=True)
class Tick:
    x: float
    label: str


class Scale:
    """Of what lasts from one time to another, from 0 on, drawn from 0 to `width`."""

    def __init__(self, spans: Iterable[Span], width: float, label_size: float) -> None:
        self._label_size = label_size
        rounded = [(_round(start), _round(end)) for start, end in spans]
        points = sorted({0.0, *(time for span in rounded for time in span)})
        if len(points) == 1:
            points.append(1e-3)
        pieces = list(pairwise(points))
        breaks = _find_breaks(pieces, rounded)
        linear = sum(end - start for number, (start, end) in enumerate(pieces) if number not in breaks)
        broken = min(_BREAK_WIDTH, width / 2 / max(len(breaks), 1))
        self._density = (width - len(breaks) * broken) / linear
        self.stretches: list[Stretch] = []
        x = 0.0
        for number, (start, end) in enumerate(pieces):
            is_break = number in breaks
            right = x + (broken if is_break else (end - start) * self._density)
            last = self.stretches[-1] if self.stretches else None
            if last is not None and not last.is_break and not is_break:
                self.stretches[-1] = Stretch(last.start, end, last.left, right, is_break=False)
            else:
                self.stretches.append(Stretch(start, end, x, right, is_break))
            x = right

    def place(self, seconds: float) -> float:
        for stretch in self.stretches:
            if seconds <= stretch.end:
                part = max(0.0, seconds - stretch.start) / (stretch.end - stretch.start)
                return stretch.left + part * (stretch.right - stretch.left)
        return self.stretches[-1].right

    def ticks(self) -> list[Tick]:
        """At round times, none of whose labels overlap."""
        latest = self.stretches[-1].end
        step = _find_step(_BETWEEN_LABELS / self._density)
        while measure(label_time(latest, step), self._label_size) + _BETWEEN_LABELS > step * self._density:
            step = _find_step(step * 1.5)
        ticks: list[Tick] = []
        end = -math.inf
        for stretch in self.stretches:
            if stretch.is_break:
                continue
            first, last = math.ceil(stretch.start / step - 1e-6), math.floor(stretch.end / step + 1e-6)
            for number in range(first, last + 1):
                x = self.place(number * step)
                label = label_time(number * step, step)
                half = measure(label, self._label_size) / 2
                if x - half >= end:
                    ticks.append(Tick(x, label))
                    end = x + half + _BETWEEN_LABELS / 2
        return ticks


def _round(seconds: float) -> float:
    return round(max(0.0, seconds), _FINEST)


def _find_breaks(pieces: list[Span], spans: list[Span]) -> set[int]:
    """Their numbers. Where all that there is lasts over a piece, nothing would be seen better without it."""
    breaks: set[int] = set()
    left = {number: end - start for number, (start, end) in enumerate(pieces)}
    while len(breaks) < _MOST_BREAKS:
        longest = max(left, key=lambda number: left[number])
        start, end = pieces[longest]
        rest = sum(left.values()) - left[longest]
        if rest <= 0 or rest >= sum(left.values()) * _TOO_LITTLE:
            return breaks
        if all(span[0] <= start and end <= span[1] for span in spans):
            return breaks
        breaks.add(longest)
        del left[longest]
    return breaks


def _find_step(least: float) -> float:
    """The next of 1, 2, 5, 10, … that is no smaller."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def label_time(seconds: float, step: float) -> str:
    """With the digits that tell it from its neighbours."""
    unit, scale = ("ms", 1e3) if seconds < 1 and step < 1 else ("s", 1.0)
    digits = max(0, -math.floor(math.log10(step * scale) + 1e-9))
    return f"{seconds * scale:.{digits}f} {unit}"


def tell_duration(seconds: float) -> str:
    """In three digits."""
    if seconds < 0.9995:
        number, unit = seconds * 1e3, "ms"
    else:
        number, unit = seconds, "s"
    digits = 0 if number >= 99.95 else 1 if number >= 9.995 else 2 if number >= 0.9995 else 3
    return f"{number:.{digits}f} {unit}"
