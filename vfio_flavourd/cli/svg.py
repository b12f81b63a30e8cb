"""A picture in SVG, put together element by element; all text in it is escaped."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..model.printable import printable

_ROOT = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    'viewBox="0 0 {width} {height}" font-family="sans-serif" role="img">'
)

# Within a text as well as an attribute. `xml.sax.saxutils` takes longer to import than all else here.
_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord('"'): "&quot;"}

Value = str | float


class Svg:
    """Lengths are in pixels, as long as nobody scales the picture."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._definitions: list[str] = []
        self._elements: list[str] = []

    def define(self, element: str) -> None:
        """A pattern or the like, for `url(#…)`."""
        self._definitions.append(element)

    def rectangle(self, x: float, y: float, width: float, height: float, **style: Value) -> None:
        self._add("rect", {"x": x, "y": y, "width": width, "height": height, **style})

    def line(self, x1: float, y1: float, x2: float, y2: float, **style: Value) -> None:
        self._add("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, **style})

    def path(self, d: str, **style: Value) -> None:
        self._add("path", {"d": d, **style})

    def text(self, x: float, y: float, text: str, *, size: float, **style: Value) -> None:
        """`y` is that of the base line."""
        start = self._open("text", {"x": x, "y": y, "font_size": size, **style})
        self._elements.append(f"{start}>{_text(text)}</text>")

    @contextmanager
    def titled(self, title: str) -> Iterator[None]:
        """What is drawn meanwhile has this title, which viewers show at the pointer."""
        self._elements.append(f"<g><title>{_text(title)}</title>")
        yield
        self._elements.append("</g>")

    def render(self, width: float, height: float) -> str:
        return "\n".join(
            (
                '<?xml version="1.0" encoding="UTF-8"?>',
                _ROOT.format(width=_number(width), height=_number(height)),
                f"<title>{_text(self._title)}</title>",
                *(("<defs>", *self._definitions, "</defs>") if self._definitions else ()),
                '<rect width="100%" height="100%" fill="#ffffff"/>',
                *self._elements,
                "</svg>\n",
            )
        )

    def _add(self, name: str, attributes: dict[str, Value]) -> None:
        self._elements.append(f"{self._open(name, attributes)}/>")

    @staticmethod
    def _open(name: str, attributes: dict[str, Value]) -> str:
        each = [
            f' {key.replace("_", "-")}="{_text(value) if isinstance(value, str) else _number(value)}"'
            for key, value in attributes.items()
        ]
        return f"<{name}{''.join(each)}"


def _text(text: str) -> str:
    """A character that XML can't have is not printable either."""
    return printable(text).translate(_ESCAPES)


def _number(value: float) -> str:
    """Two digits are finer than anyone sees."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
