"""A client of the control API within an event loop, for the file system."""

from collections.abc import AsyncIterator
from typing import Any

from asyncvarlink import VarlinkClientProtocol, VarlinkMethodCall, VarlinkTransport, connect_unix_varlink

from .protocol import CONTROL_SOCKET, NAME, READ_ONLY_SOCKET, lost, no_connection, parse_error


class Client:
    """One connection; one call at a time."""

    def __init__(self, transport: VarlinkTransport, protocol: VarlinkClientProtocol) -> None:
        self._transport = transport
        self._protocol = protocol

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The reply's parameters. Raises FlavourError."""
        try:
            answer = await self._protocol.call(_make_call(method, parameters))
        except OSError as error:
            raise lost(error) from error
        assert answer is not None
        return _parse_reply(answer[0])

    async def follow(self, method: str, **parameters: Any) -> AsyncIterator[dict[str, Any]]:
        """Every reply's parameters, with the more flag. Raises FlavourError."""
        try:
            async for reply, _ in self._protocol.call_more(_make_call(method, parameters, more=True)):
                yield _parse_reply(reply)
        except OSError as error:
            raise lost(error) from error

    async def send(self, method: str, **parameters: Any) -> None:
        """Call without waiting for an answer. Raises FlavourError."""
        try:
            await self._protocol.call(_make_call(method, parameters, oneway=True))
        except OSError as error:
            raise lost(error) from error

    def close(self) -> None:
        self._transport.close()


async def connect(*, writes: bool) -> Client:
    """Raises FlavourError: NOT_PERMITTED, or DAEMON_NOT_RUNNING when nobody listens."""
    path = CONTROL_SOCKET if writes else READ_ONLY_SOCKET
    try:
        transport, protocol = await connect_unix_varlink(VarlinkClientProtocol, path)
    except OSError as error:
        raise no_connection(path, error) from error
    return Client(transport, protocol)


def _make_call(
    method: str, parameters: dict[str, Any], *, oneway: bool = False, more: bool = False
) -> VarlinkMethodCall:
    given = {name: value for name, value in parameters.items() if value is not None}
    return VarlinkMethodCall(f"{NAME}.{method}", given, oneway=oneway, more=more)


def _parse_reply(reply: Any) -> dict[str, Any]:
    if reply.error is not None:
        raise parse_error(reply.error, reply.parameters)
    parameters: dict[str, Any] = reply.parameters
    return parameters
