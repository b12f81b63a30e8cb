"""A client of the control API that blocks, for flavourctl.

A connection carries JSON objects, each ended by a NUL (varlink.org/Method-Call). asyncio and asyncvarlink
would take flavourctl longer to import than all that it does.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator

from ..model.codes import Code
from ..model.errors import FlavourError
from .protocol import CONTROL_SOCKET, NAME, READ_ONLY_SOCKET, lost, no_connection, parse_error

# Seconds for which one who hangs up waits for the daemon to notice.
_NOTICE = 2.0

# `typing` takes longer to import than this module; only mypy needs it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

# As much as a Unix socket holds (net.core.wmem_default), so that a long list takes few calls.
_CHUNK = 212_992

_TICK = 1.0


class Connection:
    """One call at a time. As a context it is closed at its end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()
        self._tick: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The reply's parameters. Raises FlavourError."""
        self._send(method, parameters, {})
        answer, _ = self._receive()
        return answer

    def follow(
        self, method: str, *, tick: Callable[[], None] | None = None, **parameters: Any
    ) -> Iterator[dict[str, Any]]:
        """Every reply's parameters, with the more flag; `tick` is called each second in which none comes.
        Raises FlavourError."""
        self._send(method, parameters, {"more": True})
        self._tick = tick
        if tick is not None:
            self._socket.settimeout(_TICK)
        goes_on = True
        while goes_on:
            answer, goes_on = self._receive()
            yield answer

    def close(self) -> None:
        self._socket.close()

    def hang_up(self) -> None:
        """The daemon gives up what it does for this connection, as far as it has touched nothing. Comes back
        when it has taken notice."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(_NOTICE)
            while self._socket.recv(65536):
                pass  # steps that were told meanwhile
        except OSError:
            pass  # it is not there any more, or has other troubles
        self._socket.close()

    def _send(self, method: str, parameters: dict[str, Any], flags: dict[str, bool]) -> None:
        given = {name: value for name, value in parameters.items() if value is not None}
        call = {"method": f"{NAME}.{method}", "parameters": given, **flags}
        try:
            self._socket.sendall(json.dumps(call).encode() + b"\0")
        except (BrokenPipeError, ConnectionResetError):
            pass  # who finds no place is told so before he has asked
        except OSError as error:
            raise lost(error) from error

    def _receive(self) -> tuple[dict[str, Any], bool]:
        """The parameters, and whether another reply comes."""
        looked = 0
        while (end := self._received.find(b"\0", looked)) < 0:
            looked = len(self._received)
            try:
                chunk = self._socket.recv(_CHUNK)
            except TimeoutError as error:
                if self._tick is None:
                    raise FlavourError(
                        f"the daemon has not answered for {self._socket.gettimeout():g} s",
                        code=Code.TIMED_OUT,
                        hint="journalctl -u vfio-flavourd",
                    ) from error
                self._tick()
                continue
            except OSError as error:
                raise lost(error) from error
            if not chunk:
                raise lost("it hung up")
            self._received += chunk
        frame = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            reply = json.loads(frame)
            parameters, name = reply.get("parameters") or {}, reply.get("error")
        except (ValueError, AttributeError) as error:
            raise FlavourError(
                "what the daemon answered can't be read",
                code=Code.FAILED,
                hint="the daemon may be of another version than flavourctl: systemctl restart vfio-flavourd",
            ) from error
        if name is not None:
            raise parse_error(name, parameters)
        return parameters, bool(reply.get("continues"))


def connect(*, writes: bool, patience: float | None = None, only_root: str = "") -> Connection:
    """An answer is waited for as long as `patience` says (seconds; None: for ever); `only_root` is what is
    asked for, where that is root's alone. Raises FlavourError: not-permitted, daemon-not-running."""
    path = CONTROL_SOCKET if writes else READ_ONLY_SOCKET
    try:
        return Connection(_open(path, patience))
    except OSError as error:
        raise no_connection(path, error, writes=writes, only_root=only_root) from error


def _open(path: str, patience: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(patience)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock
