"""The varlink door, spoken to by the project's own client and by the reference one, on a fake kernel."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import varlink
from fake_kernel import FakeDriver, FakeKernel, ended, make_engine, no_reload

from vfio_flavourd.doors import blocking_client, client, interface, protocol
from vfio_flavourd.doors.replies import NO_PLACE
from vfio_flavourd.doors.varlink import ManagerService, VarlinkDoor
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.errors import FlavourError

DEVICE = "0000:01:00.0"
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = FakeKernel(tmp_path)
    kernel.add_native(kernel.add_device(DEVICE))
    return kernel


@asynccontextmanager
async def served(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> AsyncIterator[str]:
    """Both sockets, and the path of the control one."""
    door = VarlinkDoor(ManagerService(engine, lambda device: "A NIC", no_reload))
    paths = {name: str(kernel.root / name) for name in ("control", "readonly")}
    for name, path in paths.items():
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen()
        door.listen(sock, writes=name == "control")
    monkeypatch.setattr(client, "CONTROL_SOCKET", paths["control"])
    monkeypatch.setattr(client, "READ_ONLY_SOCKET", paths["readonly"])
    monkeypatch.setattr(blocking_client, "CONTROL_SOCKET", paths["control"])
    monkeypatch.setattr(blocking_client, "READ_ONLY_SOCKET", paths["readonly"])
    try:
        yield paths["control"]
    finally:
        door.close()
        await ended()


def serve(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    talk: Callable[[str], Awaitable[Any]],
    engine: Engine | None = None,
) -> Any:
    async def run() -> Any:
        async with served(kernel, monkeypatch, engine or make_engine(kernel, load=2.0)) as path:
            return await talk(path)

    return asyncio.run(run())


def test_set_flavour_answers_once_when_the_device_has_it(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(path: str) -> dict[str, Any]:
        caller = await client.connect(writes=True)
        answer = await caller.call("SetFlavour", device="01:00.0", flavour="vfio")
        caller.close()
        return answer

    outcome = serve(kernel, monkeypatch, talk)["outcome"]
    assert outcome["driver"] == "vfio-pci"
    assert outcome["group_node"] == "/dev/vfio/7"
    driver = kernel.devices[DEVICE].driver
    assert driver is not None
    assert driver.name == "vfio-pci"


def test_set_flavour_with_more_tells_each_step_and_then_the_outcome(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(path: str) -> list[dict[str, Any]]:
        def ask() -> list[dict[str, Any]]:
            with blocking_client.connect(writes=True) as caller:
                return list(caller.follow("SetFlavour", device=DEVICE, flavour="vfio"))

        return await asyncio.to_thread(ask)

    replies = serve(kernel, monkeypatch, talk)
    assert [reply["step"]["what"] for reply in replies if reply["step"]] == [
        "load vfio_pci",
        "set driver_override to vfio-pci",
        "unbind from e1000e",
        "bind to vfio-pci",
        "read back what it has",
    ]
    assert replies[-1]["outcome"]["driver"] == "vfio-pci"


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"device": "0000:0f:00.0", "flavour": "vfio"}, errno.ENODEV),
        ({"device": DEVICE, "flavour": "vfoi"}, errno.EINVAL),
        ({"device": "../../x", "flavour": "vfio"}, errno.EINVAL),
        ({"device": DEVICE + "\n", "flavour": "vfio"}, errno.EINVAL),
        ({"device": DEVICE, "flavour": "vfio" * 2560}, errno.EINVAL),
        ({"device": DEVICE, "flavour": "vfio", "drivers": ["-C/tmp/evil"]}, errno.EINVAL),
        ({"device": DEVICE, "flavour": "vfio", "drivers": ["../../x"]}, errno.EINVAL),
        ({"device": DEVICE, "flavour": "vfio", "drivers": ["vfio-pci"] * 17}, errno.EINVAL),
    ],
)
def test_bad_input_gets_its_errno_and_touches_nothing(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], code: int
) -> None:
    async def talk(path: str) -> FlavourError:
        caller = await client.connect(writes=True)
        with pytest.raises(FlavourError) as caught:
            await caller.call("SetFlavour", **parameters)
        caller.close()
        return caught.value

    error = serve(kernel, monkeypatch, talk)
    assert error.errno == code
    assert len(str(error).splitlines()) == 1
    assert kernel.writes == []


def test_the_read_only_socket_shows_and_does_not_switch(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(path: str) -> tuple[dict[str, Any], list[int]]:
        caller = await client.connect(writes=False)
        device = await caller.call("Get", device=DEVICE)
        codes = []
        for method, parameters in [
            ("SetFlavour", {"device": DEVICE, "flavour": "vfio"}),
            ("Reset", {"device": DEVICE}),
            ("Reload", {}),
        ]:
            with pytest.raises(FlavourError) as caught:
                await caller.call(method, **parameters)
            codes.append(caught.value.errno)
        caller.close()
        return device, codes

    answer, codes = serve(kernel, monkeypatch, talk)
    assert answer["device"]["driver"] == "e1000e"
    assert answer["device"]["flavour"] == "native"
    assert codes == [errno.EACCES] * 3
    assert kernel.writes == []


def test_a_client_that_hangs_up_before_anything_is_touched_stops_its_switch(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(path: str) -> None:
        hang = asyncio.Event()
        kernel.add_module(FakeDriver("slow", "slow_vfio", vfio=True), alias=ALIAS, hang=hang)
        caller = await client.connect(writes=True)
        task = asyncio.create_task(caller.call("SetFlavour", device=DEVICE, flavour="vfio"))
        while not kernel.modules["slow_vfio"].loads:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        caller.close()
        with pytest.raises(FlavourError):
            await task
        await asyncio.sleep(0.05)
        hang.set()
        await asyncio.sleep(0.05)

    serve(kernel, monkeypatch, talk)
    assert kernel.writes == []


def test_one_who_wants_no_answer_gets_the_switch_all_the_same(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(path: str) -> None:
        with blocking_client.connect(writes=True) as caller:
            caller._send("SetFlavour", {"device": DEVICE, "flavour": "vfio"}, {"oneway": True})
        async with asyncio.timeout(10):
            while not kernel.writes:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

    serve(kernel, monkeypatch, talk)
    driver = kernel.devices[DEVICE].driver
    assert driver is not None
    assert driver.name == "vfio-pci"


def test_plan_says_what_would_be_done_and_does_nothing(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(path: str) -> list[str]:
        caller = await client.connect(writes=False)
        answer = await caller.call("Plan", device=DEVICE, flavour="vfio")
        caller.close()
        steps: list[str] = answer["steps"]
        return steps

    steps = serve(kernel, monkeypatch, talk)
    assert steps[0] == "load vfio_pci"
    assert steps[2] == "unbind from e1000e"
    assert kernel.writes == []


def test_as_many_drivers_may_be_named_as_a_device_could_have_and_not_as_many_as_there_are_names(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(path: str) -> list[str]:
        caller = await client.connect(writes=False)
        names = [f"driver{number}" for number in range(10_000)]
        with pytest.raises(FlavourError) as caught:
            await caller.call("Plan", device=DEVICE, flavour="vfio", drivers=names[:17])
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(FlavourError) as caught:
            await caller.call("Plan", device=DEVICE, flavour="vfio", drivers=names[:4000])
        assert str(caught.value) == "4000 drivers are too many to name"
        answer = await caller.call("Plan", device=DEVICE, flavour="vfio", drivers=[*names[:15], "vfio-pci"])
        caller.close()
        steps: list[str] = answer["steps"]
        return steps

    assert "if that fails: driver14" in serve(kernel, monkeypatch, talk)


def test_monitor_tells_of_switches_that_others_ask_for(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(kernel)
    alone = len(engine.attempts.listeners)

    async def talk(path: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []

        def watch() -> None:
            with blocking_client.connect(writes=False) as watcher:
                for event in watcher.follow("Monitor"):
                    events.append(event)
                    if event.get("attempt"):
                        return

        task = asyncio.create_task(asyncio.to_thread(watch))
        while len(engine.attempts.listeners) == alone:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        caller = await client.connect(writes=True)
        await caller.call("SetFlavour", device=DEVICE, flavour="vfio")
        await asyncio.wait_for(task, 30)
        history = await caller.call("History")
        assert history["attempts"][-1]["flavour"] == "vfio"
        caller.close()
        return events

    events = serve(kernel, monkeypatch, talk, engine)
    assert events[-1]["attempt"]["error"] == ""
    assert "unbind from e1000e" in [event["step"]["what"] for event in events[:-1]]


def test_the_reference_client_does_a_whole_switch(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reference(path: str) -> Any:
        with varlink.Client.new_with_address(f"unix:{path}") as found, found.open(protocol.NAME) as manager:
            steps = list(manager.SetFlavour(device=DEVICE, flavour="vfio", _more=True))
            with pytest.raises(varlink.VarlinkError) as caught:
                manager.SetFlavour(device=DEVICE, flavour="vfoi")
            return steps, manager.Get(DEVICE), caught.value

    async def talk(path: str) -> Any:
        return await asyncio.to_thread(reference, path)

    steps, answer, error = serve(kernel, monkeypatch, talk)
    assert steps[-1]["outcome"]["driver"] == "vfio-pci"
    assert answer["device"]["flavour"] == "vfio"
    assert error.error() == f"{protocol.NAME}.InvalidArgument"
    assert "native or vfio" in error.parameters()["hint"]


def test_half_a_frame_and_rubbish_harm_nobody_else(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(path: str) -> dict[str, Any]:
        rude = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        for sock in rude:
            sock.connect(path)
            sock.send(
                b'{"method":"io.vfioflavour.Manager.List"' if sock is rude[0] else b"[]\0{}\0nonsense\0"
            )
        caller = await client.connect(writes=True)
        answer = await caller.call("Get", device=DEVICE)
        caller.close()
        for sock in rude:
            sock.close()
        return answer

    assert serve(kernel, monkeypatch, talk)["device"]["device"] == DEVICE


def test_every_method_error_and_type_is_documented_in_the_interface() -> None:
    lines = interface.Manager.render_interface_description().splitlines()
    told = [index for index, line in enumerate(lines) if line.startswith(("method ", "error ", "type "))]
    assert len(told) == 28
    assert not [line for line in lines if line.startswith("# ") and "Info(" in line]
    assert [lines[index] for index in told if not lines[index - 1].startswith("# ")] == []


def answered_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *pieces: bytes) -> dict[str, Any]:
    """What the file system's client makes of an answer that comes in these pieces, and then the end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\0")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        answered.set()

    async def call() -> dict[str, Any]:
        server = await asyncio.start_unix_server(answer, tmp_path / "control")
        async with server:
            caller = await client.connect(writes=True)
            try:
                return await caller.call("Get", device=DEVICE)
            finally:
                caller.close()
                await answered.wait()
                await ended()

    answered = asyncio.Event()
    monkeypatch.setattr(client, "CONTROL_SOCKET", str(tmp_path / "control"))
    return asyncio.run(call())


def test_an_answer_may_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = (b'{"parameters":{"fla', b'vours":["native"]}}', b"\0")
    assert answered_with(tmp_path, monkeypatch, *pieces) == {"flavours": ["native"]}


@pytest.mark.parametrize("pieces", [(), (b'{"parameters":',), (b"nonsense\0",)])
def test_a_daemon_that_ends_before_its_answer_does_or_talks_nonsense_went_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]
) -> None:
    with pytest.raises(FlavourError, match="went away before it answered") as caught:
        answered_with(tmp_path, monkeypatch, *pieces)
    assert caught.value.code == "daemon-went-away"


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        (NO_PLACE, "too-many-requests", "no connection is free"),
        (b"", "daemon-went-away", r"went away before it answered: Broken pipe \(EPIPE\)"),
    ],
)
def test_what_was_said_before_a_call_could_be_sent_is_the_answer_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, code: str, told: str
) -> None:
    monkeypatch.setattr(client, "CONTROL_SOCKET", str(tmp_path / "control"))

    async def call(sock: socket.socket) -> None:
        caller = await client.connect(writes=True)
        daemon, _ = sock.accept()
        daemon.send(said)
        daemon.close()
        with pytest.raises(FlavourError, match=told) as caught:
            await caller.call("Get", device=DEVICE)
        assert caught.value.code == code
        assert caught.value.errno == (errno.EAGAIN if said else errno.EIO)
        await ended()

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "control"))
        sock.listen()
        asyncio.run(call(sock))
