"""How wide a text is in a picture, whose font isn't known: rather too wide than too narrow."""

from unicodedata import combining, east_asian_width

from ..model.printable import printable

# The widest of DejaVu Sans and Liberation Sans, in parts of the font's size: a viewer's sans-serif is most
# often one of these, or Arial, Helvetica and Noto Sans, which are no wider.
_WIDTHS = {
    character: width
    for width, characters in (
        (0.29, "'ijlI"),
        (0.36, " ,./:;\\|f-"),
        (0.41, "()[]!tr"),
        (0.52, '"*J`sz'),
        (0.56, "c?L_"),
        (0.63, "aobdeghknpquvxyFT"),
        (0.64, "$0123456789{}"),
        (0.73, "ABCEKPRSUVXYZ"),
        (0.79, "&DGHNOQ"),
        (0.86, "#+<=>^~wM"),
        (1.02, "%@mW"),
    )
    for character in characters
}
_ANY_OTHER = 1.1
_WIDE = 1.4  # with emoji among them
_BOLD = 1.27


def measure(text: str, size: float, *, bold: bool = False) -> float:
    """In the unit of `size`."""
    return sum(map(_measure_one, text)) * size * (_BOLD if bold else 1)


def _measure_one(character: str) -> float:
    width = _WIDTHS.get(character)
    if width is None:
        width = 0 if combining(character) else _WIDE if east_asian_width(character) in "WF" else _ANY_OTHER
    return width


def wrap(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """Its lines, none wider than `width`; a word that is wider is broken. At least one line."""
    lines: list[str] = []
    line = ""
    for word in printable(text).split():
        joined = f"{line} {word}" if line else word
        if measure(joined, size, bold=bold) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while measure(line, size, bold=bold) > width and len(line) > 1:
            end = len(line) - 1
            while end > 1 and measure(line[:end], size, bold=bold) > width:
                end -= 1
            lines.append(line[:end])
            line = line[end:]
    return [*lines, line] if line or not lines else lines
