"""Whatever a client sends: an answer to each call until it is hung up on, and nothing else happens.

On the socket that is for looking only. The first byte says after how many more the client pauses.
"""

import asyncio
import json
import logging
import socket
import tempfile
from pathlib import Path
from typing import Any

from fake_kernel import FakeKernel, make_engine, no_reload

from vfio_flavourd.doors.varlink import ManagerService, VarlinkDoor

_directory = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
_loop = asyncio.new_event_loop()
_kernel = FakeKernel(Path(_directory.name))
_kernel.add_native(_kernel.add_device())
_path = str(Path(_directory.name) / "socket")
_bugs: list[dict[str, Any]] = []


class _Complaints(logging.Handler):
    """What asyncio and the library say of an exception that nobody took."""

    def emit(self, record: logging.LogRecord) -> None:
        _bugs.append({"message": record.getMessage(), "exception": record.exc_info})


logging.getLogger("asyncvarlink.protocol").addHandler(_Complaints(logging.ERROR))
logging.getLogger("asyncvarlink.protocol").propagate = False
_loop.set_exception_handler(lambda _, context: _bugs.append(context))


async def _open() -> VarlinkDoor:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(_path)
    sock.listen()
    door = VarlinkDoor(ManagerService(make_engine(_kernel), lambda device: "A NIC", no_reload))
    door.listen(sock, writes=False)
    return door


_door = _loop.run_until_complete(_open())


def one(data: bytes) -> None:
    _loop.run_until_complete(_talk(data[1:], data[0] if data else 0))
    assert _bugs == []
    assert _kernel.writes == []


async def _talk(data: bytes, pause: int) -> None:
    (listener,) = _door._listeners
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    await _loop.sock_connect(client, _path)
    with client:
        answers = b""
        try:
            for part in (data[:pause], data[pause:]):
                await _loop.sock_sendall(client, part)
                await _turns(3)
            client.shutdown(socket.SHUT_WR)
            while said := await asyncio.wait_for(_loop.sock_recv(client, 65536), 5):
                answers += said
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was hung up on
    while listener._places.taken:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    *frames, rest = answers.split(b"\0")
    assert rest == b""
    assert len(frames) <= data.count(b"\0")
    for frame in frames:
        answer = json.loads(frame)
        assert set(answer) <= {"parameters", "error", "continues"}, answer


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
