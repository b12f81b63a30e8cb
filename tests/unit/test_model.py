"""Whatever is asked in whatever order: the promises, held against a simple model by random stories."""

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeDriver, FakeKernel, PassingLedger, make_engine, pending
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request

NATIVE_OF = {"0000:01:00.0": "e1000e", "0000:02:00.0": "igb", "0000:03:00.0": None}
VARIANT_OF = {"0000:01:00.0": "good", "0000:02:00.0": "picky"}
VFIO_DRIVERS = ("vfio-pci", "good", "picky")

devices = st.sampled_from(sorted(NATIVE_OF))
drivers = st.sampled_from(VFIO_DRIVERS)
refusals = st.sampled_from([0, 0, errno.ENODEV, errno.EINVAL, errno.EBUSY])

Has = tuple[str | None, str | None]


def flavour_of(has: Has) -> Flavour:
    return Flavour.VFIO if has[0] in VFIO_DRIVERS else Flavour.NATIVE


class Switching(RuleBasedStateMachine):
    """Three devices: two with a native driver and a variant each, one with neither.

    `origin` is what a device had before the first switch since it was last there. `broken` are those of
    which somebody was told that they could not be put back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda descriptor: None)
        self.kernel = FakeKernel(self.root / "host")
        self.engine = make_engine(self.kernel)
        self.origin: dict[str, Has] = {}
        self.broken: set[str] = set()

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.root)

    @initialize(overrides=st.lists(st.sampled_from([None, None, "mine"]), min_size=3, max_size=3))
    def plug_in(self, overrides: list[str | None]) -> None:
        lines = []
        for number, (address, native) in enumerate(NATIVE_OF.items()):
            device = self.kernel.add_device(address, device=0x1000 + number, group=number)
            if native is not None:
                self.kernel.add_native(device, native)
            device.override = overrides[number]
            if variant := VARIANT_OF.get(address):
                lines.append(f"alias vfio_pci:v00008086d{0x1000 + number:08X}sv*sd*bc*sc*i* {variant}")
                self.kernel.add_module(FakeDriver(variant, variant, vfio=True))
        self.kernel.write_index(lines)

    # what is asked

    @rule(address=devices)
    def to_vfio(self, address: str) -> None:
        before, told = self._ask(address, Flavour.VFIO)
        self._check(address, before, told, Flavour.VFIO)

    @rule(address=devices, driver=drivers)
    def to_a_named_driver(self, address: str, driver: str) -> None:
        before, told = self._ask(address, Flavour.VFIO, driver)
        self._check(address, before, told, Flavour.VFIO)
        if isinstance(told, Outcome) and not self._driver(driver).probe_errno:
            assert told.driver == driver

    @rule(address=devices)
    def to_native(self, address: str) -> None:
        origin = self.origin.get(address)
        before, told = self._ask(address, Flavour.NATIVE)
        self._check(address, before, told, Flavour.NATIVE)
        if isinstance(told, FlavourError) or not told.changed:
            return
        if origin is not None and flavour_of(origin) == Flavour.NATIVE:
            assert told.driver == origin[0]
            assert self._has(address) == origin
        else:
            # Somebody else put it on VFIO: the kernel chooses.
            assert self._has(address) == (NATIVE_OF[address], None)

    @rule(address=devices)
    def reset(self, address: str) -> None:
        before = self._has(address)
        origin = self.origin.get(address, before)
        told = self._run(self.engine.reset(Request(parse_address(address), Flavour.NATIVE), lambda _: None))
        self._check(address, before, told, flavour_of(origin))
        if isinstance(told, Outcome):
            assert self._has(address) == origin
            assert address not in self.origin

    # what happens meanwhile

    @rule(driver=drivers, code=refusals)
    def a_driver_begins_to_refuse_or_ceases(self, driver: str, code: int) -> None:
        self._driver(driver).probe_errno = code

    @rule(address=devices, driver=drivers)
    def somebody_else_moves_it(self, address: str, driver: str) -> None:
        """As driverctl does: override, unbind, bind."""
        device, wanted = self.kernel.devices[address], self._driver(driver)
        if wanted.probe_errno or self._has(address)[0] == driver:
            return
        self.kernel.load(wanted.module or "")
        device.override = driver
        if device.driver is not None:
            self.kernel.release(device)
        assert self.kernel.probe(wanted, device) == 0

    @rule(address=devices, override=st.sampled_from([None, "mine", "none"]))
    def somebody_else_writes_an_override(self, address: str, override: str | None) -> None:
        self.kernel.devices[address].override = override

    @rule()
    def the_daemon_is_started_again(self) -> None:
        before = {address: self._has(address) for address in self.kernel.devices}
        self.kernel.writes.clear()

        async def restart() -> None:
            self.engine = make_engine(self.kernel)
            self.engine.recover()
            while pending(self.engine):
                await asyncio.wait(pending(self.engine))

        asyncio.run(restart())
        for address, had in before.items():
            if address not in self.broken:
                assert self._has(address) == had
        if not self.broken:
            assert self.kernel.writes == []

    # what is promised

    @invariant()
    def none_is_without_a_driver_that_had_one(self) -> None:
        for address in self.kernel.devices:
            if address not in self.broken and NATIVE_OF[address] is not None:
                assert self._has(address)[0] is not None, address

    @invariant()
    def nothing_is_under_way_when_nobody_asks(self) -> None:
        for status in self.engine.devices():
            assert status.phase is None
            assert status.stuck == ""
            record = self.engine._host.ledger.find(status.device.address)
            assert record is None or not record.switching or str(status.device.address) in self.broken

    @invariant()
    def what_was_there_first_is_on_record_and_nothing_else(self) -> None:
        for address in self.kernel.devices:
            record = self.engine._host.ledger.find(parse_address(address))
            if address not in self.broken:
                assert (record is not None) == (address in self.origin)
            if record is not None:
                assert (record.origin.driver, record.origin.override) == self.origin[address]
                assert record.origin_flavour == flavour_of(self.origin[address])

    @invariant()
    def the_records_on_disk_are_those_in_memory(self) -> None:
        on_disk = PassingLedger(self.kernel.root / "run/devices")
        assert on_disk.load() == {}
        assert set(on_disk.all()) == set(self.engine._host.ledger.all())

    # how

    def _has(self, address: str) -> Has:
        device = self.kernel.devices[address]
        return (device.driver.name if device.driver else None, device.override)

    def _driver(self, name: str) -> FakeDriver:
        return self.kernel.modules["vfio_pci" if name == "vfio-pci" else name].drivers[0]

    def _ask(self, address: str, flavour: Flavour, *named: str) -> tuple[Has, Outcome | FlavourError]:
        before = self._has(address)
        request = Request(parse_address(address), flavour, named)
        return before, self._run(self.engine.set_flavour(request, lambda _: None))

    @staticmethod
    def _run(work: Coroutine[Any, Any, Outcome]) -> Outcome | FlavourError:
        try:
            return asyncio.run(work)
        except FlavourError as error:
            return error

    def _check(self, address: str, before: Has, told: Outcome | FlavourError, flavour: Flavour) -> None:
        """What was said is what there is; and the model follows."""
        now = self._has(address)
        if isinstance(told, FlavourError):
            if "could not be put back" in str(told):
                self.broken.add(address)
                self.origin.setdefault(address, before)
            else:
                assert now == before, told
            return
        assert told.flavour == flavour == flavour_of(now)
        assert told.driver == now[0]
        assert told.vfio_device == self.engine.device(parse_address(address)).device.vfio_device
        assert (told.vfio_device is not None) == (flavour == Flavour.VFIO)
        if not told.changed:
            assert now == before
            return
        self.broken.discard(address)
        if self.origin.setdefault(address, before) == now:
            del self.origin[address]
        if flavour == Flavour.VFIO and address in self.origin:
            assert now[1] == told.driver


Switching.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, suppress_health_check=list(HealthCheck)
)


TestSwitching = Switching.TestCase
