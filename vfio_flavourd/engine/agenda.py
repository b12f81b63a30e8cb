"""When each device is looked at: once for a storm of events, never twice at a time, later after a failure."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ..model.address import PciAddress
from .moves import StuckError

# Events of a device within so many seconds are one; a switch makes eight of its own.
CALM = 0.05


class Agenda:
    """`look` is what is done about a device; a bug in it is reported and not tried again. While a device
    `is_in_work` nothing is done: whoever works at it has it considered at the end. `held` is called where the
    kernel has not come back with what was looked at.

    Nothing is taken up before `open` and after `close`.
    """

    def __init__(
        self,
        look: Callable[[PciAddress], Coroutine[Any, Any, None]],
        is_in_work: Callable[[PciAddress], bool],
        held: Callable[[PciAddress, StuckError], None],
    ) -> None:
        self._look = look
        self._is_in_work = is_in_work
        self._held = held
        self._again: set[PciAddress] = set()
        self._due: dict[PciAddress, asyncio.TimerHandle] = {}
        self._tasks: dict[PciAddress, asyncio.Task[None]] = {}
        self.is_opened = False
        self.is_closed = False

    @property
    def due(self) -> frozenset[PciAddress]:
        """What is to be looked at in a moment, or after a pause."""
        return frozenset(self._due)

    @property
    def looks(self) -> frozenset[asyncio.Task[None]]:
        """Those that are under way."""
        return frozenset(self._tasks.values())

    def open(self) -> None:
        self.is_opened = True

    def close(self) -> None:
        self.is_closed = True
        for due in self._due.values():
            due.cancel()
        self._due.clear()
        for task in self._tasks.values():
            task.cancel()

    def consider(self, address: PciAddress) -> None:
        """In a moment; where a pause is not over, at its end."""
        if address in self._tasks:
            self._again.add(address)
        elif self.is_opened and address not in self._due:
            self._put_off(address, CALM)

    def begin(self, address: PciAddress) -> None:
        """At once."""
        task = asyncio.create_task(self._look(address))
        self._tasks[address] = task
        task.add_done_callback(lambda done: self._end(address, done))

    def postpone(self, address: PciAddress, pause: float) -> None:
        """Not before `pause` (seconds) is over, whatever happens to it meanwhile."""
        self.call_off(address)
        self._put_off(address, pause)

    def call_off(self, address: PciAddress) -> None:
        if due := self._due.pop(address, None):
            due.cancel()

    def _put_off(self, address: PciAddress, seconds: float) -> None:
        if not self.is_closed:
            self._due[address] = asyncio.get_running_loop().call_later(seconds, self._take_up, address)

    def _take_up(self, address: PciAddress) -> None:
        del self._due[address]
        if address in self._tasks:
            self._again.add(address)
        elif not self._is_in_work(address):
            self.begin(address)

    def _end(self, address: PciAddress, done: asyncio.Task[None]) -> None:
        del self._tasks[address]
        again = address in self._again
        self._again.discard(address)
        bug = None if done.cancelled() else done.exception()
        if isinstance(bug, StuckError):
            self._held(address, bug)
        elif bug is not None:
            what = f"{address}: applying the policy to it"
            done.get_loop().call_exception_handler({"message": what, "exception": bug, "task": done})
        elif again:
            self.consider(address)
