"""What one user may have of the daemon, and what is left to others: places, threads, time and memory."""

import array
import asyncio
import errno
import gc
import json
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeKernel, ended, make_engine
from served import serve
from virtual_time import now, run_at_once

from vfio_flavourd import daemon
from vfio_flavourd.doors import connections, stray_files
from vfio_flavourd.doors.interface import DeviceInfo, StepInfo
from vfio_flavourd.doors.peer import Peer, current_peer
from vfio_flavourd.doors.protocol import NAME
from vfio_flavourd.doors.turns import Turns
from vfio_flavourd.doors.varlink import LOOKS
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.flavour import DeviceStatus, StepAction, StepReport
from vfio_flavourd.model.transition import Phase

DEVICE = "0000:01:00.0"
MEMBER, OTHER = 1000, 1001


def frame(method: str, *flags: str, **parameters: object) -> bytes:
    call = {"method": f"{NAME}.{method}", "parameters": parameters, **dict.fromkeys(flags, True)}
    return json.dumps(call).encode() + b"\0"


MONITOR = frame("Monitor", "more")
GET = frame("Get", device=DEVICE)
LIST = frame("List")
LOOK = frame("Get", device=DEVICE, users=True)
SWITCH = frame("SetFlavour", "oneway", device=DEVICE, flavour="vfio")


class Host:
    """A daemon's sockets, and clients of any user: a client's own address says which."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.engine: Engine = make_engine(kernel, load=2.0)
        self.device_name = ""
        self._clients: list[socket.socket] = []

    async def connect(self, uid: int, name: str = "control", say: bytes = b"") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        self._clients.append(sock)
        sock.bind(str(self.kernel.root / f"{uid}-{len(self._clients)}"))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, str(self.kernel.root / name))
        if say:
            await loop.sock_sendall(sock, say)
            await ended()  # it is let in, heard, and at work
        return sock

    async def answer(self, uid: int, name: str = "control", say: bytes = GET) -> bytes:
        """Empty where it is hung up on."""
        with await self.connect(uid, name, say) as sock:
            return await receive(sock)

    async def find_no_place(self, uid: int, name: str = "control") -> None:
        """It is told so, and then hung up on."""
        with await self.connect(uid, name, GET) as sock:
            *replies, rest = (await receive_all(sock)).split(b"\0")
        assert rest == b""
        (told,) = map(json.loads, replies)
        assert told["error"] == f"{NAME}.TryAgain"
        assert told["parameters"]["code"] == "too-many-requests"
        assert told["parameters"]["errno"] == errno.EAGAIN

    def close(self) -> None:
        for sock in self._clients:
            sock.close()


async def receive(sock: socket.socket) -> bytes:
    try:
        async with asyncio.timeout(30):
            return await asyncio.get_running_loop().sock_recv(sock, 65536)
    except ConnectionResetError:
        return b""


async def receive_all(sock: socket.socket) -> bytes:
    said = b""
    while more := await receive(sock):
        said += more
    return said


async def receive_reply(sock: socket.socket) -> bytes:
    """Less than a whole one where it is hung up on."""
    said = bytearray()
    while not said.endswith(b"\0") and (more := await receive(sock)):
        said += more
    return bytes(said)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = FakeKernel(tmp_path)
    kernel.add_native(kernel.add_device(DEVICE))
    return kernel


@pytest.fixture(autouse=True)
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_peer(sock: socket.socket, *, writes: bool) -> Peer:
        return Peer(7, int(Path(sock.getpeername()).name.partition("-")[0]), writes)

    monkeypatch.setattr(connections, "find_peer", find_peer)


@asynccontextmanager
async def served(kernel: FakeKernel) -> AsyncIterator[Host]:
    host = Host(kernel)
    async with serve(host.engine, kernel.root, lambda device: host.device_name):
        try:
            yield host
        finally:
            host.close()


Talk = Callable[[Host], Coroutine[Any, Any, None]]


async def _talk(kernel: FakeKernel, talk: Talk) -> None:
    async with served(kernel) as host:
        await talk(host)


@pytest.fixture
def run(kernel: FakeKernel) -> Callable[[Talk], None]:
    return lambda talk: asyncio.run(_talk(kernel, talk))


@pytest.fixture
def run_in_no_time(kernel: FakeKernel) -> Callable[[Talk], None]:
    return lambda talk: run_at_once(_talk(kernel, talk))


# places


def test_other_users_together_can_not_keep_root_out(run: Callable[[Talk], None]) -> None:
    async def talk(host: Host) -> None:
        for name, counts in (("control", (50, 50)), ("readonly", (128, 128, 44))):
            for uid, count in enumerate(counts, MEMBER):
                for _ in range(count):
                    await host.connect(uid, name, MONITOR)
            await host.find_no_place(2000, name)
            assert b'"e1000e"' in await host.answer(0, name)

    run(talk)


def test_one_user_can_not_keep_another_out(run: Callable[[Talk], None]) -> None:
    async def talk(host: Host) -> None:
        for _ in range(60):
            await host.connect(MEMBER, "control", MONITOR)
        await host.find_no_place(MEMBER)
        assert b'"e1000e"' in await host.answer(OTHER)

    run(talk)


@pytest.mark.parametrize("name", ["control", "readonly"])
@pytest.mark.parametrize(
    ("say", "code", "told"),
    [
        (b"no call\0", "invalid-argument", "stay connected (that is no call)"),
        (b"x" * 66_000, "invalid-argument", "stay connected (that is too long for a call)"),
        (frame("SetFlavour", device=5, flavour="vfio"), "invalid-argument", "call SetFlavour: its parameter"),
        (frame("Reset", device=DEVICE, more=1), "invalid-argument", "call Reset: its parameter"),
        (frame("Get", device=DEVICE)[:-1], "timed-out", "stay connected (half a call, and silence)"),
    ],
    ids=["no call", "too long", "a wrong type", "a word too many", "half a call"],
)
def test_what_is_no_call_is_on_record_with_who_made_it(
    run_in_no_time: Callable[[Talk], None],
    caplog: pytest.LogCaptureFixture,
    name: str,
    say: bytes,
    code: str,
    told: str,
) -> None:
    async def talk(host: Host) -> None:
        sock = await host.connect(MEMBER, name)
        with suppress(BrokenPipeError, ConnectionResetError):
            await asyncio.get_running_loop().sock_sendall(sock, say)
        with suppress(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(sock, 65536)  # an answer, or the end

    run_in_no_time(talk)
    (record,) = caplog.records
    assert f"refused to let uid {MEMBER} pid 7 {told}" in record.getMessage()
    assert (vars(record)["ERROR_CODE"], vars(record)["REQUESTER_UID"]) == (code, str(MEMBER))


def test_a_call_that_comes_byte_by_byte_has_no_longer_than_half_a_call_and_silence(
    run_in_no_time: Callable[[Talk], None],
) -> None:
    async def talk(host: Host) -> None:
        sock = await host.connect(MEMBER, "readonly")
        began = now()
        with suppress(BrokenPipeError, ConnectionResetError):
            for byte in GET[:40]:
                await asyncio.get_running_loop().sock_sendall(sock, bytes((byte,)))
                await asyncio.sleep(1)
        assert now() - began == pytest.approx(connections._PATIENCE, abs=2)

    run_in_no_time(talk)


def test_of_a_parameters_name_as_much_is_on_record_as_tells_which_it_is(
    run: Callable[[Talk], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(host: Host) -> None:
        assert b"InvalidParameter" in await host.answer(
            MEMBER, say=frame("Get", device=DEVICE, **{"x" * 10_000: 1})
        )

    run(talk)
    (record,) = caplog.records
    assert f"its parameter {'x' * 64!r} is none" in record.getMessage()
    assert len(record.getMessage()) < 200


def test_one_who_has_too_many_connections_is_on_record(
    run: Callable[[Talk], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(host: Host) -> None:
        for _ in range(50):
            await host.connect(MEMBER, "control", MONITOR)
        for _ in range(3):
            await host.find_no_place(MEMBER)

    run(talk)
    first, often = caplog.records
    assert first.getMessage() == (
        f"refused to let uid {MEMBER} pid 7 stay connected (too many connections, none of them idle)"
    )
    assert ": 2 times more" in often.getMessage()
    assert vars(often)["ERROR_CODE"] == "too-many-requests"


def test_of_root_s_own_connections_there_is_a_bounded_number_too(run: Callable[[Talk], None]) -> None:
    async def talk(host: Host) -> None:
        for _ in range(100):
            await host.connect(0, "control", MONITOR)
        await host.find_no_place(0)
        assert b'"e1000e"' in await host.answer(MEMBER)

    run(talk)


def test_switches_that_nobody_waits_for_have_their_places_until_they_end(
    kernel: FakeKernel, run: Callable[[Talk], None]
) -> None:
    async def talk(host: Host) -> None:
        native = kernel.drivers["e1000e"]
        lets_go = native.remove_blocks = asyncio.Event()
        await host.connect(OTHER, "control", frame("SetFlavour", device=DEVICE, flavour="vfio"))
        await until(lambda: any("unbind" in write for write in kernel.writes))
        for _ in range(200):
            (await host.connect(MEMBER, "control", SWITCH)).close()
        await host.find_no_place(MEMBER)
        assert b'"e1000e"' in await host.answer(OTHER)
        lets_go.set()
        asked = host.engine.attempts.history
        await until(lambda: len(asked) == 51)
        assert b'"vfio-pci"' in await host.answer(MEMBER)
        assert len(asked) == 51

    run(talk)


@pytest.mark.parametrize(
    "call",
    [
        frame("Get", "oneway", device=DEVICE, users=True),
        frame("List", "oneway"),
        frame("Plan", "oneway", device=DEVICE, flavour="vfio"),
        frame("Reload", "oneway"),
    ],
    ids=["Get", "List", "Plan", "Reload"],
)
def test_what_is_asked_for_its_answer_is_not_done_for_one_who_wants_none(
    run: Callable[[Talk], None], call: bytes
) -> None:
    async def talk(host: Host) -> None:
        assert await host.answer(MEMBER, "control", call + GET) == b""

    run(talk)


def test_who_gives_way_to_another_is_told_so_before_he_asks(run: Callable[[Talk], None]) -> None:
    """The one that is idle may be about to ask; nothing is done for him."""

    async def talk(host: Host) -> None:
        for _ in range(49):
            await host.connect(MEMBER, "control", MONITOR)
        idle = await host.connect(MEMBER)
        assert b'"e1000e"' in await host.answer(MEMBER)
        with suppress(BrokenPipeError):
            idle.send(frame("SetFlavour", device=DEVICE, flavour="vfio"))
        assert b'"too-many-requests"' in await receive_all(idle)
        assert host.kernel.writes == []

    run(talk)


def test_one_who_finds_no_place_and_takes_no_word_of_it_holds_nobody_up(
    run: Callable[[Talk], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that takes nothing is only hung up on."""

    async def talk(host: Host) -> None:
        for _ in range(100):
            await host.connect(0, "control", MONITOR)
        monkeypatch.setattr(connections, "NO_PLACE", b"x" * 10_000_000)
        async with asyncio.timeout(10):
            said = await receive_all(await host.connect(0))
            assert len(said) < 10_000_000
            assert b'"e1000e"' in await host.answer(MEMBER)

    run(talk)


def test_a_queue_of_one_user_s_clients_holds_up_the_next_one_for_a_few_turns_of_the_loop_only(
    run: Callable[[Talk], None],
) -> None:
    async def talk(host: Host) -> None:
        clients = [socket.socket(socket.AF_UNIX) for _ in range(120)]
        for number, client in enumerate(clients):
            client.bind(str(host.kernel.root / f"{0 if client is clients[-1] else MEMBER}-queued-{number}"))
            client.setblocking(False)
            client.connect(str(host.kernel.root / "control"))
        turns = 0
        clients[-1].send(GET)
        while not select.select([clients[-1]], [], [], 0)[0]:
            turns += 1
            await asyncio.sleep(0)
        assert b'"e1000e"' in await receive(clients[-1])
        assert turns < 20
        for client in clients:
            client.close()

    run(talk)


# files that are sent along


class Lingering:
    """TCP sockets with bytes that nobody takes: each close of a last reference to one sleeps."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._others: list[socket.socket] = []

    def send(self, sock: socket.socket, data: bytes = b"x", flags: int = 0) -> None:
        """The only reference to one more, behind those bytes."""
        with socket.create_connection(self._server.getsockname()) as lingers:
            self._others.append(self._server.accept()[0])
            lingers.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    lingers.send(b"x" * 65536)
            lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 15))
            files = array.array("i", [lingers.fileno()])
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)], flags)
            # A close of its own would not linger: it is not the last one.

    def end(self) -> None:
        """Those who sleep wake up."""
        for each in self._others:
            each.close()  # with bytes that are not read: a reset
        self._others.clear()

    def close(self) -> None:
        self.end()
        self._server.close()


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lingering]:
    """Before Linux 6.16, which knows no SO_PASSRIGHTS."""
    monkeypatch.setattr(stray_files, "_SO_PASSRIGHTS", 9999)
    lingering = Lingering()
    yield lingering
    lingering.close()


@contextmanager
def no_sleep() -> Iterator[None]:
    """Of the loop, which a client's file may not put to sleep."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 10


def test_the_kernel_refuses_files_for_the_daemon_where_it_can(run: Callable[[Talk], None]) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, stray_files._SO_PASSRIGHTS, 0)
        except OSError:
            pytest.skip("needs Linux 6.16")

    async def talk(host: Host) -> None:
        for name in ("control", "readonly"):
            sock = await host.connect(MEMBER, name)
            with pytest.raises(PermissionError):
                socket.send_fds(sock, [GET], [0])
            sock.send(GET)
            assert b'"e1000e"' in await receive(sock)

    run(talk)


@pytest.mark.parametrize("name", ["control", "readonly"])
@pytest.mark.parametrize(
    ("before", "data", "flags"),
    [
        (b"", b"x", 0),
        (b"", GET, 0),
        (GET, GET, 0),
        (GET + GET, b"x", 0),
        (b"", b"x", socket.MSG_OOB),
        (GET[:-1], b"\0", socket.MSG_OOB),
        (MONITOR, b"x", 0),
        (SWITCH, b"x", 0),
        (b"no call\0", b"x", 0),
        (b"x" * 66_000, b"x", 0),
    ],
    ids=[
        "alone",
        "with a call",
        "behind a call",
        "behind two",
        "out of band",
        "in a call, out of band",
        "while a call is under way",
        "while a call that wants no answer is under way",
        "behind what is no call",
        "behind what is too long",
    ],
)
def test_a_file_that_is_sent_along_holds_up_nobody_and_its_sender_is_hung_up_on(
    run: Callable[[Talk], None], lingering: Lingering, name: str, before: bytes, data: bytes, flags: int
) -> None:
    async def talk(host: Host) -> None:
        with no_sleep():
            sender = await host.connect(MEMBER, name)
            if before:
                sender.send(before)
            lingering.send(sender, data, flags)
            while await receive(sender):
                pass
            assert b'"e1000e"' in await host.answer(OTHER, name)

    run(talk)


def test_one_who_sends_a_file_along_is_on_record(
    run: Callable[[Talk], None], caplog: pytest.LogCaptureFixture, lingering: Lingering
) -> None:
    async def talk(host: Host) -> None:
        sender = await host.connect(MEMBER, "readonly")
        lingering.send(sender)
        assert await receive(sender) == b""

    run(talk)
    (record,) = caplog.records
    told = f"refused to let uid {MEMBER} pid 7 stay connected (it sends a file along)"
    assert record.getMessage() == told


def test_one_who_sends_files_has_his_places_taken_until_they_are_closed(
    run: Callable[[Talk], None], lingering: Lingering
) -> None:
    async def talk(host: Host) -> None:
        with no_sleep():
            for _ in range(50):
                lingering.send(await host.connect(MEMBER))
            assert b'"too-many-requests"' in await host.answer(MEMBER)
            assert b'"e1000e"' in await host.answer(OTHER)
        lingering.end()
        await until_answered(host, MEMBER)

    run(talk)


async def until_answered(host: Host, uid: int) -> None:
    async with asyncio.timeout(30):
        while b'"e1000e"' not in await host.answer(uid):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def test_an_idle_one_with_a_file_unread_makes_no_room(
    run: Callable[[Talk], None], lingering: Lingering
) -> None:
    async def talk(host: Host) -> None:
        idle = [await host.connect(MEMBER) for _ in range(50)]
        await host.answer(OTHER)
        with no_sleep():
            # In one turn of the loop: it lets in who comes before it reads.
            newcomers = [socket.socket(socket.AF_UNIX) for _ in range(20)]
            for number, newcomer in enumerate(newcomers):
                newcomer.bind(str(host.kernel.root / f"{MEMBER}-newcomer-{number}"))
                newcomer.connect(str(host.kernel.root / "control"))
            for each in idle:
                lingering.send(each)
            await host.answer(OTHER)
            closing = sum(thread.name == "closing" for thread in threading.enumerate())
            for newcomer in newcomers:
                newcomer.close()
        assert closing <= 50
        lingering.end()
        await until_answered(host, MEMBER)

    run(talk)


def test_files_of_those_who_are_refused_hold_up_nobody_until_they_are_many_and_then_newcomers_only(
    run: Callable[[Talk], None], lingering: Lingering
) -> None:
    async def talk(host: Host) -> None:
        known = await host.connect(OTHER)
        known.send(GET)
        assert b'"e1000e"' in await receive(known)
        for _ in range(50):
            await host.connect(MEMBER, "control", MONITOR)
        with no_sleep():
            for _ in range(49):
                lingering.send(await host.connect(MEMBER))
            assert b'"e1000e"' in await host.answer(0)
            for _ in range(20):
                lingering.send(await host.connect(MEMBER))
            await ended()
            closing = sum(thread.name == "closing" for thread in threading.enumerate())
            assert closing == connections._MOST_UNCLOSED
            waits = await host.connect(0, "control", GET)
            known.send(GET)
            assert b'"e1000e"' in await receive(known)
            assert b'"e1000e"' in await host.answer(0, "readonly")
        lingering.end()
        assert b'"e1000e"' in await receive(waits)

    run(talk)


def test_where_no_thread_can_be_had_a_close_waits_for_one(
    run_in_no_time: Callable[[Talk], None], lingering: Lingering, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    asked: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        asked.append(thread)
        if len(asked) < 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    async def talk(host: Host) -> None:
        sender = await host.connect(MEMBER)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        lingering.send(sender)
        with no_sleep():
            assert await receive(sender) == b""
            await asyncio.sleep(10)
            assert [thread.name for thread in asked] == ["closing"] * 3
            assert asked[-1].is_alive()

    run_in_no_time(talk)


def test_the_stop_waits_for_no_file_that_was_sent_along(kernel: FakeKernel, lingering: Lingering) -> None:
    async def talk() -> None:
        async with served(kernel) as host:
            idle, waits = await host.connect(MEMBER), socket.socket(socket.AF_UNIX)
            await host.answer(OTHER)
            lingering.send(idle)
            waits.bind(str(kernel.root / f"{MEMBER}-waits"))
            waits.connect(str(kernel.root / "control"))
            lingering.send(waits)
        waits.close()

    with no_sleep():
        asyncio.run(talk())


# hanging up


@pytest.mark.parametrize("rest", [b"x", GET, MONITOR * 50], ids=["a byte", "a call", "many calls"])
def test_one_who_hangs_up_is_noticed_also_where_he_has_said_more(
    run: Callable[[Talk], None], rest: bytes
) -> None:
    async def talk(host: Host) -> None:
        listeners = host.engine.attempts.listeners
        before = len(listeners)
        clients = [await host.connect(MEMBER, "readonly", MONITOR) for _ in range(128)]
        await until(lambda: len(listeners) == before + 128)
        for client in clients:
            client.send(rest)
        await host.find_no_place(MEMBER, "readonly")
        assert len(listeners) == before + 128
        for client in clients:
            client.close()
        await until(lambda: len(listeners) == before)
        assert b'"e1000e"' in await host.answer(MEMBER, "readonly")

    run(talk)


def test_one_who_wants_no_answers_may_hang_up_on_several_switches(
    kernel: FakeKernel, run: Callable[[Talk], None]
) -> None:
    async def talk(host: Host) -> None:
        native = kernel.drivers["e1000e"]
        lets_go = native.remove_blocks = asyncio.Event()
        client = await host.connect(MEMBER, "control", SWITCH)
        await until(lambda: any("unbind" in write for write in kernel.writes))
        client.send(frame("SetFlavour", "oneway", device=DEVICE, flavour="native"))
        await host.answer(OTHER)  # it has seen that there is more
        client.close()
        await host.answer(OTHER)
        native.remove_blocks = None
        lets_go.set()
        asked = host.engine.attempts.history
        await until(lambda: len(asked) == 2)
        assert [attempt.flavour for attempt in asked] == ["vfio", "native"]

    run(talk)


# turns of the loop


class Lists:
    """Whose lists were made, each with the turn of the loop that it was made in."""

    def __init__(self, engine: Engine) -> None:
        self.made: list[tuple[int, int]] = []
        self._turn = 0
        self._ticking = asyncio.create_task(self._tick())
        engine.devices = self._devices  # type: ignore[method-assign]

    def _devices(self) -> list[DeviceStatus]:
        self.made.append((current_peer.get().uid, self._turn))
        return []

    async def _tick(self) -> None:
        while True:
            self._turn += 1
            await asyncio.sleep(0)

    async def wait_for(self, count: int) -> None:
        await until(lambda: len(self.made) == count)
        self._ticking.cancel()


def test_of_the_calls_of_all_users_one_is_begun_in_a_turn_of_the_loop(run: Callable[[Talk], None]) -> None:
    async def talk(host: Host) -> None:
        lists = Lists(host.engine)
        clients = [
            await host.connect(uid, name)
            for name in ("control", "readonly")
            for uid in (MEMBER, OTHER)
            for _ in range(10)
        ]
        for name in ("control", "readonly"):
            await host.answer(0, name)  # they are all let in
        for client in clients:
            client.send(LIST * 20)
        await lists.wait_for(800)
        turns = [turn for _, turn in lists.made]
        assert all(later > earlier for earlier, later in pairwise(turns))

    run(talk)


def test_however_many_calls_a_user_makes_another_has_every_second_turn_and_root_does_not_queue(
    run: Callable[[Talk], None],
) -> None:
    async def talk(host: Host) -> None:
        lists = Lists(host.engine)
        clients = [await host.connect(MEMBER, "readonly") for _ in range(20)]
        clients += [await host.connect(uid, "readonly") for uid in (OTHER, 0)]
        await host.answer(0, "readonly")  # they are all let in
        for client in clients:
            client.send(LIST * 20)
        await lists.wait_for(440)
        for few in (OTHER, 0):
            order = "".join("x" if uid == MEMBER else "." for uid, _ in lists.made if uid in (MEMBER, few))
            assert "xx" not in order[: order.rindex(".")]

    run(talk)


def test_one_who_is_alone_has_his_calls_served_as_fast_as_root(run: Callable[[Talk], None]) -> None:
    async def count(host: Host, uid: int) -> int:
        lists = Lists(host.engine)
        client = await host.connect(uid, "readonly")
        client.send(LIST * 40)
        await lists.wait_for(40)
        return lists.made[-1][1] - lists.made[0][1]

    async def talk(host: Host) -> None:
        assert await count(host, MEMBER) == await count(host, 0)

    run(talk)


# threads


def test_looks_for_users_of_devices_leave_threads_to_switches_and_a_hang_up_frees_none_that_is_busy(
    run: Callable[[Talk], None],
) -> None:
    ends = threading.Event()
    begun: list[object] = []

    def find_users(device: object) -> tuple[()]:
        begun.append(device)
        ends.wait()
        return ()

    async def talk(host: Host) -> None:
        host.engine._host.occupancy.find_users = find_users  # type: ignore[assignment, method-assign]
        threads = ThreadPoolExecutor(daemon._LOOKING)
        asyncio.get_running_loop().set_default_executor(threads)
        try:
            for _ in range(2):
                hasty = [await host.connect(uid, "readonly", LOOK) for uid in (MEMBER, OTHER, 1002) * 10]
                await until(lambda: len(begun) == LOOKS)
                for client in hasty:
                    client.close()
                assert b'"e1000e"' in await host.answer(MEMBER, "readonly")
            await host.connect(0, "control", LOOK)
            await until(lambda: len(begun) == LOOKS + 1)  # root's own has a thread at once
            async with asyncio.timeout(30):
                await asyncio.to_thread(bool)
            assert len(begun) == LOOKS + 1
        finally:
            ends.set()
        assert b'"e1000e"' in await host.answer(MEMBER, "readonly", LOOK)

    run(talk)


@pytest.mark.parametrize("call", [LOOK, frame("Plan", device=DEVICE, flavour="vfio")], ids=["Get", "Plan"])
def test_one_user_looks_once_at_a_time_however_often_he_asks(
    run: Callable[[Talk], None], call: bytes
) -> None:
    begun: list[int] = []

    async def talk(host: Host) -> None:
        ends = asyncio.Event()

        async def look(asked: object) -> list[Any]:
            begun.append(current_peer.get().uid)
            await ends.wait()
            return []

        host.engine.find_users = host.engine.plan = look  # type: ignore[assignment, method-assign]
        for _ in range(20):
            await host.connect(MEMBER, "readonly", call)
        await host.connect(OTHER, "readonly", call)
        await until(lambda: len(begun) == LOOKS)
        assert begun == [MEMBER, OTHER]
        ends.set()
        await until(lambda: len(begun) == 21)

    run(talk)


def test_one_who_gives_up_waiting_leaves_the_next_of_the_same_user_his_turn() -> None:
    async def run() -> None:
        turns = Turns(1)
        end = await turns.take(OTHER)
        first, second = (asyncio.create_task(turns.take(MEMBER)) for _ in range(2))
        await ended()  # one waits among all, the other for him
        first.cancel()
        await ended()
        end()
        async with asyncio.timeout(30):
            (await second)()
            (await turns.take(OTHER))()

    asyncio.run(run())


# time


async def fill(sock: socket.socket) -> int:
    """With calls, until it takes no more; how many of them it took."""
    taken, refused = 0, 0
    while refused < 50:
        try:
            taken += sock.send(GET[taken % len(GET) :])
            refused = 0
        except BlockingIOError:
            refused += 1
        await asyncio.sleep(0)
    return taken // len(GET)


def test_one_who_does_not_take_his_answers_is_hung_up_on(run_in_no_time: Callable[[Talk], None]) -> None:
    async def talk(host: Host) -> None:
        deaf = await host.connect(MEMBER, "readonly")
        asked = await fill(deaf)
        await asyncio.sleep(120)
        assert (await receive_all(deaf)).count(b"\0") < asked
        assert b'"e1000e"' in await host.answer(MEMBER, "readonly")

    run_in_no_time(talk)


def test_one_who_is_slow_to_take_his_answers_has_them_all(run_in_no_time: Callable[[Talk], None]) -> None:
    async def talk(host: Host) -> None:
        slow = await host.connect(MEMBER, "readonly")
        asked = await fill(slow)
        await asyncio.sleep(20)
        answers = 0
        while answers < asked:
            said = await receive(slow)
            assert said
            answers += said.count(b"\0")

    run_in_no_time(talk)


@pytest.mark.parametrize("say", [b"", GET], ids=["ever", "more"])
def test_one_who_says_nothing_is_hung_up_on_in_the_end(
    run_in_no_time: Callable[[Talk], None], caplog: pytest.LogCaptureFixture, say: bytes
) -> None:
    async def talk(host: Host) -> None:
        silent = await host.connect(MEMBER, "control", say)
        await asyncio.sleep(200)
        if say:
            assert b'"e1000e"' in await receive(silent)
            silent.send(say)
        await asyncio.sleep(290 if say else 90)
        assert caplog.messages == []
        assert not say or b'"e1000e"' in await receive(silent)
        assert await receive(silent) == b""

    run_in_no_time(talk)
    assert caplog.messages == [f"refused to let uid {MEMBER} pid 7 stay connected (it says nothing)"]


def test_one_who_waits_for_what_happens_is_no_idle_one_and_root_may_be_idle(
    run_in_no_time: Callable[[Talk], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(host: Host) -> None:
        await host.connect(MEMBER, "readonly", MONITOR)
        idle = await host.connect(0)
        await asyncio.sleep(10_000)
        idle.send(GET)
        assert b'"e1000e"' in await receive(idle)

    run_in_no_time(talk)
    assert caplog.messages == []


# memory


def test_answers_that_a_user_does_not_take_are_kept_up_to_some_bytes_and_as_bytes_only(
    run: Callable[[Talk], None],
) -> None:
    async def talk(host: Host) -> None:
        async def answer(uid: int) -> bytes:
            with await host.connect(uid, "readonly", LIST) as sock:
                return await receive_reply(sock)

        host.device_name = "x" * 2**20
        deaf = [await host.connect(MEMBER, "readonly", LIST) for _ in range(20)]
        deaf_root = [await host.connect(0, "readonly", LIST) for _ in range(20)]
        whole = len(await answer(OTHER))
        assert whole > 2**20
        assert not [each for each in gc.get_objects() if type(each) is DeviceInfo]
        replies = [await receive_reply(sock) for sock in deaf]
        assert sum(len(reply) == whole for reply in replies) == 8 * 2**20 // whole
        assert [len(await receive_reply(sock)) for sock in deaf_root] == [whole] * 20
        assert len(await answer(MEMBER)) == whole

    run(talk)


def test_an_answer_of_any_length_is_kept_where_no_other_is(run: Callable[[Talk], None]) -> None:
    async def talk(host: Host) -> None:
        host.device_name = "x" * 9 * 2**20
        slow = await host.connect(MEMBER, "readonly", LIST)
        assert len(await receive_reply(slow)) > 9 * 2**20

    run(talk)


def test_nothing_is_kept_for_a_monitor_that_does_not_read_and_it_is_told_why(
    run: Callable[[Talk], None],
) -> None:
    def count() -> int:
        return sum(type(each) is StepInfo for each in gc.get_objects())

    async def talk(host: Host) -> None:
        listeners = host.engine.attempts.listeners
        before = len(listeners)
        deaf = await host.connect(MEMBER, "readonly", MONITOR)
        step = StepReport(Phase.SWITCHING, StepAction.BIND, "bind to vfio-pci", 0.1, 0.2, "", "vfio_pci")

        async def happen(times: int) -> None:
            for _ in range(times):
                for listen in list(listeners):
                    listen(parse_address(DEVICE), step)
                await asyncio.sleep(0)

        await happen(600)
        assert len(listeners) == before + 1
        assert count() > 100  # it is waited for
        await happen(2000)
        assert len(listeners) == before
        assert count() <= 2
        said = b""
        while b"events wait for this client" not in said:
            said = await receive(deaf)
            assert said

    run(talk)
