"""Connections of the control API: who may have how many, and what a client may do to one."""

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from asyncvarlink import (
    AnnotatedResult,
    FileDescriptorArray,
    VarlinkErrorReply,
    VarlinkInterfaceRegistry,
    VarlinkMethodCall,
    VarlinkMethodReply,
    VarlinkServerProtocol,
    VarlinkTransport,
)
from asyncvarlink.conversion import ConversionError
from asyncvarlink.serviceinterface import InvalidParameter
from asyncvarlink.types import JSONObject

from ..model.requester import Requester
from .protocol import NAME

_log = logging.getLogger(__name__)

# Methods that answer once, or step by step where the caller asks for more.
_MORE_OPTIONAL = frozenset({f"{NAME}.SetFlavour", f"{NAME}.Reset"})

# A call is a few hundred bytes.
_LONGEST_FRAME = 64 * 1024

# Seconds that a client has from a call's first byte to its last.
_PATIENCE = 30.0

# Seconds for which nobody is let in after the files (or the kernel's memory) ran out.
_PAUSE = 1.0
_RAN_OUT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections a socket has, and how many of them one user."""

    total: int
    user: int


# A connection takes two files, and a service has 1,024 unless its unit says otherwise: 400 connections
# leave more than 200 for the daemon's own work. Each socket has its own, so that looking, which anyone
# may, never keeps anyone from switching; and no user can have all of a socket.
_LOOKING = Limits(total=300, user=128)
_SWITCHING = Limits(total=100, user=50)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is on the other side of a connection, from SO_PEERCRED; `writes` tells the control socket."""

    pid: int
    uid: int
    writes: bool

    def __str__(self) -> str:
        return str(Requester(self.uid, self.pid))


# Of the call that is being served.
current_peer: ContextVar[Peer] = ContextVar("current_peer")
wants_steps: ContextVar[bool] = ContextVar("wants_steps")


class Listener:
    """Lets clients in. `sock` is bound and listening already (socket activation)."""

    def __init__(self, sock: socket.socket, registry: VarlinkInterfaceRegistry, *, writes: bool) -> None:
        self._sock = sock
        self._registry = registry
        self._writes = writes
        self._limits = _SWITCHING if writes else _LOOKING
        self._connections: dict[_Connection, None] = {}  # the oldest first
        self._pause: asyncio.TimerHandle | None = None
        self._warned = False
        sock.setblocking(False)
        self._resume()

    def close(self) -> None:
        if self._pause:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        for connection in list(self._connections):
            connection.eof_received()  # ends now, or with its call: the daemon waits for a switch

    def forget(self, connection: "_Connection") -> None:
        self._connections.pop(connection, None)

    def _resume(self) -> None:
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as undo:
            try:
                conn = undo.enter_context(self._sock.accept()[0])
                watched = undo.enter_context(conn.dup())
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _RAN_OUT:
                    raise
                if not self._warned:
                    _log.warning("can't accept new clients for now: %s", error.strerror)
                self._warned = True
                loop.remove_reader(self._sock)
                self._pause = loop.call_later(_PAUSE, self._resume)
                return
            self._warned = False
            pid, uid, _ = struct.unpack("3i", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            peer = Peer(pid, uid, self._writes)
            if not self._make_room(uid):
                _log.debug("hung up on %s: too many connections, none of them idle", peer)
                return
            undo.pop_all()
            connection = _Connection(self._registry, peer, watched, self)
            self._connections[connection] = None
            # One that knows no boundaries reads once and looks up; the other reads on as long as there
            # is something, also while it is paused.
            _Transport(loop, conn, conn, connection, boundary_predictor=None)

    def _make_room(self, uid: int) -> bool:
        """For one more of that user, at the cost of the one that was idle first."""
        own = [each for each in self._connections if each.peer.uid == uid]
        if len(own) >= self._limits.user:
            candidates = own
        elif len(self._connections) >= self._limits.total:
            candidates = list(self._connections)
        else:
            return True
        for each in candidates:
            if each.idle:
                each.hang_up("too many connections")
                return True
        return False


class _Transport(VarlinkTransport):
    MAX_RECV_FDS = 1  # no call takes a file: those that are sent are closed

    def _handle_read_socket(self) -> None:
        self._sock_receive_fds(self.RECV_BUFFER_SIZE)  # the library takes MAX_RECV_FDS for the size


class _Connection(VarlinkServerProtocol):
    """One connection. A client that hangs up has its call cancelled; the library's own protocol does
    not read while a call runs, so it would notice only afterwards.

    What is asked waits in the socket until what was asked before is answered, and the answer taken:
    beside the calls of one read nothing gathers here.
    """

    def __init__(
        self, registry: VarlinkInterfaceRegistry, peer: Peer, watched: socket.socket, listener: Listener
    ) -> None:
        super().__init__()
        self.peer = peer
        self._registry = registry
        self._watched = watched  # a dup: the transport has the original registered with the loop
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._gone = False

    @property
    def idle(self) -> bool:
        return not self._inflight and not self._consumer_queue

    def hang_up(self, why: str) -> None:
        if self._gone:
            return
        _log.debug("hung up on %s: %s", self.peer, why)
        self._end()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end()

    def _end(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._listener.forget(self)
        self._consumer_queue.clear()
        if self._patience:
            self._patience.cancel()
        if self._task:
            self._task.cancel()
        asyncio.get_running_loop().remove_reader(self._watched)
        self._watched.close()

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        if self._gone:
            return
        try:
            super().message_received(data, None)
        except (ValueError, RecursionError):
            self.hang_up("that is no call")
            return
        if len(self._recv_buffer) > _LONGEST_FRAME:
            self.hang_up("that is too long for a call")
            return
        if b"\0" in data and self._patience:
            self._patience.cancel()
            self._patience = None
        if self._recv_buffer and not self._patience:
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE, self._lose_patience)

    def _lose_patience(self) -> None:
        if self.idle:
            self.hang_up("half a call, and silence")
        else:  # it may have said more, which is not read yet
            self._patience = asyncio.get_running_loop().call_later(_PATIENCE, self._lose_patience)

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        self.hang_up("that is no call")

    def request_received(
        self, obj: JSONObject, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        try:
            VarlinkMethodCall.fromjson(obj)
        except (TypeError, ValueError) as error:
            self.error_received(error, b"", fds)
            return None
        waits: asyncio.Future[None] | None = super().request_received(obj, fds)
        return waits

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        if self._gone:
            return None
        # Who wants no answer does not stay on the line either.
        return asyncio.create_task(self._serve(call) if call.oneway else self._attended(self._serve(call)))

    async def _serve(self, call: VarlinkMethodCall) -> None:
        current_peer.set(self.peer)
        wants_steps.set(call.more)
        optional = call.method in _MORE_OPTIONAL
        method, signature = self._registry.lookup_method(replace(call, more=True) if optional else call)
        try:
            parameters = signature.parameter_type.fromjson(call.parameters)
        except ConversionError as error:
            raise InvalidParameter(parameter=error.location[0] if error.location else "") from error

        async def reply(result: AnnotatedResult, *, continues: bool = False) -> None:
            answer = signature.return_type.tojson(result.parameters)
            await self._deliver(self.send_reply(VarlinkMethodReply(answer, continues=continues)))

        if not signature.more:
            result = await method(**parameters) if signature.asynchronous else method(**parameters)
            if not call.oneway:
                await reply(result)
            return
        async with contextlib.aclosing(method(**parameters)) as results:
            async for result in results:
                if call.more:
                    await reply(result, continues=result.continues)
                elif not result.continues and not call.oneway:
                    await reply(result)

    async def _attended(self, work: Coroutine[Any, Any, None]) -> None:
        if self._gone:
            work.close()
            return
        loop = asyncio.get_running_loop()
        task = self._task = asyncio.create_task(work)

        def readable() -> None:
            try:
                waiting = self._watched.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                waiting = b""
            loop.remove_reader(self._watched)  # either gone, or a next call that waits for its turn
            if not waiting:
                task.cancel()

        loop.add_reader(self._watched, readable)
        try:
            await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise  # this connection itself is being ended
        except VarlinkErrorReply as error:
            await self._deliver(self.send_error(error))
        finally:
            self._task = None
            if not self._gone:
                loop.remove_reader(self._watched)

    async def _deliver(self, sent: asyncio.Future[None]) -> None:
        def look(_: object) -> None:
            if sent.exception():
                self.hang_up("it takes no answer")

        sent.add_done_callback(look)
        # The transport would stumble over a message whose future is cancelled.
        with contextlib.suppress(OSError):
            await asyncio.shield(sent)
