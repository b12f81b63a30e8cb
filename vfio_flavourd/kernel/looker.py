"""Who uses a device, asked of a process that may look into all others: `find_users.py`, which says what the
questions and the answers are, run by a unit of its own (vfio-flavour-users@.service)."""

import asyncio
import json
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..model.codes import Code
from ..model.errors import FlavourError
from ..model.occupancy import Subject, Use, User

_SOCKET = Path("/run/vfio-flavourd/users")

_UNIT = "vfio-flavour-users"

# Processes that are kept for the next question: starting one takes longer than most answers.
_SPARE = 1

# Seconds: with 40,000 open files it takes some 0.3 s.
_TIMEOUT = 30.0

_ENDED = "it ended without an answer"
_STOPPING = "the service is stopping"


class Looker:
    """`Occupancy` of another process. Any thread may ask; each question has a process for itself."""

    def __init__(self, path: Path = _SOCKET, timeout: float = _TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._idle: list[socket.socket] = []
        self._busy: set[socket.socket] = set()
        self._is_closed = False
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Start the spare process. Where that can't be done, the first one who asks is told."""
        if self._idle:
            return
        try:
            self._keep(self._connect())
        except FlavourError:
            return

    def close(self) -> None:
        """The processes end, and with them what they are being asked: nobody can tell any more."""
        with self._lock:
            self._is_closed = True
            while self._idle:
                self._idle.pop().close()
            for sock in self._busy:
                with suppress(OSError):  # its process has ended by itself
                    sock.shutdown(socket.SHUT_RDWR)

    def find_users(self, subject: Subject) -> tuple[User, ...]:
        """As `Occupancy`. Raises FlavourError where it can't be told: then nobody may take the device."""
        return self._ask(_describe(subject))

    def find_group_holders(self, iommu_group: int) -> tuple[User, ...]:
        """As `Occupancy`. Raises FlavourError."""
        return self._ask(["group", iommu_group])

    async def see_users(self, subject: Subject) -> tuple[User, ...]:
        """`find_users` within the loop, as long as there is a spare process: a thread that asks it takes as
        long as many an answer. Raises FlavourError."""
        sock = self._take_spare()
        if sock is None:
            return await asyncio.to_thread(self.find_users, subject)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(self._timeout):
                users = await _exchange_in_loop(sock, _render(_describe(subject)))
        except TimeoutError as error:
            self._drop(sock)
            raise _unknown(f"{_UNIT}@.service: {error.strerror or 'timed out'}") from error
        except OSError:
            self._drop(sock)  # somebody has stopped the spare one
            return await asyncio.to_thread(self.find_users, subject)
        except BaseException:
            self._drop(sock)  # nobody waits any more: its answer would be taken for that to the next question
            raise
        sock.settimeout(self._timeout)
        self._keep(sock)
        return users

    def _ask(self, question: Sequence[object]) -> tuple[User, ...]:
        line = _render(question)
        while True:
            kept = self._take_spare()
            sock = kept or self._connect()
            try:
                users = self._exchange(sock, line)
            except (TimeoutError, OSError) as error:
                self._drop(sock)
                if kept is not None and not isinstance(error, TimeoutError):
                    continue  # somebody has stopped the spare one
                raise _unknown(f"{_UNIT}@.service: {error.strerror or error}") from error
            self._keep(sock)
            return users

    def _exchange(self, sock: socket.socket, line: bytes) -> tuple[User, ...]:
        sock.sendall(line)
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = sock.recv(65536)
            if not chunk:
                raise ConnectionResetError(0, _ENDED)
            answer += chunk
        return _parse(answer)

    def _take_spare(self) -> socket.socket | None:
        """Raises FlavourError when nobody is asked any more."""
        with self._lock:
            if self._is_closed:
                raise _unknown(_STOPPING)
            if not self._idle:
                return None
            sock = self._idle.pop()
            self._busy.add(sock)
            return sock

    def _keep(self, sock: socket.socket) -> None:
        with self._lock:
            if len(self._idle) < _SPARE and not self._is_closed:
                self._busy.discard(sock)
                self._idle.append(sock)
                return
        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        with self._lock:  # `close` shuts down none that is closed meanwhile, whose number another has by then
            self._busy.discard(sock)
        sock.close()

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._timeout)
        try:
            sock.connect(str(self._path))
        except OSError as error:
            sock.close()
            raise _unknown(f"{self._path}: {error.strerror or error}") from error
        with self._lock:
            if not self._is_closed:
                self._busy.add(sock)
                return sock
        sock.close()
        raise _unknown(_STOPPING)


async def _exchange_in_loop(sock: socket.socket, line: bytes) -> tuple[User, ...]:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, line)
    answer = b""
    while not answer.endswith(b"\n"):
        chunk = await loop.sock_recv(sock, 65536)
        if not chunk:
            raise ConnectionResetError(0, _ENDED)
        answer += chunk
    return _parse(answer)


def _describe(subject: Subject) -> Sequence[object]:
    return ("device", subject.path, subject.class_code, subject.driver)


def _render(question: Sequence[object]) -> bytes:
    return json.dumps(question).encode() + b"\n"


def _parse(answer: bytes) -> tuple[User, ...]:
    return tuple(User(Use(use), what, pid) for use, what, pid in json.loads(answer))


def _unknown(why: str) -> FlavourError:
    return FlavourError(
        f"who uses the device can't be told: {why}",
        code=Code.USERS_UNKNOWN,
        hint=f"systemctl start {_UNIT}.socket; journalctl -u '{_UNIT}@*' shows more",
    )
