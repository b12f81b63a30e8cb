"""What a worker is in the kernel with, and whether that takes longer than it should."""

import time
from collections.abc import Iterable

from ..kernel.places import LONG
from ..model.plan import Step

# What follows the steps of every batch.
READ_BACK = "read back what it has"


class Delay:
    """Of one batch after the other: `begin`, `pass_on` after each step, `end`. `step` is what it is at, None
    where it is not waited for."""

    def __init__(self) -> None:
        self._ahead: list[str] = []
        self._pid = 0
        self._since = 0.0

    @property
    def step(self) -> str | None:
        return self._ahead[0] if self._ahead else None

    def begin(self, pid: int, steps: Iterable[Step]) -> None:
        self._ahead = [*map(str, steps), READ_BACK]
        self._pid = pid
        self._since = time.monotonic()

    def pass_on(self) -> None:
        """The step that was under way has returned."""
        del self._ahead[:1]
        self._since = time.monotonic()

    def end(self) -> None:
        self._ahead = []

    def find(self) -> str | None:
        """What the kernel has not come back from for longer than a switch should take."""
        seconds = time.monotonic() - self._since
        if not self._ahead or seconds < LONG:
            return None
        when = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
        return f"'{self._ahead[0]}' has not returned since {when} (process {self._pid})"
