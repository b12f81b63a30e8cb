"""The worker processes that make writes which may block.

A worker that has not answered in time can't be killed while the kernel holds it, so it is left alone:
`Blocked` carries a future that is done when the kernel lets go.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..model.errors import FlavourError
from .places import Places

_WORKER = Path(__file__).with_name("hand.py")

# Workers kept waiting for work: starting one takes longer than most switches' own writes.
SPARE = 2

# Workers at work at one time; each takes some 6 MiB of its own. One that hangs counts no more: it can't be
# ended, and no other switch is begun with its device, so that there are about as many as devices are held.
MOST = 32

Operation = tuple[str | int, ...]
Guard = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Result:
    """What one operation came to. Times are `CLOCK_MONOTONIC` in seconds; `errno` is 0 after a success."""

    index: int
    start: float
    end: float
    errno: int
    value: object


class Blocked(Exception):
    """A batch has not come back in time.

    `finished` gives the results when the kernel lets go; `results` are those there are by now.
    """

    def __init__(self, pid: int, results: list[Result], finished: "asyncio.Future[list[Result]]") -> None:
        super().__init__(f"process {pid} has not come back")
        self.pid = pid
        self.results = results
        self.finished = finished


@dataclass(slots=True, eq=False)
class _Hand:
    sock: socket.socket
    process: "subprocess.Popen[bytes]"
    buffer: bytes = b""
    expected: int = 0
    results: list[Result] = field(default_factory=list)
    finished: "asyncio.Future[list[Result]] | None" = None
    watch: Callable[[Result], None] | None = None


class Hands:
    """Carries out batches of operations, each in a worker process of its own."""

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._idle: list[_Hand] = []
        self._busy: set[_Hand] = set()
        self._places = Places(MOST)

    def prepare(self) -> None:
        """Start the spare workers."""
        while len(self._idle) < SPARE:
            self._idle.append(self._start())

    async def carry_out(
        self,
        operations: Sequence[Operation],
        *,
        timeout: float,
        guard: Guard | None = None,
        begun: Callable[[int], None] | None = None,
        watch: Callable[[Result], None] | None = None,
    ) -> list[Result]:
        """The results up to the first operation that failed.

        `guard` (a directory and its inode) is checked before each operation. `begun` is told the
        worker's process before it gets the batch. Raises Blocked `timeout` seconds after that,
        FlavourError (EIO) when the worker dies.
        """
        batch = {
            "guard": None if guard is None else [self._root + guard[0], guard[1]],
            "ops": [
                [kind, *rest] if kind == "run" else [kind, self._root + str(rest[0]), *rest[1:]]
                for kind, *rest in operations
            ],
        }
        async with self._places.take():
            hand, finished = self._hand_over(json.dumps(batch).encode() + b"\n", begun)
            hand.expected = len(operations)
            hand.watch = watch
            done, _ = await asyncio.wait([finished], timeout=timeout)
        if not done:
            raise Blocked(hand.process.pid, hand.results, finished)
        return finished.result()

    def _hand_over(
        self, batch: bytes, begun: Callable[[int], None] | None
    ) -> "tuple[_Hand, asyncio.Future[list[Result]]]":
        while True:
            hand = self._idle.pop() if self._idle else self._start()
            try:
                if begun is not None:
                    begun(hand.process.pid)
                hand.sock.send(batch)
            except (BrokenPipeError, ConnectionResetError):
                self._dismiss(hand)  # somebody killed a spare worker
                continue
            except BaseException:
                self._idle.append(hand)  # called off before it began
                raise
            self._busy.add(hand)
            hand.results = []
            hand.finished = asyncio.get_running_loop().create_future()
            return hand, hand.finished

    def close(self) -> None:
        """Let the idle workers end; one that is busy ends by itself when its batch does."""
        for hand in [*self._idle, *self._busy]:
            self._dismiss(hand)

    def _start(self) -> _Hand:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WORKER)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
                cwd="/",
            )
        ours.setblocking(False)
        hand = _Hand(ours, process)
        asyncio.get_running_loop().add_reader(ours, self._answered, hand)
        return hand

    def _answered(self, hand: _Hand) -> None:
        try:
            chunk = hand.sock.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            self._died(hand)
            return
        *lines, hand.buffer = (hand.buffer + chunk).split(b"\n")
        for line in lines:
            index, start, end, code, value = json.loads(line)
            result = Result(index, start / 1e9, end / 1e9, code, value)
            hand.results.append(result)
            if hand.watch is not None:
                hand.watch(result)
            if code or len(hand.results) == hand.expected:
                self._finish(hand)

    def _finish(self, hand: _Hand) -> None:
        finished, hand.finished, hand.watch = hand.finished, None, None
        self._busy.discard(hand)
        if len(self._idle) < SPARE:
            self._idle.append(hand)
        else:
            self._dismiss(hand)
        if finished is not None and not finished.done():
            finished.set_result(hand.results)

    def _died(self, hand: _Hand) -> None:
        finished = hand.finished
        self._dismiss(hand)
        if finished is not None and not finished.done():
            finished.set_exception(
                FlavourError(f"worker process {hand.process.pid} died before its work was done")
            )

    def _dismiss(self, hand: _Hand) -> None:
        asyncio.get_running_loop().remove_reader(hand.sock)
        hand.sock.close()
        self._busy.discard(hand)
        if hand in self._idle:
            self._idle.remove(hand)
        # The end of its input makes it exit; wait for that without holding up the loop.
        self.await_exit(hand.process.pid).add_done_callback(lambda _: hand.process.poll())

    @staticmethod
    def await_exit(pid: int) -> "asyncio.Future[None]":
        """Done when that process has ended; at once when there is none."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            ended.set_result(None)
            return ended

        def end() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(descriptor, end)
        return ended
