"""Switches as a picture: a row for each step, its bar on a time axis that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .glyphs import wrap
from .palette import BLACK, BLUE, DARK_RED, GREEN, GREY, LIGHT, ORANGE, PALE, PURPLE, SKY, VERMILION, YELLOW
from .svg import Svg
from .timeline import Row, Section, find_sections, find_spans
from .timescale import Scale, tell_duration

_MARGIN, _PAD = 24.0, 10.0
_LANE_WIDTH, _WHAT_WIDTH, _PLOT_WIDTH, _DURATION_WIDTH = 74.0, 250.0, 660.0, 74.0
_WHAT_AT = _MARGIN + _LANE_WIDTH
_PLOT_AT = _WHAT_AT + _WHAT_WIDTH + _PAD
_PLOT_END = _PLOT_AT + _PLOT_WIDTH
_END = _PLOT_END + _PAD + _DURATION_WIDTH
_WIDTH = _END + _MARGIN
_TITLE, _BIG, _SMALL = 20.0, 14.0, 11.0
_LINE, _BAR = 16.0, 12.0
_AXIS = 34.0
_LEAST_BAR = 3.0
_GRID = "#d9d9d9"

_COLORS = {
    "turn": LIGHT,
    "wait": LIGHT,
    "guard": PURPLE,
    "load": SKY,
    "override": YELLOW,
    "unbind": ORANGE,
    "bind": BLUE,
    "ask": BLUE,
    "verify": GREEN,
}
_TOTAL = GREY
_FAILED = (
    '<pattern id="failed" width="6" height="6" patternUnits="userSpaceOnUse">'
    f'<rect width="6" height="6" fill="#ffffff"/><path d="M-1 1L1 -1M0 6L6 0M5 7L7 5" stroke="{VERMILION}" '
    'stroke-width="2"/></pattern>'
)


@dataclass(frozen=True, slots=True)
class _Laid:
    """A row with its lines."""

    row: Row
    what: list[str]
    error: list[str]

    @property
    def height(self) -> float:
        return _LINE * (len(self.what) + len(self.error)) + 4


@dataclass(frozen=True, slots=True)
class _Block:
    """A section with the lines of its heading."""

    section: Section
    heading: list[str]
    rows: list[_Laid]

    @property
    def height(self) -> float:
        heading = 4 + _LINE * len(self.heading) if self.heading else 0
        return heading + sum(row.height for row in self.rows)


def render_plot(attempts: Sequence[dict[str, Any]], title: str, subtitle: str) -> str:
    """One below another, on a common scale that begins where each was asked for."""
    spans = [span for attempt in attempts for span in find_spans(attempt)]
    drawing = _Drawing(title, Scale(spans, _PLOT_WIDTH, _SMALL))
    drawing.draw_head(title, subtitle)
    for attempt in attempts:
        drawing.draw_attempt(attempt)
    return drawing.finish()


class _Drawing:
    """`_y` is where the next thing goes."""

    def __init__(self, title: str, scale: Scale) -> None:
        self._picture = Svg(title)
        self._picture.define(_FAILED)
        self._scale = scale
        self._y = _MARGIN

    def finish(self) -> str:
        return self._picture.render(_WIDTH, self._y + _MARGIN)

    def draw_head(self, title: str, subtitle: str) -> None:
        self._write(title, _TITLE, BLACK, bold=True)
        self._write(subtitle, _SMALL, GREY)

    def draw_attempt(self, attempt: dict[str, Any]) -> None:
        self._y += 18
        self._write(attempt["title"], _BIG, BLACK, bold=True)
        for line in attempt["lines"]:
            self._write(line, _SMALL, BLACK)
        if attempt["error"]:
            self._write(f"{attempt['outcome']}: {attempt['error']}", _SMALL, DARK_RED, bold=True)
        self._y += 6
        top = self._y
        total = Row("total", "", 0.0, attempt["duration"], attempt["error"])
        blocks = [self._lay_out(section) for section in find_sections(attempt)]
        first = _Block(Section("", failed=False, rows=()), [], [_Laid(total, [""], [])])
        self._draw_axis(top, top + _AXIS + sum(block.height for block in [first, *blocks]))
        self._y += _AXIS
        for block in [first, *blocks]:
            self._draw_heading(block)
            for each in block.rows:
                self._draw_row(each)
        self._draw_breaks(top + _AXIS, self._y)

    def _write(self, text: str, size: float, color: str, *, bold: bool = False) -> None:
        for line in wrap(text, _END - _MARGIN, size, bold=bold):
            self._y += 1.35 * size
            weight = "bold" if bold else "normal"
            self._picture.text(_MARGIN, self._y, line, size=size, fill=color, font_weight=weight)

    def _draw_axis(self, top: float, bottom: float) -> None:
        for tick in self._scale.ticks():
            x = _PLOT_AT + tick.x
            self._picture.line(x, top + _AXIS - 6, x, bottom, stroke=_GRID, stroke_width=1)
            self._picture.text(x, top + _AXIS - 10, tick.label, size=_SMALL, fill=BLACK, text_anchor="middle")

    def _draw_breaks(self, top: float, bottom: float) -> None:
        for stretch in self._scale.stretches:
            if not stretch.is_break:
                continue
            middle = _PLOT_AT + (stretch.left + stretch.right) / 2
            zigzag = [f"M{middle - 4:.1f} {top - 6:.1f}"]
            y, side = top, 4.0
            while y < bottom:
                zigzag.append(f"L{middle + side:.1f} {y:.1f}")
                y, side = y + 8, -side
            said = tell_duration(stretch.end - stretch.start)
            with self._picture.titled(f"{said} are cut short here"):
                d = "".join(zigzag)
                self._picture.path(d, fill="none", stroke="#ffffff", stroke_width=9)
                for shift in (-4, 4):
                    self._picture.path(
                        d, fill="none", stroke=GREY, stroke_width=1, transform=f"translate({shift} 0)"
                    )
                self._picture.text(
                    middle, top - 24, said, size=_SMALL, fill=GREY, text_anchor="middle", font_style="italic"
                )

    def _lay_out(self, section: Section) -> _Block:
        """Its texts are beside the breaks, not across them."""
        breaks = [stretch.left for stretch in self._scale.stretches if stretch.is_break]
        end = _PLOT_AT + breaks[0] if breaks and breaks[0] > 100 else _PLOT_AT if breaks else _PLOT_END
        heading = wrap(section.title, end - _MARGIN - 8, _SMALL, bold=True) if section.title else []
        rows = []
        for row in section.rows:
            said = f"failed: {row.error}" if row.error else ""
            error = wrap(said, end - _WHAT_AT, _SMALL, bold=True) if said else []
            rows.append(_Laid(row, wrap(row.what, _WHAT_WIDTH, _SMALL), error))
        return _Block(section, heading, rows)

    def _draw_heading(self, block: _Block) -> None:
        if not block.heading:
            return
        height = _LINE * len(block.heading)
        self._picture.rectangle(_MARGIN, self._y + 2, _END - _MARGIN, height, fill=PALE)
        self._y += 2
        color = DARK_RED if block.section.failed else BLACK
        for line in block.heading:
            self._y += _LINE
            self._picture.text(_MARGIN + 4, self._y - 4, line, size=_SMALL, fill=color, font_weight="bold")
        self._y += 2

    def _draw_row(self, laid: _Laid) -> None:
        row, y = laid.row, self._y
        duration = tell_duration(row.end - row.start)
        color = DARK_RED if row.error else BLACK
        said = f"{row.lane}: {row.what}" if row.what else row.lane
        title = f"{said}: {duration}, from {tell_duration(row.start)} on"
        with self._picture.titled(f"{title}: {row.error}" if row.error else title):
            self._picture.text(_MARGIN + 4, y + 12, row.lane, size=_SMALL, fill=GREY)
            self._draw_bar(row, y + 3)
            self._picture.text(_END, y + 12, duration, size=_SMALL, fill=color, text_anchor="end")
            for line in laid.what:
                if line:
                    self._picture.text(_WHAT_AT, y + 12, line, size=_SMALL, fill=BLACK)
                y += _LINE
            for line in laid.error:
                self._picture.text(_WHAT_AT, y + 12, line, size=_SMALL, fill=DARK_RED, font_weight="bold")
                y += _LINE
        self._y = y + 4

    def _draw_bar(self, row: Row, y: float) -> None:
        left = _PLOT_AT + self._scale.place(row.start)
        right = _PLOT_AT + self._scale.place(row.end)
        if right - left < _LEAST_BAR:
            left = min(left, _PLOT_END - _LEAST_BAR)
            right = left + _LEAST_BAR
        color = _COLORS.get(row.lane, _TOTAL)
        self._picture.rectangle(
            left,
            y,
            right - left,
            _BAR,
            fill="url(#failed)" if row.error else color,
            stroke=DARK_RED if row.error else BLACK,
            stroke_width=1.5 if row.error else 0.5,
        )
        if row.error:
            self._draw_cross(right, y)

    def _draw_cross(self, x: float, y: float) -> None:
        """Beside the end of the bar, or before it at the picture's edge."""
        x = x + 4 if x + 4 + _BAR <= _PLOT_END + _PAD else x - 4 - _BAR
        d = f"M{x:.1f} {y + 1:.1f}l10 10m0 -10l-10 10"
        self._picture.path(d, stroke="#ffffff", stroke_width=6, fill="none")
        self._picture.path(d, stroke=DARK_RED, stroke_width=2.5, fill="none")
