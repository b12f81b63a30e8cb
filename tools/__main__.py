"""python3 -m tools: makes anew what is made from the code."""

from .completions import render_completions
from .manual_pages import render_pages
from .messages_page import render_messages
from .watching_page import render_watching

for path, text in (render_pages() | render_completions() | render_messages() | render_watching()).items():
    path.write_text(text, encoding="ascii")
