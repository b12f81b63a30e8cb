"""Who may open a VFIO node is written down before it appears, and stays so while others are switched."""

import asyncio
import errno
from typing import NoReturn

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, has, make_engine
from virtual_time import run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.host import Host
from vfio_flavourd.kernel.node_access import DIRECTORY
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Request
from vfio_flavourd.model.policy import Match, NodeAccess, Policy, Rule, Settings

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

QUICK = Settings(load_timeout=1.0, bind_timeout=1.0)
ACCESS = NodeAccess("qemu", "kvm", 0o660)


BY_VENDOR, BY_DRIVER = Match(vendor=(0x8086,)), Match(driver=("e1000e",))


def make_policy(flavour: str | None, match: Match = BY_VENDOR) -> Policy:
    rule = Rule("guests", match, flavour, (), QUICK, ACCESS, "50-test.yaml:3")
    return Policy(defaults=QUICK, rules=(rule,))


def add_devices(kernel: FakeKernel, count: int) -> list[FakeDevice]:
    """Each in an IOMMU group of its own, with its native driver."""
    devices = [kernel.add_device(f"0000:0{number}:00.0", group=number) for number in range(1, count + 1)]
    driver = FakeDriver("e1000e", "e1000e", frozenset({(0x8086, 0x10D3)}))
    kernel.add_module(driver)
    kernel.load("e1000e")
    return devices


def find_files(kernel: FakeKernel) -> set[str]:
    return {path.name for path in (kernel.root / "run" / DIRECTORY).iterdir()}


def watch_binds(kernel: FakeKernel) -> dict[str, bool]:
    """Whether each device's node, and that of its group, found their files; grows as they appear."""
    found: dict[str, bool] = {}
    real = kernel.write

    async def write(path: str, text: str) -> None:
        await asyncio.sleep(0.01)
        await real(path, text)
        if path.endswith("vfio-pci/bind"):
            device = kernel.devices[text]
            found[text] = {text, str(device.group)} <= find_files(kernel)

    kernel.write = write  # type: ignore[method-assign]  # this is what a fake is for
    return found


async def ask(engine: Engine, device: FakeDevice, flavour: Flavour) -> None:
    await engine.set_flavour(Request(parse_address(device.address), flavour), lambda _: None)


@pytest.mark.parametrize("match", [BY_VENDOR, BY_DRIVER], ids=["by vendor", "by driver"])
def test_of_many_that_are_switched_at_one_time_each_node_finds_its_file(
    kernel: FakeKernel, match: Match
) -> None:
    devices = add_devices(kernel, 4)
    found = watch_binds(kernel)

    async def run() -> None:
        engine = make_engine(kernel, make_policy("vfio", match))
        engine.recover()
        await engine.reconciler.start()
        engine.reconciler.reload()
        assert {has(device) for device in devices} == {("vfio-pci", "vfio-pci")}
        assert found == dict.fromkeys(kernel.devices, True)
        assert find_files(kernel) == {*kernel.devices, "1", "2", "3", "4"}

    run_at_once(run())


def test_a_reload_takes_no_file_away_from_one_that_is_on_its_way(kernel: FakeKernel) -> None:
    (device,) = add_devices(kernel, 1)
    found = watch_binds(kernel)

    async def run() -> None:
        engine = make_engine(kernel, make_policy(None))
        await engine.reconciler.start()
        kernel.modules["vfio_pci"].hang = loading = asyncio.Event()
        asking = asyncio.create_task(ask(engine, device, Flavour.VFIO))
        await asyncio.sleep(0.1)
        engine.reconciler.reload()
        loading.set()
        await asking
        assert found == {device.address: True}

    run_at_once(run())


def test_what_is_stuck_on_its_way_finds_its_file_when_the_kernel_lets_go(kernel: FakeKernel) -> None:
    device, other = add_devices(kernel, 2)
    kernel.drivers["e1000e"].remove_blocks = held = asyncio.Event()
    found = watch_binds(kernel)

    async def run() -> None:
        engine = make_engine(kernel, make_policy(None))
        await engine.reconciler.start()
        with pytest.raises(FlavourError, match="has not returned"):
            await ask(engine, device, Flavour.VFIO)
        with pytest.raises(FlavourError, match="has not returned"):
            await ask(engine, other, Flavour.VFIO)
        held.set()
        await asyncio.sleep(5)
        assert found == {device.address: True, other.address: True}

    run_at_once(run())


def test_what_goes_to_its_native_driver_needs_no_file(kernel: FakeKernel) -> None:
    device, other = add_devices(kernel, 2)

    async def run() -> None:
        engine = make_engine(kernel, make_policy(None))
        await ask(engine, device, Flavour.VFIO)
        await ask(engine, device, Flavour.NATIVE)
        await ask(engine, other, Flavour.VFIO)
        assert find_files(kernel) == {other.address, "2"}

    run_at_once(run())


GONE = ["made native", "made native by someone else", "refused by VFIO", "removed", "replaced"]


@pytest.mark.parametrize("how", GONE)
def test_a_device_that_vfio_has_no_more_leaves_no_file_to_the_next_one_in_its_group(
    kernel: FakeKernel, how: str
) -> None:
    (device,) = add_devices(kernel, 1)
    address = parse_address(device.address)

    async def run() -> None:
        engine = make_engine(kernel, make_policy(None))
        await engine.reconciler.start()
        if how == "refused by VFIO":
            kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EINVAL
            with pytest.raises(FlavourError):
                await ask(engine, device, Flavour.VFIO)
            await asyncio.sleep(1)
        else:
            await ask(engine, device, Flavour.VFIO)
            assert find_files(kernel) == {device.address, "1"}
        if how == "made native":
            await ask(engine, device, Flavour.NATIVE)
        elif how == "made native by someone else":
            kernel.release(device)
            engine.reconciler.consider(address)
            await asyncio.sleep(1)
        elif how != "refused by VFIO":
            kernel.remove_device(device)
            if how == "replaced":
                kernel.add_device(device.address, vendor=0x1AF4, group=1)
            engine.forget(address)
        assert find_files(kernel) == set()

    run_at_once(run())


def test_without_rules_for_nodes_no_device_is_read_for_their_sake(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (device,) = add_devices(kernel, 1)

    def read_devices(_: Host) -> NoReturn:
        raise AssertionError

    async def run() -> None:
        engine = make_engine(kernel, Policy(defaults=QUICK))
        await engine.reconciler.start()
        monkeypatch.setattr(Host, "read_devices", read_devices)
        await ask(engine, device, Flavour.VFIO)
        await ask(engine, device, Flavour.NATIVE)
        kernel.remove_device(device)
        engine.forget(parse_address(device.address))
        await asyncio.sleep(1)
        assert not (kernel.root / "run" / DIRECTORY).exists()

    run_at_once(run())
