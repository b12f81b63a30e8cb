"""Wishes that come as uevents: each taken up once, and none that nobody made."""

import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_kernel import FakeDevice, FakeKernel, make_engine

from vfio_flavourd.doors.uevents import UeventDoor
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.kernel import uevents as kernel_uevents
from vfio_flavourd.kernel.udev_database import UdevDatabase, Uevent
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.flavour import Flavour, Request

ADDRESS = parse_address("0000:01:00.0")


class FakeUevents:
    """`pending` are wishes that udev's database holds."""

    def __init__(self, *pending: Uevent) -> None:
        self.pending = pending
        self.receive: Callable[[Uevent], None] | None = None

    def listen(
        self, receive: Callable[[Uevent], None], resync: Callable[[], None], may_wait: Callable[[], bool]
    ) -> None:
        self.receive = receive
        self.resync = resync

    def wishes(self) -> Iterator[Uevent]:
        assert self.receive is not None, "a wish that comes between the two would be lost"
        yield from self.pending


class Host:
    """A device on a fake kernel, and the door to it."""

    def __init__(self, root: Path) -> None:
        self.kernel = FakeKernel(root)
        self.device = self.kernel.add_device()
        self.kernel.add_native(self.device)
        self.mark = root / "run/last-wish"

    def door(self, engine: Engine, *pending: Uevent) -> UeventDoor:
        self.events = events = FakeUevents(*pending)
        return UeventDoor(engine, events, events, self.mark)  # type: ignore[arg-type]

    def run(self, talk: Callable[[Engine], Awaitable[None]]) -> None:
        async def run() -> None:
            await talk(make_engine(self.kernel))

        asyncio.run(run())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def fulfilled(door: UeventDoor) -> None:
    while door._tasks:
        await asyncio.wait(door._tasks)


def wish(
    flavour: str | None, seqnum: int = 100, action: str = "change", address: str = "0000:01:00.0"
) -> Uevent:
    return Uevent(action, parse_address(address), flavour, seqnum)


def driver(device: FakeDevice) -> str | None:
    return device.driver.name if device.driver else None


def test_a_wish_switches_the_device_and_says_who_asked(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        door.receive(wish("vfio", 4711))
        await fulfilled(door)
        assert driver(host.device) == "vfio-pci"
        last = engine.device(ADDRESS).last
        assert last is not None
        assert last.requester == "uevent 4711"
        door.receive(wish("native", 4712))
        await fulfilled(door)
        assert driver(host.device) == "e1000e"

    host.run(talk)


@pytest.mark.parametrize("text", ["vfoi", "VFIO", "", " ", "../../x", "vfio\n", "v" * 10240, "\x1b[31m"])
def test_a_wish_for_no_flavour_there_is_is_logged_once_and_ignored(
    host: Host, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        door.receive(wish(text))
        await fulfilled(door)

    host.run(talk)
    assert host.kernel.writes == []
    assert driver(host.device) == "e1000e"
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = record.getMessage()
    assert message.startswith("0000:01:00.0: ")
    assert message.endswith("ignoring")
    assert message.isprintable()
    assert len(message) < 400


def test_a_wish_for_a_device_that_is_not_there_harms_nobody(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        door.receive(wish("vfio", address="0000:0f:00.0"))
        await fulfilled(door)
        door.receive(wish("vfio", 101))
        await fulfilled(door)

    host.run(talk)
    assert driver(host.device) == "vfio-pci"


def test_one_event_is_acted_on_once(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        door.receive(wish("vfio"))
        await fulfilled(door)
        await engine.set_flavour(Request(ADDRESS, Flavour.NATIVE), lambda _: None)
        host.kernel.writes.clear()
        door.receive(wish("vfio"))
        await fulfilled(door)

    host.run(talk)
    assert host.kernel.writes == []
    assert driver(host.device) == "e1000e"


def test_one_event_is_acted_on_once_also_by_the_next_daemon(host: Host) -> None:
    async def first(engine: Engine) -> None:
        door = host.door(engine, wish("vfio"))
        door.open()
        await fulfilled(door)
        await engine.set_flavour(Request(ADDRESS, Flavour.NATIVE), lambda _: None)

    host.run(first)
    host.kernel.writes.clear()

    async def second(engine: Engine) -> None:
        door = host.door(engine, wish("vfio"))  # udev's database still has it
        door.open()
        await fulfilled(door)
        assert host.kernel.writes == []
        door.receive(wish("vfio", 101))
        await fulfilled(door)

    host.run(second)
    assert driver(host.device) == "vfio-pci"


def test_wishes_that_came_while_nobody_listened_are_taken_up_the_oldest_first(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine, wish("native", 102), wish("vfio", 101))
        door.open()
        await fulfilled(door)
        assert [str(attempt.flavour) for attempt in engine.attempts.history] == ["vfio", "native"]

    host.run(talk)
    assert driver(host.device) == "e1000e"


def test_udev_may_pass_on_the_events_of_two_devices_in_another_order_than_the_kernels(host: Host) -> None:
    """It works on unrelated devices side by side."""
    other = host.kernel.add_device("0000:02:00.0", group=8)

    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        door.receive(wish("vfio", 102))
        door.receive(wish("vfio", 101, address="0000:02:00.0"))
        await fulfilled(door)

    host.run(talk)
    assert driver(host.device) == "vfio-pci"
    assert driver(other) == "vfio-pci"


@pytest.mark.parametrize("content", ["", "nonsense", "12x"], ids=["empty", "nonsense", "cut short"])
def test_a_spoilt_mark_does_not_keep_the_daemon_from_starting(host: Host, content: str) -> None:
    host.mark.write_text(content, encoding="ascii")

    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        door.receive(wish("vfio"))
        await fulfilled(door)

    host.run(talk)
    assert driver(host.device) == "vfio-pci"


def test_a_wish_is_taken_up_although_it_cannot_be_marked(host: Host) -> None:
    host.mark.mkdir()

    async def talk(engine: Engine) -> None:
        host.mark.rmdir()
        door = host.door(engine)
        host.mark.mkdir()
        door.receive(wish("vfio"))
        await fulfilled(door)

    host.run(talk)
    assert driver(host.device) == "vfio-pci"


@contextmanager
def no_room() -> Iterator[None]:
    """No byte more can be written to a file: EFBIG, which writes fail with as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_old_wish_is_not_granted_at_a_restart_because_a_later_one_could_not_be_marked(host: Host) -> None:
    other = host.kernel.add_device("0000:02:00.0", group=8)
    later = wish("vfio", 101, address="0000:02:00.0")

    async def first(engine: Engine) -> None:
        door = host.door(engine)
        door.receive(wish("vfio"))
        await fulfilled(door)
        await engine.set_flavour(Request(ADDRESS, Flavour.NATIVE), lambda _: None)
        with no_room():
            door.receive(later)
        await fulfilled(door)

    async def second(engine: Engine) -> None:
        door = host.door(engine, wish("vfio"), later)  # udev's database still has both
        door.open()
        await fulfilled(door)

    host.run(first)
    assert driver(other) == "vfio-pci"
    host.kernel.writes.clear()
    host.run(second)
    assert host.kernel.writes == []
    assert driver(host.device) == "e1000e"


def test_a_removed_device_is_forgotten(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        door.receive(wish("vfio"))
        await fulfilled(door)
        assert (host.kernel.root / "run/devices/0000:01:00.0.json").exists()
        host.kernel.remove_device(host.device)
        door.receive(wish(None, 101, "remove"))
        assert not (host.kernel.root / "run/devices/0000:01:00.0.json").exists()
        successor = host.kernel.add_device()
        assert not engine.device(ADDRESS).held
        assert engine.device(ADDRESS).last is None
        assert driver(successor) is None

    host.run(talk)


def test_a_remove_event_that_comes_late_does_not_forget_the_device_that_is_there_by_then(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        host.kernel.remove_device(host.device)
        successor = host.kernel.add_device()
        successor.driver = None
        host.kernel.probe(host.kernel.drivers["e1000e"], successor)
        await engine.set_flavour(Request(ADDRESS, Flavour.VFIO), lambda _: None)
        door.receive(wish(None, 101, "remove"))
        assert engine.device(ADDRESS).held
        assert engine.device(ADDRESS).origin_driver == "e1000e"
        door.receive(wish(None, 102, "add"))
        await engine.set_flavour(Request(ADDRESS, Flavour.NATIVE), lambda _: None)
        assert driver(successor) == "e1000e"

    host.run(talk)


def test_the_events_of_a_switch_start_no_other(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        real = host.kernel.write
        seqnum = 100

        async def write(path: str, text: str) -> None:
            nonlocal seqnum
            await real(path, text)
            for action in ("unbind", "bind", "change", "add", "remove-vfio"):
                seqnum += 1
                door.receive(wish(None, seqnum, action))

        host.kernel.write = write  # type: ignore[method-assign]
        door.receive(wish("vfio"))
        await fulfilled(door)
        assert len(engine.attempts.history) == 1
        assert seqnum >= 115

    host.run(talk)
    assert driver(host.device) == "vfio-pci"
    assert len(host.kernel.writes) == 3


def test_who_waits_for_a_device_is_woken_by_its_events(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        ready = False
        waiting = asyncio.create_task(engine._host.changes.wait_for(ADDRESS, lambda: ready, 5))
        await asyncio.sleep(0)
        ready = True
        door.receive(wish(None, 101, "add", "0000:02:00.0"))
        await asyncio.sleep(0)
        assert not waiting.done()
        door.receive(wish(None, 102, "add"))
        assert await waiting

    host.run(talk)


# what udev hands on


def udev_device(**traits: Any) -> Any:
    path = "/sys/devices/pci0000:00/0000:00:03.0"
    plain = {
        "subsystem": "pci",
        "sys_name": "0000:00:03.0",
        "sys_path": path,
        "action": "change",
        "properties": {},
        "sequence_number": 5,
    }
    return SimpleNamespace(**plain | traits)


@pytest.mark.parametrize(
    ("traits", "event"),
    [
        ({}, Uevent("change", parse_address("00:03.0"), None, 5)),
        ({"action": None}, Uevent("", parse_address("00:03.0"), None, 5)),
        (
            {"properties": {"SYNTH_ARG_FLAVOUR": "vfio", "SYNTH_UUID": "0"}},
            Uevent("change", parse_address("00:03.0"), "vfio", 5),
        ),
        (
            {"properties": {"DRIVER_FLAVOUR": "native", "SYNTH_ARG_FLAVOUR": "vfio"}},
            Uevent("change", parse_address("00:03.0"), "native", 5),
        ),
        # udev keeps properties in its database: only the event that brought a wish is one.
        (
            {"action": "bind", "properties": {"SYNTH_ARG_FLAVOUR": "vfio"}},
            Uevent("bind", parse_address("00:03.0"), None, 5),
        ),
        (
            {
                "subsystem": "vfio-dev",
                "sys_name": "vfio0",
                "sys_path": "/sys/devices/pci0000:00/0000:00:03.0/vfio-dev/vfio0",
                "action": "add",
            },
            Uevent("add", parse_address("00:03.0"), None, 5),
        ),
        ({"sys_name": "pci0000:00"}, None),
        ({"sys_name": "0000:00:03.0\n"}, None),
    ],
)
def test_an_event_is_read_for_its_device_and_its_wish(traits: dict[str, Any], event: Uevent | None) -> None:
    assert kernel_uevents._parse_event(udev_device(**traits)) == event


def test_a_wish_that_was_lost_in_an_overflow_is_taken_up_from_the_database(host: Host) -> None:
    async def talk(engine: Engine) -> None:
        door = host.door(engine)
        door.open()
        host.events.pending = (wish("vfio", 200),)
        host.events.resync()
        await fulfilled(door)

    host.run(talk)
    assert driver(host.device) == "vfio-pci"


def test_names_and_wishes_are_read_from_what_udev_stored(tmp_path: Path) -> None:
    (tmp_path / "run/udev/data").mkdir(parents=True)
    (tmp_path / "run/udev/tags/vfio-flavour").mkdir(parents=True)
    for name in ("+pci:0000:01:00.0", "+pci:0000:02:00.0", "n2"):
        (tmp_path / "run/udev/tags/vfio-flavour" / name).touch()
    (tmp_path / "run/udev/data/+pci:0000:01:00.0").write_text(
        "I:42\nE:ID_VENDOR_FROM_DATABASE=Intel\nE:ID_MODEL_FROM_DATABASE=A=B\nE:VFIO_FLAVOUR_WISH=vfio\n"
        "E:VFIO_FLAVOUR_WISH_SEQNUM=7\nG:vfio-flavour\n",
        encoding="ascii",
    )
    database = UdevDatabase(tmp_path)
    assert database.find_name(parse_address("0000:01:00.0")) == "Intel A=B"
    assert database.find_name(parse_address("0000:02:00.0")) == ""
    assert list(database.wishes()) == [Uevent("change", parse_address("0000:01:00.0"), "vfio", 7)]
    assert list(UdevDatabase(tmp_path / "none").wishes()) == []
