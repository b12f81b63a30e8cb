"""Connections of the control API, and what a client may do to one."""

import asyncio
import contextlib
import errno
import json
import logging
import socket
from collections import Counter, deque

from asyncvarlink import VarlinkErrorReply, VarlinkInterfaceRegistry, VarlinkMethodCall
from asyncvarlink.conversion import ConversionError
from asyncvarlink.error import GenericVarlinkErrorReply
from asyncvarlink.serviceinterface import InvalidParameter

from ..model.codes import Code
from ..model.message_ids import MessageId
from .connection_places import LOOKING, SWITCHING, Places
from .hang_ups import HangUps
from .peer import Peer, current_peer, find_peer, wants_steps
from .protocol import NAME
from .refusals import Refusals
from .replies import NO_PLACE, encode, encode_result
from .stray_files import accept, close, close_aside, peek, refuse_files
from .turns import Turns

_log = logging.getLogger(__name__)

# They answer once, or step by step where the caller asks for more; and they alone are carried out for one who
# wants no answer. The others have nothing else to give, and what nobody waits for is what nobody may pile up.
# Varlink has no way to refuse such a call but to hang up: an answer would be taken for that to the next one.
_SWITCHES = frozenset({f"{NAME}.SetFlavour", f"{NAME}.Reset"})

# A call is a few hundred bytes.
_LONGEST_FRAME = 64 * 1024
_CHUNK = 4096

# asyncvarlink's name for what a method raises that is no error of the interface.
_BUG = "invalid.asyncvarlink.InternalServerError"

# Seconds that a client has from a call's first byte to its last, and to take a reply.
_PATIENCE = 30.0

# Seconds that one who is not root may stay without a call.
_MOST_IDLE = 300.0

# Bytes of replies that are kept for one user, root aside, until he takes them; each socket has its own. One
# reply is kept whatever its length.
_MOST_UNSENT = 8 * 1024 * 1024

# Seconds for which nobody is let in after the files (or the kernel's memory) ran out.
_PAUSE = 1.0
_RAN_OUT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Clients that are let in, or refused, in one turn of the loop: a user's queue of thousands holds up the next
# one for some turns only.
_AT_ONCE = 200

# Of those who were refused, and had sent a file along, so many may not be closed yet (stray_files.py): until
# one is, nobody is let in. From Linux 6.16 on there are none.
_MOST_UNCLOSED = 50


class Listener:
    """Lets clients in. `sock` is bound and listening already (socket activation). `turns` and `refusals` are
    those of all sockets."""

    def __init__(
        self,
        sock: socket.socket,
        registry: VarlinkInterfaceRegistry,
        turns: Turns,
        refusals: Refusals,
        *,
        writes: bool,
    ) -> None:
        self._sock = sock
        self._refusals = refusals
        self._registry = registry
        self.turns = turns
        self.unsent: Counter[int] = Counter()  # by uid
        self._writes = writes
        self._places: Places[_Connection] = Places(SWITCHING if writes else LOOKING)
        self.hang_ups = HangUps()
        self._pause: asyncio.TimerHandle | None = None
        self._warned = False
        self._unclosed = 0
        self._is_open = True
        sock.setblocking(False)
        refuse_files(sock)
        self._resume()

    def close(self) -> None:
        if self._pause:
            self._pause.cancel()
        self._is_open = False
        asyncio.get_running_loop().remove_reader(self._sock)
        # With those who wait to be let in, and what they sent.
        close_aside(self._sock, lambda: None)
        for connection in list(self._places.taken):
            connection.finish()  # ends now, or with its call: the daemon waits for a switch
        self.hang_ups.close()

    def refuse(self, peer: Peer, why: str, code: Code) -> None:
        self._refusals.tell(peer.requester, f"stay connected ({why})", MessageId.HUNG_UP, code)

    def refuse_call(self, peer: Peer, method: str, parameter: str) -> None:
        what = f"call {method.removeprefix(f'{NAME}.')}"
        why = f"its parameter {parameter[:64]!r} is none that it can have"
        asks, code = peer.requester, Code.INVALID_ARGUMENT
        self._refusals.tell(asks, what, MessageId.CALL_INVALID, code, why=why)

    def forget(self, connection: "_Connection") -> None:
        self._places.taken.pop(connection, None)

    def _resume(self) -> None:
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                conn = accept(self._sock)
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _RAN_OUT:
                    raise
                if not self._warned:
                    _log.warning("can't accept new clients for now: %s", error.strerror)
                self._warned = True
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._sock)
                self._pause = loop.call_later(_PAUSE, self._resume)
                return
            self._warned = False
            peer = find_peer(conn, writes=self._writes)
            if self._places.make_room(peer.uid):
                self._places.taken[_Connection(self._registry, peer, conn, self)] = None
                continue
            self.refuse(peer, "too many connections, none of them idle", Code.TOO_MANY_REQUESTS)
            with contextlib.suppress(OSError):  # whether he takes it or not
                conn.send(NO_PLACE)
            self._unclosed += 1
            close(conn, self._count_closed)
            if self._unclosed == _MOST_UNCLOSED:
                asyncio.get_running_loop().remove_reader(self._sock)
                return

    def _count_closed(self) -> None:
        if self._unclosed == _MOST_UNCLOSED and self._is_open:
            self._resume()
        self._unclosed -= 1


class _Connection:
    """One connection. A client that hangs up has its call cancelled: asyncvarlink's own protocol does not
    read while a call runs, so it would notice only afterwards. It also takes several turns of the loop a
    message.

    What is asked waits in the socket until what was asked before is answered, and the answer taken:
    beside the calls of one read nothing gathers here.
    """

    def __init__(
        self, registry: VarlinkInterfaceRegistry, peer: Peer, sock: socket.socket, listener: Listener
    ) -> None:
        self.peer = peer
        self._registry = registry
        self._sock = sock
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._calls: deque[VarlinkMethodCall] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_attended = False
        self._is_reading = False
        self._is_last = False
        self._patience: asyncio.TimerHandle | None = None
        self._gone = False
        self._rest()

    @property
    def idle(self) -> bool:
        return self._task is None and not self._calls and not self._gone

    def hang_up(self, why: str, code: Code = Code.INVALID_ARGUMENT, last: bytes = b"") -> None:
        if self._gone:
            return
        self._listener.refuse(self.peer, why, code)
        self._send_some(memoryview(last))
        self._end()

    def finish(self) -> None:
        """No more calls than there are."""
        self._is_last = True
        if self.idle:
            self._end()

    def _end(self) -> None:
        """A call is cancelled, and the connection closed when it has heard of that: one who has only stopped
        sending sees when the daemon has taken notice. Who wants no answer does not stay on the line either:
        such a call goes on."""
        if self._gone:
            return
        self._gone = True
        self._calls.clear()
        if self._patience:
            self._patience.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._listener.hang_ups.let_go(self._sock)
        if self._task is not None and self._is_attended:
            self._task.add_done_callback(lambda _: close(self._sock, self._leave))
            self._task.cancel()
        else:
            close(self._sock, self._leave)

    def _leave(self) -> None:
        if self._task is None:
            self._listener.forget(self)
        else:
            self._task.add_done_callback(lambda _: self._listener.forget(self))

    # what is asked

    def _rest(self) -> None:
        """No call is left."""
        self._read()
        if self.peer.uid != 0 and not self._received:
            self._patience = self._loop.call_later(_MOST_IDLE, self._lose_patience, "it says nothing")

    def _read(self) -> None:
        if not self._is_reading and not self._gone:
            self._is_reading = True
            self._loop.add_reader(self._sock, self._readable)
            self._heed_hang_up()

    def _pause(self) -> None:
        self._is_reading = False
        self._loop.remove_reader(self._sock)
        self._heed_hang_up()

    def _heed_hang_up(self) -> None:
        """Also while nothing is read; but who wants no answer may hang up on what he has asked for."""
        if self._is_attended and not self._is_reading:
            self._listener.hang_ups.watch(self._sock, self._end)
        else:
            self._listener.hang_ups.let_go(self._sock)

    def _readable(self) -> None:
        try:
            data, has_file = peek(self._sock, _CHUNK if self.idle else 1)
            if has_file:
                self.hang_up("it sends a file along")
                return
            if data and self.idle:
                data = self._sock.recv(len(data))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
        elif self.idle:
            self._take(data)
        else:
            self._pause()  # a next call that waits for its turn

    def _take(self, data: bytes) -> None:
        is_begin = not self._received
        *frames, self._received = (self._received + data).split(b"\0")
        if len(self._received) > _LONGEST_FRAME:
            self.hang_up("that is too long for a call")
            return
        if frames or is_begin:
            if self._patience:
                self._patience.cancel()
            self._patience = None
            if self._received:
                self._wait_for_rest()
        try:
            self._calls += [VarlinkMethodCall.fromjson(json.loads(frame)) for frame in frames]
        except (TypeError, ValueError, RecursionError):
            self.hang_up("that is no call")
            return
        self._next()

    def _wait_for_rest(self) -> None:
        self._patience = self._loop.call_later(_PATIENCE, self._lose_patience, "half a call, and silence")

    def _lose_patience(self, why: str) -> None:
        if self.idle:
            self.hang_up(why, Code.TIMED_OUT)
        else:  # it may have said more, which is not read yet
            self._wait_for_rest()

    def _next(self) -> None:
        if self._calls:
            call = self._calls.popleft()
            if call.oneway and call.method not in _SWITCHES:
                self.hang_up("there is nothing to do where no answer is wanted")
                return
            self._is_attended = not call.oneway
            self._heed_hang_up()
            self._task = self._loop.create_task(self._carry_out(call))
        elif self._is_last:
            self._end()
        else:
            self._rest()

    # what is answered

    async def _carry_out(self, call: VarlinkMethodCall) -> None:
        try:
            await self._serve(call)
        except VarlinkErrorReply as error:
            if not call.oneway:
                await self._send(encode(error.toreply().tojson()))
        except Exception:  # noqa: BLE001 - a bug in one method is told, and harms nobody else's call
            _log.exception("%s failed", call.method)
            if not call.oneway:
                await self._send(encode(GenericVarlinkErrorReply(_BUG).toreply().tojson()))
        finally:
            self._task = None
            if not self._gone:
                self._next()

    async def _serve(self, call: VarlinkMethodCall) -> None:
        # Most of a call is done at once, and a list of many devices takes long. Of the calls of all users one
        # is begun in a turn of the loop, so that a switch, root and the watchdog have theirs between them.
        if self.peer.uid != 0:
            self._loop.call_soon(await self._listener.turns.take(self.peer.uid))
        current_peer.set(self.peer)
        wants_steps.set(call.more)
        wants_more = call.more
        call.more |= call.method in _SWITCHES
        method, signature = self._registry.lookup_method(call)
        try:
            parameters = signature.parameter_type.fromjson(call.parameters)
        except ConversionError as error:
            name = str(error.location[0]) if error.location else ""
            self._listener.refuse_call(self.peer, call.method, name)
            raise InvalidParameter(parameter=name) from error
        if not signature.more:
            # It has no name here: while the reply waits to be taken, its text alone is kept.
            await self._send(
                encode_result(await method(**parameters) if signature.asynchronous else method(**parameters))
            )
            return
        async with contextlib.aclosing(method(**parameters)) as results:
            async for result in results:
                if wants_more or not (result.continues or call.oneway):
                    await self._send(encode_result(result))

    async def _send(self, data: bytes) -> None:
        rest = self._send_some(memoryview(data))
        if not rest:
            return
        uid, unsent = self.peer.uid, self._listener.unsent
        if uid != 0 and unsent[uid] and unsent[uid] + len(data) > _MOST_UNSENT:
            self.hang_up("too many answers wait for this user", Code.TOO_MANY_REQUESTS)
            return
        unsent[uid] += len(data)
        patience = self._loop.call_later(
            _PATIENCE, self.hang_up, "it does not take its answer", Code.TIMED_OUT
        )
        try:
            while rest:
                await self._writable()
                rest = self._send_some(rest)
        finally:
            patience.cancel()
            unsent[uid] -= len(data)
            if not unsent[uid]:
                del unsent[uid]

    def _send_some(self, data: memoryview) -> memoryview:
        """What is left of it; nothing where nobody takes it any more."""
        if self._gone:
            return data[:0]
        try:
            return data[self._sock.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            self._end()
            return data[:0]

    async def _writable(self) -> None:
        ready = self._loop.create_future()
        self._loop.add_writer(self._sock, _settle, ready)
        try:
            await ready
        finally:
            if not self._gone:
                self._loop.remove_writer(self._sock)


def _settle(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
