"""What the policy says comes true once: at the start, when a device comes, at a reload. No fights."""

import asyncio
import errno
import itertools
import json
import logging
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import Crash, FakeDevice, FakeDriver, FakeKernel, has, make_engine, pending
from virtual_time import now, run_at_once

from vfio_flavourd.engine import reconcile
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.history import MOST
from vfio_flavourd.engine.tries import Tries
from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Attempt, Ending, Flavour, Outcome, Request, StepReport
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import Match, OthersInGroup, Policy, Rule, Settings
from vfio_flavourd.model.udev_rules import PLACEHOLDER

QUICK = Settings(load_timeout=1.0, bind_timeout=1.0)
NATIVE = ("e1000e", None)
VFIO = ("vfio-pci", "vfio-pci")
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
USER = User(Use.MOUNT, "/mnt/data on nvme0n1p2")

# Longer than any pause between two tries.
LONG = 400.0


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def rule(flavour: str | None, *drivers: str, settings: Settings = QUICK, **match: Any) -> Rule:
    return Rule("a rule", Match(**match), flavour, drivers, settings, None, "50-test.yaml:3")


def policy(*rules: Rule) -> Policy:
    return Policy(defaults=QUICK, rules=rules)


TO_VFIO = policy(rule("vfio", device=(0x10D3,)))
TO_NATIVE = policy(rule("native", device=(0x10D3,)))


def at(device: FakeDevice) -> PciAddress:
    return parse_address(device.address)


def add_with_native(kernel: FakeKernel, address: str = "0000:01:00.0", group: int = 7) -> FakeDevice:
    device = kernel.add_device(address, group=group)
    if "e1000e" in kernel.drivers:
        kernel.probe(kernel.drivers["e1000e"], device)
    else:
        kernel.add_native(device)
    return device


async def start(kernel: FakeKernel, rules: Policy | None = None, **options: Any) -> Engine:
    """A daemon begins, and has done all that it does by itself at once."""
    engine = make_engine(kernel, rules, **options)
    engine.recover()
    await engine.reconciler.start()
    await asyncio.sleep(1)
    return engine


async def stop(engine: Engine) -> None:
    await engine.settle(1.0)


def change_policy(engine: Engine, rules: Policy) -> None:
    engine._host.policy.policy = rules
    engine._host.policy._modules = None


async def reload(engine: Engine, rules: Policy) -> None:
    change_policy(engine, rules)
    engine.reconciler.reload()
    await asyncio.sleep(1)


async def event(engine: Engine, device: FakeDevice) -> None:
    """Its uevent has come, and all that follows from that at once."""
    engine.reconciler.consider(at(device))
    await asyncio.sleep(1)


async def ask(engine: Engine, device: FakeDevice, flavour: Flavour, *drivers: str, **more: Any) -> Outcome:
    return await engine.set_flavour(Request(at(device), flavour, drivers, **more), lambda _: None)


async def reset(engine: Engine, device: FakeDevice) -> Outcome:
    return await engine.reset(Request(at(device), Flavour.NATIVE), lambda _: None)


def keep_wish(engine: Engine, device: FakeDevice, flavour: Flavour) -> None:
    status = engine.device(at(device))
    engine.reconciler.keep_wish(status.device, status.decision, Request(at(device), flavour))


def bind_by_others(kernel: FakeKernel, device: FakeDevice, driver: str, override: str | None = None) -> None:
    if device.driver is not None:
        kernel.release(device)
    device.override = override
    assert kernel.probe(kernel.drivers[driver], device) == 0


def attempts(engine: Engine) -> list[tuple[str, str]]:
    """Of each attempt its device, and by whom."""
    return [(str(attempt.address), attempt.requester) for attempt in engine.attempts.history]


def tries(engine: Engine) -> list[float]:
    """When there was an attempt, from now on; grows as they come."""
    found: list[float] = []

    def listen(_: PciAddress, what: Attempt | StepReport) -> None:
        if isinstance(what, Attempt):
            found.append(now())

    engine.attempts.listeners.add(listen)
    return found


def watch_lasting_wishes(engine: Engine) -> list[frozenset[str]]:
    """Those that last, each time that the next boot is to follow them; grows as they change."""
    found: list[frozenset[str]] = []

    async def changed() -> None:
        found.append(frozenset(str(kept.address) for kept in engine.reconciler.wishes.find_kept()))

    engine.reconciler.lasting_wishes_changed = changed
    return found


def remarks(engine: Engine, device: FakeDevice) -> tuple[str, ...]:
    return engine.device(at(device)).remarks


# when it is applied


def test_at_the_first_start_a_device_gets_what_the_policy_says_and_others_are_not_touched(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)
    other = kernel.add_device("0000:02:00.0", device=0x1533, group=8)
    kernel.add_native(other, "igb")

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        assert has(device) == VFIO
        assert has(other) == ("igb", None)
        assert attempts(engine) == [("0000:01:00.0", "policy")]
        assert not any("02:00.0" in write for write in kernel.writes)
        assert engine.device(at(device)).wish is None

    run_at_once(run())


def test_a_device_that_is_so_already_is_not_touched(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_NATIVE)
        assert attempts(engine) == []
        assert has(device) == NATIVE
        assert kernel.writes == []

    run_at_once(run())


def test_a_device_that_comes_later_gets_what_the_policy_says(kernel: FakeKernel) -> None:
    add_with_native(kernel, "0000:09:00.0", group=1)

    async def run() -> None:
        engine = await start(kernel, policy(rule("vfio", address=(parse_address("0000:01:00.0"),))))
        device = add_with_native(kernel)
        other = add_with_native(kernel, "0000:02:00.0", group=8)
        await event(engine, device)
        await event(engine, other)
        assert (has(device), has(other)) == (VFIO, NATIVE)

    run_at_once(run())


def test_a_driver_that_the_policy_names_is_had_also_where_another_vfio_driver_has_the_device(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))
    kernel.load("vfio_pci")
    bind_by_others(kernel, device, "vfio-pci", "vfio-pci")

    async def run() -> None:
        engine = await start(kernel, policy(rule("vfio", "good_vfio", device=(0x10D3,))))
        assert has(device) == ("good", "good")
        assert len(attempts(engine)) == 1

    run_at_once(run())


def test_a_reload_touches_only_what_differs(kernel: FakeKernel) -> None:
    devices = [add_with_native(kernel, f"0000:0{number}:00.0", number) for number in range(1, 5)]
    on, off, same, fresh = devices

    def chosen(*which: FakeDevice) -> Policy:
        return policy(rule("vfio", address=tuple(map(at, which))), rule("native", device=(0x10D3,)))

    async def run() -> None:
        engine = await start(kernel, chosen(on, off, same))
        kernel.writes.clear()
        await reload(engine, chosen(on, same, fresh))
        assert [has(each) for each in devices] == [VFIO, NATIVE, VFIO, VFIO]
        assert {write[-7:] for write in kernel.writes if "bind" in write} == {"02:00.0", "04:00.0"}
        assert not any("01:00.0" in write or "03:00.0" in write for write in kernel.writes)
        kernel.writes.clear()
        await reload(engine, chosen(on, same, fresh))
        assert kernel.writes == []

    run_at_once(run())


def test_a_bridge_that_a_rule_matches_with_what_is_behind_it_is_never_asked_for(kernel: FakeKernel) -> None:
    bridge = kernel.add_device("0000:00:01.0", class_code=0x060400, group=1)
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy(rule("vfio", vendor=(0x8086,))))
        await asyncio.sleep(1000)
        assert attempts(engine) == [(device.address, "policy")]
        assert remarks(engine, bridge) == ()

    run_at_once(run())


def test_a_rule_that_is_gone_at_a_reload_leaves_its_device_as_it_is(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        kernel.writes.clear()
        await reload(engine, policy())
        assert kernel.writes == []
        assert has(device) == VFIO

    run_at_once(run())


def test_a_storm_of_events_makes_one_switch(kernel: FakeKernel) -> None:
    add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        device = add_with_native(kernel, "0000:02:00.0", group=8)
        real = kernel.write

        async def write(path: str, text: str) -> None:
            for _ in range(100):
                engine.reconciler.consider(at(device))
            await asyncio.sleep(0.3)
            await real(path, text)

        kernel.write = write  # type: ignore[method-assign]
        for _ in range(5000):
            engine.reconciler.consider(at(device))
        engine.reconciler.consider_all()
        await asyncio.sleep(5)
        engine.notice_all()
        await asyncio.sleep(5)
        assert attempts(engine) == [("0000:01:00.0", "policy"), ("0000:02:00.0", "policy")]
        assert has(device) == VFIO

    run_at_once(run())


def test_many_devices_are_switched_side_by_side_but_not_more_than_so_many(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_WORKERS", 3)
    devices = [add_with_native(kernel, f"0000:{number:02x}:00.0", number) for number in range(1, 11)]
    real = kernel.write
    busy: set[str] = set()
    most = 0

    async def write(path: str, text: str) -> None:
        nonlocal most
        address = text if "drivers/" in path else path.split("/")[4]
        busy.add(address)
        most = max(most, len(busy))
        await asyncio.sleep(0.1)
        busy.discard(address)
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]

    async def run() -> None:
        await start(kernel, TO_VFIO)
        await asyncio.sleep(5)
        assert [has(each) for each in devices] == [VFIO] * 10
        assert most == 3

    run_at_once(run())


# when it can't be applied


def test_a_device_in_use_is_asked_for_again_with_growing_pauses_until_it_is_free(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.users[device.address] = (USER,)

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        found = tries(engine)
        await engine.reconciler.start()
        await asyncio.sleep(2000)
        pauses = [round(then - first) for first, then in pairwise(found)]
        assert pauses[:9] == [2, 4, 8, 16, 32, 64, 128, 256, 300]
        assert set(pauses[9:]) == {300}
        assert kernel.writes == []
        kernel.users.clear()
        await asyncio.sleep(LONG)
        assert has(device) == VFIO
        count = len(found)
        await asyncio.sleep(10 * LONG)
        assert len(found) == count

    run_at_once(run())


def test_events_do_not_shorten_the_pause_after_a_failure(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.users[device.address] = (USER,)

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        found = tries(engine)
        await engine.reconciler.start()
        for _ in range(100):
            engine.reconciler.consider(at(device))
            await asyncio.sleep(0.3)
        assert len(found) == 4  # at 0, 2, 6 and 14 s

    run_at_once(run())


def test_a_switch_that_fails_is_tried_four_times_and_again_only_at_a_reload(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)
    driver = kernel.modules["vfio_pci"].drivers[0]
    driver.probe_errno = errno.EINVAL

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        found = tries(engine)
        await engine.reconciler.start()
        for _ in range(200):
            await asyncio.sleep(3)
            engine.reconciler.consider(at(device))  # each try makes events
        assert len(found) == 4
        assert has(device) == NATIVE
        assert [record.message for record in caplog.records].count(
            "0000:01:00.0: applying the policy failed 4 times, giving up until a reload"
        ) == 1
        driver.probe_errno = 0
        await reload(engine, TO_VFIO)
        assert has(device) == VFIO
        assert len(found) == 5

    run_at_once(run())


def test_a_probe_that_says_busy_is_a_failure_like_any_and_not_tried_for_ever(kernel: FakeKernel) -> None:
    """Each try takes the native driver away for a moment."""
    device = add_with_native(kernel)
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        found = tries(engine)
        await engine.reconciler.start()
        await asyncio.sleep(2000)
        assert len(found) == 4
        assert has(device) == NATIVE

    run_at_once(run())


def test_how_often_it_was_refused_does_not_count_against_a_switch_that_fails(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.users[device.address] = (USER,)
    driver = kernel.modules["vfio_pci"].drivers[0]

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        await asyncio.sleep(2000)
        kernel.users.clear()
        driver.probe_errno = errno.EINVAL
        found = tries(engine)
        for _ in range(310):
            await asyncio.sleep(1)
            if found:
                driver.probe_errno = 0
        assert len(found) == 2
        assert has(device) == VFIO

    run_at_once(run())


def test_a_device_that_is_in_use_for_weeks_is_asked_for_as_on_the_first_day() -> None:
    tries = Tries()
    address, busy = parse_address("0000:01:00.0"), FlavourError("in use", code=Code.IN_USE)
    pauses = [tries.fail(address, busy) for _ in range(3000)]
    assert pauses[:9] == [2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(pauses[9:]) == {300}


def test_what_the_policy_is_refused_for_days_is_kept_and_logged_once(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    """It pushes out nothing of what people have attempted."""
    device = add_with_native(kernel)
    said = f"0000:01:00.0: could not be made vfio: in use: {USER.what}"
    kernel.users[device.address] = (USER,)

    def count() -> int:
        return [record.message for record in caplog.records if record.levelno >= logging.WARNING].count(said)

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        found = tries(engine)
        await engine.reconciler.start()
        await asyncio.sleep(86400)
        assert len(found) > 250
        assert (attempts(engine), count()) == ([(device.address, "policy")], 1)
        first = engine.attempts.find_last(at(device))
        assert first is engine.attempts.history[0]

        with pytest.raises(FlavourError):
            await ask(engine, device, Flavour.VFIO, requester="uid 0 pid 7")
        await asyncio.sleep(86400)
        assert [by for _, by in attempts(engine)] == ["policy", "uid 0 pid 7", "policy"]
        assert count() == 3

        kernel.users[device.address] = (User(Use.SWAP, "swap on sda2"),)
        await asyncio.sleep(86400)
        assert [by for _, by in attempts(engine)] == ["policy", "uid 0 pid 7", "policy", "policy"]
        assert "swap on sda2" in engine.attempts.history[-1].error
        file = kernel.root / "run/history.jsonl"
        assert len(file.read_text(encoding="ascii").splitlines()) == 4

    run_at_once(run())


def test_what_the_policy_is_refused_still_is_kept_again_when_it_is_in_the_history_no_more(
    kernel: FakeKernel,
) -> None:
    device, other = add_with_native(kernel), kernel.add_device("0000:02:00.0", group=8)
    kernel.users[device.address] = (USER,)

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        await engine.reconciler.start()
        for _ in range(MOST):
            await ask(engine, other, Flavour.VFIO, requester="uid 0 pid 7")
        await asyncio.sleep(2000)
        assert attempts(engine)[-2:] == [(other.address, "uid 0 pid 7"), (device.address, "policy")]

    run_at_once(run())


def test_a_person_s_reset_that_is_refused_is_kept_each_time(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.users[device.address] = (USER,)

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        for _ in range(2):
            with pytest.raises(FlavourError):
                await reset(engine, device)
        assert len(engine.attempts.history) == 2

    run_at_once(run())


@pytest.mark.parametrize("before", ["/e1000e/unbind", "/vfio-pci/bind"])
def test_a_driver_that_someone_binds_while_the_policy_is_applied_is_told_and_not_fought(
    kernel: FakeKernel, before: str
) -> None:
    device = add_with_native(kernel)
    intruder = FakeDriver("intruder", None)
    kernel.register(intruder)
    real = kernel.write

    async def write(path: str, text: str) -> None:
        if path.endswith(before):
            bind_by_others(kernel, device, "intruder", "intruder")
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        found = tries(engine)
        await engine.reconciler.start()
        await asyncio.sleep(2000)
        assert device.driver is intruder
        assert len(found) == 1
        assert "someone else made it native (intruder)" in remarks(engine, device)[0]
        kernel.write = real  # type: ignore[method-assign]
        assert (await reset(engine, device)).flavour == Flavour.VFIO

    run_at_once(run())


def test_a_device_that_was_given_up_is_tried_anew_when_it_is_replugged(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    driver = kernel.modules["vfio_pci"].drivers[0]
    driver.probe_errno = errno.EINVAL

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        await asyncio.sleep(LONG)
        driver.probe_errno = 0
        kernel.remove_device(device)
        engine.forget(at(device))
        successor = add_with_native(kernel)
        await event(engine, successor)
        assert has(successor) == VFIO

    run_at_once(run())


@pytest.mark.parametrize("told", ["its events come late", "its events are lost"])
@pytest.mark.parametrize("failures", [1, 4])
def test_another_device_at_the_address_is_not_judged_by_how_often_the_one_before_failed(
    kernel: FakeKernel, told: str, failures: int
) -> None:
    device = add_with_native(kernel)
    driver = kernel.modules["vfio_pci"].drivers[0]
    driver.probe_errno = errno.EINVAL

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        if failures == 4:
            await asyncio.sleep(LONG)
        assert len(attempts(engine)) == failures
        kernel.remove_device(device)
        successor = add_with_native(kernel)
        if told == "its events come late":
            engine.forget(at(device))
            engine.reconciler.consider(at(successor))
        else:
            engine.notice_all()
        await asyncio.sleep(0.5)
        assert len(attempts(engine)) == failures + 1
        driver.probe_errno = 0
        await asyncio.sleep(LONG)
        assert has(successor) == VFIO

    run_at_once(run())


def test_another_device_that_is_looked_at_before_any_event_of_it_came_has_all_its_tries(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)
    driver = kernel.modules["vfio_pci"].drivers[0]
    driver.probe_errno = errno.EINVAL

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        await asyncio.sleep(LONG)
        kernel.remove_device(device)
        successor = add_with_native(kernel)
        await event(engine, successor)
        engine.forget(at(device))
        await asyncio.sleep(LONG)
        assert len(attempts(engine)) == 8

    run_at_once(run())


@pytest.mark.parametrize("restarted", [False, True])
def test_what_came_of_the_device_that_was_at_the_address_before_is_not_told_of_another_one(
    kernel: FakeKernel, restarted: bool
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO)
        if restarted:
            await stop(engine)
        kernel.remove_device(device)
        successor = kernel.add_device(device=0x1533)
        kernel.add_native(successor, "igb")
        if restarted:
            engine = await start(kernel, policy())
        await event(engine, successor)  # before that of the removal
        engine.forget(at(successor))
        await event(engine, successor)
        assert engine.device(at(successor)).last is None
        # What is attempted on it is told.
        await ask(engine, successor, Flavour.VFIO)
        await event(engine, successor)
        last = engine.device(at(successor)).last
        assert last is not None and last.previous_driver == "igb"

    run_at_once(run())


def test_what_was_removed_unheard_is_forgotten_when_events_turn_out_to_be_lost(kernel: FakeKernel) -> None:
    device, other = add_with_native(kernel), add_with_native(kernel, "0000:02:00.0", group=8)

    async def run() -> None:
        engine = await start(kernel)
        await ask(engine, device, Flavour.VFIO)
        await ask(engine, other, Flavour.VFIO)
        kernel.remove_device(device)
        engine.notice_all()
        assert [path.name for path in (kernel.root / "run/devices").iterdir()] == [f"{other.address}.json"]
        assert engine.attempts.find_last(at(device)) is None
        assert engine.attempts.find_last(at(other)) is not None
        assert engine.reconciler.seen == (at(other),)

    run_at_once(run())


def test_a_reload_does_not_wait_for_a_pause_to_end(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.users[device.address] = (USER,)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        await asyncio.sleep(2000)
        kernel.users.clear()
        await reload(engine, TO_VFIO)
        assert has(device) == VFIO

    run_at_once(run())


def test_a_device_that_was_stuck_is_looked_at_again_when_the_kernel_lets_go(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    native = kernel.drivers["e1000e"]

    async def run() -> None:
        native.remove_blocks = blocks = asyncio.Event()
        engine = await start(kernel, TO_VFIO)
        await asyncio.sleep(60)
        assert "unbind from e1000e" in engine.device(at(device)).stuck
        native.remove_blocks = None
        blocks.set()
        await asyncio.sleep(5)
        assert engine.device(at(device)).stuck == ""
        assert has(device) == VFIO
        assert remarks(engine, device) == ()
        assert engine.reconciler._applied.devices[device.address].done

    run_at_once(run())


def test_a_stuck_device_does_not_keep_the_policy_from_others_while_its_group_waits(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_WORKERS", 1)
    first = add_with_native(kernel, "0000:01:00.0", 1)
    ignoring = Settings(1.0, 1.0, group=OthersInGroup.IGNORE)

    async def run() -> None:
        kernel.drivers["e1000e"].remove_blocks = asyncio.Event()
        engine = await start(kernel, policy(rule("vfio", device=(0x10D3,), settings=ignoring)), group=30.0)
        await asyncio.sleep(1)
        assert engine.device(at(first)).stuck
        kernel.drivers["e1000e"].remove_blocks = None
        sibling = add_with_native(kernel, "0000:01:00.1", 1)
        engine.reconciler.consider(at(sibling))
        await asyncio.sleep(0.1)
        other = add_with_native(kernel, "0000:02:00.0", 2)
        await event(engine, other)
        assert has(other) == VFIO
        assert has(sibling) == NATIVE

    run_at_once(run())


def test_devices_that_hang_do_not_keep_the_policy_from_others_until_they_are_given_up(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_WORKERS", 2)
    hanging = [add_with_native(kernel, f"0000:{number:02x}:00.0", number) for number in (1, 2)]
    others = [kernel.add_device(f"0000:{number:02x}:00.0", group=number) for number in (3, 4, 5, 6)]
    slow = Settings(1.0, 3600.0)
    real = kernel.write
    busy: set[str] = set()
    most = 0

    async def write(path: str, text: str) -> None:
        nonlocal most
        address = text if "drivers" in path else path.split("/")[4]
        if address in [each.address for each in others]:
            busy.add(address)
            most = max(most, len(busy))
            await asyncio.sleep(0.1)
            busy.discard(address)
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]

    async def run() -> None:
        kernel.drivers["e1000e"].remove_blocks = asyncio.Event()
        engine = make_engine(kernel, policy(rule("vfio", device=(0x10D3,), settings=slow)))
        engine.recover()
        begun = now()
        starting = asyncio.create_task(engine.reconciler.start())
        await asyncio.sleep(1)
        assert [has(each) for each in others] == [(None, None)] * 4
        while any(has(each) != VFIO for each in others):  # noqa: ASYNC110 - the clock jumps
            await asyncio.sleep(1)
        assert now() - begun < 5
        assert most == 2  # as if nothing hung
        assert all(each.held for each in hanging)
        await starting
        await stop(engine)

    run_at_once(run())


# a restart


def test_a_restart_with_the_same_policy_touches_nothing(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)
    changed = add_with_native(kernel, "0000:02:00.0", 8)

    async def run() -> None:
        await stop(await start(kernel, TO_VFIO))
        bind_by_others(kernel, changed, "e1000e")
        kernel.writes.clear()
        caplog.clear()
        for _ in range(3):
            engine = await start(kernel, TO_VFIO)
            engine.reconciler.consider_all()
            await asyncio.sleep(LONG)
            assert len(attempts(engine)) == 2  # those of the first daemon
            await stop(engine)
        assert kernel.writes == []
        assert (has(device), has(changed)) == (VFIO, NATIVE)
        assert "flavourctl reload" not in caplog.text

    run_at_once(run())


def test_a_policy_that_changed_before_a_restart_is_told_and_applied_at_a_reload(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        await stop(await start(kernel, TO_NATIVE))
        for _ in range(2):
            caplog.clear()
            engine = await start(kernel, TO_VFIO)
            engine.reconciler.consider_all()
            await asyncio.sleep(LONG)
            assert kernel.writes == []
            assert caplog.text.count("flavourctl reload applies the present one") == 1
            if not _:
                await stop(engine)
        await reload(engine, TO_VFIO)
        assert has(device) == VFIO

    run_at_once(run())


def test_what_could_not_be_had_before_a_restart_is_tried_after_it(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.users[device.address] = (USER,)

    async def run() -> None:
        await stop(await start(kernel, TO_VFIO))
        kernel.users.clear()
        await start(kernel, TO_VFIO)
        assert has(device) == VFIO

    run_at_once(run())


def test_a_daemon_that_was_killed_right_after_a_wish_has_nothing_to_complain_of(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        await stop(await start(kernel, TO_NATIVE))
        killed = await start(kernel, TO_NATIVE)
        await ask(killed, device, Flavour.VFIO)
        killed.reconciler._agenda.is_closed = True
        killed._host.ledger.close()
        caplog.clear()
        engine = await start(kernel, TO_NATIVE)
        assert has(device) == VFIO
        assert engine.device(at(device)).wish == Flavour.VFIO
        assert "flavourctl reload" not in caplog.text

    run_at_once(run())


# wishes by hand


@pytest.mark.parametrize("restarted", [False, True])
def test_a_wish_by_hand_stands_above_the_policy_until_reset(kernel: FakeKernel, restarted: bool) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        await ask(engine, device, Flavour.NATIVE)
        if restarted:
            await stop(engine)
            engine = await start(kernel, TO_VFIO)
        kernel.writes.clear()
        await event(engine, device)
        await reload(engine, TO_VFIO)
        assert has(device) == NATIVE
        assert kernel.writes == []
        status = engine.device(at(device))
        assert (status.wish, status.decision.flavour, status.remarks) == (Flavour.NATIVE, "vfio", ())
        outcome = await reset(engine, device)
        assert outcome.flavour == Flavour.VFIO
        await asyncio.sleep(LONG)
        assert has(device) == VFIO
        assert engine.device(at(device)).wish is None
        assert len(attempts(engine)) == 3

    run_at_once(run())


def test_without_a_rule_reset_gives_back_what_was_there(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO)
        assert engine.device(at(device)).wish == Flavour.VFIO
        await reset(engine, device)
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE
        assert engine.device(at(device)).wish is None
        assert remarks(engine, device) == ()

    run_at_once(run())


@pytest.mark.parametrize("rules", [TO_NATIVE, policy()], ids=["to what the policy says", "to what was there"])
def test_a_reset_that_is_refused_or_fails_leaves_the_wish_as_it_was(
    kernel: FakeKernel, rules: Policy
) -> None:
    device = add_with_native(kernel)
    native = kernel.drivers["e1000e"]

    async def run() -> None:
        engine = await start(kernel, rules)
        await ask(engine, device, Flavour.VFIO, persist=True)
        kernel.users[device.address] = (USER,)
        with pytest.raises(FlavourError) as refused:
            await reset(engine, device)
        assert refused.value.errno == errno.EBUSY
        kernel.users.clear()
        native.probe_errno = errno.EINVAL
        with pytest.raises(FlavourError):
            await reset(engine, device)
        native.probe_errno = 0
        await asyncio.sleep(LONG)  # nor does it happen later, behind the back of who was refused
        assert has(device) == VFIO
        status = engine.device(at(device))
        assert (status.wish, status.remarks) == (Flavour.VFIO, ())
        assert [kept.flavour for kept in engine.reconciler.wishes.find_kept()] == ["vfio"]
        await stop(engine)
        engine = await start(kernel, rules)
        assert engine.device(at(device)).wish == Flavour.VFIO
        await reset(engine, device)
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE
        assert engine.device(at(device)).wish is None
        assert engine.reconciler.wishes.find_kept() == ()

    run_at_once(run())


def test_a_wish_for_a_device_that_is_no_longer_there_can_be_reset(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        compiled: list[int] = []

        async def compile_again() -> None:
            compiled.append(len(engine.reconciler.wishes.find_kept()))

        engine.reconciler.lasting_wishes_changed = compile_again
        await ask(engine, device, Flavour.VFIO, persist=True)
        kernel.remove_device(device)
        engine.forget(at(device))
        with pytest.raises(FlavourError, match="what was asked for by hand is forgotten") as told:
            await reset(engine, device)
        assert told.value.errno == errno.ENODEV
        assert compiled == [1, 0]
        with pytest.raises(FlavourError) as again:
            await reset(engine, device)
        assert "forgotten" not in str(again.value)

    run_at_once(run())


def undo_as_member(device: FakeDevice, **more: Any) -> Request:
    return Request(at(device), Flavour.NATIVE, requester="uid 1000 pid 7", may_undo_lasting=False, **more)


def test_who_may_not_undo_a_wish_that_lasts_does_not_by_asking_before_it_is_kept(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    sibling = add_with_native(kernel, "0000:01:00.1")

    async def run() -> None:
        engine = await start(kernel, policy())
        kernel.modules["vfio_pci"].hang = loading = asyncio.Event()
        together = OthersInGroup.TOGETHER
        asking = asyncio.create_task(
            ask(engine, device, Flavour.VFIO, persist=True, others=together, timeout=60)
        )
        await asyncio.sleep(0.1)
        undoing = [
            asyncio.create_task(engine.reset(undo_as_member(each, others=others), lambda _: None))
            for each, others in ((device, together), (sibling, OthersInGroup.IGNORE))
        ]
        await asyncio.sleep(0.1)
        assert engine.reconciler.wishes.find_kept() == ()
        loading.set()
        await asking
        for each in await asyncio.gather(*undoing, return_exceptions=True):
            assert isinstance(each, FlavourError)
            assert each.code == Code.NOT_PERMITTED
        assert len(engine.reconciler.wishes.find_kept()) == 2
        assert (has(device), has(sibling)) == (VFIO, VFIO)
        assert [
            attempt.code for attempt in engine.attempts.history if attempt.requester == "uid 1000 pid 7"
        ] == ["not-permitted", "not-permitted"]

    run_at_once(run())


@pytest.mark.parametrize("may_undo", [True, False])
def test_a_reset_of_a_device_that_is_gone_is_on_record_and_may_undo_no_more_than_another(
    kernel: FakeKernel, may_undo: bool
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO, persist=True)
        kernel.remove_device(device)
        engine.forget(at(device))
        for _ in range(2):
            request = replace(undo_as_member(device), may_undo_lasting=may_undo)
            with pytest.raises(FlavourError) as told:
                await engine.reset(request, lambda _: None)
            attempt = engine.attempts.history[-1]
            assert (attempt.error, attempt.code) == (str(told.value), told.value.code)
            assert attempt.requester == "uid 1000 pid 7"
        assert len(engine.attempts.history) == 3
        assert len(engine.reconciler.wishes.find_kept()) == (0 if may_undo else 1)
        assert told.value.code == (Code.NO_SUCH_DEVICE if may_undo else Code.NOT_PERMITTED)

    run_at_once(run())


def test_the_next_boot_follows_a_wish_that_lasts_also_where_the_one_who_asked_has_gone(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        compiled: list[int] = []

        async def compile_again() -> None:
            compiled.append(len(engine.reconciler.wishes.find_kept()))

        engine.reconciler.lasting_wishes_changed = compile_again
        real = kernel.write

        async def write(path: str, text: str) -> None:
            await asyncio.sleep(0.2)
            await real(path, text)

        kernel.write = write  # type: ignore[method-assign]
        asking = asyncio.create_task(ask(engine, device, Flavour.VFIO, persist=True))
        await asyncio.sleep(0.3)
        asking.cancel()
        await asyncio.sleep(5)
        assert has(device) == VFIO
        assert compiled == [1]

    run_at_once(run())


@pytest.mark.parametrize("what", ["a set that changes nothing", "a reset", "a reset of what is gone"])
def test_the_next_boot_follows_also_where_the_one_who_asked_goes_while_it_is_told(
    kernel: FakeKernel, what: str
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        is_set = what == "a set that changes nothing"
        if not is_set:
            await ask(engine, device, Flavour.NATIVE, persist=True)
        if what == "a reset of what is gone":
            kernel.remove_device(device)
        compiled: list[int] = []
        others = asyncio.Event()

        async def compile_again() -> None:
            await others.wait()
            compiled.append(len(engine.reconciler.wishes.find_kept()))

        engine.reconciler.lasting_wishes_changed = compile_again
        work = ask(engine, device, Flavour.NATIVE, persist=True) if is_set else reset(engine, device)
        asking = asyncio.create_task(work)
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        others.set()
        await asyncio.sleep(1)
        assert compiled == [1 if is_set else 0]
        assert len(attempts(engine)) == (1 if is_set else 2)

    run_at_once(run())


@pytest.mark.parametrize("others", [OthersInGroup.TOGETHER, OthersInGroup.REFUSE])
@pytest.mark.parametrize("by_rule", [False, True], ids=["a wish", "its own rule"])
def test_the_policy_takes_no_device_along_that_is_to_be_something_else(
    kernel: FakeKernel, others: OthersInGroup, by_rule: bool
) -> None:
    device = add_with_native(kernel)
    sibling = add_with_native(kernel, "0000:01:00.1")
    settings = Settings(1.0, 1.0, group=others)
    native = [rule("native", address=(at(sibling),))] if by_rule else []
    rules = policy(*native, rule("vfio", address=(at(device), at(sibling)), settings=settings))

    async def run() -> None:
        engine = await start(kernel, policy(*native))
        if not by_rule:
            keep_wish(engine, sibling, Flavour.NATIVE)
        await reload(engine, rules)
        assert (has(device), has(sibling)) == (NATIVE, NATIVE)
        last = engine.device(at(device)).last
        assert last is not None and last.code is Code.GROUP_NOT_VIABLE and sibling.address in last.error
        assert remarks(engine, sibling) == ()
        # Who asks by hand may.
        await ask(engine, device, Flavour.VFIO, others=OthersInGroup.TOGETHER)
        assert (has(device), has(sibling)) == (VFIO, VFIO)

    run_at_once(run())


def test_the_policy_takes_a_device_along_that_nobody_wants_otherwise(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    sibling = add_with_native(kernel, "0000:01:00.1")
    settings = Settings(1.0, 1.0, group=OthersInGroup.TOGETHER)

    async def run() -> None:
        await start(kernel, policy(rule("vfio", address=(at(device),), settings=settings)))
        assert (has(device), has(sibling)) == (VFIO, VFIO)

    run_at_once(run())


def test_a_reset_of_a_whole_group_drops_the_wishes_of_all_that_go_with_it(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    sibling = add_with_native(kernel, "0000:01:00.1")

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO, others=OthersInGroup.TOGETHER)
        request = Request(at(device), Flavour.NATIVE, others=OthersInGroup.TOGETHER)
        await engine.reset(request, lambda _: None)
        await asyncio.sleep(LONG)
        for each in (device, sibling):
            assert has(each) == NATIVE
            assert engine.device(at(each)).wish is None
            assert remarks(engine, each) == ()

    run_at_once(run())


def test_a_refused_wish_is_no_wish(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.users[device.address] = (USER,)

    async def run() -> None:
        engine = await start(kernel, policy())
        with pytest.raises(FlavourError):
            await ask(engine, device, Flavour.VFIO)
        assert engine.device(at(device)).wish is None
        kernel.users.clear()
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE

    run_at_once(run())


def test_the_wish_of_one_who_has_gone_is_kept_when_it_was_carried_to_its_end(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_NATIVE)
        real = kernel.write

        async def write(path: str, text: str) -> None:
            await asyncio.sleep(0.2)
            await real(path, text)

        kernel.write = write  # type: ignore[method-assign]
        asking = asyncio.create_task(ask(engine, device, Flavour.VFIO))
        await asyncio.sleep(0.3)
        asking.cancel()
        await asyncio.sleep(5)
        assert asking.cancelled()
        assert has(device) == VFIO
        assert engine.device(at(device)).wish == Flavour.VFIO
        assert remarks(engine, device) == ()

    run_at_once(run())


def test_what_the_policy_was_about_to_do_gives_way_to_a_wish_that_came_first(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    sibling = add_with_native(kernel, "0000:01:00.1")
    ignoring = Settings(1.0, 1.0, group=OthersInGroup.IGNORE)

    async def run() -> None:
        kernel.modules["vfio_pci"].hang = hang = asyncio.Event()
        engine = make_engine(kernel, policy(rule("vfio", device=(0x10D3,), settings=ignoring)), group=30.0)
        engine.reconciler._agenda.open()
        first = asyncio.create_task(ask(engine, sibling, Flavour.VFIO))
        await asyncio.sleep(0.1)
        by_hand = asyncio.create_task(ask(engine, device, Flavour.NATIVE))
        await asyncio.sleep(0.1)
        engine.reconciler.consider(at(device))
        await asyncio.sleep(0.1)
        hang.set()
        await first
        await by_hand
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE
        assert not any("bind 0000:01:00.0" in write for write in kernel.writes)

    run_at_once(run())


@pytest.mark.parametrize(
    "later",
    [Policy(), TO_NATIVE, policy(rule("vfio", "vfio-pci", device=(0x10D3,)))],
    ids=["nothing any more", "native", "another driver"],
)
def test_what_waits_for_its_turn_is_what_the_policy_says_when_it_comes(
    kernel: FakeKernel, later: Policy
) -> None:
    device = add_with_native(kernel)
    sibling = add_with_native(kernel, "0000:01:00.1")
    kernel.add_module(FakeDriver("vfio-special", "vfio_special", vfio=True))
    ignoring = Settings(1.0, 1.0, group=OthersInGroup.IGNORE)
    special = rule("vfio", "vfio-special", device=(0x10D3,), settings=ignoring)

    async def run() -> None:
        kernel.load("vfio_pci")
        bind_by_others(kernel, device, "vfio-pci", "vfio-pci")
        kernel.modules["vfio_special"].hang = hang = asyncio.Event()
        engine = make_engine(kernel, policy(special), group=30.0)
        engine.reconciler._agenda.open()
        first = asyncio.create_task(ask(engine, sibling, Flavour.VFIO, "vfio-special"))
        await asyncio.sleep(0.1)
        engine.reconciler.consider(at(device))  # wants the other driver, and its turn
        await asyncio.sleep(0.1)
        await reload(engine, later)
        hang.set()
        await first
        await asyncio.sleep(LONG)
        assert has(device) == (NATIVE if later is TO_NATIVE else VFIO)
        assert not any("vfio-special/bind" in write for write in kernel.writes)

    run_at_once(run())


def test_a_wish_for_a_flavour_that_is_no_more_does_not_keep_the_policy_from_its_device(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel)
        keep_wish(engine, device, Flavour("gone"))
        await reload(engine, TO_VFIO)
        assert has(device) == VFIO
        assert attempts(engine) == [(device.address, "policy")]

    run_at_once(run())


# a wish that nobody waits for any more


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_asked_for_by_hand_and_got_stuck_holds_when_the_kernel_has_let_go(
    kernel: FakeKernel, restarted: bool
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        kernel.drivers["vfio-pci"].remove_blocks = blocks = asyncio.Event()
        with pytest.raises(FlavourError) as caught:
            await ask(engine, device, Flavour.NATIVE, persist=True)
        assert caught.value.code is Code.STUCK
        assert engine.device(at(device)).wish is None
        if restarted:
            await stop(engine)
            engine = await start(kernel, TO_VFIO)
        made = watch_lasting_wishes(engine)
        blocks.set()
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE
        assert engine.device(at(device)).wish == Flavour.NATIVE
        assert device.address in engine.reconciler.wishes.lasting
        assert made == [frozenset({device.address})]
        assert remarks(engine, device) == ()

    run_at_once(run())


def test_a_wish_is_dropped_by_a_reset_that_got_stuck_when_it_has_come_true(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO)
        kernel.drivers["vfio-pci"].remove_blocks = blocks = asyncio.Event()
        with pytest.raises(FlavourError):
            await reset(engine, device)
        assert engine.device(at(device)).wish == Flavour.VFIO
        blocks.set()
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE
        assert engine.device(at(device)).wish is None
        assert remarks(engine, device) == ()

    run_at_once(run())


@pytest.mark.parametrize("goes_on", [False, True])
def test_killed_at_any_step_a_wish_holds_where_it_has_come_true(tmp_path: Path, goes_on: bool) -> None:
    wishes = []
    for number in itertools.count():
        kernel = FakeKernel(tmp_path / str(number))
        devices = [add_with_native(kernel), add_with_native(kernel, "0000:01:00.1")]
        engine = run_at_once(start(kernel, policy()))
        kernel.crash_after, kernel.batch_goes_on = number, goes_on
        try:
            run_at_once(ask(engine, devices[0], Flavour.VFIO, others=OthersInGroup.TOGETHER))
        except Crash:
            kernel.crash_after = None
        else:
            break

        async def restart(kernel: FakeKernel = kernel) -> Engine:
            engine = await start(kernel, policy())
            await asyncio.sleep(LONG)
            return engine

        engine = run_at_once(restart())
        for device in devices:
            wish = engine.device(at(device)).wish
            assert (has(device), wish) in ((NATIVE, None), (VFIO, Flavour.VFIO)), number
            assert remarks(engine, device) == (), number
            wishes.append(wish)
    assert set(wishes) == {None, Flavour.VFIO}


def test_a_wish_for_the_boot_is_not_for_another_device_at_the_same_address(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO)
        kernel.remove_device(device)
        engine.forget(at(device))
        successor = add_with_native(kernel)
        await event(engine, successor)
        assert has(successor) == NATIVE
        assert engine.device(at(successor)).wish is None

    run_at_once(run())


def new_boot(kernel: FakeKernel) -> FakeKernel:
    """The same host after a reboot: nothing but /var is left."""
    again = FakeKernel(kernel.root.with_name(kernel.root.name + "-again"))
    for path in (kernel.root / "var/lib").iterdir():
        (again.root / "var/lib" / path.name).write_bytes(path.read_bytes())
    return again


@pytest.mark.parametrize("rules", [policy(), TO_NATIVE], ids=["no rule", "another rule"])
def test_a_wish_that_lasts_comes_true_in_the_next_boot(kernel: FakeKernel, rules: Policy) -> None:
    device = add_with_native(kernel)
    for_boot = add_with_native(kernel, "0000:02:00.0", 8)

    async def first() -> None:
        engine = await start(kernel, rules)
        await ask(engine, device, Flavour.VFIO, persist=True)
        await ask(engine, for_boot, Flavour.VFIO)
        await stop(engine)

    run_at_once(first())
    again = new_boot(kernel)
    devices = [add_with_native(again), add_with_native(again, "0000:02:00.0", 8)]

    async def second() -> None:
        engine = await start(again, rules)
        assert [has(each) for each in devices] == [VFIO, NATIVE]
        assert engine.device(at(device)).wish == Flavour.VFIO
        await reset(engine, devices[0])
        assert has(devices[0]) == NATIVE
        await stop(engine)

    run_at_once(second())
    third = new_boot(again)
    unwished = add_with_native(third)
    run_at_once(start(third, rules))
    assert has(unwished) == NATIVE


def test_a_wish_that_lasts_keeps_the_driver_that_was_named(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))

    async def first() -> None:
        engine = await start(kernel, policy())
        assert (await ask(engine, device, Flavour.VFIO, "good_vfio", persist=True)).driver == "good"
        await stop(engine)

    run_at_once(first())
    again = new_boot(kernel)
    again.add_module(FakeDriver("good", "good_vfio", vfio=True))
    device = add_with_native(again)
    run_at_once(start(again, policy()))
    assert has(device) == ("good", "good")


def test_a_wish_that_lasts_is_not_for_a_device_with_other_ids(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def first() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO, persist=True)
        await stop(engine)

    run_at_once(first())
    again = new_boot(kernel)
    other = again.add_device(device=0x1533)
    again.add_native(other, "igb")
    run_at_once(start(again, policy()))
    assert has(other) == ("igb", None)
    assert again.writes == []


def test_a_wish_that_lasts_for_a_group_holds_for_all_of_it(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    sibling = add_with_native(kernel, "0000:01:00.1")

    async def first() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO, persist=True, others=OthersInGroup.TOGETHER)
        assert (has(device), has(sibling)) == (VFIO, VFIO)
        await stop(engine)

    run_at_once(first())
    again = new_boot(kernel)
    devices = [add_with_native(again), add_with_native(again, "0000:01:00.1")]
    run_at_once(start(again, policy()))
    assert [has(each) for each in devices] == [VFIO, VFIO]


def test_a_group_that_was_switched_by_hand_is_not_said_to_be_somebody_elses_doing(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    sibling = add_with_native(kernel, "0000:01:00.1")

    async def run() -> None:
        engine = await start(kernel, TO_NATIVE)
        await ask(engine, device, Flavour.VFIO, others=OthersInGroup.TOGETHER)
        await event(engine, sibling)
        assert has(sibling) == VFIO
        assert remarks(engine, sibling) == ()
        await reload(engine, TO_NATIVE)
        assert (has(device), has(sibling)) == (VFIO, VFIO)

    run_at_once(run())


# others


@pytest.mark.parametrize("restarted", [False, True])
def test_a_driver_that_someone_else_changed_is_told_and_not_changed_back(
    kernel: FakeKernel, restarted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        bind_by_others(kernel, device, "e1000e")
        kernel.writes.clear()
        if restarted:
            await stop(engine)
            engine = await start(kernel, TO_VFIO)
        for _ in range(5):
            await event(engine, device)
        await reload(engine, TO_VFIO)
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE
        assert kernel.writes == []
        assert remarks(engine, device) == ("someone else made it native (e1000e), it was vfio",)
        assert caplog.text.count("it was vfio: left as it is") == 1
        assert (await reset(engine, device)).flavour == Flavour.VFIO
        await asyncio.sleep(1)
        assert remarks(engine, device) == ()

    run_at_once(run())


def test_what_someone_else_changed_is_told_after_a_restart_too(kernel: FakeKernel) -> None:
    """Be it that it was changed while there was no daemon."""
    kernel.load("vfio_pci")
    device = kernel.add_device()
    native = FakeDriver("e1000e", "e1000e")
    kernel.add_module(native)
    kernel.load("e1000e")
    device.override = "vfio-pci"  # as the rules for early boot have left it
    kernel.probe(kernel.drivers["vfio-pci"], device)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        assert remarks(engine, device) == ()
        await stop(engine)
        bind_by_others(kernel, device, "e1000e", "e1000e")
        for _ in range(2):
            engine = await start(kernel, TO_VFIO)
            assert device.driver is native
            assert remarks(engine, device) == ("someone else made it native (e1000e), it was vfio",)
            await stop(engine)

    run_at_once(run())


def test_what_someone_else_undoes_himself_is_remarked_on_no_more(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        bind_by_others(kernel, device, "e1000e")
        await event(engine, device)
        assert remarks(engine, device)
        bind_by_others(kernel, device, "vfio-pci", "vfio-pci")
        await event(engine, device)
        assert remarks(engine, device) == ()

    run_at_once(run())


def test_a_wish_that_someone_else_undid_is_told_and_not_fought_for(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO)
        bind_by_others(kernel, device, "e1000e")
        await event(engine, device)
        await stop(engine)
        engine = await start(kernel, policy())
        await event(engine, device)
        assert has(device) == NATIVE
        assert remarks(engine, device) == ("someone else made it native (e1000e), it was vfio",)

    run_at_once(run())


def test_reset_gives_the_driver_that_the_policy_names_back_at_once(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))

    async def run() -> None:
        engine = await start(kernel, policy(rule("vfio", "good_vfio", device=(0x10D3,))))
        kernel.load("vfio_pci")
        bind_by_others(kernel, device, "vfio-pci", "vfio-pci")
        await event(engine, device)
        assert "someone else made it vfio (vfio-pci)" in remarks(engine, device)[0]
        assert (await reset(engine, device)).driver == "good"
        assert has(device) == ("good", "good")

    run_at_once(run())


def test_a_device_that_driverctl_has_a_driver_for_is_left_to_it_and_told(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)
    saved = kernel.root / "etc/driverctl.d"
    saved.mkdir(parents=True)
    (saved / f"pci-{device.address}").write_text("e1000e\n", encoding="ascii")

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        for _ in range(3):
            await event(engine, device)
        await asyncio.sleep(LONG)
        assert kernel.writes == []
        assert attempts(engine) == []
        (remark,) = remarks(engine, device)
        assert remark == ("driverctl has e1000e saved for it (driverctl unset-override removes that)")
        assert caplog.text.count("driverctl has e1000e saved") == 1
        # A person's wish is another matter.
        await ask(engine, device, Flavour.VFIO)
        assert has(device) == VFIO

    run_at_once(run())


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("driver", ["e1000e", "vfio-pci"])
def test_a_device_that_driverctl_has_let_go_of_is_the_policys_at_the_next_reload(
    kernel: FakeKernel, driver: str, restarted: bool
) -> None:
    device = add_with_native(kernel)
    saved = kernel.root / f"etc/driverctl.d/pci-{device.address}"
    saved.parent.mkdir(parents=True)
    saved.write_text(f"{driver}\n", encoding="ascii")

    async def run() -> None:
        if driver == "vfio-pci":
            kernel.load("vfio_pci")
            bind_by_others(kernel, device, "vfio-pci", "vfio-pci")
        engine = await start(kernel, TO_VFIO)
        await event(engine, device)
        # `driverctl unset-override`: the kernel's own choice again.
        saved.unlink()
        bind_by_others(kernel, device, "e1000e")
        await event(engine, device)
        if restarted:
            await stop(engine)
            engine = await start(kernel, TO_VFIO)
        assert has(device) == NATIVE
        assert remarks(engine, device) == ()  # nobody had made it anything else
        engine.reconciler.reload()
        await asyncio.sleep(LONG)
        assert has(device) == VFIO

    run_at_once(run())


def test_a_replug_at_the_same_address_has_the_policy_applied_anew(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        kernel.remove_device(device)
        engine.forget(at(device))
        successor = add_with_native(kernel)
        await event(engine, successor)
        assert has(successor) == VFIO
        # The event of its going was lost.
        bind_by_others(kernel, successor, "e1000e")
        await event(engine, successor)
        kernel.remove_device(successor)
        third = add_with_native(kernel)
        engine.notice_all()
        await asyncio.sleep(1)
        assert has(third) == VFIO
        assert remarks(engine, third) == ()

    run_at_once(run())


def test_a_device_that_goes_while_the_policy_is_applied_leaves_nothing_behind(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.modules["vfio_pci"].drivers[0].on_probe = kernel.remove_device

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        engine.forget(at(device))
        kernel.modules["vfio_pci"].drivers[0].on_probe = None
        await asyncio.sleep(LONG)
        assert len(attempts(engine)) == 1
        assert engine.reconciler._applied.devices == {}
        assert engine.reconciler._tries == Tries()
        assert engine.reconciler._agenda.due == frozenset()

    run_at_once(run())


# rules that can be decided only later


def test_a_rule_by_driver_takes_effect_when_the_native_driver_has_bound(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    rules = policy(rule("vfio", driver=("e1000e",)))

    async def run() -> None:
        engine = await start(kernel, rules)
        device = kernel.add_device()
        await event(engine, device)
        assert has(device) == (None, None)
        kernel.add_native(device)
        await event(engine, device)
        assert has(device) == VFIO
        # The rule matches no more, now that another driver has it. That changes nothing.
        await event(engine, device)
        await stop(engine)
        engine = await start(kernel, rules)
        await event(engine, device)
        await reload(engine, rules)
        assert has(device) == VFIO
        assert len(attempts(engine)) == 1  # before the restart
        assert "flavourctl reload" not in caplog.text
        assert remarks(engine, device) == ()
        # Nor does it match anew what someone else did.
        bind_by_others(kernel, device, "e1000e")
        await event(engine, device)
        assert has(device) == NATIVE
        assert remarks(engine, device) == ("someone else made it native (e1000e), it was vfio",)

    run_at_once(run())


def named(name: str, flavour: str | None, *drivers: str, **match: Any) -> Rule:
    return replace(rule(flavour, *drivers, **match), name=name)


def test_a_rule_by_driver_that_was_applied_is_not_undone_by_a_later_one_for_the_same_device(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)
    by_driver = named("by driver", "vfio", driver=("e1000e",))
    rules = policy(by_driver, named("all else", "native", vendor=(0x8086,)))

    async def run() -> None:
        engine = await start(kernel, rules)
        await event(engine, device)
        await reload(engine, rules)
        await stop(engine)
        engine = await start(kernel, rules)
        await event(engine, device)
        assert has(device) == VFIO
        assert len(attempts(engine)) == 1  # before the restart
        assert "flavourctl reload" not in caplog.text
        assert engine.reconciler.find_wanted(engine.device(at(device)).device) == "vfio"
        # One that stands above it, or that it stands no more above, is another matter.
        await reload(engine, policy(named("this one", "native", address=(at(device),)), by_driver))
        assert has(device) == NATIVE
        await reload(engine, rules)
        assert has(device) == VFIO
        await reload(engine, policy(*rules.rules[1:]))
        assert has(device) == NATIVE
        assert len(attempts(engine)) == 4

    run_at_once(run())


def test_two_rules_by_driver_that_take_a_device_from_each_other_come_to_an_end(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    rules = policy(
        named("home", "native", driver=("vfio-pci",)), named("away", "vfio", driver=("e1000e", "none"))
    )

    async def run() -> None:
        engine = await start(kernel, rules)
        await asyncio.sleep(LONG)
        assert (has(device), len(attempts(engine))) == (NATIVE, 2)
        assert remarks(engine, device) == ()

    run_at_once(run())


def test_a_rule_by_driver_whose_switch_got_stuck_is_not_undone_by_a_later_one(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    kernel.drivers["e1000e"].remove_blocks = held = asyncio.Event()
    rules = policy(
        named("by driver", "vfio", driver=("e1000e",)), named("all else", "native", vendor=(0x8086,))
    )

    async def run() -> None:
        engine = await start(kernel, rules)
        assert engine.device(at(device)).stuck
        held.set()
        await asyncio.sleep(LONG)
        assert (has(device), len(attempts(engine))) == (VFIO, 1)

    run_at_once(run())


def test_a_rule_by_driver_that_says_something_else_after_a_reload_is_a_rule_like_any(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)
    all_else = named("all else", "native", vendor=(0x8086,))

    async def run() -> None:
        engine = await start(kernel, policy(named("by driver", "vfio", driver=("e1000e",)), all_else))
        assert has(device) == VFIO
        await reload(engine, policy(named("by driver", "native", driver=("e1000e",)), all_else))
        await asyncio.sleep(LONG)
        assert (has(device), len(attempts(engine))) == (NATIVE, 2)

    run_at_once(run())


def test_a_reset_leaves_a_device_to_the_rule_by_driver_that_was_applied(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy(named("by driver", "vfio", driver=("e1000e",))))
        outcome = await reset(engine, device)
        await asyncio.sleep(1)
        assert (outcome.flavour, outcome.changed, has(device)) == ("vfio", False, VFIO)
        assert len(attempts(engine)) == 2

    run_at_once(run())


def test_a_rule_by_serial_takes_effect_when_the_native_driver_tells_it_and_holds_afterwards(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    rules = policy(rule("vfio", serial=("S4EWNX0R123",)))

    def tell(device: FakeDevice) -> None:
        path = kernel.path(device) / "nvme/nvme0"
        path.mkdir(parents=True)
        (path / "serial").write_text("S4EWNX0R123         \n", encoding="ascii")

    def tell_no_more(device: FakeDevice) -> None:
        if (kernel.path(device) / "nvme").exists():
            (kernel.path(device) / "nvme").rename(kernel.root / "gone")

    kernel.modules["vfio_pci"].drivers[0].on_probe = tell_no_more

    async def run() -> None:
        device = kernel.add_device(class_code=0x010802)
        other = kernel.add_device("0000:02:00.0", class_code=0x010802, group=8)
        engine = await start(kernel, rules)
        assert attempts(engine) == []
        kernel.add_native(device, "nvme")
        tell(device)
        await event(engine, device)
        await event(engine, other)
        assert (has(device), has(other)) == (VFIO, ("nvme", None))
        await stop(engine)
        engine = await start(kernel, rules)
        assert engine.device(at(device)).decision.flavour == "vfio"
        await event(engine, device)
        await reload(engine, rules)
        assert len(attempts(engine)) == 1  # before the restart
        assert "flavourctl reload" not in caplog.text

    run_at_once(run())


def test_nothing_is_kept_of_the_serials_of_drives_that_come_and_go(kernel: FakeKernel) -> None:
    async def run() -> None:
        rules = policy(rule("vfio", serial=("S4EWNX0R123",)))
        engine = await start(kernel, rules)
        for number in range(3):
            device = kernel.add_device(class_code=0x010802)
            path = kernel.path(device) / "nvme/nvme0"
            path.mkdir(parents=True)
            (path / "serial").write_text(f"S{number}\n", encoding="ascii")
            await event(engine, device)
            assert engine.device(at(device)).serials == (f"S{number}",)
            kernel.remove_device(device)
            engine.forget(at(device))
        assert engine._host.policy.serials == {}

    run_at_once(run())


# a device that the early rules have kept from its driver


def kept_from_its_driver(kernel: FakeKernel) -> FakeDevice:
    device = kernel.add_device()
    device.override = PLACEHOLDER
    kernel.add_native(device)
    assert has(device) == (None, PLACEHOLDER)
    return device


@pytest.mark.parametrize("way", ["native", "reset"])
def test_a_device_that_the_early_rules_kept_goes_to_vfio_and_home_to_the_kernels_choice(
    kernel: FakeKernel, way: str
) -> None:
    device = kept_from_its_driver(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        assert has(device) == VFIO
        if way == "reset":
            change_policy(engine, policy())
            await reset(engine, device)
        else:
            await ask(engine, device, Flavour.NATIVE)
        assert has(device) == NATIVE
        assert list((kernel.root / "run/devices").iterdir()) == []

    run_at_once(run())


def test_a_device_that_the_early_rules_kept_takes_its_group_along(kernel: FakeKernel) -> None:
    device = kept_from_its_driver(kernel)
    audio = kernel.add_device("0000:01:00.1", 0x1234, 0x5678)
    kernel.add_native(audio, "other")

    async def run() -> None:
        together = replace(QUICK, group=OthersInGroup.TOGETHER)
        await start(kernel, policy(rule("vfio", settings=together, device=(0x10D3,))))
        assert (has(device), has(audio)) == (VFIO, VFIO)

    run_at_once(run())


def test_a_device_that_the_early_rules_kept_can_be_made_native_where_vfio_can_not_be_had(
    kernel: FakeKernel,
) -> None:
    device = kept_from_its_driver(kernel)
    kernel.modules["vfio_pci"].status = 1

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        await asyncio.sleep(LONG)
        assert has(device) == (None, PLACEHOLDER)
        await ask(engine, device, Flavour.NATIVE)
        assert has(device) == NATIVE
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE

    run_at_once(run())


@pytest.mark.parametrize("goes_on", [False, True], ids=["the worker dies too", "the worker goes on"])
@pytest.mark.parametrize("flavour", [Flavour.VFIO, Flavour.NATIVE])
def test_killed_at_any_step_a_device_that_the_early_rules_kept_is_never_left_without_a_driver(
    tmp_path: Path, flavour: Flavour, goes_on: bool
) -> None:
    """But as it was before the daemon had seen it, which the policy then takes up again."""

    async def restart(kernel: FakeKernel) -> Engine:
        engine = make_engine(kernel)
        engine.recover()
        while tasks := pending(engine):
            await asyncio.gather(*tasks)
        return engine

    number = 0
    while True:
        kernel = FakeKernel(tmp_path / str(number))
        device = kept_from_its_driver(kernel)
        if flavour == Flavour.NATIVE:
            run_at_once(ask(make_engine(kernel), device, Flavour.VFIO))
        kernel.crash_after, kernel.batch_goes_on = number, goes_on
        try:
            run_at_once(ask(make_engine(kernel), device, flavour))
        except Crash:
            kernel.crash_after = None
        else:
            break
        before = VFIO if flavour == Flavour.NATIVE else (None, PLACEHOLDER)
        engine = run_at_once(restart(kernel))
        assert has(device) in (before, NATIVE if flavour == Flavour.NATIVE else VFIO), number
        run_at_once(ask(engine, device, Flavour.NATIVE))
        assert has(device) == NATIVE
        assert list((kernel.root / "run/devices").iterdir()) == []
        number += 1
    assert number >= 5


# files


CORRUPT: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"0000:01:00.0": [12',
    "a list": b"[1, 2]",
    "other types": b'{"0000:01:00.0": ["x", 1, 2, 3], "y": 5}',
    "short": b'{"0000:01:00.0": [1]}',
    "no address": b'{"elsewhere": [12, "vfio", true, [], "a rule"]}',
    "not text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_spoilt_file_of_what_was_applied_is_told_and_changes_no_device(
    kernel: FakeKernel, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)
    changed = add_with_native(kernel, "0000:02:00.0", 8)

    async def run() -> None:
        await stop(await start(kernel, TO_VFIO))
        (kernel.root / "run/applied.json").write_bytes(content)
        bind_by_others(kernel, changed, "e1000e")
        kernel.writes.clear()
        engine = await start(kernel, TO_VFIO)
        engine.reconciler.consider_all()
        await asyncio.sleep(LONG)
        assert kernel.writes == []
        assert (has(device), has(changed)) == (VFIO, NATIVE)
        assert caplog.text.count("so the policy is not applied until a reload") == 1
        # It is whole again afterwards.
        await stop(engine)
        caplog.clear()
        engine = await start(kernel, TO_VFIO)
        assert "can't be read" not in caplog.text
        assert kernel.writes == []
        await reload(engine, TO_VFIO)
        assert (has(device), has(changed)) == (VFIO, VFIO)

    run_at_once(run())


def test_serials_of_a_spoilt_file_keep_the_daemon_from_nothing(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    inode = kernel.path(device).stat().st_ino
    rules = policy(rule("vfio", serial=("S4",)))
    data = {device.address: [inode, "-", True, [7, None, {}]]}
    (kernel.root / "run/applied.json").write_text(json.dumps(data), encoding="ascii")

    async def run() -> None:
        engine = await start(kernel, rules)
        assert [str(each.device.address) for each in engine.devices()] == [device.address]

    run_at_once(run())


_WISH = b'{"0000:01:00.0": {"flavour": %s, "drivers": %s, "ids": [32902, 4307, 6900, 4352], "inode": 0}}'
SPOILT_WISHES = {
    **CORRUPT,
    "no such flavour": _WISH % (b'"purple"', b"[]"),
    "a number": _WISH % (b"5", b"[]"),
    "drivers are numbers": _WISH % (b'"vfio"', b"[7]"),
    "a driver with a slash": _WISH % (b'"vfio"', b'["-C/tmp"]'),
}


@pytest.mark.parametrize("name", SPOILT_WISHES)
def test_spoilt_wishes_keep_the_daemon_from_nothing(kernel: FakeKernel, name: str) -> None:
    device = add_with_native(kernel)
    other = kernel.add_device("0000:02:00.0", device=0x1533, group=8)
    (kernel.root / "var/lib/wishes.json").write_bytes(SPOILT_WISHES[name])

    async def run() -> None:
        engine = await start(kernel, policy(rule("vfio", device=(0x1533,))))
        await asyncio.sleep(LONG)
        assert has(device) == NATIVE
        assert has(other) == VFIO
        engine.devices()
        await ask(engine, device, Flavour.VFIO, persist=True)
        assert has(device) == VFIO
        await stop(engine)
        engine = await start(kernel, policy())
        assert engine.device(at(device)).wish == Flavour.VFIO

    run_at_once(run())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_where_what_was_applied_can_not_be_kept_the_policy_is_applied_all_the_same(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    device = add_with_native(kernel)
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if path.parent.name == "run":
            raise OSError(code, os.strerror(code))
        return real(path, target)

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            engine = await start(kernel, TO_VFIO)
            assert has(device) == VFIO
            await ask(engine, device, Flavour.NATIVE)  # for the boot: it is done, and that is what counts
            assert has(device) == NATIVE
            assert engine.device(at(device)).wish == Flavour.NATIVE
        assert "what was applied can't be saved" in caplog.text
        assert "what was asked for by hand can't be saved" in caplog.text

    run_at_once(run())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_wish_that_can_not_be_made_to_last_is_told_and_holds_for_the_boot(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    device = add_with_native(kernel)
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if "var/lib" in str(path):
            raise OSError(code, os.strerror(code))
        return real(path, target)

    async def run() -> None:
        engine = await start(kernel, TO_NATIVE)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            with pytest.raises(FlavourError, match="for this boot only") as caught:
                await ask(engine, device, Flavour.VFIO, persist=True)
        assert caught.value.errno == errno.EIO
        assert has(device) == VFIO
        assert engine.reconciler.wishes.find_kept() == ()
        await stop(engine)
        engine = await start(kernel, TO_NATIVE)
        await reload(engine, TO_NATIVE)
        assert has(device) == VFIO
        assert engine.device(at(device)).wish == Flavour.VFIO

    run_at_once(run())


def break_lasting_writes(patch: pytest.MonkeyPatch) -> None:
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if "var/lib" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, target)

    patch.setattr(Path, "replace", replace)


def test_a_reset_that_can_not_take_what_lasts_off_the_disk_says_that_it_is_for_this_boot_only(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO, persist=True)
        made = watch_lasting_wishes(engine)
        with monkeypatch.context() as patch:
            break_lasting_writes(patch)
            with pytest.raises(FlavourError, match=r"for this boot only.*Read-only file system") as caught:
                await reset(engine, device)
            await asyncio.sleep(LONG)
        assert caught.value.code == Code.NOT_SAVED
        attempt = engine.attempts.history[-1]
        assert (attempt.error, attempt.ending) == (str(caught.value), Ending.FAILED)
        assert has(device) == NATIVE
        assert engine.device(at(device)).wish is None
        assert remarks(engine, device) == ()
        assert device.address in engine.reconciler.wishes.lasting
        await stop(engine)
        engine = await start(kernel, policy())
        assert has(device) == NATIVE
        made = watch_lasting_wishes(engine)
        await reset(engine, device)
        assert made == [frozenset()]
        assert device.address not in engine.reconciler.wishes.lasting
        await stop(engine)
        engine = await start(kernel, policy())
        assert engine.device(at(device)).wish is None

    run_at_once(run())


def test_a_wish_for_a_device_that_is_gone_is_not_said_to_be_forgotten_while_it_is_on_disk(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO, persist=True)
        kernel.remove_device(device)
        engine.forget(at(device))
        with monkeypatch.context() as patch:
            break_lasting_writes(patch)
            with pytest.raises(FlavourError, match="Read-only file system") as caught:
                await reset(engine, device)
        assert caught.value.code == Code.NOT_SAVED
        attempt = engine.attempts.history[-1]
        assert (attempt.error, attempt.ending) == (str(caught.value), Ending.FAILED)
        with pytest.raises(FlavourError, match="what was asked for by hand is forgotten"):
            await reset(engine, device)
        assert engine.reconciler.wishes.find_kept() == ()

    run_at_once(run())


def test_a_reset_that_got_stuck_and_can_not_be_saved_at_its_late_end_is_told(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO, persist=True)
        kernel.drivers["vfio-pci"].remove_blocks = blocks = asyncio.Event()
        with pytest.raises(FlavourError) as caught:
            await reset(engine, device)
        assert caught.value.code == Code.STUCK
        with monkeypatch.context() as patch:
            break_lasting_writes(patch)
            blocks.set()
            await asyncio.sleep(LONG)
        assert has(device) == NATIVE
        assert "reset for this boot only" in caplog.text
        assert device.address in engine.reconciler.wishes.lasting

    run_at_once(run())


# the daemon stops


def test_a_daemon_that_stops_begins_nothing_and_carries_to_its_end_what_is_touched(
    kernel: FakeKernel,
) -> None:
    devices = [add_with_native(kernel, f"0000:0{number}:00.0", number) for number in range(1, 9)]
    real = kernel.write

    async def write(path: str, text: str) -> None:
        await asyncio.sleep(0.1)
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]

    async def run() -> None:
        engine = make_engine(kernel, TO_VFIO)
        starting = asyncio.create_task(engine.reconciler.start())
        await asyncio.sleep(0.2)
        await engine.settle(5.0)
        await starting
        assert all(has(each) in (NATIVE, VFIO) for each in devices)
        done = sum(has(each) == VFIO for each in devices)
        assert 0 < done < 8
        kernel.writes.clear()
        for each in devices:
            engine.reconciler.consider(at(each))
        await asyncio.sleep(LONG)
        assert kernel.writes == []
        assert not engine._turns.taken
        # The next one goes on with the rest.
        await start(kernel, TO_VFIO)
        await asyncio.sleep(5)
        assert [has(each) for each in devices] == [VFIO] * 8

    run_at_once(run())


def test_a_rule_that_was_gone_and_is_there_again_is_applied_again(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        assert has(device) == VFIO
        await reload(engine, policy())
        bind_by_others(kernel, device, "e1000e")
        await event(engine, device)
        assert has(device) == NATIVE
        await reload(engine, TO_VFIO)
        assert has(device) == VFIO
        await stop(engine)

    run_at_once(run())


@pytest.mark.parametrize("rules", [policy(), TO_NATIVE], ids=["no rule", "native"])
def test_a_placeholder_of_a_policy_that_holds_no_more_is_let_go_at_the_start(
    kernel: FakeKernel, rules: Policy
) -> None:
    """The rules for early boot were older than the policy."""
    device = kernel.add_device()
    device.override = PLACEHOLDER
    kernel.add_native(device)
    assert has(device) == (None, PLACEHOLDER)

    async def run() -> None:
        engine = await start(kernel, rules)
        assert has(device) == NATIVE
        await stop(engine)

    run_at_once(run())


def test_what_somebody_else_has_undone_is_off_the_record(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel)
        await ask(engine, device, Flavour.VFIO)
        assert engine.device(at(device)).held
        bind_by_others(kernel, device, "e1000e")
        await event(engine, device)
        assert not engine.device(at(device)).held
        # An override that is left behind is something to go back from.
        await ask(engine, device, Flavour.VFIO)
        bind_by_others(kernel, device, "e1000e", override="e1000e")
        await event(engine, device)
        assert engine.device(at(device)).held
        await stop(engine)

    run_at_once(run())
