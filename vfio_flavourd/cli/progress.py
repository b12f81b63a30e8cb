"""The steps of a switch on standard error, as they happen."""

import sys
import time
from typing import Any

from ..model.printable import printable
from .output import tell_step
from .terminal import DIM, find_width, is_live, paint, shorten, wants_color

# To the line's beginning, and clear what stands there.
_AGAIN = "\r\x1b[K"


class Progress:
    """On a terminal the step that is under way is shown too, in a line that its end replaces; elsewhere each
    step is one plain line when it is over."""

    def __init__(self, *, no_color: bool) -> None:
        self._stream = sys.stderr
        self._live = is_live(self._stream)
        self._color = wants_color(self._stream, refused=no_color)
        self._running = ""
        self._since = 0.0

    def begin(self, what: str) -> None:
        self._running = printable(what)
        self._since = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """The time that the running step has taken."""
        if not self._live or not self._running:
            return
        seconds = int(time.monotonic() - self._since)
        line = f"  {self._running} …{f' {seconds} s' if seconds else ''}"
        # One column less: at the last one some terminals go on to the next line.
        line = shorten(line, (find_width(self._stream) or 80) - 1)
        self._write(f"{_AGAIN}{paint(line, DIM, color=self._color)}")

    def end(self, step: dict[str, Any]) -> None:
        self.clear()
        self._write(f"  {tell_step(step, color=self._color)}\n")

    def clear(self) -> None:
        """Nothing is under way."""
        if self._live and self._running:
            self._write(_AGAIN)
        self._running = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
