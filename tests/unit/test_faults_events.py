"""Events that are lost, come by the thousand, are forged, cut short, in the wrong order, or came unheard."""

import asyncio
import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_kernel import FakeDevice, FakeKernel, has, make_engine
from virtual_time import run_at_once

from vfio_flavourd.doors.uevents import UeventDoor
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.kernel.udev_database import UdevDatabase, Uevent
from vfio_flavourd.kernel.uevents import Uevents
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.flavour import Flavour, Request
from vfio_flavourd.model.policy import Match, Policy, Rule, Settings

DEVICE, OTHER = "0000:01:00.0", "0000:02:00.0"
QUICK = Settings(load_timeout=1.0, bind_timeout=1.0)
TO_VFIO = Policy(
    defaults=QUICK,
    rules=(Rule("a rule", Match(device=(0x10D3,)), "vfio", (), QUICK, None, "50-test.yaml:3"),),
)
NATIVE, VFIO = ("e1000e", None), ("vfio-pci", "vfio-pci")


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


class Silence:
    """No events but those that a test hands over, and a database of wishes."""

    def __init__(self) -> None:
        self.stored: tuple[Uevent, ...] = ()

    def listen(
        self, receive: Callable[[Uevent], None], resync: Callable[[], None], may_wait: Callable[[], bool]
    ) -> None:
        self.receive, self.resync = receive, resync

    def wishes(self) -> Iterator[Uevent]:
        yield from self.stored


def open_door(kernel: FakeKernel, engine: Engine) -> tuple[UeventDoor, Silence]:
    silence = Silence()
    door = UeventDoor(engine, silence, silence, kernel.root / "run/last-wish")  # type: ignore[arg-type]
    door.open()
    return door, silence


def event(action: str, seqnum: int, address: str = DEVICE, wish: str | None = None) -> Uevent:
    return Uevent(action, parse_address(address), wish, seqnum)


def add(kernel: FakeKernel, address: str = DEVICE, group: int = 7) -> FakeDevice:
    device = kernel.add_device(address, group=group)
    if "e1000e" in kernel.drivers:
        kernel.probe(kernel.drivers["e1000e"], device)
    else:
        kernel.add_native(device)
    return device


async def start(kernel: FakeKernel, policy: Policy = TO_VFIO) -> Engine:
    engine = make_engine(kernel, policy)
    engine.recover()
    await engine.reconciler.start()
    await asyncio.sleep(1)
    return engine


# what udev's socket gives


class Monitor:
    """pyudev's, with what it gives one after the other: devices, or errors that it raises."""

    def __init__(self, *given: Any) -> None:
        self.given = list(given)

    def poll(self, timeout: float) -> Any:
        assert timeout == 0, "the loop must not wait here"
        if not self.given:
            return None
        given = self.given.pop(0)
        if isinstance(given, BaseException):
            raise given
        return given


def udev_device(**traits: Any) -> Any:
    path = f"/sys/devices/pci0000:00/{DEVICE}"
    plain = {
        "subsystem": "pci",
        "sys_name": DEVICE,
        "sys_path": path,
        "action": "change",
        "properties": {},
        "sequence_number": 5,
    }
    return SimpleNamespace(**plain | traits)


def drain(*given: Any) -> tuple[list[Uevent], int]:
    """The events that were handed on, and how often all devices were to be looked at again."""
    uevents = object.__new__(Uevents)
    uevents._monitor = Monitor(*given)
    received: list[Uevent] = []
    lost: list[None] = []
    uevents._drain(received.append, lambda: lost.append(None))
    return received, len(lost)


class Overflown(Monitor):
    """As pyudev on a real socket: the error is found again until it has been taken from there."""

    def __init__(self, sock: socket.socket, *given: Any) -> None:
        super().__init__(*given)
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def poll(self, timeout: float) -> Any:
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        if any(event & select.POLLERR for _, event in waiting.poll(0)):
            raise OSError(f"Error while polling fd: {self.fileno()}")
        return super().poll(timeout)


def refused_socket() -> socket.socket:
    """One with an error that waits to be taken: nobody listens where it has sent to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address = gone.getsockname()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(address)
    sock.send(b"x")
    return sock


def test_an_overflow_that_pyudev_has_no_number_for_is_taken_from_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(errno, "ENOBUFS", errno.ECONNREFUSED)  # the one that can be had without root
    with refused_socket() as sock:
        uevents = object.__new__(Uevents)
        uevents._monitor = Overflown(sock, udev_device(sequence_number=9000))
        received: list[Uevent] = []
        lost: list[None] = []
        uevents._drain(received.append, lambda: lost.append(None))
        assert len(lost) == 1
        assert [each.seqnum for each in received] == [9000]


def test_another_error_of_the_socket_is_no_overflow() -> None:
    with refused_socket() as sock:
        uevents = object.__new__(Uevents)
        uevents._monitor = Overflown(sock)
        with pytest.raises(OSError, match="polling"):
            uevents._drain(lambda _: None, lambda: None)


def test_when_events_were_lost_all_devices_are_looked_at_again_and_later_events_still_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    overflow = OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
    received, lost = drain(udev_device(sequence_number=1), overflow, udev_device(sequence_number=9000))
    assert [each.seqnum for each in received] == [1, 9000]
    assert lost == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    "traits",
    [
        {"sys_name": ""},
        {"sys_name": "0000:01:00"},
        {"sys_name": "../../x"},
        {"subsystem": "vfio-dev", "sys_name": "vfio0", "sys_path": "/vfio-dev/vfio0"},
        {"subsystem": None, "sys_name": "x"},
    ],
)
def test_a_truncated_event_is_passed_over_and_the_next_one_comes(traits: dict[str, Any]) -> None:
    received, lost = drain(udev_device(**traits), udev_device(sequence_number=7))
    assert [each.seqnum for each in received] == [7]
    assert lost == 0


# storms


def test_a_storm_of_5000_events_makes_one_switch_and_holds_up_no_other_device(kernel: FakeKernel) -> None:
    async def run() -> None:
        engine = await start(kernel)
        door, _ = open_door(kernel, engine)
        device, other = add(kernel), kernel.add_device(OTHER, device=0x1533, group=8)
        kernel.add_native(other, "igb")
        asked = asyncio.create_task(
            engine.set_flavour(Request(parse_address(OTHER), Flavour.VFIO), lambda _: None)
        )
        started = time.monotonic()
        actions = ("add", "bind", "change", "unbind", "remove", "move", "online", "")
        for number in range(5000):
            door.receive(event(actions[number % len(actions)], number))
            if number % 500 == 0:
                await asyncio.sleep(0)
        assert (await asked).driver == "vfio-pci"
        await asyncio.sleep(60)
        assert time.monotonic() - started < 5
        assert has(device) == VFIO
        switched = [str(attempt.address) for attempt in engine.attempts.history]
        assert sorted(switched) == [DEVICE, OTHER]
        assert engine.device(parse_address(DEVICE)).held

    run_at_once(run())


def test_a_storm_of_wishes_ends_with_the_last_one(kernel: FakeKernel) -> None:
    device = add(kernel)

    async def run() -> None:
        engine = await start(kernel, Policy(defaults=QUICK))
        door, _ = open_door(kernel, engine)
        for number in range(1, 40):
            door.receive(event("change", number, wish="vfio" if number % 2 else "native"))
        door.receive(event("change", 40, wish="vfio"))
        door.receive(event("change", 39, wish="native"))  # an older one that comes late
        while door._tasks:
            await asyncio.wait(door._tasks)
        assert has(device) == VFIO

    run_at_once(run())


# events that say what is not so


@pytest.mark.parametrize("action", ["remove", "unbind", "add", "bind", "change", "nonsense", ""])
def test_a_forged_event_changes_nothing_since_sysfs_is_looked_at(kernel: FakeKernel, action: str) -> None:
    device = add(kernel)

    async def run() -> None:
        engine = await start(kernel)
        door, _ = open_door(kernel, engine)
        assert has(device) == VFIO
        kernel.writes.clear()
        for address in (DEVICE, "0000:0f:00.0", "ffffffff:ff:1f.7"):
            door.receive(event(action, 2**62, address))
        await asyncio.sleep(60)
        status = engine.device(parse_address(DEVICE))
        assert status.held
        assert status.origin_driver == "e1000e"
        assert kernel.writes == []
        await engine.set_flavour(Request(parse_address(DEVICE), Flavour.NATIVE), lambda _: None)
        assert has(device) == NATIVE

    run_at_once(run())


def test_a_wish_by_an_event_without_a_number_of_the_kernels_is_none(kernel: FakeKernel) -> None:
    device = add(kernel)

    async def run() -> None:
        engine = await start(kernel, Policy(defaults=QUICK))
        door, _ = open_door(kernel, engine)
        door.receive(event("change", 0, wish="vfio"))
        await asyncio.sleep(5)
        assert has(device) == NATIVE

    run_at_once(run())


@pytest.mark.parametrize(
    "lines",
    [
        "E:VFIO_FLAVOUR_WISH=vfio\n",
        "E:VFIO_FLAVOUR_WISH=vfio\nE:VFIO_FLAVOUR_WISH_SEQNUM=\n",
        "E:VFIO_FLAVOUR_WISH=vfio\nE:VFIO_FLAVOUR_WISH_SEQNUM=-5\n",
        "E:VFIO_FLAVOUR_WISH=vfio\nE:VFIO_FLAVOUR_WISH_SEQNUM=5x\n",
        "E:VFIO_FLAVOUR_WISH=vfio\nE:VFIO_FLAVOUR_WISH_SEQNUM=²\n",
        "E:VFIO_FLAVOUR_WISH=",
        "\0" * 300,
    ],
    ids=[
        "no number",
        "empty number",
        "negative",
        "no decimal",
        "superscript",
        "cut short",
        "zeros",
    ],
)
def test_a_wish_that_is_cut_short_in_udevs_database_is_none(tmp_path: Path, lines: str) -> None:
    (tmp_path / "run/udev/data").mkdir(parents=True)
    tags = tmp_path / "run/udev/tags/vfio-flavour"
    tags.mkdir(parents=True)
    for address, text in (
        (DEVICE, lines),
        (OTHER, "E:VFIO_FLAVOUR_WISH=vfio\nE:VFIO_FLAVOUR_WISH_SEQNUM=7\n"),
    ):
        (tags / f"+pci:{address}").touch()
        (tmp_path / f"run/udev/data/+pci:{address}").write_text(text, encoding="utf-8")
    assert list(UdevDatabase(tmp_path).wishes()) == [event("change", 7, OTHER, "vfio")]


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "[]", '{"x": "y"}', '{"0000:01:00.0": null}', "\0"])
def test_a_mark_of_past_events_that_is_spoilt_keeps_the_daemon_from_nothing(
    kernel: FakeKernel, content: str
) -> None:
    device = add(kernel)
    (kernel.root / "run/last-wish").write_text(content, encoding="ascii")

    async def run() -> None:
        engine = await start(kernel, Policy(defaults=QUICK))
        door, _ = open_door(kernel, engine)
        door.receive(event("change", 5, wish="vfio"))
        await asyncio.sleep(5)
        assert has(device) == VFIO

    run_at_once(run())


# order


@pytest.mark.parametrize("order", [("remove", "add"), ("add", "remove"), ("bind", "remove", "add", "add")])
def test_a_replug_is_one_in_whatever_order_its_events_come(
    kernel: FakeKernel, order: tuple[str, ...]
) -> None:
    device = add(kernel)

    async def run() -> None:
        engine = await start(kernel)
        door, _ = open_door(kernel, engine)
        assert has(device) == VFIO
        kernel.remove_device(device)
        successor = add(kernel)
        for number, action in enumerate(order):
            door.receive(event(action, 100 + number))
        await asyncio.sleep(60)
        assert has(successor) == VFIO
        assert [str(attempt.address) for attempt in engine.attempts.history] == [DEVICE, DEVICE]
        await engine.set_flavour(Request(parse_address(DEVICE), Flavour.NATIVE), lambda _: None)
        assert has(successor) == NATIVE

    run_at_once(run())


def test_another_device_at_the_same_address_inherits_nothing_where_no_event_told_of_it(
    kernel: FakeKernel,
) -> None:
    device = add(kernel)

    async def run() -> None:
        engine = await start(kernel, Policy(defaults=QUICK))
        address = parse_address(DEVICE)
        await engine.set_flavour(Request(address, Flavour.VFIO), lambda _: None)
        kernel.remove_device(device)
        successor = kernel.add_device(device=0x1533)
        kernel.add_native(successor, "igb")
        kernel.writes.clear()
        status = engine.device(address)
        assert (status.held, status.origin_driver, status.wish) == (False, None, None)
        await engine.reset(Request(address, Flavour.NATIVE), lambda _: None)
        assert kernel.writes == []
        assert has(successor) == ("igb", None)
        await engine.set_flavour(Request(address, Flavour.VFIO), lambda _: None)
        await engine.reset(Request(address, Flavour.NATIVE), lambda _: None)
        assert has(successor) == ("igb", None)

    run_at_once(run())


def test_devices_that_came_while_the_daemon_was_down_get_what_the_policy_says_and_others_nothing(
    kernel: FakeKernel,
) -> None:
    old = add(kernel)

    async def run() -> None:
        await (await start(kernel)).settle(1.0)
        came, same_place = add(kernel, OTHER, 8), kernel.add_device("0000:03:00.0", device=0x1533, group=9)
        kernel.add_native(same_place, "igb")
        kernel.writes.clear()
        await start(kernel)
        assert has(came) == VFIO
        assert has(old) == VFIO
        assert has(same_place) == ("igb", None)
        assert all(OTHER in write for write in kernel.writes)

    run_at_once(run())


def test_a_device_that_went_while_the_daemon_was_down_is_forgotten(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = add(kernel)
    caplog.set_level(logging.WARNING)

    async def run() -> None:
        await (await start(kernel)).settle(1.0)
        kernel.remove_device(device)
        engine = await start(kernel)
        assert engine.devices() == []
        assert list((kernel.root / "run/devices").iterdir()) == []

    run_at_once(run())
    assert caplog.records == []
