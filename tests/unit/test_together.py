"""An IOMMU group is one thing to a guest: what stands in the way, and all of it switched or none."""

import asyncio
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_kernel import Crash, FakeDevice, FakeDriver, FakeKernel, make_engine, pending
from virtual_time import run_at_once

from vfio_flavourd.engine import switch
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request, StepBegun, StepReport
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import Match, OthersInGroup, Policy, Rule, Settings
from vfio_flavourd.model.udev_rules import PLACEHOLDER

GPU, AUDIO, USB = "0000:01:00.0", "0000:01:00.1", "0000:01:00.2"
VARIANT_ALIAS = "vfio_pci:v000010DEd00002342sv*sd*bc*sc*i*"

# What a device has: driver, override, and whether it is a VFIO device.
Has = tuple[str | None, str | None, bool]
GPU_VFIO: Has = ("nvgrace", "nvgrace", True)
ON_VFIO: Has = ("vfio-pci", "vfio-pci", True)


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def has(kernel: FakeKernel, device: FakeDevice) -> Has:
    driver = device.driver.name if device.driver else None
    return (driver, device.override, (kernel.path(device) / "vfio-dev").exists())


def state(kernel: FakeKernel) -> dict[str, Has]:
    return {address: has(kernel, device) for address, device in kernel.devices.items()}


def add_bridge(kernel: FakeKernel) -> FakeDevice:
    bridge = kernel.add_device("0000:00:01.0", vendor=0x8086, device=0x1901, class_code=0x060400)
    kernel.add_native(bridge, "pcieport")
    return bridge


def add_variant(kernel: FakeKernel) -> FakeDriver:
    variant = FakeDriver("nvgrace", "nvgrace_gpu_vfio_pci", vfio=True)
    kernel.add_module(variant, alias=VARIANT_ALIAS)
    return variant


def add_group(kernel: FakeKernel, size: int = 3) -> list[FakeDevice]:
    """A GPU with a VFIO driver of its own, its audio function, its USB controller, behind a bridge."""
    add_bridge(kernel)
    add_variant(kernel)
    devices = []
    functions = [(GPU, 0x2342, 0x030200, "nouveau"), (AUDIO, 0x22BA, 0x040300, "snd_hda")]
    functions.append((USB, 0x1AD8, 0x0C0330, "xhci_hcd"))
    for address, number, class_code, driver in functions[:size]:
        device = kernel.add_device(address, vendor=0x10DE, device=number, class_code=class_code)
        kernel.add_native(device, driver)
        devices.append(device)
    return devices


def at(device: FakeDevice) -> PciAddress:
    return parse_address(device.address)


async def ask(
    engine: Engine,
    device: FakeDevice | str,
    flavour: Flavour,
    others: OthersInGroup | None = OthersInGroup.TOGETHER,
    *drivers: str,
    report: Callable[[StepBegun | StepReport], None] = lambda _: None,
    **more: Any,
) -> Outcome:
    address = parse_address(device if isinstance(device, str) else device.address)
    return await engine.set_flavour(Request(address, flavour, drivers, others=others, **more), report)


def refused(engine: Engine, *rest: Any, **more: Any) -> FlavourError:
    with pytest.raises(FlavourError) as caught:
        run_at_once(ask(engine, *rest, **more))
    return caught.value


def together(**settings: Any) -> Policy:
    return Policy(defaults=Settings(1.0, 1.0, group=OthersInGroup.TOGETHER, **settings))


def records(kernel: FakeKernel) -> list[str]:
    return sorted(path.name for path in (kernel.root / "run/devices").glob("*"))


async def settled(engine: Engine) -> None:
    while tasks := pending(engine):
        await asyncio.gather(*tasks)  # which raises, where the daemon is killed


def attempts(engine: Engine) -> list[tuple[str, bool]]:
    """Of each attempt its device, and whether it was a success."""
    return [(str(attempt.address), not attempt.error) for attempt in engine.attempts.history]


# refuse and ignore


@pytest.mark.parametrize("size", [2, 3])
def test_a_group_with_host_drivers_is_refused_and_each_is_named(kernel: FakeKernel, size: int) -> None:
    add_group(kernel, size)
    before = state(kernel)
    error = refused(make_engine(kernel), GPU, Flavour.VFIO, None)
    assert error.errno == errno.EBUSY
    assert "0000:01:00.1 (snd_hda)" in str(error)
    assert ("0000:01:00.2 (xhci_hcd)" in str(error)) == (size == 3)
    assert "pcieport" not in str(error)
    assert "together" in error.hint
    assert state(kernel) == before
    assert kernel.writes == []
    assert "nvgrace" not in kernel.drivers


def test_the_request_stands_above_the_policys_word_on_the_group(kernel: FakeKernel) -> None:
    add_group(kernel, 2)
    error = refused(make_engine(kernel, together()), GPU, Flavour.VFIO, OthersInGroup.REFUSE)
    assert error.errno == errno.EBUSY
    assert kernel.writes == []


@pytest.mark.parametrize("sibling", ["driverless", "pci-stub", "vfio", "bridge", "personality"])
def test_what_is_harmless_does_not_stand_in_the_way(kernel: FakeKernel, sibling: str) -> None:
    device = kernel.add_device(GPU)
    kernel.add_native(device)
    if sibling == "bridge":
        add_bridge(kernel)
    else:
        other = kernel.add_device(AUDIO, device=0x1533)
        if sibling == "pci-stub":
            kernel.add_native(other, "pci-stub")
        elif sibling == "vfio":
            kernel.load("vfio_pci")
            other.override = "vfio-pci"
            kernel.probe(kernel.drivers["vfio-pci"], other)
        elif sibling == "personality":
            kernel.add_native(other, "chameleon")
            kernel.add_personality(other)
            kernel.add_vfio_device(other)
    outcome = run_at_once(ask(make_engine(kernel), device, Flavour.VFIO, None))
    assert outcome.driver == "vfio-pci"
    assert outcome.others == ()
    assert "not usable" not in outcome.reason
    assert not any(AUDIO in write or "00:01.0" in write for write in kernel.writes)


ISA_BRIDGE, HOST_BRIDGE = 0x060100, 0x060000


@pytest.mark.parametrize("class_code", [ISA_BRIDGE, HOST_BRIDGE])
@pytest.mark.parametrize("others", [OthersInGroup.REFUSE, OthersInGroup.TOGETHER])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_bridge_that_is_a_function_like_any_stands_in_the_way_with_its_driver(
    kernel: FakeKernel, class_code: int, others: OthersInGroup, by_hand: bool
) -> None:
    """A chipset's ISA bridge shares a group with its sound and its SMBus."""
    device = kernel.add_device(GPU)
    kernel.add_native(device)
    bridge = kernel.add_device("0000:00:1f.0", vendor=0x8086, device=0xA305, class_code=class_code)
    kernel.add_native(bridge, "lpc_ich")
    everything = Rule("all", Match(vendor=(0x8086,)), "vfio", (), Settings(1.0, 1.0), None, "50.yaml:3")
    engine = make_engine(kernel, Policy(rules=(everything,)))
    error = refused(engine, device, Flavour.VFIO, others, by_hand=by_hand)
    assert error.errno == errno.EBUSY
    assert "0000:00:1f.0 (lpc_ich) has a host driver" in str(error)
    assert kernel.writes == []
    if others is OthersInGroup.TOGETHER:
        assert "/sys/bus/pci/drivers/lpc_ich/unbind" in error.hint
    kernel.release(bridge)
    run_at_once(ask(engine, device, Flavour.VFIO, others, by_hand=by_hand))
    assert has(kernel, device) == ON_VFIO


def test_ignored_others_stay_as_they_are_and_the_outcome_says_that_the_group_is_not_usable(
    kernel: FakeKernel,
) -> None:
    add_group(kernel)
    before = state(kernel)
    outcome = run_at_once(ask(make_engine(kernel), GPU, Flavour.VFIO, OthersInGroup.IGNORE))
    assert (outcome.driver, outcome.others) == ("nvgrace", ())
    assert "IOMMU group 7 is not usable: 0000:01:00.1 (snd_hda) and 0000:01:00.2 (xhci_hcd)" in outcome.reason
    assert state(kernel) == {**before, GPU: GPU_VFIO}


def test_going_native_asks_nobody_in_the_group_unless_it_is_to_be_together(kernel: FakeKernel) -> None:
    add_group(kernel)
    before = state(kernel)

    async def run() -> None:
        engine = make_engine(kernel)
        await ask(engine, GPU, Flavour.VFIO)
        await ask(engine, AUDIO, Flavour.NATIVE, None)

    run_at_once(run())
    assert state(kernel) == {**before, GPU: GPU_VFIO, USB: ON_VFIO}


# together


@pytest.mark.parametrize("by", ["request", "policy"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_all_of_a_group_go_each_by_its_own_best_driver_and_home_again(
    kernel: FakeKernel, first: int, by: str
) -> None:
    devices = add_group(kernel)
    before = state(kernel)
    engine = make_engine(kernel, together() if by == "policy" else None)
    others = None if by == "policy" else OthersInGroup.TOGETHER

    async def run() -> None:
        outcome = await ask(engine, devices[first], Flavour.VFIO, others)
        assert state(kernel) == {**before, GPU: GPU_VFIO, AUDIO: ON_VFIO, USB: ON_VFIO}
        assert str(outcome.address) == devices[first].address
        rest = [each.address for each in devices if each is not devices[first]]
        assert [str(each.address) for each in outcome.others] == rest
        assert {each.driver for each in (outcome, *outcome.others)} == {"nvgrace", "vfio-pci"}
        assert all(each.changed and each.flavour == "vfio" for each in outcome.others)
        assert sorted(attempts(engine)) == [(GPU, True), (AUDIO, True), (USB, True)]
        assert not any("00:01.0" in write for write in kernel.writes)
        outcome = await ask(engine, devices[first], Flavour.NATIVE, others)
        assert len(outcome.others) == 2
        assert state(kernel) == before
        assert records(kernel) == []

    run_at_once(run())


def test_those_that_have_the_flavour_already_are_not_touched(kernel: FakeKernel) -> None:
    add_group(kernel)

    async def run() -> None:
        engine = make_engine(kernel)
        await ask(engine, AUDIO, Flavour.VFIO, OthersInGroup.IGNORE)
        kernel.writes.clear()
        outcome = await ask(engine, GPU, Flavour.VFIO)
        assert [str(each.address) for each in outcome.others] == [USB]
        assert not any(AUDIO in write for write in kernel.writes)

    run_at_once(run())


def test_a_driver_that_is_named_is_for_the_one_it_was_named_for(kernel: FakeKernel) -> None:
    add_group(kernel, 2)
    kernel.add_module(FakeDriver("mine", "mine", vfio=True))
    run_at_once(ask(make_engine(kernel), AUDIO, Flavour.VFIO, OthersInGroup.TOGETHER, "mine"))
    assert state(kernel)[AUDIO] == ("mine", "mine", True)
    assert state(kernel)[GPU] == GPU_VFIO


def test_the_steps_of_the_others_are_told_with_their_addresses(kernel: FakeKernel) -> None:
    add_group(kernel, 2)
    steps: list[str] = []
    engine = make_engine(kernel)
    run_at_once(ask(engine, GPU, Flavour.VFIO, report=lambda step: steps.append(step.what)))
    assert "unbind from nouveau" in steps
    assert f"{AUDIO}: unbind from snd_hda" in steps
    assert [step.what for step in engine.attempts.history[1].steps][-2:] == [
        "bind to vfio-pci",
        "read back what it has",
    ]


def test_a_personality_in_a_group_is_asked_both_ways(kernel: FakeKernel) -> None:
    devices = add_group(kernel)
    kernel.add_personality(devices[1])
    before = state(kernel)

    async def run() -> None:
        engine = make_engine(kernel)
        await ask(engine, GPU, Flavour.VFIO)
        assert state(kernel)[AUDIO] == ("snd_hda", None, True)
        await ask(engine, GPU, Flavour.NATIVE)
        assert state(kernel) == before
        assert records(kernel) == []
        assert not any("snd_hda/unbind" in write for write in kernel.writes)

    run_at_once(run())


def test_who_uses_one_of_a_group_keeps_all_of_it(kernel: FakeKernel) -> None:
    add_group(kernel)
    kernel.users[USB] = (User(Use.MOUNT, "/mnt/stick on sda1"),)
    engine = make_engine(kernel)
    error = refused(engine, GPU, Flavour.VFIO)
    assert error.errno == errno.EBUSY
    assert "0000:01:00.2: in use: /mnt/stick on sda1" in str(error)
    assert kernel.writes == []
    outcome = run_at_once(ask(engine, GPU, Flavour.VFIO, force=True))
    assert [user.what for user in outcome.forced] == ["/mnt/stick on sda1"]


# all or nothing


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("way", ["to vfio", "to native"])
def test_where_one_fails_those_before_it_are_put_back_the_last_one_first(
    kernel: FakeKernel, failing: int, way: str
) -> None:
    devices = add_group(kernel)
    devices[0].override = "nouveau"
    if way == "to native":
        run_at_once(ask(make_engine(kernel), GPU, Flavour.VFIO))
        driver = kernel.drivers[["nouveau", "snd_hda", "xhci_hcd"][failing]]
    else:
        driver = kernel.modules["vfio_pci"].drivers[0]
    before, known = state(kernel), records(kernel)
    kernel.writes.clear()

    def refuse(each: FakeDevice) -> None:
        driver.probe_errno = errno.EIO if each is devices[failing] else 0

    driver.on_probe = refuse
    engine = make_engine(kernel)
    flavour = Flavour.VFIO if way == "to vfio" else Flavour.NATIVE
    error = refused(engine, GPU, flavour)
    assert devices[failing].address in str(error)
    assert "again" in str(error)
    assert state(kernel) == before
    assert records(kernel) == known
    binds = [write.split()[-1] for write in kernel.writes if "/bind " in write]
    assert binds[-failing:] == [each.address for each in reversed(devices[:failing])]
    assert sorted(attempts(engine)) == [(GPU, False), (AUDIO, False), (USB, False)]
    assert not engine._turns.taken
    # Nothing is in the way of a second try.
    driver.on_probe, driver.probe_errno = None, 0
    run_at_once(ask(make_engine(kernel), GPU, flavour))


def test_a_personality_is_asked_back_where_a_later_one_fails(kernel: FakeKernel) -> None:
    devices = add_group(kernel)
    kernel.add_personality(devices[1])
    before = state(kernel)
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EIO
    engine = make_engine(kernel)
    refused(engine, GPU, Flavour.VFIO)
    assert state(kernel) == before
    assert records(kernel) == []
    assert engine.device(at(devices[1])).flavour == Flavour.NATIVE

    kernel.modules["vfio_pci"].drivers[0].probe_errno = 0
    run_at_once(ask(make_engine(kernel), GPU, Flavour.VFIO))
    before = state(kernel)
    kernel.drivers["xhci_hcd"].probe_errno = errno.EIO
    refused(make_engine(kernel), GPU, Flavour.NATIVE)
    assert state(kernel) == before
    assert records(kernel) == [f"{GPU}.json", f"{AUDIO}.json", f"{USB}.json"]


def test_a_personality_that_does_not_change_back_is_told_of(kernel: FakeKernel) -> None:
    devices = add_group(kernel)
    kernel.add_personality(devices[1])
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EIO
    real = kernel.remove_vfio_device
    kernel.remove_vfio_device = (  # type: ignore[method-assign]
        lambda device: None if device is devices[1] else real(device)
    )
    error = refused(make_engine(kernel), GPU, Flavour.VFIO)
    assert f"{AUDIO} of the same group: it could not be put back: snd_hda did not change back" in str(error)
    assert has(kernel, devices[0]) == ("nouveau", None, False)


def test_a_personality_that_refuses_puts_back_those_before_it(kernel: FakeKernel) -> None:
    devices = add_group(kernel)
    kernel.add_personality(devices[1])
    devices[1].personality_errno = errno.EBUSY
    before = state(kernel)
    assert refused(make_engine(kernel), GPU, Flavour.VFIO).errno == errno.EBUSY
    assert state(kernel) == before
    assert records(kernel) == []


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_where_one_goes_in_the_middle_the_others_are_put_back(kernel: FakeKernel, gone: int) -> None:
    devices = add_group(kernel)
    before = state(kernel)
    kernel.modules["vfio_pci"].drivers[0].on_probe = lambda each: (
        kernel.remove_device(devices[gone]) if each is devices[max(gone, 1)] else None
    )
    if gone == 0:
        # The first one goes when its turn is over: found out on the way back.
        kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EIO
    engine = make_engine(kernel)
    error = refused(engine, GPU, Flavour.VFIO)
    assert error.errno == (errno.ENODEV if gone else errno.EIO)
    del before[devices[gone].address]
    assert state(kernel) == before
    assert records(kernel) == []
    assert not engine._turns.taken


def test_one_that_goes_after_its_turn_leaves_no_record(kernel: FakeKernel) -> None:
    devices = add_group(kernel, 2)

    async def run() -> None:
        engine = make_engine(kernel)

        def unplug(each: FakeDevice) -> None:
            if each is devices[1]:
                kernel.remove_device(devices[0])
                engine.forget(at(devices[0]))

        kernel.modules["vfio_pci"].drivers[0].on_probe = unplug
        await ask(engine, GPU, Flavour.VFIO)
        assert records(kernel) == [f"{AUDIO}.json"]

    run_at_once(run())


def test_a_time_limit_that_ends_between_two_leaves_none_of_them_switched(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_group(kernel, 2)
    before = state(kernel)
    clock = SimpleNamespace(monotonic=time.monotonic)
    monkeypatch.setattr(switch, "time", clock)

    def report(step: StepBegun | StepReport) -> None:
        if isinstance(step, StepReport) and step.what == f"{AUDIO}: load vfio_pci":
            clock.monotonic = lambda: time.monotonic() + 100

    error = refused(make_engine(kernel), GPU, Flavour.VFIO, report=report, timeout=50)
    assert error.errno == errno.ETIMEDOUT
    assert "0000:01:00.1: the time limit of 50 s ran out before it was touched" in str(error)
    assert "0000:01:00.0 of the same group: it has nouveau again" in str(error)
    assert state(kernel) == before
    assert records(kernel) == []


@pytest.mark.parametrize("way", ["to vfio", "to native"])
@pytest.mark.parametrize("held", [1, 2])
def test_a_stuck_one_is_brought_back_and_not_forward_when_the_kernel_lets_go(
    kernel: FakeKernel, held: int, way: str
) -> None:
    devices = add_group(kernel)
    if way == "to native":
        run_at_once(ask(make_engine(kernel), GPU, Flavour.VFIO))
    before, known = state(kernel), records(kernel)

    async def run() -> None:
        engine = make_engine(kernel, group=0.5)
        driver = devices[held].driver
        assert driver is not None
        real = kernel.write

        async def write(path: str, text: str) -> None:
            if path.endswith(f"/{driver.name}/unbind"):
                driver.remove_blocks = blocks if text == devices[held].address else None
            await real(path, text)

        blocks = asyncio.Event()
        kernel.write = write  # type: ignore[method-assign]
        flavour = Flavour.VFIO if way == "to vfio" else Flavour.NATIVE
        with pytest.raises(FlavourError) as caught:
            await ask(engine, GPU, flavour)
        assert caught.value.errno == errno.ETIMEDOUT
        assert f"{devices[held].address}: 'unbind from {driver.name}' has not returned" in str(caught.value)
        for each in devices:
            if each is devices[held]:
                assert engine.device(at(each)).stuck
            else:
                assert has(kernel, each) == before[each.address]
        # Its group waits for it, and nobody else's does.
        with pytest.raises(FlavourError) as caught:
            await ask(engine, GPU, flavour, None)
        assert caught.value.errno == errno.EAGAIN
        blocks.set()
        await settled(engine)
        assert state(kernel) == before
        assert records(kernel) == known
        assert not engine._turns.taken
        await ask(engine, GPU, flavour)

    run_at_once(run())


def test_one_that_the_kernel_lets_go_while_the_others_are_put_back_goes_back_as_well(
    kernel: FakeKernel,
) -> None:
    """At that moment all of the group are on VFIO."""
    add_group(kernel, 2)
    before = state(kernel)

    async def run() -> None:
        engine = make_engine(kernel)
        blocks = kernel.drivers["snd_hda"].remove_blocks = asyncio.Event()
        real = kernel.write

        async def write(path: str, text: str) -> None:
            if path.endswith("nvgrace/unbind"):
                kernel.drivers["snd_hda"].remove_blocks = None
                blocks.set()
                await asyncio.sleep(0.5)
            await real(path, text)

        kernel.write = write  # type: ignore[method-assign]
        with pytest.raises(FlavourError):
            await ask(engine, GPU, Flavour.VFIO)
        await settled(engine)
        assert state(kernel) == before
        assert records(kernel) == []

    run_at_once(run())


def test_one_that_is_stuck_on_its_way_back_gets_there_too(kernel: FakeKernel) -> None:
    add_group(kernel)
    before = state(kernel)

    async def run() -> None:
        engine = make_engine(kernel)
        variant = kernel.modules["nvgrace_gpu_vfio_pci"].drivers[0]
        blocks = variant.remove_blocks = asyncio.Event()
        kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EIO
        with pytest.raises(FlavourError, match="stuck on its way back"):
            await ask(engine, GPU, Flavour.VFIO)
        assert engine.device(parse_address(GPU)).stuck
        variant.remove_blocks = None
        blocks.set()
        await settled(engine)
        assert state(kernel) == before
        assert records(kernel) == []
        assert not engine._turns.taken

    run_at_once(run())


def test_two_stuck_ones_hold_the_groups_turn_until_both_are_free(kernel: FakeKernel) -> None:
    add_group(kernel)
    before = state(kernel)

    async def run() -> None:
        engine = make_engine(kernel, group=0.5)
        variant, native = kernel.modules["nvgrace_gpu_vfio_pci"].drivers[0], kernel.drivers["snd_hda"]
        first = variant.remove_blocks = asyncio.Event()
        second = native.remove_blocks = asyncio.Event()
        with pytest.raises(FlavourError):
            await ask(engine, GPU, Flavour.VFIO)
        assert engine.device(parse_address(GPU)).stuck
        assert engine.device(parse_address(AUDIO)).stuck
        native.remove_blocks = None
        second.set()
        await asyncio.sleep(1)
        assert not engine.device(parse_address(AUDIO)).stuck
        with pytest.raises(FlavourError) as caught:
            await ask(engine, USB, Flavour.VFIO, OthersInGroup.IGNORE)
        assert caught.value.errno == errno.EAGAIN
        variant.remove_blocks = None
        first.set()
        await settled(engine)
        assert state(kernel) == before
        assert not engine._turns.taken

    run_at_once(run())


@pytest.mark.parametrize("is_had", [True, False])
def test_a_driver_that_comes_to_one_while_another_has_its_turn_is_seen(
    kernel: FakeKernel, is_had: bool
) -> None:
    """udev loads modules at the same time."""
    devices = add_group(kernel, 2)
    kernel.release(devices[1])
    before = state(kernel)
    variant = kernel.modules["nvgrace_gpu_vfio_pci"].drivers[0]

    def come(_: FakeDevice) -> None:
        kernel.probe(kernel.drivers["snd_hda"], devices[1])

    variant.on_probe = come
    kernel.modules["vfio_pci"].drivers[0].probe_errno = 0 if is_had else errno.EIO
    engine = make_engine(kernel)
    with_its_driver = {**before, AUDIO: ("snd_hda", None, False)}
    if is_had:
        run_at_once(ask(engine, GPU, Flavour.VFIO))
        run_at_once(ask(engine, GPU, Flavour.NATIVE))
    else:
        refused(engine, GPU, Flavour.VFIO)
    assert state(kernel) == with_its_driver
    assert records(kernel) == []


def test_a_driver_that_came_meanwhile_is_not_taken_away_for_a_failure(kernel: FakeKernel) -> None:
    """It came after the device was looked at, which had none then: going back is not for it."""
    device = kernel.add_device(GPU)
    native = FakeDriver("e1000e", None, frozenset({(device.vendor, device.device)}))
    real = kernel.write

    async def write(path: str, text: str) -> None:
        if path.endswith("/driver_override") and "e1000e" not in kernel.drivers:
            kernel.register(native)
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]
    assert refused(make_engine(kernel), GPU, Flavour.VFIO).errno == errno.EBUSY
    assert state(kernel) == {GPU: ("e1000e", None, False)}
    assert not any("unbind" in each for each in kernel.writes)
    run_at_once(ask(make_engine(kernel), GPU, Flavour.VFIO))
    assert state(kernel) == {GPU: ON_VFIO}


@pytest.mark.parametrize("when", ["before", "between"])
def test_one_who_goes_away_in_the_middle_of_a_group_gets_none_of_it_or_all(
    kernel: FakeKernel, when: str
) -> None:
    add_group(kernel)
    before = state(kernel)

    async def run() -> None:
        engine = make_engine(kernel)
        variant = kernel.modules["nvgrace_gpu_vfio_pci"]
        hang = asyncio.Event()
        module = variant if when == "before" else kernel.modules["vfio_pci"]
        module.hang = hang
        asking = asyncio.create_task(ask(engine, GPU, Flavour.VFIO))
        await asyncio.sleep(0.5)
        asking.cancel()
        await asyncio.sleep(0.1)
        assert asking.cancelled()
        hang.set()
        await asyncio.sleep(5)
        after = {**before, GPU: GPU_VFIO, AUDIO: ON_VFIO, USB: ON_VFIO}
        assert state(kernel) == (before if when == "before" else after)
        assert len(records(kernel)) == (0 if when == "before" else 3)
        assert not engine._turns.taken
        assert engine._running == {}

    run_at_once(run())


# killed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Hundreds of kernels are made: in memory that takes half the time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as path:
        yield Path(path)


@dataclass(frozen=True)
class Scenario:
    """`prepare` brings a group of `size` to where the switch starts."""

    prepare: Callable[[FakeKernel, int], Any]
    flavour: Flavour
    size: int = 2
    goes_back: bool = False

    def find_first(self, which: str) -> str:
        return GPU if which == "first" else (AUDIO, USB)[self.size - 2]


def to_native_from(prepare: Callable[[FakeKernel, int], Any]) -> Callable[[FakeKernel, int], None]:
    def on_vfio(kernel: FakeKernel, size: int) -> None:
        prepare(kernel, size)
        run_at_once(ask(make_engine(kernel), GPU, Flavour.VFIO))

    return on_vfio


def mixed(kernel: FakeKernel, size: int) -> None:
    """One with an override of its own, one without a driver."""
    devices = add_group(kernel, size)
    devices[0].override = "nouveau"
    kernel.release(devices[-1])


def with_personality(kernel: FakeKernel, size: int) -> None:
    kernel.add_personality(add_group(kernel, size)[0])


def kept_by_early_rules(kernel: FakeKernel, size: int) -> None:
    for device in add_group(kernel, size):
        kernel.release(device)
        device.override = PLACEHOLDER


def by_others_on_vfio(kernel: FakeKernel, size: int) -> None:
    kernel.load("vfio_pci")
    for device in add_group(kernel, size):
        kernel.release(device)
        device.override = "vfio-pci"
        kernel.probe(kernel.drivers["vfio-pci"], device)


def last_refuses(kernel: FakeKernel, size: int) -> None:
    last = add_group(kernel, size)[-1]
    driver = kernel.modules["vfio_pci"].drivers[0]

    def refuse(each: FakeDevice) -> None:
        driver.probe_errno = errno.EIO if each is last else 0

    driver.on_probe = refuse


SCENARIOS = {
    "to vfio": Scenario(add_group, Flavour.VFIO, 3),
    "to native": Scenario(to_native_from(add_group), Flavour.NATIVE, 3),
    "mixed to vfio": Scenario(mixed, Flavour.VFIO),
    "mixed to native": Scenario(to_native_from(mixed), Flavour.NATIVE),
    "personality to vfio": Scenario(with_personality, Flavour.VFIO),
    "personality to native": Scenario(to_native_from(with_personality), Flavour.NATIVE),
    "kept to vfio": Scenario(kept_by_early_rules, Flavour.VFIO),
    "kept to native": Scenario(to_native_from(kept_by_early_rules), Flavour.NATIVE),
    "released": Scenario(by_others_on_vfio, Flavour.NATIVE),
    "last refuses": Scenario(last_refuses, Flavour.VFIO, 3, goes_back=True),
}


class Failures:
    """All the steps at which it goes wrong, not only the first."""

    def __init__(self) -> None:
        self._found: list[str] = []

    @contextmanager
    def collected(self, story: str) -> Iterator[None]:
        try:
            yield
        except (AssertionError, FlavourError) as error:
            self._found.append(f"{story}: {str(error).splitlines()[0]}")

    def check(self) -> None:
        if self._found:
            pytest.fail("\n".join(self._found), pytrace=False)


def killed_at(kernel: FakeKernel, scenario: Scenario, first: str, number: int, *, goes_on: bool) -> bool:
    """Whether the switch got as far as its operation of that number, and so was cut off there."""
    kernel.writes.clear()
    engine = make_engine(kernel)
    kernel.crash_after, kernel.batch_goes_on = number, goes_on
    try:
        run_at_once(ask(engine, first, scenario.flavour))
    except Crash:
        return True
    except FlavourError:
        assert scenario.goes_back
    finally:
        kernel.crash_after = None
    return False


async def restart(kernel: FakeKernel) -> Engine:
    engine = make_engine(kernel)
    engine.recover()
    await settled(engine)
    return engine


def check_recovered(kernel: FakeKernel, before: dict[str, Has], after: dict[str, Has]) -> None:
    engine = run_at_once(restart(kernel))
    now = state(kernel)
    assert now in (before, after), f"neither all there nor all as before: {now}"
    for address, device in kernel.devices.items():
        status = engine.device(at(device))
        assert status.stuck == ""
        record = engine._host.ledger.find(at(device))
        if record is not None:
            assert not record.is_open, f"the record of {address} is open"
            assert record.flavour == status.flavour
    assert not engine._turns.taken


def make_all(kernel: FakeKernel, scenario: Scenario, first: str) -> tuple[dict[str, Has], dict[str, Has]]:
    """What a group has before a switch, and after one that nobody cuts off."""
    scenario.prepare(kernel, scenario.size)
    before = state(kernel)
    if scenario.goes_back:
        return before, before
    run_at_once(ask(make_engine(kernel), first, scenario.flavour))
    after = state(kernel)
    assert after != before
    return before, after


@pytest.mark.parametrize(
    ("which", "goes_on"),
    [("first", False), ("last", True)],
    ids=["the worker dies too", "the worker goes on"],
)
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_step_a_group_is_switched_as_a_whole_or_not_at_all(
    disk: Path, name: str, which: str, goes_on: bool
) -> None:
    scenario = SCENARIOS[name]
    first = scenario.find_first(which)
    before, after = make_all(FakeKernel(disk / "undisturbed"), scenario, first)
    failures = Failures()
    number = 0
    while True:
        kernel = FakeKernel(disk / str(number))
        scenario.prepare(kernel, scenario.size)
        known = records(kernel)
        if not killed_at(kernel, scenario, first, number, goes_on=goes_on):
            break
        with failures.collected(f"after {number} operations, having written {kernel.writes}"):
            check_recovered(kernel, before, after)
            if state(kernel) == before:
                assert records(kernel) == known
        number += 1
    failures.check()
    assert number >= 10


@pytest.mark.parametrize("goes_on", [False, True], ids=["the worker dies too", "the worker goes on"])
@pytest.mark.parametrize("name", ["to vfio", "personality to native", "released", "kept to native"])
def test_killed_again_while_recovering_a_group_still_ends_as_a_whole(
    disk: Path, name: str, goes_on: bool
) -> None:
    scenario = replace(SCENARIOS[name], size=2)
    before, after = make_all(FakeKernel(disk / "undisturbed"), scenario, AUDIO)
    failures = Failures()
    number, again, crashes = 1, 0, 0
    while True:
        kernel = FakeKernel(disk / f"{number}-{again}")
        scenario.prepare(kernel, scenario.size)
        if not killed_at(kernel, scenario, AUDIO, number, goes_on=False):
            break
        kernel.crash_after, kernel.batch_goes_on = again, goes_on
        try:
            run_at_once(restart(kernel))
        except Crash:
            crashes += 1
            next_one = (number, again + 3)
        else:
            next_one = (number + 3, 0)
        kernel.crash_after = None
        with failures.collected(f"after {number} operations, then after {again} of the next daemon's"):
            check_recovered(kernel, before, after)
        number, again = next_one
    failures.check()
    assert crashes >= 3


def test_killed_at_any_step_a_group_can_be_switched_afterwards_and_goes_home(disk: Path) -> None:
    home = FakeKernel(disk / "home")
    add_group(home, 2)
    failures = Failures()

    async def there_and_back(kernel: FakeKernel) -> None:
        engine = await restart(kernel)
        await ask(engine, GPU, Flavour.VFIO)
        await ask(engine, GPU, Flavour.NATIVE)

    number = 0
    while True:
        kernel = FakeKernel(disk / str(number))
        add_group(kernel, 2)
        if not killed_at(kernel, SCENARIOS["to vfio"], GPU, number, goes_on=False):
            break
        with failures.collected(f"after {number} operations"):
            run_at_once(there_and_back(kernel))
            assert state(kernel) == state(home)
            assert records(kernel) == []
        number += 1
    failures.check()


def test_a_policy_that_gives_each_of_a_group_to_vfio_is_not_in_its_own_way(tmp_path: Path) -> None:
    """One rule for a slot, and nothing said of groups."""
    kernel = FakeKernel(tmp_path)
    functions = [kernel.add_device(f"0000:01:00.{function}") for function in range(2)]
    kernel.add_native(functions[0])
    match = Match(vendor=(functions[0].vendor,))
    rule = Rule("the card", match, "vfio", (), Settings(), None, "a.yaml:1")
    policy = Policy(rules=(rule,))

    async def run() -> None:
        engine = make_engine(kernel, policy)
        await engine.reconciler.start()
        engine.reconciler.stop()

    asyncio.run(run())
    assert [each.driver.name if each.driver else None for each in functions] == ["vfio-pci", "vfio-pci"]


def test_who_asks_for_the_whole_group_gets_the_rest_of_it_where_a_part_is_there_already(
    tmp_path: Path,
) -> None:
    kernel = FakeKernel(tmp_path)
    functions = [kernel.add_device(f"0000:01:00.{function}") for function in range(2)]
    kernel.add_native(functions[0])
    address = parse_address(functions[0].address)

    async def run() -> None:
        engine = make_engine(kernel)
        alone = Request(address, Flavour.VFIO, others=OthersInGroup.IGNORE)
        await engine.set_flavour(alone, lambda _: None)
        # A guest may hold that part: it is not touched.
        kernel.users[functions[0].address] = (User(Use.GUEST, "qemu (pid 7) holds /dev/vfio/7", 7),)
        whole = replace(alone, others=OthersInGroup.TOGETHER)
        outcome = await engine.set_flavour(whole, lambda _: None)
        assert [str(each.address) for each in outcome.others] == [functions[1].address]

    asyncio.run(run())
    assert [each.driver.name if each.driver else None for each in functions] == ["vfio-pci", "vfio-pci"]
