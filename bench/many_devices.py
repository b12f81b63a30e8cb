"""What the daemon does about many devices at once, on the fake host of the unit tests.

That is the daemon's own work alone: a kernel that answers at once, and no disk to wait for. How the time
grows with the number of devices is what counts.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from fake_kernel import FakeDriver, FakeKernel, make_engine

from vfio_flavourd.doors.uevents import UeventDoor
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.kernel.udev_database import Uevent
from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.policy import Match, Policy, Rule, Settings

from .measure import MICROSECONDS, SECONDS, Row, Scale, run_rounds

DAEMON = "the daemon"
QUICK_TIMEOUTS = Settings(load_timeout=5.0, bind_timeout=5.0)
TO_VFIO = Policy(
    defaults=QUICK_TIMEOUTS,
    rules=(Rule("all", Match(device=(0x10D3,)), "vfio", (), QUICK_TIMEOUTS, None, "10.yaml:3"),),
)
NO_POLICY = Policy(defaults=QUICK_TIMEOUTS)
# Of the time for one device: "grows linearly" is taken as this much more at the most.
LINEAR = 1.2
# Microseconds of processor time for an event, and seconds until everything is in sync.
EVENT_LIMIT, SYNC_LIMIT = 50.0, 1.0


def measure(scale: Scale) -> list[Row]:
    with mock.patch.object(os, "fsync", return_value=None):
        return [_by_policy(scale), _storm(scale), _resync(scale)]


def _by_policy(scale: Scale) -> Row:
    """The time for a device, at each number of devices; the most devices are compared with the fewer."""

    def side(count: int) -> Mapping[str, float]:
        with _host(count) as host:
            return {"": asyncio.run(host.apply_policy()) / count * 1000}

    names = {_name(count): partial(side, count) for count in scale.devices}
    samples = run_rounds(names, scale.slow_rounds, warm_up=False)[""]
    most, fewer = _name(scale.devices[-1]), _name(scale.devices[-2])
    return Row("by policy to vfio, for each device", "ms", most, samples, {fewer: LINEAR})


def _name(count: int) -> str:
    return f"{count:,} devices"


def _storm(scale: Scale) -> Row:
    """Processor time from the parsed event on; none may be lost on the way to who waits for them."""
    count = scale.devices[-1]

    def side() -> Mapping[str, float]:
        with _host(count) as host:
            return {"": asyncio.run(host.storm(scale.events)) / scale.events * MICROSECONDS}

    samples = run_rounds({DAEMON: side}, scale.slow_rounds, warm_up=False)[""]
    return Row(
        f"storm of {scale.events:,} events, {count:,} devices, for each event",
        "µs",
        DAEMON,
        samples,
        limit=EVENT_LIMIT,
    )


def _resync(scale: Scale) -> Row:
    """From the word that events were lost until each device was looked at and a lost wish is fulfilled."""
    count = scale.devices[-1]

    def side() -> Mapping[str, float]:
        with _host(count) as host:
            return {"": asyncio.run(host.resync()) * SECONDS}

    samples = run_rounds({DAEMON: side}, scale.slow_rounds, warm_up=False)[""]
    return Row(f"events lost to in sync, {count:,} devices", "s", DAEMON, samples, limit=SYNC_LIMIT)


class _Events:
    """In place of netlink and of udev's database."""

    def __init__(self) -> None:
        self.pending: list[Uevent] = []

    def listen(self, receive: Any, resync: Any, may_wait: Any) -> None:
        self.receive, self.resync = receive, resync

    def wishes(self) -> Iterator[Uevent]:
        yield from self.pending


class _Host:
    def __init__(self, root: Path, count: int) -> None:
        self.kernel = FakeKernel(root)
        self.addresses = [f"{number >> 8:04x}:{number & 0xFF:02x}:00.0" for number in range(count)]
        driver = FakeDriver("e1000e", "e1000e", frozenset({(0x8086, 0x10D3)}))
        self.kernel.add_module(driver)
        for group, address in enumerate(self.addresses):
            self.kernel.add_device(address, group=group)
        self.kernel.load("e1000e")

    async def apply_policy(self) -> float:
        engine = await self._start(NO_POLICY)
        engine._host.policy.policy = TO_VFIO  # as a reload has it
        begin = time.perf_counter()
        engine.reconciler.reload()
        await self._settle(engine)
        taken = time.perf_counter() - begin
        self._check("vfio-pci", self.addresses)
        await engine.settle(1)
        return taken

    async def storm(self, events: int) -> float:
        """Returns seconds of processor time."""
        engine = await self._start(NO_POLICY)
        source = _Events()
        self._door(engine, source)
        noticed: list[PciAddress] = []
        notice = engine.notice

        def count(address: PciAddress) -> None:
            noticed.append(address)
            notice(address)

        with mock.patch.object(engine, "notice", count):
            addresses = [parse_address(address) for address in self.addresses]
            begin = time.process_time()
            for number in range(events):
                source.receive(Uevent("bind", addresses[number % len(addresses)], None, number + 1))
                if number % 100 == 0:
                    await asyncio.sleep(0)  # as between two reads of a socket
            await self._settle(engine)
            taken = time.process_time() - begin
        assert len(noticed) == events
        await engine.settle(1)
        return taken

    async def resync(self) -> float:
        engine = await self._start(NO_POLICY)
        source = _Events()
        self._door(engine, source)
        wished = self.addresses[-1]
        source.pending = [Uevent("change", parse_address(wished), "vfio", 1)]
        begin = time.perf_counter()
        source.resync()
        await self._settle(engine)
        while self._driver(wished) != "vfio-pci" or engine.device(parse_address(wished)).phase:
            await asyncio.sleep(0.001)
        taken = time.perf_counter() - begin
        await engine.settle(1)
        return taken

    async def _start(self, policy: Policy) -> Engine:
        engine = make_engine(self.kernel, policy)
        engine.recover()
        await engine.reconciler.start()
        await self._settle(engine)
        return engine

    def _door(self, engine: Engine, source: _Events) -> None:
        door = UeventDoor(engine, source, source, self.kernel.root / "run/last-wish")  # type: ignore[arg-type]
        door.open()

    @staticmethod
    async def _settle(engine: Engine) -> None:
        """Until nothing is due and nothing is looked at."""
        agenda = engine.reconciler._agenda
        while agenda.due or agenda.looks:
            await (asyncio.wait(agenda.looks) if agenda.looks else asyncio.sleep(0.001))

    def _driver(self, address: str) -> str | None:
        driver = self.kernel.devices[address].driver
        return None if driver is None else driver.name

    def _check(self, driver: str, addresses: list[str]) -> None:
        wrong = [address for address in addresses if self._driver(address) != driver]
        assert not wrong, f"without {driver}: {wrong[:5]}"


@contextmanager
def _host(count: int) -> Iterator[_Host]:
    with tempfile.TemporaryDirectory() as temporary:
        yield _Host(Path(temporary), count)
