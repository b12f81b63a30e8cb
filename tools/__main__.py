"""python3 -m tools: makes anew what is made from the code."""

from .completions import render_completions
from .manual_pages import render_pages

for path, text in (render_pages() | render_completions()).items():
    path.write_text(text, encoding="ascii")
