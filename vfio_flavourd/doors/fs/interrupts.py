"""Ctrl-C on a write that waits.

The kernel sends FUSE_INTERRUPT when a signal comes for a task that waits for an answer, and even
SIGKILL waits for that answer then (fs/fuse/dev.c: request_wait_answer). libfuse takes the message, but
pyfuse3 does not pass it on (3.2 to 3.5). What can be seen is that a message came: each one makes the
device readable. So whenever it does, the tasks that wait are looked at for a signal.
"""

import asyncio
import select
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

try:
    import pyfuse3.asyncio as pyfuse3_asyncio
except ModuleNotFoundError:  # 3.2, as in Debian 12, is one extension module with another beside it
    import pyfuse3_asyncio  # type: ignore[import-not-found, no-redef]

# Signals whose default is to be ignored: a shell with a child that ends is no reason to give up.
_HARMLESS = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
_HARMLESS_MASK = sum(1 << (number - 1) for number in _HARMLESS)

# Between two looks at those who wait: so many seconds at the least, and so many times as long as one takes.
# On a slow machine, with a hundred who write, nothing else would be done otherwise.
_PAUSE = 0.1
_SHARE = 9


class Interrupts:
    """Cancels the work of a task that has been sent a signal."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Task[Any], int] = {}
        self._readable: asyncio.Future[None] | None = None
        self._is_watched = False
        self._is_left = False
        self._next_look: asyncio.TimerHandle | None = None
        self._rests_until = 0.0

    def install(self) -> None:
        """Switch pyfuse3 to asyncio, and have every message on the FUSE device looked at."""
        pyfuse3_asyncio.enable()
        pyfuse3_asyncio.wait_readable = self.wait_readable
        pyfuse3_asyncio.notify_closing = self.notify_closing

    async def wait_readable(self, fd: int) -> None:
        """Instead of pyfuse3's own, which begins and ends watching the device for each message. There is one
        at a time who waits: pyfuse3 has a lock for that."""
        loop = asyncio.get_running_loop()
        self._readable = loop.create_future()
        self._is_left = False
        if not self._is_watched:
            self._is_watched = True
            loop.add_reader(fd, self._see, fd)
        await self._readable
        if self._waiting and self._next_look is None:
            # A look goes through all who wait, and of those who write there may be hundreds.
            when = max(loop.time(), self._rests_until)
            self._next_look = loop.call_at(when, self.look)

    def notify_closing(self, fd: int) -> None:
        """pyfuse3 ends, and with it the one device `fd`."""
        if self._readable is not None and not self._readable.done():
            self._readable.set_exception(pyfuse3_asyncio.ClosedResourceError())

    def _see(self, fd: int) -> None:
        if self._readable is not None and not self._readable.done():
            # It may have been read meanwhile, by who was told in the turn before; a read would block.
            if select.select((fd,), (), (), 0)[0]:
                self._readable.set_result(None)
        elif not self._is_left:
            self._is_left = True  # who has been told is about to read it
        else:
            self._is_watched = False
            asyncio.get_running_loop().remove_reader(fd)

    async def run(self, task_id: int, work: Awaitable[None]) -> None:
        """Await `work` on behalf of that task (a thread's number); raises InterruptedError when it is
        sent a signal meanwhile."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting[task] = task_id
        try:
            await work
        except asyncio.CancelledError:
            task.uncancel()
            raise InterruptedError from None
        finally:
            del self._waiting[task]

    def end_all(self) -> None:
        """The file system is about to end; who waits is told that it was interrupted."""
        for task in self._waiting:
            task.cancel()

    def look(self) -> None:
        self._next_look = None
        loop = asyncio.get_running_loop()
        began = loop.time()
        for task, task_id in list(self._waiting.items()):
            if has_signal(task_id):
                task.cancel()
        ended = loop.time()
        self._rests_until = ended + max(_PAUSE, _SHARE * (ended - began))


def has_signal(task_id: int) -> bool:
    """Whether a task has a signal pending that it neither blocks nor ignores.

    One that is gone has not: a task that waits for an answer can't go before it has it, so somebody
    else writes through a descriptor that was handed on.
    """
    try:
        with Path(f"/proc/{task_id}/status").open(encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":\t", 1) for line in file if line.startswith(("Sig", "Shd")))
    except (FileNotFoundError, ProcessLookupError):
        return False
    mask = {name: int(fields[name], 16) for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn")}
    return bool((mask["SigPnd"] | mask["ShdPnd"]) & ~mask["SigBlk"] & ~mask["SigIgn"] & ~_HARMLESS_MASK)
