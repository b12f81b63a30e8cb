"""How figures are taken: all sides in turn, round by round, and ratios only within a round.

What else goes on in a machine slows down the sides of one round alike, so their ratio says more than the
ratio of two medians would.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# One measurement of a side: what was measured -> the figure.
Side = Callable[[], Mapping[str, float]]
# What was measured -> side -> a figure a round.
Samples = dict[str, dict[str, list[float]]]

# In place of a side, where a figure of ours is compared with a limit.
LIMIT = "limit"

MICROSECONDS = 1e6
MILLISECONDS = 1e3
SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    rounds: int
    """Of what takes less than a second."""
    guest_rounds: int
    """Of a switch in the guest."""
    slow_rounds: int
    """Of what takes many seconds."""
    warm_up: bool
    """Whether there is a round before the first that doesn't count."""
    repeat: int
    """Calls in a row, of what takes microseconds."""
    aliases: tuple[int, int]
    """Lines of the index: a distribution's, and a large one."""
    modules: int
    devices: tuple[int, ...]
    """Of the fake host, in ascending order."""
    events: int
    """Of a storm."""
    guest_events: int
    """The same, of real ones."""
    vfs: int
    idle: float
    """Seconds."""


FULL = Scale(
    rounds=30,
    guest_rounds=8,
    slow_rounds=3,
    warm_up=True,
    repeat=200,
    aliases=(27_405, 1_000_000),
    modules=3_900,
    devices=(10, 100, 1000),
    events=20_000,
    guest_events=5_000,
    vfs=64,
    idle=60.0,
)
QUICK = Scale(
    rounds=2,
    guest_rounds=1,
    slow_rounds=1,
    warm_up=False,
    repeat=5,
    aliases=(300, 2_000),
    modules=20,
    devices=(2, 10),
    events=200,
    guest_events=60,
    vfs=3,
    idle=2.0,
)


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float


def spread(figures: Sequence[float]) -> Spread:
    return Spread(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A line of the table and of the chart: one side, or a limit, and how much of it is ours."""

    row: "Row"
    against: str
    theirs: Spread | None
    """None for a limit, and for a side that is not there."""
    ratio: Spread | None
    """None when there is nothing to divide by."""
    aim: float | None
    """The largest ratio that will do."""

    @property
    def is_met(self) -> bool | None:
        """None where nothing is aimed at, or nothing was measured."""
        if self.against == LIMIT:
            assert self.row.limit is not None
            return self.row.spread.median <= self.row.limit
        if self.aim is None or self.ratio is None:
            return None
        return self.ratio.median <= self.aim


@dataclass(frozen=True, slots=True)
class Row:
    """One question. Its aims are ratios to other sides, of which some may not be there, or a `limit` to ours
    in the row's own unit."""

    what: str
    unit: str
    ours: str
    samples: Mapping[str, Sequence[float]]
    aims: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None

    @property
    def spread(self) -> Spread:
        return spread(self.samples[self.ours])

    def comparisons(self) -> list[Comparison]:
        made = []
        others = [side for side in self.samples if side != self.ours]
        for side in [*others, *(side for side in self.aims if side not in others)]:
            aim = self.aims.get(side)
            if side not in self.samples:
                made.append(Comparison(self, side, None, None, aim))
                continue
            theirs = self.samples[side]
            pairs = zip(self.samples[self.ours], theirs, strict=True)
            ratio = spread([ours / other for ours, other in pairs]) if min(theirs) > 0 else None
            made.append(Comparison(self, side, spread(theirs), ratio, aim))
        if self.limit is not None:
            limit = self.limit
            parts = spread([each / limit for each in self.samples[self.ours]]) if limit > 0 else None
            made.append(Comparison(self, LIMIT, None, parts, 1.0))
        return made


def run_rounds(sides: Mapping[str, Side], rounds: int, *, warm_up: bool) -> Samples:
    """Each round begins with another side, so that none always follows the same one."""
    taken: Samples = {}
    names = list(sides)
    for number in range(-1 if warm_up else 0, rounds):
        start = number % len(names)
        for name in [*names[start:], *names[:start]]:
            figures = sides[name]()
            if number < 0:
                continue
            for what, figure in figures.items():
                taken.setdefault(what, {each: [] for each in names if each in sides})[name].append(figure)
    # A side need not measure everything that another does.
    return {
        what: {name: figures for name, figures in by_side.items() if figures}
        for what, by_side in taken.items()
    }


def timed(call: Callable[[], object], unit: float = MILLISECONDS, repeat: int = 1, what: str = "") -> Side:
    """One call's time, of `repeat` in a row."""

    def side() -> dict[str, float]:
        begin = time.perf_counter()
        for _ in range(repeat):
            call()
        return {what: (time.perf_counter() - begin) / repeat * unit}

    return side
