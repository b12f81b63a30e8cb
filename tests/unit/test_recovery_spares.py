"""What the next daemon doesn't take from anybody, whatever an earlier one had begun with the device."""

import asyncio
import errno

import pytest
from fake_kernel import Crash, FakeDevice, FakeDriver, FakeKernel, after_write, has, make_engine, pending
from virtual_time import run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import OthersInGroup

ADDRESS = parse_address("0000:01:00.0")
GUEST = User(Use.GUEST, "qemu-system-x86 (pid 812) holds /dev/vfio/7", 812)
MOUNT = User(Use.MOUNT, "/srv is mounted from it")
NATIVE, VFIO = ("e1000e", None), ("vfio-pci", "vfio-pci")

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


async def ask(engine: Engine, flavour: Flavour, **more: object) -> Outcome:
    return await engine.set_flavour(Request(ADDRESS, flavour, **more), lambda _: None)  # type: ignore[arg-type]


async def restart(kernel: FakeKernel, release: str = "6.12.0") -> Engine:
    kernel.crash_after = None
    kernel.writes.clear()
    engine = make_engine(kernel, release=release)
    engine.recover()
    while tasks := pending(engine):
        await asyncio.gather(*tasks)
    return engine


def bind(kernel: FakeKernel, device: FakeDevice, driver: str, override: str | None = None) -> None:
    """Somebody else does."""
    if device.driver is not None:
        kernel.release(device)
    device.override = override
    assert kernel.probe(kernel.drivers[driver], device) == 0


def refuse(kernel: FakeKernel, *drivers: str, code: int = errno.EIO) -> None:
    for driver in drivers:
        kernel.drivers[driver].probe_errno = code


@pytest.fixture
def device(kernel: FakeKernel) -> FakeDevice:
    device = kernel.add_device()
    kernel.add_native(device)
    return device


def test_what_someone_has_mended_after_a_failed_way_back_stays_at_the_next_start(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    """Nobody was killed: its record was left open, so that `reset` can try again."""

    async def run() -> None:
        engine = make_engine(kernel)
        await ask(engine, Flavour.VFIO)
        refuse(kernel, "e1000e", "vfio-pci")
        with pytest.raises(FlavourError, match="could not be put back"):
            await ask(engine, Flavour.NATIVE)
        assert has(device)[0] is None
        refuse(kernel, "e1000e", "vfio-pci", code=0)
        bind(kernel, device, *VFIO)
        kernel.users[device.address] = (GUEST,)
        await engine.settle(0)
        engine = await restart(kernel)
        assert has(device) == VFIO
        assert kernel.writes == []
        assert engine.device(ADDRESS).flavour == Flavour.VFIO
        # And it can be given back still.
        kernel.users.clear()
        await engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None)
        assert has(device) == NATIVE

    run_at_once(run())


def test_another_native_driver_that_someone_has_bound_since_stays_at_the_next_start(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    kernel.load("vfio_pci")
    kernel.add_module(FakeDriver("other", "other"))
    kernel.load("other")

    async def run() -> None:
        engine = make_engine(kernel)
        refuse(kernel, "e1000e", "vfio-pci")
        with pytest.raises(FlavourError, match="could not be put back"):
            await ask(engine, Flavour.VFIO)
        refuse(kernel, "e1000e", code=0)
        bind(kernel, device, "other", "other")
        kernel.users[device.address] = (MOUNT,)
        await engine.settle(0)
        await restart(kernel)
        assert has(device) == ("other", "other")
        assert kernel.writes == []

    run_at_once(run())


def test_a_way_home_that_was_cut_off_before_its_first_write_takes_nothing_from_a_guest(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    async def run() -> None:
        await ask(make_engine(kernel), Flavour.VFIO)
        kernel.crash_after = 0
        with pytest.raises(Crash):
            await ask(make_engine(kernel), Flavour.NATIVE)
        kernel.users[device.address] = (GUEST,)
        await restart(kernel)
        assert has(device) == VFIO
        assert kernel.writes == []

    run_at_once(run())


def test_a_group_that_was_cut_off_half_way_keeps_what_a_guest_has_come_to_use(
    kernel: FakeKernel, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """It would go back to what it was: somebody was faster."""
    sibling = kernel.add_device("0000:01:00.1")
    assert kernel.probe(kernel.drivers["e1000e"], sibling) == 0

    def kill() -> None:
        kernel.crash_after = 0

    after_write(kernel, "vfio-pci/bind", kill)

    async def run() -> None:
        with pytest.raises(Crash):
            await ask(make_engine(kernel), Flavour.VFIO, others=OthersInGroup.TOGETHER)
        assert (has(device), has(sibling)) == (VFIO, NATIVE)
        kernel.users[device.address] = (GUEST,)
        await restart(kernel)
        assert (has(device), has(sibling)) == (VFIO, NATIVE)
        assert "and keeps it: in use: qemu-system-x86 (pid 812)" in caplog.text

    run_at_once(run())


def test_no_native_driver_is_bound_beside_a_guest_where_that_crashes_the_kernel(
    kernel: FakeKernel, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """Before 5.19: it has no driver, and gets none until that guest has ended."""

    def kill() -> None:
        kernel.crash_after = 0

    async def run() -> None:
        await ask(make_engine(kernel, release="5.10.0"), Flavour.VFIO)
        after_write(kernel, "unbind", kill)
        with pytest.raises(Crash):
            await ask(make_engine(kernel, release="5.10.0"), Flavour.NATIVE)
        assert has(device)[0] is None
        kernel.group_holders[7] = (GUEST,)
        await restart(kernel, release="5.10.0")
        assert has(device)[0] is None
        assert kernel.writes == []
        assert "in use: qemu-system-x86 (pid 812) holds /dev/vfio/7" in caplog.text
        kernel.group_holders.clear()
        await restart(kernel, release="5.10.0")
        assert has(device) == NATIVE

    run_at_once(run())
