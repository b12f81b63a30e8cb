"""What comes in the middle of a switch: somebody who begins to use the device, or what ends it there."""

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, has, make_engine
from virtual_time import run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.ledger import Record
from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Ending, Flavour, Outcome, Request, StepAction
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import VFIO as VFIO_KIND
from vfio_flavourd.model.policy import FlavourKind, OthersInGroup, Policy

VARIANT_ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
MOUNTED = User(Use.MOUNT, "/mnt/data on nvme0n1")
GUEST = User(Use.GUEST, "qemu (pid 812) holds /dev/vfio/7")


def at(device: FakeDevice) -> PciAddress:
    return parse_address(device.address)


def switch(engine: Engine, device: FakeDevice, flavour: Flavour, **more: Any) -> Outcome:
    return asyncio.run(engine.set_flavour(Request(at(device), flavour, **more), lambda _: None))


def refuse(engine: Engine, device: FakeDevice, flavour: Flavour, **more: Any) -> FlavourError:
    with pytest.raises(FlavourError) as caught:
        switch(engine, device, flavour, **more)
    return caught.value


def add_native(kernel: FakeKernel, address: str = "0000:01:00.0") -> FakeDevice:
    device = kernel.add_device(address)
    kernel.add_native(device)
    return device


def add_refusing(kernel: FakeKernel) -> None:
    """A variant that goes first and refuses the device, so that a second driver has its turn."""
    refusing = FakeDriver("good-vfio-pci", "good_vfio", vfio=True, probe_errno=errno.ENODEV)
    kernel.add_module(refusing, alias=VARIANT_ALIAS)


def while_loading(kernel: FakeKernel, name: str, do: Callable[[], object]) -> None:
    """While that module is being loaded."""
    load = kernel.load

    def load_late(loaded: str) -> None:
        if loaded == name:
            do()
        load(loaded)

    kernel.load = load_late  # type: ignore[method-assign,assignment]


def use(kernel: FakeKernel, device: FakeDevice, *users: User) -> Callable[[], None]:
    def begin() -> None:
        kernel.users[device.address] = users

    return begin


def fail_to_fork(engine: Engine, monkeypatch: pytest.MonkeyPatch, batches: set[int]) -> None:
    """For those, counted from 1."""
    carry_out, number = engine._host.hands.carry_out, 0

    async def carry(*operations: Any, **more: Any) -> Any:
        nonlocal number
        number += 1
        if number in batches:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await carry_out(*operations, **more)

    monkeypatch.setattr(engine._host.hands, "carry_out", carry)


def records(kernel: FakeKernel) -> list[str]:
    return sorted(path.name for path in (kernel.root / "run/devices").iterdir())


# who uses it


def test_what_is_mounted_while_a_module_loads_is_not_taken_away(kernel: FakeKernel) -> None:
    device = add_native(kernel)
    while_loading(kernel, "vfio_pci", use(kernel, device, MOUNTED))
    error = refuse(make_engine(kernel), device, Flavour.VFIO)
    assert (error.code, error.errno) == (Code.IN_USE, errno.EBUSY)
    assert "in use: /mnt/data on nvme0n1" in str(error)
    assert kernel.writes == []
    assert records(kernel) == []


def test_what_is_taken_by_force_from_who_came_while_a_module_loaded_is_told(kernel: FakeKernel) -> None:
    device = add_native(kernel)
    while_loading(kernel, "vfio_pci", use(kernel, device, MOUNTED))
    engine = make_engine(kernel)
    assert switch(engine, device, Flavour.VFIO, force=True).driver == "vfio-pci"
    assert engine.attempts.history[-1].forced == ("/mnt/data on nvme0n1",)


def test_a_guest_that_starts_while_the_native_driver_is_loaded_keeps_the_device(kernel: FakeKernel) -> None:
    device = add_native(kernel)
    engine = make_engine(kernel)
    switch(engine, device, Flavour.VFIO)
    kernel.unload("e1000e")
    while_loading(kernel, "e1000e", use(kernel, device, GUEST))
    before = list(kernel.writes)
    error = refuse(engine, device, Flavour.NATIVE)
    assert "in use: qemu (pid 812) holds /dev/vfio/7" in str(error)
    assert kernel.writes == before
    assert device.driver is not None
    assert device.driver.name == "vfio-pci"


def test_one_of_a_group_that_is_mounted_while_another_has_its_turn_keeps_all_of_it(
    kernel: FakeKernel,
) -> None:
    first, second = add_native(kernel), kernel.add_device("0000:01:00.1")
    kernel.add_native(second, "igb")
    kernel.modules["vfio_pci"].drivers[0].on_probe = lambda _: use(kernel, second, MOUNTED)()
    error = refuse(make_engine(kernel), first, Flavour.VFIO, others=OthersInGroup.TOGETHER)
    assert "0000:01:00.1: in use: /mnt/data on nvme0n1" in str(error)
    assert (has(first), has(second)) == (("e1000e", None), ("igb", None))
    assert records(kernel) == []


# what ends it


@pytest.mark.parametrize("operation", range(7))
def test_where_the_worker_is_killed_the_device_goes_back(kernel: FakeKernel, operation: int) -> None:
    device = add_native(kernel)
    engine = make_engine(kernel)
    kernel.dies_at = operation
    error = refuse(engine, device, Flavour.VFIO)
    assert "died before its work was done; it has e1000e again" in str(error)
    assert has(device) == ("e1000e", None)
    assert records(kernel) == []
    assert [attempt.ending for attempt in engine.attempts.history] == [Ending.FAILED]


@pytest.mark.parametrize("operation", range(8))
def test_where_the_worker_is_killed_on_the_way_home_the_device_stays_on_vfio(
    kernel: FakeKernel, operation: int
) -> None:
    device = add_native(kernel)
    engine = make_engine(kernel)
    switch(engine, device, Flavour.VFIO)
    kernel.dies_at = operation
    assert "it has vfio-pci again" in str(refuse(engine, device, Flavour.NATIVE))
    assert has(device) == ("vfio-pci", "vfio-pci")
    assert switch(engine, device, Flavour.NATIVE).driver == "e1000e"
    assert has(device) == ("e1000e", None)
    assert records(kernel) == []


def test_where_it_can_not_be_read_back_the_device_goes_back(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_native(kernel)
    engine = make_engine(kernel)
    read, reads = engine._host.hands._read_override, 0  # type: ignore[attr-defined]

    async def fail_after_the_writes(path: str) -> str:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return str(await read(path))

    monkeypatch.setattr(engine._host.hands, "_read_override", fail_after_the_writes)
    error = refuse(engine, device, Flavour.VFIO)
    what = "reading its driver and override failed: Input/output error (EIO)"
    assert str(error) == f"{device.address}: {what}; it has e1000e again"
    assert has(device) == ("e1000e", None)
    assert records(kernel) == []


def test_where_the_second_driver_cannot_be_recorded_the_device_goes_back(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_native(kernel)
    add_refusing(kernel)
    engine = make_engine(kernel)
    written: list[Record] = []

    def full(disk: int) -> None:
        if len(written) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(disk)

    write = type(engine._host.ledger).write

    def count(ledger: Any, record: Record) -> None:
        written.append(record)
        write(ledger, record)

    monkeypatch.setattr("vfio_flavourd.engine.ledger.os.fsync", full)
    monkeypatch.setattr(type(engine._host.ledger), "write", count)
    error = refuse(engine, device, Flavour.VFIO)
    assert "can't be recorded (No space left on device), so it is not switched on" in str(error)
    assert str(error).endswith("; it has e1000e again")
    assert error.code == Code.NOT_SAVED
    assert has(device) == ("e1000e", None)
    assert records(kernel) == []


def test_where_no_process_can_be_had_for_the_second_driver_the_device_goes_back(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_native(kernel)
    add_refusing(kernel)
    engine = make_engine(kernel)
    fail_to_fork(engine, monkeypatch, {2})
    error = refuse(engine, device, Flavour.VFIO)
    assert "no process could be had" in str(error)
    assert str(error).endswith("; it has e1000e again")
    assert has(device) == ("e1000e", None)
    assert [attempt.ending for attempt in engine.attempts.history] == [Ending.FAILED]


def test_where_it_can_not_go_back_either_that_is_said(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_native(kernel)
    engine = make_engine(kernel)
    kernel.dies_at = 3
    fail_to_fork(engine, monkeypatch, {2, 3})
    error = refuse(engine, device, Flavour.VFIO)
    assert error.code == Code.NOT_PUT_BACK
    assert "it could not be put back: no process could be had" in str(error)
    assert f"flavourctl reset {device.address}" in error.hint
    monkeypatch.undo()
    reset = engine.reset(Request(at(device), Flavour.NATIVE), lambda _: None)
    assert asyncio.run(reset).driver == "e1000e"
    assert has(device) == ("e1000e", None)


def test_an_error_of_the_daemons_own_leaves_its_attempt_in_the_history(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_native(kernel)
    engine = make_engine(kernel)
    monkeypatch.setattr(type(engine._host), "resolve", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        switch(engine, device, Flavour.VFIO)
    assert "the daemon itself failed: ZeroDivisionError" in engine.attempts.history[-1].error


# what it has in the end


def test_a_driver_that_does_not_give_a_flavour_of_the_policys_own_is_no_success(kernel: FakeKernel) -> None:
    device = add_native(kernel)
    kernel.add_module(FakeDriver("uio_pci_generic", "uio_pci_generic"))
    kernel.add_module(FakeDriver("pci-stub", "pci_stub"))
    uio = FlavourKind("uio", None, "uio_pci_generic")
    engine = make_engine(kernel, Policy(flavours={"vfio": VFIO_KIND, "uio": uio}))
    for named in ("e1000e", "pci_stub"):
        outcome = switch(engine, device, Flavour("uio"), drivers=(named,))
        assert (outcome.driver, outcome.flavour) == ("uio_pci_generic", "uio")
        assert f"{named} took the device, but it is not uio by that driver" in outcome.reason
        switch(engine, device, Flavour.NATIVE)


def test_asking_for_devices_that_are_not_there_leaves_nothing_behind(kernel: FakeKernel) -> None:
    engine = make_engine(kernel)
    for number in range(20):
        with pytest.raises(FlavourError):
            asyncio.run(
                engine.set_flavour(
                    Request(parse_address(f"0000:02:{number:02x}.0"), Flavour.VFIO), lambda _: None
                )
            )
    assert engine._turns._locks == {}


@pytest.mark.parametrize("number", [1, 2])
def test_the_look_at_who_uses_the_device_takes_no_longer_than_the_one_who_asks_waits(
    kernel: FakeKernel, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_native(kernel)
    looks: list[bool] = []  # whether each came to an end

    async def see_users(_: object) -> tuple[User, ...]:
        looks.append(False)
        if len(looks) == number:
            await asyncio.sleep(3600)
        looks[-1] = True
        return ()

    async def ask(engine: Engine) -> None:
        monkeypatch.setattr(engine._host.occupancy, "see_users", see_users)
        with pytest.raises(FlavourError, match="the time limit of 2 s ran out before it was touched") as told:
            await engine.set_flavour(Request(at(device), Flavour.VFIO, timeout=2), lambda _: None)
        assert told.value.errno == errno.ETIMEDOUT
        await engine.set_flavour(Request(at(device), Flavour.VFIO, timeout=2), lambda _: None)

    engine = make_engine(kernel)
    run_at_once(ask(engine))
    assert looks[:number] == [*[True] * (number - 1), False]
    assert engine.attempts.history[0].steps[-1].action == StepAction.GUARD
    assert has(device) == ("vfio-pci", "vfio-pci")


# what the policy says by then


def lose_uio(engine: Engine) -> None:
    engine._host.policy._replace(Policy())


def with_uio(kernel: FakeKernel) -> Engine:
    kernel.add_module(FakeDriver("uio_pci_generic", "uio_pci_generic"))
    uio = FlavourKind("uio", None, "uio_pci_generic")
    return make_engine(kernel, Policy(flavours={"vfio": VFIO_KIND, "uio": uio}))


def test_a_flavour_that_is_gone_when_its_turn_comes_is_refused_as_one_that_never_was(
    kernel: FakeKernel,
) -> None:
    device = add_native(kernel)
    engine = with_uio(kernel)

    async def wait_for_the_turn() -> Outcome:
        async with engine._turns.find(at(device)):
            asking = asyncio.create_task(
                engine.set_flavour(Request(at(device), Flavour("uio")), lambda _: None)
            )
            await asyncio.sleep(0.01)
            lose_uio(engine)
        return await asking

    with pytest.raises(FlavourError, match="no flavour is called 'uio'") as refusal:
        asyncio.run(wait_for_the_turn())
    assert refusal.value.errno == errno.EINVAL
    assert engine.attempts.history[-1].ending == Ending.REFUSED
    assert (has(device), kernel.writes) == (("e1000e", None), [])


@pytest.mark.parametrize("is_plan", [False, True])
def test_a_flavour_that_is_gone_when_it_is_known_who_uses_the_device_is_refused_too(
    kernel: FakeKernel, is_plan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = add_native(kernel)
    engine = with_uio(kernel)

    async def see_users(_: object) -> tuple[User, ...]:
        lose_uio(engine)
        return ()

    monkeypatch.setattr(engine._host.occupancy, "see_users", see_users)
    request = Request(at(device), Flavour("uio"))
    with pytest.raises(FlavourError, match="no flavour is called 'uio'") as refusal:
        asyncio.run(engine.plan(request) if is_plan else engine.set_flavour(request, lambda _: None))
    assert refusal.value.errno == errno.EINVAL
    assert (has(device), kernel.writes) == (("e1000e", None), [])
