"""A client of the control API within an event loop, for the file system."""

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
        given = {name: value for name, value in parameters.items() if value is not None}
        try:
            answer = await self._protocol.call(VarlinkMethodCall(f"{NAME}.{method}", given))
        except OSError as error:
            raise lost(error) from error
        assert answer is not None
        return _parse_reply(answer[0])

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


def _parse_reply(reply: Any) -> dict[str, Any]:
    if reply.error is not None:
        raise parse_error(reply.error, reply.parameters)
    parameters: dict[str, Any] = reply.parameters
    return parameters
