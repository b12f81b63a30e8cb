"""Clients that may not, say nothing, say anything, come by the thousand, go away, or want opposite things."""

import asyncio
import errno
import gc
import json
import logging
import os
import re
import resource
import select
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeDriver, FakeKernel, make_engine, no_reload
from virtual_time import run_at_once

from vfio_flavourd.doors import client
from vfio_flavourd.doors.protocol import NAME
from vfio_flavourd.doors.varlink import ManagerService, VarlinkDoor
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Attempt

DEVICE = "0000:01:00.0"
MODALIAS = "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00"
CONTROL = "\x1b[31m\r\n\x07\x9b\u202e\0"
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"

SET_FLAVOUR = (
    b'{"method":"io.vfioflavour.Manager.SetFlavour",'
    b'"parameters":{"device":"0000:01:00.0","flavour":"vfio",%b}}'
)

# A client that has said half of what it wants is waited for; not so long as this.
PATIENCE = 120.0

# What a service may have open unless its unit says otherwise is 1,024 files; a connection takes two.
MOST_CLIENTS = 500


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = FakeKernel(tmp_path)
    kernel.add_native(kernel.add_device(DEVICE))
    return kernel


class Service:
    """The daemon's two sockets, and its engine."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.engine: Engine = make_engine(kernel, load=2.0)
        self.door = VarlinkDoor(ManagerService(self.engine, lambda device: "A NIC", no_reload))
        self.control = str(kernel.root / "control")
        self.readonly = str(kernel.root / "readonly")
        self.clients: list[client.Client] = []

    async def connect(self) -> client.Client:
        self.clients.append(await client.connect(writes=True))
        return self.clients[-1]

    def listen(self) -> None:
        for path in (self.control, self.readonly):
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(path)
            sock.listen(4096)
            self.door.listen(sock, writes=path == self.control)

    @property
    def driver(self) -> str | None:
        driver = self.kernel.devices[DEVICE].driver
        return None if driver is None else driver.name

    async def get(self) -> dict[str, Any]:
        """What a newcomer is told at once."""
        async with asyncio.timeout(5):
            caller = await self.connect()
            answer: dict[str, Any] = (await caller.call("Get", device=DEVICE))["device"]
            caller.close()
        return answer

    async def say(self, data: bytes) -> bytes:
        """What comes back before the daemon hangs up, or has answered once."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, self.control)
            await loop.sock_sendall(sock, data)
            try:
                async with asyncio.timeout(10):
                    return await loop.sock_recv(sock, 65536)
            except TimeoutError:
                return b"(nothing)"
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def served(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    service = Service(kernel)
    service.listen()
    monkeypatch.setattr(client, "CONTROL_SOCKET", service.control)
    monkeypatch.setattr(client, "READ_ONLY_SOCKET", service.readonly)
    try:
        yield service
    finally:
        service.door.close()
        for each in service.clients:
            each.close()
        await asyncio.sleep(0.05)  # until it has seen that everybody is gone


Talk = Callable[[Service], Awaitable[None]]


@pytest.fixture
def serve(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> Callable[[Talk], None]:
    async def run(talk: Talk) -> None:
        async with served(kernel, monkeypatch) as service:
            await talk(service)

    return lambda talk: asyncio.run(run(talk))


@pytest.fixture
def serve_at_once(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> Callable[[Talk], None]:
    async def run(talk: Talk) -> None:
        async with served(kernel, monkeypatch) as service:
            await talk(service)

    return lambda talk: run_at_once(run(talk))


@contextmanager
def connections(path: str, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for sock in socks:
            sock.setblocking(False)
            sock.connect(path)
        yield socks


def is_open(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return not poll.poll(0)


# what is said


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        ("Get", "device", DEVICE),
        ("SetFlavour", "device", DEVICE),
        ("SetFlavour", "flavour", "vfio"),
        ("SetFlavour", "drivers", "vfio_pci"),
        ("SetFlavour", "group", "ignore"),
        ("Plan", "device", DEVICE),
        ("Plan", "flavour", "vfio"),
        ("Plan", "drivers", "vfio_pci"),
        ("Plan", "group", "ignore"),
        ("Reset", "device", DEVICE),
        ("Reset", "group", "ignore"),
        ("Resolve", "modalias", MODALIAS),
    ],
)
@pytest.mark.parametrize("where", ["before", "after", "alone"])
def test_control_characters_in_any_field_are_refused_and_neither_answered_nor_logged(
    kernel: FakeKernel,
    serve: Callable[[Talk], None],
    caplog: pytest.LogCaptureFixture,
    method: str,
    field: str,
    value: str,
    where: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    text = {"before": CONTROL + value, "after": value + CONTROL, "alone": CONTROL}[where]
    parameters: dict[str, Any] = {"device": DEVICE, "flavour": "vfio"}
    if method in ("Get", "Reset"):
        parameters = {"device": DEVICE}
    if method == "Resolve":
        parameters = {}
    parameters[field] = [text] if field == "drivers" else text

    async def talk(service: Service) -> None:
        caller = await service.connect()
        with pytest.raises(FlavourError) as caught:
            await caller.call(method, **parameters)
        caller.close()
        error = caught.value
        assert str(error).isprintable()
        assert error.hint.isprintable()
        assert len(str(error)) < 400
        assert service.driver == "e1000e"

    serve(talk)
    assert kernel.writes == []
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"method":' * 20_000,
        b"[]",
        b"null",
        b"{}",
        b"nonsense",
        b'{"method":5}',
        b'{"method":"\\u001b[31m.\\u001b[31m"}',
        b'{"method":"io.vfioflavour.Manager.\\u0000"}',
        b'{"method":"io.vfioflavour.Manager.__class__"}',
        b'{"method":"io.vfioflavour.Manager._engine"}',
        b'{"method":"io.vfioflavour.Manager.Get"}',
        b'{"method":"io.vfioflavour.Manager.Get","parameters":[]}',
        b'{"method":"io.vfioflavour.Manager.Get","parameters":{"device":["0000:01:00.0"]}}',
        b'{"method":"io.vfioflavour.Manager.Get","parameters":{"device":"0000:01:00.0","users":"yes"}}',
        b'{"method":"io.vfioflavour.Manager.Get","parameters":{"device":"\\ud800"}}',
        SET_FLAVOUR % b'"timeout":"1"',
        SET_FLAVOUR % b'"drivers":"vfio_pci"',
        SET_FLAVOUR % b'"more":true',
    ],
    ids=range(20),
)
def test_a_frame_that_is_no_call_is_answered_with_an_error_or_hung_up_on_and_is_no_bug_of_ours(
    kernel: FakeKernel, serve: Callable[[Talk], None], caplog: pytest.LogCaptureFixture, frame: bytes
) -> None:
    async def talk(service: Service) -> None:
        bugs: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        answer = await service.say(frame + b"\0")
        assert bugs == []
        assert answer == b"" or b'"error"' in answer
        assert (await service.get())["driver"] == "e1000e"

    serve(talk)
    assert kernel.writes == []
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "-1", "0", "1e999", "1e-300"])
def test_a_time_limit_that_makes_no_sense_leaves_the_device_as_it_was_or_switched(
    kernel: FakeKernel, serve: Callable[[Talk], None], text: str
) -> None:
    async def talk(service: Service) -> None:
        answer = await service.say(SET_FLAVOUR % b'"timeout":%b' % text.encode() + b"\0")
        reply = json.loads(answer.rstrip(b"\0"))
        if "error" in reply:
            assert service.driver == "e1000e"
            assert kernel.writes == []
        else:
            assert reply["parameters"]["outcome"]["driver"] == "vfio-pci"
            assert service.driver == "vfio-pci"
        assert (await service.get())["phase"] is None

    serve(talk)


def test_a_frame_without_an_end_is_not_kept_for_ever(serve: Callable[[Talk], None]) -> None:
    """A call is a few hundred bytes; who sends a megabyte of one is hung up on."""

    async def talk(service: Service) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, service.control)
            sent = 0
            with suppress(BrokenPipeError, ConnectionResetError):
                async with asyncio.timeout(2):
                    while sent < 1 << 20:
                        await loop.sock_sendall(sock, b"x" * 32768)
                        sent += 32768
            assert sent < 1 << 20, "it took all of it in"
        assert (await service.get())["driver"] == "e1000e"

    serve(talk)


# who says nothing


def test_half_a_frame_and_silence_is_hung_up_on_and_holds_up_nobody(
    serve_at_once: Callable[[Talk], None],
) -> None:
    async def talk(service: Service) -> None:
        loop = asyncio.get_running_loop()
        with connections(service.control, 1) as (rude,):
            await loop.sock_sendall(rude, b'{"method":"io.vfioflavour.Manager.List"')
            assert (await service.get())["driver"] == "e1000e"
            async with asyncio.timeout(PATIENCE):
                assert await loop.sock_recv(rude, 1) == b""

    serve_at_once(talk)


def test_a_frame_in_two_halves_is_answered_all_the_same(serve: Callable[[Talk], None]) -> None:
    async def talk(service: Service) -> None:
        loop = asyncio.get_running_loop()
        with connections(service.control, 1) as (slow,):
            for half in (b'{"method":"io.vfioflavour.Mana', b'ger.List"}\0'):
                await loop.sock_sendall(slow, half)
                await asyncio.sleep(0.01)
            assert b'"devices"' in await loop.sock_recv(slow, 65536)

    serve(talk)


# who comes by the thousand


@contextmanager
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_connections_for_looking_do_not_keep_one_from_switching(
    serve: Callable[[Talk], None],
) -> None:
    """Anyone at all may look."""

    async def talk(service: Service) -> None:
        with many_files(), connections(service.readonly, 1000) as socks:
            await asyncio.sleep(0.1)
            async with asyncio.timeout(30):
                caller = await service.connect()
                answer = await caller.call("SetFlavour", device=DEVICE, flavour="vfio")
            caller.close()
            assert answer["outcome"]["driver"] == "vfio-pci"
            for sock in socks:
                sock.close()
            await asyncio.sleep(0.1)
            assert (await service.get())["driver"] == "vfio-pci"

    serve(talk)


def test_of_a_thousand_connections_no_more_are_kept_than_there_are_files_for(
    serve: Callable[[Talk], None],
) -> None:
    async def talk(service: Service) -> None:
        with many_files(), connections(service.readonly, 1000) as socks:
            for _ in range(100):  # a machine that is busy takes its time to close them
                await asyncio.sleep(0.2)
                if sum(map(is_open, socks)) <= MOST_CLIENTS:
                    break
            assert sum(map(is_open, socks)) <= MOST_CLIENTS

    serve(talk)


class Full(socket.socket):
    """A listening socket of a process that has no file descriptors left."""

    asked = 0

    def accept(self) -> Any:
        self.asked += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_when_there_are_no_files_left_the_daemon_waits_and_goes_on_serving_those_it_has(
    serve: Callable[[Talk], None], kernel: FakeKernel
) -> None:
    async def talk(service: Service) -> None:
        bugs: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        known = await service.connect()
        path = str(kernel.root / "full")
        full = Full(socket.AF_UNIX)
        full.bind(path)
        full.listen()
        service.door.listen(full, writes=False)
        with connections(path, 1):
            started = time.process_time()
            await asyncio.sleep(0.3)
            assert (await known.call("Get", device=DEVICE))["device"]["driver"] == "e1000e"
            assert bugs == []
            assert full.asked < 20, f"it asked {full.asked} times in 0.3 s"
            assert time.process_time() - started < 0.25
        known.close()

    serve(talk)


# who goes away


@pytest.mark.parametrize("more", [False, True], ids=["one answer", "step by step"])
def test_a_client_that_is_gone_in_the_middle_of_its_switch_has_it_carried_to_its_end(
    kernel: FakeKernel, serve: Callable[[Talk], None], more: bool
) -> None:
    async def talk(service: Service) -> None:
        native = kernel.drivers["e1000e"]
        lets_go = native.remove_blocks = asyncio.Event()
        parameters = {"device": DEVICE, "flavour": "vfio"}
        call = {"method": f"{NAME}.SetFlavour", "parameters": parameters, "more": more}
        _, writer = await asyncio.open_unix_connection(service.control)
        writer.write(json.dumps(call).encode() + b"\0")
        await until(lambda: any("unbind" in write for write in kernel.writes))
        writer.close()
        await writer.wait_closed()
        native.remove_blocks = None
        lets_go.set()
        await until(lambda: bool(service.engine.attempts.history))
        assert service.driver == "vfio-pci"
        assert (await service.get())["phase"] is None
        (attempt,) = service.engine.attempts.history
        assert attempt.error == ""
        again = await service.connect()
        await again.call("SetFlavour", device=DEVICE, flavour="native")
        again.close()
        assert service.driver == "e1000e"

    serve(talk)
    assert list((kernel.root / "run/devices").iterdir()) == []


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_so():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it never came to that")


def test_clients_that_come_and_go_in_mid_request_leave_no_file_behind(
    serve: Callable[[Talk], None],
) -> None:
    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def talk(service: Service) -> None:
        await service.get()
        await asyncio.sleep(0.01)
        before = files()
        for size in range(1, 60):
            with connections(service.control, 1) as (sock,):
                sock.send(
                    b'{"method":"io.vfioflavour.Manager.Get","parameters":{"device":"01:00.0"}}\0'[:size]
                )
                await asyncio.sleep(0)
        await service.get()
        await until(lambda: files() <= before)

    serve(talk)


# who wants opposite things


def test_of_two_clients_with_opposite_wishes_each_is_told_the_truth_and_the_last_one_has_it(
    kernel: FakeKernel, serve: Callable[[Talk], None]
) -> None:
    real = kernel.write

    async def write(path: str, text: str) -> None:
        await asyncio.sleep(0.001)
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]

    async def talk(service: Service) -> None:
        told: list[tuple[str, str | None]] = []
        seen: list[str | None] = []

        def listen(_: object, news: object) -> None:
            if isinstance(news, Attempt):
                seen.append(service.driver)

        service.engine.attempts.listeners.add(listen)

        async def insist(flavour: str) -> None:
            caller = await service.connect()
            for _ in range(10):
                outcome = (await caller.call("SetFlavour", device=DEVICE, flavour=flavour))["outcome"]
                told.append((outcome["flavour"], outcome["driver"]))
            caller.close()

        async with asyncio.timeout(20):
            await asyncio.gather(insist("vfio"), insist("native"))
        assert sorted(set(told)) == [("native", "e1000e"), ("vfio", "vfio-pci")]
        assert None not in seen
        last = service.engine.attempts.history[-1]
        status = service.engine.device(parse_address(DEVICE))
        assert status.flavour == last.flavour
        assert status.held == (last.flavour == "vfio")

    serve(talk)
    # One at a time: no write of one stands between those of another.
    kinds = "".join(write.split()[0].rsplit("/", 1)[1][0] for write in kernel.writes)
    assert re.fullmatch(
        "(dubd?)+", kinds
    )  # driver_override, unbind, bind, and on the way back driver_override


def test_opposite_wishes_for_two_of_a_group_that_goes_together_end_as_one_of_them(
    kernel: FakeKernel, serve: Callable[[Talk], None]
) -> None:
    second = kernel.add_device("0000:01:00.1")
    kernel.probe(kernel.drivers["e1000e"], second)

    async def talk(service: Service) -> None:
        async def ask(device: str, flavour: str) -> None:
            caller = await service.connect()
            await caller.call("SetFlavour", device=device, flavour=flavour, group="together")
            caller.close()

        for _ in range(5):
            await asyncio.gather(ask(DEVICE, "vfio"), ask("0000:01:00.1", "native"))
            drivers = {each.driver.name for each in kernel.devices.values() if each.driver}
            assert drivers in ({"vfio-pci"}, {"e1000e"})
            assert all(each.driver for each in kernel.devices.values())

    serve(talk)


def test_a_client_that_reads_no_answers_holds_up_nobody_and_is_not_kept_in_memory(
    kernel: FakeKernel, serve: Callable[[Talk], None]
) -> None:
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)

    async def talk(service: Service) -> None:
        call = b'{"method":"io.vfioflavour.Manager.List"}\0'
        with connections(service.control, 1) as (deaf,):
            sent = 0
            for _ in range(400):
                with suppress(BlockingIOError):
                    sent += deaf.send(call * 100)
                await asyncio.sleep(0)
            assert sent < 400 * len(call) * 100, "it took in all that it could not answer"
            assert (await service.get())["driver"] == "e1000e"
        await asyncio.sleep(0.3)

    serve(talk)


def test_a_client_that_asks_a_lot_and_is_gone_fills_no_journal(
    serve: Callable[[Talk], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(service: Service) -> None:
        bugs: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
        with connections(service.readonly, 1) as (hasty,):
            assert hasty.send(b'{"method":"io.vfioflavour.Manager.List"}\0' * 200)
            await asyncio.sleep(0)
        await asyncio.sleep(0.3)
        assert (await service.get())["driver"] == "e1000e"
        gc.collect()
        assert len(bugs) + len(caplog.records) <= 3, f"{len(bugs)} bugs, {len(caplog.records)} log records"

    serve(talk)
