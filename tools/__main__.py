"""python3 -m tools: makes anew what is made from the code."""

from .completions import render_completions
from .manual_pages import render_pages
from .messages_page import render_messages
from .sbom import render_bill
from .watching_page import render_watching

made = render_pages() | render_completions() | render_messages() | render_watching() | render_bill()
for path, text in made.items():
    path.write_text(text, encoding="ascii")
