"""A client of the control API within an event loop, for the file system.

A connection carries JSON objects, each ended by a NUL (varlink.org/Method-Call). asyncvarlink would take
several turns of the loop for each, and megabytes of memory.
"""

import asyncio
import contextlib
import json
import os
from typing import Any

from .protocol import CONTROL_SOCKET, NAME, READ_ONLY_SOCKET, lost, no_connection, parse_error

# More than an error takes.
_CHUNK = 65536


class Client(asyncio.Protocol):
    """One connection; one call at a time."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._received = b""
        self._frame: asyncio.Future[bytes] | None = None

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The reply's parameters. Raises FlavourError."""
        given = {name: value for name, value in parameters.items() if value is not None}
        call = {"method": f"{NAME}.{method}", "parameters": given}
        self._frame = asyncio.get_running_loop().create_future()
        self._transport.write(json.dumps(call).encode() + b"\0")
        try:
            reply = json.loads(await self._frame)
        except (OSError, ValueError) as error:
            raise lost(error) from error
        if "error" in reply:
            raise parse_error(reply["error"], reply.get("parameters") or {})
        answer: dict[str, Any] = reply.get("parameters") or {}
        return answer

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not data.endswith(b"\0"):
            return
        frame, self._received = self._received[:-1], b""
        if self._frame is not None and not self._frame.done():
            self._frame.set_result(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._frame is None or self._frame.done():
            return
        if exc is not None:
            # A call that could not be sent: who finds no place is told so before he has asked.
            with contextlib.suppress(OSError):
                self.data_received(os.read(self._transport.get_extra_info("socket").fileno(), _CHUNK))
        if not self._frame.done():
            self._frame.set_exception(exc or ConnectionResetError("it hung up"))


async def connect(*, writes: bool) -> Client:
    """Raises FlavourError: NOT_PERMITTED, or DAEMON_NOT_RUNNING when nobody listens."""
    path = CONTROL_SOCKET if writes else READ_ONLY_SOCKET
    try:
        _, client = await asyncio.get_running_loop().create_unix_connection(Client, path)
    except OSError as error:
        raise no_connection(path, error, writes=writes) from error
    return client
