"""Puts the figures of a run into docs/performance.md; the words around them are written by hand."""

import re
from collections.abc import Sequence
from pathlib import Path

from . import ROOT
from .chart import draw
from .measure import Row
from .table import render_markdown

PAGE = ROOT / "docs/performance.md"
PICTURES = ROOT / "docs/pictures"


def write_docs(
    name: str, title: str, where: str, rows: Sequence[Row], page: Path = PAGE, pictures: Path = PICTURES
) -> None:
    """`where` is the line that says on what it was measured."""
    text = page.read_text(encoding="utf-8")
    pictures.mkdir(exist_ok=True)
    picture = pictures / f"bench-{name}.svg"
    picture.write_text(draw(title, rows), encoding="utf-8")
    link = f"![{title}: ratios with their spread and the aims]({picture.relative_to(page.parent)})"
    page.write_text(replace(text, name, f"{where}\n\n{render_markdown(rows)}\n{link}\n"), encoding="utf-8")


def replace(text: str, name: str, made: str) -> str:
    """What stands between the two marks of that name. Raises ValueError when they are not there."""
    begin, end = f"<!-- bench: {name} -->\n", "<!-- end of bench -->"
    pattern = re.compile(rf"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    replaced, count = pattern.subn(lambda marks: f"{marks[1]}\n{made}\n{marks[2]}", text)
    if count != 1:
        raise ValueError(f"{name}: the page has {count} places for it, and should have one")
    return replaced
