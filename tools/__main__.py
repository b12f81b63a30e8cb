"""python3 -m tools: makes anew what is made from the code."""

from .completions import render_completions
from .manual_pages import render_pages
from .messages_page import render_messages

for path, text in (render_pages() | render_completions() | render_messages()).items():
    path.write_text(text, encoding="ascii")
