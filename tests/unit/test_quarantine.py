"""Devices that the kernel holds, and those whose record is lost: told as what they are, and nobody waits."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, has, make_engine, make_host, pending
from virtual_time import run_at_once

from vfio_flavourd.engine import delay
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.kernel import places
from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import Match, OthersInGroup, Policy, Rule, Settings
from vfio_flavourd.model.udev_rules import PLACEHOLDER

NATIVE = ("e1000e", None)
VFIO = ("vfio-pci", "vfio-pci")
GUEST = User(Use.GUEST, "qemu-system-x86 (pid 812) holds /dev/vfio/7", 812)


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def at(device: FakeDevice) -> PciAddress:
    return parse_address(device.address)


async def ask(engine: Engine, device: FakeDevice, flavour: Flavour = Flavour.VFIO, **more: Any) -> Outcome:
    return await engine.set_flavour(Request(at(device), flavour, **more), lambda _: None)


async def settled(engine: Engine) -> None:
    while tasks := pending(engine):
        await asyncio.gather(*tasks)


def on_disk(kernel: FakeKernel) -> list[str]:
    return sorted(path.name for path in (kernel.root / "run/devices").iterdir())


# stuck


@pytest.mark.parametrize("long", [0.0, 3.0])
def test_a_write_that_does_not_return_is_shown_as_stuck_while_its_requester_still_waits(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, long: float
) -> None:
    device = kernel.add_device()
    other = kernel.add_device("0000:02:00.0", group=8)
    kernel.add_native(device)
    assert places.LONG == 3.0
    monkeypatch.setattr(delay, "LONG", long)

    async def run() -> None:
        engine = make_engine(kernel, bind=30.0)
        await ask(engine, device)
        kernel.users[device.address] = (GUEST,)
        vfio_pci = kernel.drivers["vfio-pci"]
        blocks = vfio_pci.remove_blocks = asyncio.Event()
        asking = asyncio.create_task(ask(engine, device, Flavour.NATIVE, force=True))
        await asyncio.sleep(0.1)
        assert not asking.done()
        status = engine.device(at(device))
        if long:
            assert (status.stuck, status.phase) == ("", "switching")
        else:
            assert status.phase == "stuck"
            assert "'unbind from vfio-pci' has not returned since " in status.stuck
            assert "(process 1" in status.stuck
            assert status.stuck.endswith(", held by qemu-system-x86 (pid 812) holds /dev/vfio/7")
        # Others are served, and this one is no different when it is asked for again.
        vfio_pci.remove_blocks = None
        assert (await ask(engine, other)).driver == "vfio-pci"
        blocks.set()
        assert (await asking).flavour == Flavour.NATIVE
        assert engine.device(at(device)).stuck == ""

    run_at_once(run())


def test_a_stuck_device_names_its_holder_until_the_kernel_lets_go_and_is_finished_then(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        engine = make_engine(kernel)
        await ask(engine, device)
        kernel.users[device.address] = (GUEST,)
        vfio_pci = kernel.drivers["vfio-pci"]
        blocks = vfio_pci.remove_blocks = asyncio.Event()
        with pytest.raises(FlavourError) as caught:
            await ask(engine, device, Flavour.NATIVE, force=True)
        assert caught.value.errno == errno.ETIMEDOUT
        stuck = engine.device(at(device)).stuck
        assert "'unbind from vfio-pci' has not returned for 1 s" in stuck
        assert ", since " in stuck
        assert "held by qemu-system-x86 (pid 812) holds /dev/vfio/7" in stuck
        assert await engine.find_users(engine.device(at(device)).device) == ()
        for request in (Request(at(device), Flavour.NATIVE), Request(at(device), Flavour.VFIO, force=True)):
            with pytest.raises(FlavourError, match="stuck: ") as caught:
                await engine.set_flavour(request, lambda _: None)
            assert caught.value.errno == errno.EBUSY
            with pytest.raises(FlavourError, match="stuck: ") as caught:
                await engine.plan(request)
            assert caught.value.errno == errno.EBUSY
        vfio_pci.remove_blocks = None
        blocks.set()
        await settled(engine)
        assert engine.device(at(device)).stuck == ""
        assert has(device) == NATIVE
        assert on_disk(kernel) == []

    run_at_once(run())


def test_dry_runs_of_a_device_that_somebody_elses_write_has_in_the_kernel_leave_one_process_there(
    kernel: FakeKernel,
) -> None:
    """It has no driver any more, and its `driver_override` can't be read."""
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        engine = make_engine(kernel, bind=30.0)
        await ask(engine, device)
        kernel.release(device)
        held = device.held = asyncio.Event()
        with pytest.raises(FlavourError) as caught:
            await engine.plan(Request(at(device), Flavour.NATIVE))
        assert caught.value.errno == errno.ETIMEDOUT
        for _ in range(3):
            with pytest.raises(FlavourError, match="stuck: ") as caught:
                await engine.plan(Request(at(device), Flavour.NATIVE))
            assert caught.value.errno == errno.EBUSY
        assert len(list((kernel.root / "proc").iterdir())) == 1
        assert "has not returned for 5 s (process 1" in engine.device(at(device)).stuck
        kernel.writes.clear()
        held.set()
        await settled(engine)
        assert engine.device(at(device)).stuck == ""
        assert kernel.writes == []  # it was somebody else's doing
        assert (await ask(engine, device)).driver == "vfio-pci"

    run_at_once(run())


def test_a_device_that_was_stuck_between_two_vfio_drivers_is_never_given_to_the_host(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that it was for does not take it once the kernel lets go."""
    device = kernel.add_device()
    kernel.add_native(device)
    alias = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=alias)

    async def run() -> None:
        engine = make_engine(kernel)
        engine.recover()
        await engine.reconciler.start()
        await ask(engine, device)
        kernel.writes.clear()
        kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY
        good = kernel.drivers["good"]
        blocks = good.remove_blocks = asyncio.Event()
        with pytest.raises(FlavourError, match="has not returned"):
            await ask(engine, device, drivers=("vfio_pci",), force=True)
        good.remove_blocks = None
        blocks.set()
        await asyncio.sleep(5)
        status = engine.device(at(device))
        assert has(device) == ("good", "good")
        assert (status.stuck, status.flavour, status.remarks) == ("", Flavour.VFIO, ())
        assert not any("e1000e" in write for write in kernel.writes)
        assert "is over: it has good, as before" in caplog.text
        await engine.reset(Request(at(device), Flavour.NATIVE), lambda _: None)
        assert has(device) == NATIVE

    run_at_once(run())


def test_a_device_that_could_not_be_put_back_is_made_again_what_was_asked_for_when_it_can_be(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither driver takes it when the kernel lets go, and nobody else has done that."""
    device = kernel.add_device()
    kernel.add_native(device)
    alias = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=alias)

    async def run() -> None:
        engine = make_engine(kernel)
        engine.recover()
        await engine.reconciler.start()
        await ask(engine, device)
        good = kernel.drivers["good"]
        blocks = good.remove_blocks = asyncio.Event()
        kernel.modules["vfio_pci"].drivers[0].probe_errno = good.probe_errno = errno.EBUSY
        with pytest.raises(FlavourError, match="has not returned"):
            await ask(engine, device, drivers=("vfio_pci",), force=True)
        good.remove_blocks = None
        blocks.set()
        await asyncio.sleep(5)
        assert device.driver is None
        assert engine.device(at(device)).remarks == ()
        assert "someone else" not in caplog.text
        good.probe_errno = 0
        await asyncio.sleep(600)
        assert has(device) == ("good", "good")
        await engine.reset(Request(at(device), Flavour.NATIVE), lambda _: None)
        assert has(device) == NATIVE
        assert on_disk(kernel) == []

    run_at_once(run())


def test_a_device_that_was_stuck_on_its_way_home_is_not_said_to_be_as_before(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        engine = make_engine(kernel)
        await ask(engine, device)
        blocks = kernel.drivers["vfio-pci"].remove_blocks = asyncio.Event()
        with pytest.raises(FlavourError, match="has not returned"):
            await ask(engine, device, Flavour.NATIVE, force=True)
        blocks.set()
        await settled(engine)

    run_at_once(run())
    assert has(device) == NATIVE
    assert [message for message in caplog.messages if "is over" in message] == [
        f"{device.address}: the switch that was cut off or stuck is over: it has e1000e"
    ]


def test_a_device_that_gets_stuck_again_on_its_way_stays_in_quarantine_until_it_is_through(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    native = kernel.add_native(device)
    vfio_pci = kernel.modules["vfio_pci"].drivers[0]

    async def run() -> None:
        engine = make_engine(kernel)
        first = native.remove_blocks = asyncio.Event()
        second = vfio_pci.remove_blocks = asyncio.Event()
        real = kernel.write

        async def write(path: str, text: str) -> None:
            await real(path, text)
            if path.endswith("vfio-pci/bind"):
                device.override = "somebody-elses"
                kernel.probe(vfio_pci, device) if device.driver is None else None

        kernel.write = write  # type: ignore[method-assign]
        with pytest.raises(FlavourError):
            await ask(engine, device)
        native.remove_blocks = None
        first.set()
        await asyncio.sleep(5)
        second.set()
        vfio_pci.remove_blocks = None
        await settled(engine)
        assert engine.device(at(device)).stuck == ""
        assert device.driver is not None
        assert not engine._turns.taken

    run_at_once(run())


def test_a_device_that_goes_while_it_is_stuck_leaves_nothing_behind(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    native = kernel.add_native(device)

    async def run() -> None:
        engine = make_engine(kernel)
        blocks = native.remove_blocks = asyncio.Event()
        with pytest.raises(FlavourError):
            await ask(engine, device)
        native.remove_blocks = None
        kernel.remove_device(device)
        engine.forget(at(device))
        successor = kernel.add_device()
        kernel.probe(native, successor)
        blocks.set()
        await settled(engine)
        assert engine.device(at(successor)).stuck == ""
        assert has(successor) == NATIVE
        assert on_disk(kernel) == []
        await ask(engine, successor)
        assert has(successor) == VFIO

    run_at_once(run())


def test_a_daemon_stops_in_time_while_a_device_is_stuck_and_the_next_one_takes_it_up(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    native = kernel.add_native(device)

    async def run() -> None:
        engine = make_engine(kernel, bind=30.0)
        blocks = native.remove_blocks = asyncio.Event()
        asking = asyncio.create_task(ask(engine, device))
        await asyncio.sleep(0.5)
        began = asyncio.get_running_loop().time()
        await engine.settle(5.0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(5.0)
        asking.cancel()
        for task in engine._switches:
            task.cancel()
        await asyncio.sleep(0)
        kernel.group_holders[7] = (GUEST,)
        again = make_engine(kernel)
        again.recover()
        assert "of an earlier daemon is still in the kernel with it" in again.device(at(device)).stuck
        await asyncio.sleep(0.1)
        stuck = again.device(at(device)).stuck
        assert "of an earlier daemon is still in the kernel with it, held by qemu" in stuck
        native.remove_blocks = None
        blocks.set()
        await settled(again)
        assert has(device) == VFIO
        assert again.device(at(device)).stuck == ""

    run_at_once(run())


def test_the_attempt_that_a_stop_cuts_off_is_not_said_to_have_touched_nothing(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    native = kernel.add_native(device)

    async def run() -> None:
        engine = make_engine(kernel, bind=30.0)
        native.remove_blocks = asyncio.Event()
        asking = asyncio.create_task(ask(engine, device))
        await asyncio.sleep(0.5)
        for task in engine._switches:
            task.cancel()
        await asyncio.sleep(0.1)
        assert asking.cancelled()
        error = engine.attempts.history[-1].error
        assert error == "0000:01:00.0: cut off because the daemon stopped, the next one takes it up"

    run_at_once(run())


def test_nothing_has_grown_with_a_hundred_switches(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        engine = make_engine(kernel)
        await engine.reconciler.start()

        async def back_and_forth() -> None:
            await ask(engine, device)
            await ask(engine, device, Flavour.NATIVE)

        await back_and_forth()
        await asyncio.sleep(1)
        before = sizes(engine)
        for _ in range(50):
            await back_and_forth()
        await asyncio.sleep(1)
        after = sizes(engine)
        after["history"] = before["history"]
        assert after == before

    run_at_once(run())


def sizes(engine: Engine) -> dict[str, int]:
    """Of all that could grow."""
    found = {"history": len(engine.attempts.history), "tasks": len(asyncio.all_tasks())}
    for part in (engine, engine.reconciler, engine._quarantine, engine.attempts, engine._host.ledger):
        for name, value in vars(part).items():
            if name != "history" and isinstance(value, (dict, set, list)):
                found[f"{type(part).__name__}.{name}"] = len(value)
    return found


# a lost record


def spoil(kernel: FakeKernel, device: FakeDevice) -> Path:
    """Its record is there, and can't be read."""
    path = kernel.root / f"run/devices/{device.address}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'{"version": 1, "addr')
    return path


async def start(kernel: FakeKernel, policy: Policy | None = None) -> Engine:
    host = make_host(kernel, policy)
    # make_host() has loaded the ledger once, and set the record aside.
    for path in (kernel.root / "run/devices").glob("*.corrupt"):
        path.replace(path.with_suffix(".json"))
    engine = Engine(host)
    engine.recover()
    await settled(engine)
    return engine


@pytest.mark.parametrize("state", ["native", "vfio", "driverless"])
def test_a_device_whose_record_is_lost_keeps_the_driver_that_it_has(
    kernel: FakeKernel, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = kernel.add_device()
    if state != "driverless":
        kernel.add_native(device)
    if state == "vfio":
        run_at_once(ask(make_engine(kernel), device))
    before = has(device)
    kernel.writes.clear()
    spoil(kernel, device)
    engine = run_at_once(start(kernel))
    assert has(device) == before
    assert kernel.writes == []
    assert on_disk(kernel) == [f"{device.address}.corrupt"]
    assert engine.device(at(device)).stuck == ""
    messages = [record.getMessage() for record in caplog.records]
    assert any("set aside" in message and f"{device.address}.json" in message for message in messages)
    kept = f"it has {before[0] or 'no driver'}, and keeps it"
    assert f"{device.address}: its record is lost: {kept}" in messages
    # It can be switched as any other.
    run_at_once(ask(engine, device, Flavour.NATIVE))
    run_at_once(ask(make_engine(kernel), device, Flavour.VFIO))
    assert has(device) == VFIO


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_device_that_was_cut_off_in_the_middle_and_lost_its_record_goes_to_the_kernels_choice(
    kernel: FakeKernel, is_loaded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.release(device)
    device.override = "vfio-pci"
    if not is_loaded:
        kernel.unload("e1000e")
        kernel.modules[device.modalias] = kernel.modules["e1000e"]  # as modprobe finds it
    spoil(kernel, device)
    run_at_once(start(kernel))
    assert has(device) == NATIVE
    assert "it had no driver, and now has e1000e, which the kernel chose" in caplog.text


def test_a_device_that_an_early_rule_keeps_is_not_given_to_its_native_driver_for_a_lost_record(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    device.override = PLACEHOLDER
    kernel.add_native(device)
    spoil(kernel, device)
    run_at_once(start(kernel))
    assert has(device) == (None, PLACEHOLDER)
    assert kernel.writes == []


def test_the_record_of_a_device_that_is_no_more_is_set_aside_and_that_is_all(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = kernel.add_device()
    spoil(kernel, device)
    (kernel.root / "run/devices/nonsense.json").write_bytes(b"{}")
    kernel.remove_device(device)
    engine = run_at_once(start(kernel))
    assert "its record is lost: the device is gone" in caplog.text
    assert engine.devices() == []
    assert on_disk(kernel) == ["0000:01:00.0.corrupt", "nonsense.corrupt"]


def test_a_device_with_a_lost_record_that_is_held_is_stuck_until_it_is_let_go(kernel: FakeKernel) -> None:
    """A worker of the earlier daemon is in the kernel with it, and nobody knows which."""
    device = kernel.add_device()
    other = kernel.add_device("0000:02:00.0", group=8)
    kernel.add_native(device)

    async def run() -> None:
        device.held = held = asyncio.Event()
        spoil(kernel, device)
        host = make_host(kernel)
        path = kernel.root / f"run/devices/{device.address}.corrupt"
        path.replace(path.with_suffix(".json"))
        engine = Engine(host)
        engine.recover()
        await asyncio.sleep(60)
        assert "has not returned" in engine.device(at(device)).stuck
        with pytest.raises(FlavourError) as caught:
            await ask(engine, device)
        assert caught.value.errno == errno.EBUSY
        assert (await ask(engine, other)).driver == "vfio-pci"
        held.set()
        await settled(engine)
        assert engine.device(at(device)).stuck == ""
        assert has(device) == NATIVE
        await ask(engine, device)
        assert has(device) == VFIO

    run_at_once(run())


def test_the_policy_waits_for_a_device_whose_record_is_lost(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.release(device)
    device.override = "vfio-pci"
    spoil(kernel, device)
    settings = Settings(1.0, 1.0)
    rule = Rule("a rule", Match(device=(0x10D3,)), "vfio", (), settings, None, "x.yaml:1")

    async def run() -> None:
        host = make_host(kernel, Policy(settings, (rule,)))
        path = kernel.root / f"run/devices/{device.address}.corrupt"
        path.replace(path.with_suffix(".json"))
        engine = Engine(host)
        engine.recover()
        await engine.reconciler.start()
        await asyncio.sleep(60)
        assert has(device) == VFIO
        # Home is what it had when its record was lost.
        await ask(engine, device, Flavour.NATIVE)
        assert has(device) == NATIVE

    run_at_once(run())


@pytest.mark.parametrize("others", [None, OthersInGroup.IGNORE])
def test_who_waits_for_the_turn_of_a_stuck_one_gets_it_when_the_kernel_lets_go(
    kernel: FakeKernel, others: OthersInGroup | None
) -> None:
    devices = [kernel.add_device(), kernel.add_device("0000:01:00.1")]
    native = kernel.add_native(devices[0])

    async def run() -> None:
        engine = make_engine(kernel, group=30.0)
        blocks = native.remove_blocks = asyncio.Event()
        with pytest.raises(FlavourError):
            await ask(engine, devices[0], others=OthersInGroup.IGNORE)
        native.remove_blocks = None
        waiting = asyncio.create_task(ask(engine, devices[1], others=others))
        await asyncio.sleep(5)
        assert not waiting.done()
        blocks.set()
        assert (await waiting).driver == "vfio-pci"
        assert [has(each) for each in devices] == [VFIO, VFIO]
        assert not engine._turns.taken

    run_at_once(run())
