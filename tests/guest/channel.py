"""The host's end of the agent's virtio port: commands in the guest, and their results."""

import base64
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

from .errors import RigError

# Under software emulation, on a busy machine, a single python3 takes seconds.
COMMAND_TIMEOUT = 120.0
FILE_CHUNK = 128 * 1024


@dataclass(frozen=True, slots=True)
class Result:
    command: str
    rc: int
    stdout: str
    stderr: str
    duration: float
    """Seconds in the guest, from the start of bash to its exit."""


class CommandFailed(RigError):
    def __init__(self, result: Result) -> None:
        super().__init__(
            f"'{result.command}' exited with {result.rc}\n{result.stdout[-4000:]}{result.stderr[-4000:]}"
        )
        self.result = result


class CommandTimeout(RigError):
    """The command was sent SIGKILL, which one that is stuck in the kernel survives."""


@dataclass(slots=True)
class _State:
    text: dict[str, str] = field(default_factory=lambda: {"stdout": "", "stderr": ""})
    data: bytes = b""
    rc: int | None = None
    duration: float = 0.0


class Pending:
    """A command that runs in the guest."""

    def __init__(self, channel: "Channel", id: int, command: str) -> None:
        self._channel = channel
        self._id = id
        self.command = command
        self._state = _State()

    @property
    def done(self) -> bool:
        return self._state.rc is not None

    @property
    def stdout(self) -> str:
        return self._state.text["stdout"]

    @property
    def data(self) -> bytes:
        return self._state.data

    def wait(self, timeout: float = COMMAND_TIMEOUT) -> Result:
        if not self._channel.wait(lambda: self.done, timeout):
            self.kill()
            raise CommandTimeout(f"'{self.command}' did not end within {timeout} s\n{self.stdout[-4000:]}")
        state = self._state
        assert state.rc is not None
        return Result(self.command, state.rc, state.text["stdout"], state.text["stderr"], state.duration)

    def wait_for(self, text: str, timeout: float = COMMAND_TIMEOUT, *, times: int = 1) -> str:
        """Its standard output so far, as soon as that holds `text`, or holds it so many times."""
        self._channel.wait(lambda: self.stdout.count(text) >= times or self.done, timeout)
        if self.stdout.count(text) < times:
            said = self.stdout[-4000:] + self._state.text["stderr"][-4000:]
            raise RigError(f"'{self.command}' printed no '{text}' within {timeout} s:\n{said}")
        return self.stdout

    def kill(self, signal: Signals = SIGKILL) -> None:
        self._channel.send(id=self._id, op="kill", signal=int(signal))

    def receive(self, message: dict[str, Any]) -> None:
        if "stream" in message:
            self._state.text[message["stream"]] += message["data"]
        else:
            self._state.duration = message.get("duration", 0.0)
            self._state.data = base64.b64decode(message.get("data", ""))
            self._state.rc = message["rc"]


class Channel:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._pending: dict[int, Pending] = {}
        self._last_id = 0
        self._greeted = False
        self._closed = False
        self._reader = threading.Thread(target=self._read, name="guest agent", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Once QEMU is gone, which ends the reader."""
        self._reader.join()
        self._connection.close()

    def wait_hello(self, timeout: float) -> bool:
        return self.wait(lambda: self._greeted, timeout)

    def run(self, command: str) -> Pending:
        return self._order(command, op="run", command=command)

    def kill_all(self) -> None:
        with self._changed:
            pending = list(self._pending.values())
        for each in pending:
            each.kill()

    def push(self, local: Path, remote: str, timeout: float) -> None:
        data, mode = local.read_bytes(), local.stat().st_mode & 0o777
        for start in range(0, max(len(data), 1), FILE_CHUNK):
            chunk = base64.b64encode(data[start : start + FILE_CHUNK]).decode()
            order = self._order(
                f"write {remote}", op="write", path=remote, data=chunk, append=start > 0, mode=mode
            )
            if (rc := order.wait(timeout).rc) != 0:
                raise RigError(f"pushing '{local}' to '{remote}': errno {rc}")

    def pull(self, remote: str, local: Path, timeout: float) -> None:
        with local.open("wb") as file:
            while True:
                order = self._order(
                    f"read {remote}", op="read", path=remote, offset=file.tell(), size=FILE_CHUNK
                )
                if (rc := order.wait(timeout).rc) != 0:
                    raise RigError(f"pulling '{remote}': errno {rc}")
                if not order.data:
                    return
                file.write(order.data)

    def send(self, **message: object) -> None:
        with self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Raises RigError when the guest goes away meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._closed, timeout)
            if condition():
                return True
            if self._closed:
                raise RigError("the guest is gone")
            return False

    def _order(self, name: str, **message: object) -> Pending:
        with self._changed:
            number = self._last_id = self._last_id + 1
            pending = self._pending[number] = Pending(self, number, name)
        self.send(id=number, **message)
        return pending

    def _read(self) -> None:
        with self._connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                with self._changed:
                    if "hello" in message:
                        self._greeted = True
                    elif pending := self._pending.get(message["id"]):
                        pending.receive(message)
                        if pending.done:
                            del self._pending[message["id"]]
                    self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
