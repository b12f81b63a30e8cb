"""The figures as a table, for a terminal and in Markdown."""

from collections.abc import Sequence

from .measure import LIMIT, Comparison, Row, Spread

HEADER = ("what", "ours", "against", "theirs", "ratio", "aim", "met")


def lay_out(rows: Sequence[Row]) -> str:
    """For a terminal."""
    lines = [HEADER, *_cells(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join(padded) + "\n"


def render_markdown(rows: Sequence[Row]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *_cells(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def tell_limit(row: Row) -> str:
    return f"≤ {format_figure(row.limit or 0.0)} {row.unit}"


def format_figure(figure: float) -> str:
    """Three digits that count."""
    if figure >= 100 or figure == int(figure):
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"


def format_spread(given: Spread, unit: str = "") -> str:
    """The median and, where there was more than one round, the least and the most."""
    text = format_figure(given.median)
    if given.low < given.high:
        text += f" ({format_figure(given.low)}..{format_figure(given.high)})"
    return f"{text} {unit}".rstrip()


def _cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    made = []
    for row in rows:
        what, ours = row.what, f"{row.ours}: {format_spread(row.spread, row.unit)}"
        for comparison in row.comparisons():
            made.append((what, ours, *_compare(comparison)))
            what = ours = ""
    return made


def _compare(comparison: Comparison) -> tuple[str, ...]:
    row = comparison.row
    met = {None: "", True: "yes", False: "**no**"}[comparison.is_met]
    if comparison.against == LIMIT:
        return "", "", "", tell_limit(row), met
    theirs = "not there" if comparison.theirs is None else format_spread(comparison.theirs, row.unit)
    ratio = "" if comparison.ratio is None else format_spread(comparison.ratio)
    aim = "" if comparison.aim is None else f"≤ {comparison.aim:g}"
    return comparison.against, theirs, ratio, aim, met
