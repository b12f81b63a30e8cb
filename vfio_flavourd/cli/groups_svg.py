"""IOMMU groups as a picture: a card for each group, in columns from left to right."""

from dataclasses import dataclass
from typing import Any

from .glyphs import measure, wrap
from .group_words import (
    NO_DEVICES,
    NO_GROUP,
    NO_GROUP_TAKES,
    find_kind,
    tell_driver,
    tell_standing,
    tell_state,
    tell_takes,
)
from .palette import BLACK, DARK_RED, GREEN, GREY, PALE, VERMILION, Look, find_looks
from .svg import Svg

_CARD, _GAP, _MARGIN, _PAD = 400.0, 16.0, 24.0, 12.0
_BAND = 14.0
_LINE = 16.0
_TITLE, _BIG, _SMALL = 20.0, 13.0, 11.0
_TEXT_AT = _BAND + 10
_KIND_AT, _DRIVER_AT = _TEXT_AT + 108, _TEXT_AT + 190

# Width, colour and dashes of a card's border.
_BORDERS = {
    "ready": (3.5, GREEN, "none"),
    "free": (1.5, GREEN, "12 3 2 3"),
    "host": (1.5, GREY, "none"),
    "mixed": (3.5, VERMILION, "10 5"),
    "bridges": (1.5, GREY, "2 3"),
    "unprotected": (3.5, VERMILION, "2 4"),
}
_LEGEND = {
    "ready": "viable, a guest can have it",
    "free": "viable, nobody has it",
    "host": "the host has it",
    "mixed": "not viable, though a part is on VFIO",
    "bridges": "only bridges",
    "unprotected": "not isolated",
}


@dataclass(frozen=True, slots=True)
class _Row:
    """A device in a card. `head` is what stands beside its address, each with its column and its line."""

    member: dict[str, Any]
    head: list[tuple[float, int, str]]
    name: list[str]
    standing: str

    @property
    def head_lines(self) -> int:
        return 1 + max(number for _, number, _ in self.head)

    @property
    def height(self) -> float:
        return 8 + _LINE * (self.head_lines + len(self.name) + bool(self.standing))


@dataclass(frozen=True, slots=True)
class _Card:
    state: str
    title: str
    head: list[str]
    rows: list[_Row]
    takes: list[str]

    @property
    def height(self) -> float:
        lines = 1 + len(self.head) + len(self.takes)
        return 2 * _PAD + _LINE * lines + sum(row.height + 6 for row in self.rows) + (4 if self.takes else -4)


def render_groups(answer: dict[str, Any], title: str, subtitle: str) -> str:
    cards = [_make_card(group) for group in answer["groups"]]
    if answer["ungrouped"]:
        cards.append(_make_ungrouped(answer["ungrouped"]))
    columns = _arrange(cards)
    width = max(2 * _MARGIN + len(columns) * (_CARD + _GAP) - _GAP, 2 * _MARGIN + 1.5 * _CARD)
    looks = find_looks(find_kind(row.member) for card in cards for row in card.rows)
    picture = Svg(title)
    for look in looks.values():
        if look.pattern:
            picture.define(look.define())
    top = _draw_head(picture, title, subtitle if cards else NO_DEVICES, width)
    top = _draw_legend(picture, looks, {card.state for card in cards}, width, top)
    bottom = top
    for number, column in enumerate(columns):
        y = top
        for card in column:
            _draw_card(picture, card, looks, _MARGIN + number * (_CARD + _GAP), y)
            y += card.height + _GAP
        bottom = max(bottom, y - _GAP)
    return picture.render(width, bottom + _MARGIN)


def _make_card(group: dict[str, Any]) -> _Card:
    return _Card(
        group["state"],
        f"IOMMU group {group['group']}",
        wrap(tell_state(group), _CARD - 2 * _PAD, _SMALL),
        [_make_row(member, group) for member in group["members"]],
        [part for line in tell_takes(group) for part in wrap(line, _CARD - 2 * _PAD, _SMALL)],
    )


def _make_ungrouped(members: list[dict[str, Any]]) -> _Card:
    return _Card(
        "unprotected",
        "no IOMMU group",
        wrap(NO_GROUP, _CARD - 2 * _PAD, _SMALL),
        [_make_row(member, None) for member in members],
        wrap(NO_GROUP_TAKES, _CARD - 2 * _PAD, _SMALL),
    )


def _make_row(member: dict[str, Any], group: dict[str, Any] | None) -> _Row:
    inside = _CARD - 2 * _PAD
    return _Row(
        member,
        _place_head(find_kind(member), tell_driver(member)),
        wrap(member["name"], inside - _TEXT_AT - 6, _SMALL),
        tell_standing(member, group),
    )


def _place_head(kind: str, driver: str) -> list[tuple[float, int, str]]:
    """The flavour and the driver side by side, or the driver below a flavour with a long name."""
    end = _CARD - 2 * _PAD - 6
    kinds = wrap(kind, end - _KIND_AT, _SMALL)
    beside = len(kinds) == 1 and measure(kind, _SMALL) <= _DRIVER_AT - _KIND_AT - 8
    at, first = (_DRIVER_AT, 0) if beside else (_KIND_AT, len(kinds))
    drivers = wrap(driver, end - at, _SMALL)
    return [(_KIND_AT, number, line) for number, line in enumerate(kinds)] + [
        (at, first + number, line) for number, line in enumerate(drivers)
    ]


def _arrange(cards: list[_Card]) -> list[list[_Card]]:
    """In their order, in so many columns that the picture is about as wide as a screen."""
    total = sum(card.height + _GAP for card in cards)
    count = max(1, round((1.6 * total / (_CARD + _GAP)) ** 0.5))
    columns: list[list[_Card]] = []
    filled = 0.0
    for card in cards:
        if not columns or (filled + card.height / 2 > total / count and len(columns) < count):
            columns.append([])
            filled = 0.0
        columns[-1].append(card)
        filled += card.height + _GAP
    return columns


def _draw_head(picture: Svg, title: str, subtitle: str, width: float) -> float:
    y = _MARGIN
    for line in wrap(title, width - 2 * _MARGIN, _TITLE, bold=True):
        y += 1.2 * _TITLE
        picture.text(_MARGIN, y, line, size=_TITLE, font_weight="bold", fill=BLACK)
    for line in wrap(subtitle, width - 2 * _MARGIN, _BIG):
        y += 1.4 * _BIG
        picture.text(_MARGIN, y, line, size=_BIG, fill=GREY)
    return y + 14


def _draw_legend(picture: Svg, looks: dict[str, Look], states: set[str], width: float, top: float) -> float:
    """What the bands and the borders mean, as far as there are any."""
    x, y = _MARGIN, top
    for kind, look in looks.items():
        label = "bridge, does not count" if kind == "bridge" else kind
        x, y = _next_place(x, y, label, width)
        picture.rectangle(x, y, 28, _BAND, fill=look.fill, stroke=BLACK, stroke_width=0.5)
        picture.text(x + 34, y + 11, label, size=_SMALL, fill=BLACK)
        x += 34 + measure(label, _SMALL) + 20
    for state, label in _LEGEND.items():
        if state in states:
            x, y = _next_place(x, y, label, width)
            _draw_border(picture, state, x + 2, y + 2, 24, _BAND - 4)
            picture.text(x + 34, y + 11, label, size=_SMALL, fill=BLACK)
            x += 34 + measure(label, _SMALL) + 20
    return y + (_BAND + 18 if looks else 0)


def _next_place(x: float, y: float, label: str, width: float) -> tuple[float, float]:
    if x > _MARGIN and x + 34 + measure(label, _SMALL) > width - _MARGIN:
        return _MARGIN, y + _BAND + 8
    return x, y


def _draw_border(picture: Svg, state: str, x: float, y: float, width: float, height: float) -> None:
    thick, color, dashes = _BORDERS[state]
    picture.rectangle(
        x,
        y,
        width,
        height,
        rx=4.0,
        fill="#ffffff",
        stroke=color,
        stroke_width=thick,
        stroke_dasharray=dashes,
    )


def _draw_card(picture: Svg, card: _Card, looks: dict[str, Look], x: float, y: float) -> None:
    parts = (card.title, " ".join(card.head), " ".join(card.takes))
    with picture.titled("; ".join(part for part in parts if part)):
        _draw_border(picture, card.state, x, y, _CARD, card.height)
        y += _PAD + 12
        picture.text(x + _PAD, y, card.title, size=_BIG, font_weight="bold", fill=BLACK)
        wrong = card.state in ("mixed", "unprotected")
        for line in card.head:
            y += _LINE
            picture.text(x + _PAD, y, line, size=_SMALL, fill=DARK_RED if wrong else BLACK)
        y += 8
        for row in card.rows:
            _draw_row(picture, row, looks[find_kind(row.member)], x + _PAD, y)
            y += row.height + 6
        y -= 4
        for line in card.takes:
            y += _LINE
            picture.text(x + _PAD, y, line, size=_SMALL, fill=BLACK)


def _draw_row(picture: Svg, row: _Row, look: Look, x: float, y: float) -> None:
    member, width = row.member, _CARD - 2 * _PAD
    wrong = row.standing in ("in the way", "stuck")
    kind = find_kind(member)
    parts = (member["device"], kind, tell_driver(member), row.standing, member["name"])
    with picture.titled(", ".join(part for part in parts if part)):
        picture.rectangle(
            x,
            y,
            width,
            row.height,
            fill=PALE,
            stroke=DARK_RED if wrong else "none",
            stroke_width=2 if wrong else 0,
        )
        picture.rectangle(x, y, _BAND, row.height, fill=look.fill, stroke=BLACK, stroke_width=0.5)
        y += _LINE
        picture.text(x + _TEXT_AT, y, member["device"], size=_BIG, fill=BLACK)
        for at, number, line in row.head:
            picture.text(x + at, y + number * _LINE, line, size=_SMALL, fill=BLACK)
        y += row.head_lines * _LINE
        for line in row.name:
            picture.text(x + _TEXT_AT, y, line, size=_SMALL, fill=GREY)
            y += _LINE
        if row.standing:
            color = DARK_RED if wrong else GREY
            picture.text(x + _TEXT_AT, y, row.standing, size=_SMALL, font_weight="bold", fill=color)
