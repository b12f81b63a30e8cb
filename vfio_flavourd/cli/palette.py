"""Colours and patterns of the pictures.

The colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which people with any kind of colour
blindness tell apart; each has a pattern too, for those who print in grey.
"""

from collections.abc import Iterable
from dataclasses import dataclass

BLACK, GREY, LIGHT, PALE = "#1a1a1a", "#5f5f5f", "#b3b3b3", "#f2f2f2"
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, YELLOW = "#cc79a7", "#56b4e9", "#f0e442"
DARK_RED = "#a03a00"  # vermilion for text: its contrast with white is 6.6


@dataclass(frozen=True, slots=True)
class Look:
    """`pattern` is what is drawn over the colour in a square of 8 pixels; `border` the kind of line that DOT
    has for it."""

    name: str
    color: str
    pattern: str
    border: str

    @property
    def fill(self) -> str:
        return f"url(#{self.name})" if self.pattern else self.color

    def define(self) -> str:
        """The SVG pattern; empty where there is none."""
        if not self.pattern:
            return ""
        return (
            f'<pattern id="{self.name}" width="8" height="8" patternUnits="userSpaceOnUse">'
            f'<rect width="8" height="8" fill="{self.color}"/>'
            f'<path d="{self.pattern}" stroke="#ffffff" stroke-width="2" fill="none"/></pattern>'
        )


_SLASHES = "M-2 2L2 -2M0 8L8 0M6 10L10 6"
_BACKSLASHES = "M-2 6L2 10M0 0L8 8M6 -2L10 2"
_BARS = "M0 4H8"
_COLUMNS = "M4 0V8"
_CROSSES = "M0 4H8M4 0V8"
_GRID = "M0 0L8 8M0 8L8 0"

NATIVE = Look("look-native", BLUE, "", "solid")
VFIO = Look("look-vfio", ORANGE, _SLASHES, "bold")
BRIDGE = Look("look-bridge", LIGHT, "", "dotted")
_OWN = (
    Look("look-own-1", GREEN, _BARS, "dashed"),
    Look("look-own-2", PURPLE, _COLUMNS, "dashed"),
    Look("look-own-3", SKY, _CROSSES, "dashed"),
    Look("look-own-4", VERMILION, _BACKSLASHES, "dashed"),
    Look("look-own-5", YELLOW, _GRID, "dashed"),
)


def find_looks(kinds: Iterable[str]) -> dict[str, Look]:
    """By flavour, or `bridge`. The policy's own flavours have theirs in their order; a sixth shares."""
    fixed = {"native": NATIVE, "vfio": VFIO, "bridge": BRIDGE}
    seen = set(kinds)
    own = sorted(seen - set(fixed))
    looks = {kind: look for kind, look in fixed.items() if kind in seen}
    return looks | {kind: _OWN[number % len(_OWN)] for number, kind in enumerate(own)}
