"""A served daemon on a fake kernel, and flavourctl as a program of its own that asks it."""

import asyncio
import codecs
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_kernel import ended, no_reload

from vfio_flavourd.doors import varlink
from vfio_flavourd.doors.varlink import ManagerService, VarlinkDoor
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.device import Device

ROOT = Path(__file__).parents[2]

# What leaves the text where it is: colours, and the clearing of a line.
ESCAPE = re.compile(r"\x1b\[[0-9;]*[mK]")

_PROGRAM = """\
import os, sys, time
from vfio_flavourd.doors import blocking_client
directory = sys.argv.pop(1)
blocking_client.CONTROL_SOCKET = directory + "/control"
blocking_client.READ_ONLY_SOCKET = directory + "/readonly"
from vfio_flavourd.cli.main import main
while not os.path.exists(blocking_client.READ_ONLY_SOCKET):
    time.sleep(0.01)
sys.exit(main())
"""


@dataclass(frozen=True)
class Said:
    """What one run came to."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.out)
        assert data["version"] == 1
        return data


@asynccontextmanager
async def serve(
    engine: Engine, directory: Path, find_name: Callable[[Device], str] = lambda device: ""
) -> AsyncIterator[VarlinkDoor]:
    """Both sockets in that directory."""
    door = VarlinkDoor(ManagerService(engine, find_name, no_reload))
    for name in ("control", "readonly"):
        path = directory / name
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        door.listen(sock, writes=name == "control")
    try:
        yield door
    finally:
        door.close()
        await ended()


class Terminal:
    """A real one, with flavourctl in it. `text` is all that was written to it so far."""

    def __init__(
        self, directory: Path, *argv: str, columns: int = 80, environment: Mapping[str, str] | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self._process = subprocess.Popen(
            _command(directory, argv),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **(environment or {})},
        )
        os.close(slave)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""

    async def wait_for(self, text: str) -> None:
        while text not in self.text:
            assert await self._read(), f"it ended without {text!r}: {self.text}"

    async def wait(self) -> int:
        """Until it has ended, with its status."""
        while await self._read():
            pass
        os.close(self._master)
        return await asyncio.to_thread(self._process.wait, 30)

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    @property
    def lines(self) -> list[str]:
        """As a person sees them: what is overwritten is gone."""
        whole = [line.rpartition("\r")[2] for line in self.text.replace("\r\n", "\n").split("\n")]
        return [ESCAPE.sub("", line) for line in whole if line]

    async def _read(self) -> bool:
        try:
            said = await asyncio.to_thread(os.read, self._master, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.text += self._decoder.decode(said)
        return True


async def listened_to(engine: Engine, by: int = 1) -> None:
    """Until so many programs follow what happens."""

    def count() -> int:
        """Without those of the daemon's own."""
        return sum(each.__module__ == varlink.__name__ for each in engine.attempts.listeners)

    while count() < by:  # noqa: ASYNC110 - nothing tells of a listener
        await asyncio.sleep(0.01)


def start_piped(directory: Path, *argv: str) -> "subprocess.Popen[str]":
    """It waits until the control socket is there."""
    return subprocess.Popen(
        _command(directory, argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def _command(directory: Path, argv: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", _PROGRAM, str(directory), *argv]
