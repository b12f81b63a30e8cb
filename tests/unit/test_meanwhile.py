"""What happens to a device while a request for it waits, looks or loads: it is judged as it is when its turn
has come, and one that came to its address in the meantime is another one."""

import asyncio
import errno

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, has, make_engine
from virtual_time import run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request
from vfio_flavourd.model.occupancy import User
from vfio_flavourd.model.policy import Match, OthersInGroup, Policy, Rule, Settings

NATIVE, VFIO = ("e1000e", None), ("vfio-pci", "vfio-pci")

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


async def ask(engine: Engine, device: FakeDevice, *drivers: str, **more: object) -> Outcome:
    request = Request(parse_address(device.address), Flavour.VFIO, drivers, **more)  # type: ignore[arg-type]
    return await engine.set_flavour(request, lambda _: None)


async def reset(engine: Engine, device: FakeDevice) -> Outcome:
    return await engine.reset(Request(parse_address(device.address), Flavour.NATIVE), lambda _: None)


def make_policy(flavour: Flavour | None = None, group: OthersInGroup = OthersInGroup.IGNORE) -> Policy:
    settings = Settings(load_timeout=60, bind_timeout=60, group=group)
    rule = Rule("a rule", Match(device=(0x10D3,)), flavour, (), settings, None, "50-test.yaml:3")
    return Policy(defaults=settings, rules=(rule,) if flavour is not None else ())


@pytest.fixture
def device(kernel: FakeKernel) -> FakeDevice:
    device = kernel.add_device("0000:01:00.0", group=7)
    kernel.add_native(device)
    return device


def test_a_device_of_another_group_at_the_address_of_one_in_work_keeps_its_own_record(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    """Hotplug may put it there while the old one's module loads."""
    hang = kernel.modules["vfio_pci"].hang = asyncio.Event()
    kernel.add_module(FakeDriver("mine", "mine"))
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))
    kernel.load("mine")

    async def run() -> None:
        engine = make_engine(kernel, make_policy())
        old = asyncio.create_task(ask(engine, device))
        await asyncio.sleep(0.1)
        kernel.remove_device(device)
        new = kernel.add_device("0000:01:00.0", group=9)
        new.override = "mine"
        assert kernel.probe(kernel.drivers["mine"], new) == 0
        engine.forget(parse_address(new.address))
        with pytest.raises(FlavourError, match="the device that was here before") as caught:
            await ask(engine, new, "good_vfio")
        assert caught.value.errno == errno.EAGAIN
        hang.set()
        with pytest.raises(FlavourError) as caught:
            await old
        assert caught.value.errno == errno.ENODEV
        assert has(new) == ("mine", "mine")
        await ask(engine, new, "good_vfio")
        assert has(new) == ("good", "good")
        await reset(engine, new)
        assert has(new) == ("mine", "mine")

    run_at_once(run())


def test_a_record_that_was_made_before_the_old_devices_switch_ended_is_not_lost_with_it(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    """The new one was on record when the old one's switch found that its device had gone."""
    hang = kernel.modules["vfio_pci"].hang = asyncio.Event()

    async def run() -> None:
        engine = make_engine(kernel, make_policy())
        old = asyncio.create_task(ask(engine, device))
        await asyncio.sleep(0.1)
        kernel.remove_device(device)
        new = kernel.add_device("0000:01:00.0", group=9)
        assert kernel.probe(kernel.drivers["e1000e"], new) == 0
        other = make_engine(kernel, make_policy())
        kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))
        await ask(other, new, "good_vfio")
        ledger = engine._host.ledger
        record = other._host.ledger.find(parse_address(new.address))
        assert record is not None
        ledger.write(record)
        hang.set()
        with pytest.raises(FlavourError):
            await old
        assert ledger.find(parse_address(new.address)) == record

    run_at_once(run())


def test_one_that_waits_for_its_turn_does_not_go_on_with_the_device_that_came_instead(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    """It is of another group, where another switch is under way."""
    sibling = kernel.add_device("0000:01:00.1", group=7)
    assert kernel.probe(kernel.drivers["e1000e"], sibling) == 0
    hang = asyncio.Event()
    kernel.add_module(FakeDriver("slow", "slow", vfio=True), hang=hang)

    async def run() -> None:
        engine = make_engine(kernel, make_policy(), group=90.0)
        first = asyncio.create_task(ask(engine, sibling, "slow"))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(ask(engine, device))
        await asyncio.sleep(0.1)
        kernel.remove_device(device)
        new = kernel.add_device("0000:01:00.0", group=9)
        assert kernel.probe(kernel.drivers["e1000e"], new) == 0
        hang.set()
        await first
        with pytest.raises(FlavourError) as caught:
            await waiting
        assert caught.value.errno == errno.ENODEV
        assert has(new) == NATIVE

    run_at_once(run())


def test_a_device_that_lost_its_driver_while_the_others_were_looked_at_is_not_called_unchanged(
    kernel: FakeKernel, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    sibling = kernel.add_device("0000:01:00.1", group=7)
    assert kernel.probe(kernel.drivers["e1000e"], sibling) == 0

    async def run() -> None:
        engine = make_engine(kernel, make_policy())
        await ask(engine, device)
        occupancy = engine._host.occupancy
        see = occupancy.see_users

        async def unbind_meanwhile(each: object) -> tuple[User, ...]:
            if device.driver is not None:
                kernel.release(device)
            return await see(each)  # type: ignore[arg-type]

        monkeypatch.setattr(occupancy, "see_users", unbind_meanwhile)
        with pytest.raises(FlavourError, match="someone else has just given it no driver") as caught:
            await ask(engine, device, others=OthersInGroup.TOGETHER)
        assert caught.value.errno == errno.EAGAIN
        assert has(sibling) == NATIVE

    run_at_once(run())


def test_a_reset_goes_by_the_policy_that_is_in_force_when_its_turn_comes(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    sibling = kernel.add_device("0000:01:00.1", device=0x1533, group=7)
    kernel.add_native(sibling, "igb")
    hang = asyncio.Event()
    kernel.add_module(FakeDriver("slow", "slow", vfio=True), hang=hang)

    async def run() -> None:
        engine = make_engine(kernel, make_policy(Flavour.VFIO), group=90.0)
        first = asyncio.create_task(ask(engine, sibling, "slow"))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(reset(engine, device))
        await asyncio.sleep(0.1)
        engine._host.policy.policy = make_policy(Flavour.NATIVE)
        hang.set()
        await first
        kernel.writes.clear()
        outcome = await waiting
        assert (outcome.flavour, outcome.changed) == (Flavour.NATIVE, False)
        assert kernel.writes == []

    run_at_once(run())


def test_a_reset_takes_no_device_along_that_was_never_switched(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    """Both were on VFIO before, by somebody else; the policy says `group: together`."""
    kernel.load("vfio_pci")
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))
    sibling = kernel.add_device("0000:01:00.1", group=7)
    kernel.release(device)
    for each in (device, sibling):
        each.override = "vfio-pci"
        assert kernel.probe(kernel.drivers["vfio-pci"], each) == 0

    async def run() -> None:
        engine = make_engine(kernel, make_policy(group=OthersInGroup.TOGETHER))
        await ask(engine, device, "good_vfio")
        assert (has(device), has(sibling)) == (("good", "good"), VFIO)
        outcome = await reset(engine, device)
        assert (has(device), has(sibling)) == (VFIO, VFIO)
        assert (outcome.flavour, outcome.driver, outcome.others) == (Flavour.VFIO, "vfio-pci", ())

    run_at_once(run())
