"""The daemon killed at every step, and what the next one makes of what it finds."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import (
    Crash,
    FakeDevice,
    FakeDriver,
    FakeKernel,
    PassingLedger,
    has,
    make_engine,
    make_host,
    pending,
)

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request

ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
ADDRESS = parse_address("0000:01:00.0")

Has = tuple[str | None, str | None]


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def on_disk(kernel: FakeKernel) -> list[str]:
    return sorted(path.name for path in (kernel.root / "run/devices").iterdir())


async def settled(engine: Engine) -> None:
    """What `recover` started of its own has come to its end."""
    while tasks := pending(engine):
        await asyncio.gather(*tasks)  # which raises, where the daemon is killed


async def restart(kernel: FakeKernel, **timeouts: Any) -> Engine:
    engine = make_engine(kernel, **timeouts)
    engine.recover()
    await settled(engine)
    return engine


async def ask(engine: Engine, flavour: Flavour, *drivers: str) -> Outcome:
    return await engine.set_flavour(Request(ADDRESS, flavour, drivers), lambda _: None)


async def reset(engine: Engine) -> Outcome:
    return await engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None)


@dataclass(frozen=True)
class Scenario:
    """`prepare` brings the device to where the switch starts; `allowed` is what it may have after a crash
    in the middle and the next daemon's start. `origin` is what `reset` has to restore."""

    flavour: Flavour
    prepare: Callable[[FakeKernel, FakeDevice], Any]
    allowed: frozenset[Has]
    origin: Has
    first: bool = False  # a switch to VFIO comes before the one that is cut off
    drivers: tuple[str, ...] = ()


NATIVE: Has = ("e1000e", None)
VFIO: Has = ("vfio-pci", "vfio-pci")


def with_native(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.add_native(device)


def with_refusing_variant(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.add_native(device)
    kernel.add_module(FakeDriver("bad", "bad_vfio", vfio=True, probe_errno=errno.EINVAL), alias=ALIAS)


def with_hollow_variant(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.add_native(device)
    kernel.add_module(FakeDriver("hollow", "hollow_vfio"), alias=ALIAS)


def with_good_variant(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.add_native(device)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)


def with_only_the_variant(kernel: FakeKernel, device: FakeDevice) -> None:
    with_good_variant(kernel, device)
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY


def with_all_refusing(kernel: FakeKernel, device: FakeDevice) -> None:
    with_refusing_variant(kernel, device)
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY


def with_override(kernel: FakeKernel, device: FakeDevice) -> None:
    device.override = "mine"
    kernel.add_module(FakeDriver("mine", "mine"))
    kernel.load("mine")


def with_stray_override(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.add_native(device)
    device.override = "somebody-elses"


def with_nothing(kernel: FakeKernel, device: FakeDevice) -> None:
    return


def with_autoprobe_off(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.add_native(device)
    device.can_probe = False


def with_personality(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.add_native(device, "chameleon")
    kernel.add_personality(device)


def by_others_on_vfio(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.load("vfio_pci")
    device.override = "vfio-pci"
    kernel.probe(kernel.drivers["vfio-pci"], device)
    kernel.add_native(device)


CHAMELEON: Has = ("chameleon", None)
VARIANT: Has = ("good", "good")
SCENARIOS = {
    "native to vfio": Scenario(Flavour.VFIO, with_native, frozenset({NATIVE, VFIO}), NATIVE),
    "after a refusal": Scenario(Flavour.VFIO, with_refusing_variant, frozenset({NATIVE, VFIO}), NATIVE),
    "after a hollow driver": Scenario(Flavour.VFIO, with_hollow_variant, frozenset({NATIVE, VFIO}), NATIVE),
    "undone": Scenario(Flavour.VFIO, with_all_refusing, frozenset({NATIVE}), NATIVE),
    "with an override": Scenario(
        Flavour.VFIO, with_override, frozenset({("mine", "mine"), VFIO}), ("mine", "mine")
    ),
    "with a stray override": Scenario(
        Flavour.VFIO,
        with_stray_override,
        frozenset({("e1000e", "somebody-elses"), VFIO}),
        ("e1000e", "somebody-elses"),
    ),
    "driverless": Scenario(Flavour.VFIO, with_nothing, frozenset({(None, None), VFIO}), (None, None)),
    "vfio to native": Scenario(Flavour.NATIVE, with_native, frozenset({NATIVE, VFIO}), NATIVE, first=True),
    "vfio to native, autoprobe off": Scenario(
        Flavour.NATIVE, with_autoprobe_off, frozenset({NATIVE, VFIO}), NATIVE, first=True
    ),
    "vfio to an override": Scenario(
        Flavour.NATIVE, with_override, frozenset({("mine", "mine"), VFIO}), ("mine", "mine"), first=True
    ),
    "vfio to driverless": Scenario(
        Flavour.NATIVE, with_nothing, frozenset({(None, None), VFIO}), (None, None), first=True
    ),
    "personality to vfio": Scenario(Flavour.VFIO, with_personality, frozenset({CHAMELEON}), CHAMELEON),
    "personality to native": Scenario(
        Flavour.NATIVE, with_personality, frozenset({CHAMELEON}), CHAMELEON, first=True
    ),
    "one vfio driver to another": Scenario(
        Flavour.VFIO, with_good_variant, frozenset({VARIANT, VFIO}), NATIVE, first=True, drivers=("vfio_pci",)
    ),
    "back to one vfio driver": Scenario(
        Flavour.VFIO, with_only_the_variant, frozenset({VARIANT}), NATIVE, first=True, drivers=("vfio_pci",)
    ),
    "released by its flavour": Scenario(Flavour.NATIVE, by_others_on_vfio, frozenset({NATIVE, VFIO}), VFIO),
}


def killed_at(kernel: FakeKernel, device: FakeDevice, scenario: Scenario, at: int, *, goes_on: bool) -> bool:
    """Whether the switch got as far as its `at`th operation, and so was cut off there."""
    scenario.prepare(kernel, device)
    if scenario.first:
        asyncio.run(ask(make_engine(kernel), Flavour.VFIO))
    kernel.writes.clear()
    engine = make_engine(kernel)
    kernel.crash_after, kernel.batch_goes_on = at, goes_on
    try:
        asyncio.run(ask(engine, scenario.flavour, *scenario.drivers))
    except Crash:
        return True
    except FlavourError:
        return False
    finally:
        kernel.crash_after = None
    return False


@contextmanager
def killed_after(kernel: FakeKernel, attribute: str) -> Iterator[None]:
    """The daemon is killed, and its worker with it, when a write to that attribute has been made."""
    real = kernel.write

    async def write(path: str, text: str) -> None:
        await real(path, text)
        if path.endswith(f"/{attribute}"):
            kernel.crash_after = 0

    kernel.write = write  # type: ignore[method-assign]
    with pytest.raises(Crash):
        yield
    kernel.write = real  # type: ignore[method-assign]
    kernel.crash_after = None


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


@pytest.mark.parametrize("goes_on", [False, True], ids=["the worker dies too", "the worker goes on"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_step_a_device_ends_where_it_was_or_where_it_was_going(
    tmp_path: Path, name: str, goes_on: bool
) -> None:
    scenario = SCENARIOS[name]
    failures = Failures()
    at = 0
    while True:
        kernel = FakeKernel(tmp_path / str(at))
        device = kernel.add_device()
        if not killed_at(kernel, device, scenario, at, goes_on=goes_on):
            break
        with failures.collected(f"after {at} operations, having written {kernel.writes}"):
            kernel.writes.clear()
            asyncio.run(_check_recovered(kernel, device, scenario))
        at += 1
    failures.check()
    assert at >= 4  # a switch is at least a write and what is read back


async def _check_recovered(kernel: FakeKernel, device: FakeDevice, scenario: Scenario) -> None:
    engine = await restart(kernel)
    assert has(device) in scenario.allowed, f"it has {has(device)}, the next daemon wrote {kernel.writes}"
    status = engine.device(ADDRESS)
    assert status.stuck == ""
    record = engine._host.ledger.find(ADDRESS)
    assert (record is None) == (on_disk(kernel) == [])
    if record is not None:
        assert not record.switching
        assert record.worker is None
        assert record.flavour == status.flavour
        assert (record.origin.driver, record.origin.override) == scenario.origin
        if record.personality is None:
            assert (record.binding.driver, record.binding.override) == has(device)
    first_flavour = Flavour.VFIO if scenario.origin == VFIO else Flavour.NATIVE
    as_it_was = has(device) == scenario.origin and status.flavour == first_flavour
    assert (record is None) == as_it_was, "nothing on record means that nothing was changed"
    await reset(engine)
    assert has(device) == scenario.origin, f"after a reset it has {has(device)}"
    assert engine.device(ADDRESS).flavour == first_flavour
    assert on_disk(kernel) == []


@pytest.mark.parametrize("name", [name for name, each in SCENARIOS.items() if each.flavour == Flavour.VFIO])
def test_killed_at_any_step_a_device_can_be_switched_afterwards_as_before(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    failures = Failures()

    async def back_and_forth(kernel: FakeKernel, device: FakeDevice) -> None:
        engine = await restart(kernel)
        assert (await ask(engine, Flavour.VFIO)).flavour == Flavour.VFIO
        await ask(engine, Flavour.NATIVE)
        assert has(device) == scenario.origin, f"it has {has(device)}"
        assert on_disk(kernel) == []

    at = 0
    while True:
        kernel = FakeKernel(tmp_path / str(at))
        device = kernel.add_device()
        if not killed_at(kernel, device, scenario, at, goes_on=False):
            break
        kernel.modules["vfio_pci"].drivers[0].probe_errno = 0
        with failures.collected(f"after {at} operations"):
            asyncio.run(back_and_forth(kernel, device))
        at += 1
    failures.check()


def with_idle_personality(kernel: FakeKernel, device: FakeDevice) -> None:
    """Its driver takes the value and makes nothing of it."""
    with_personality(kernel, device)
    kernel.add_vfio_device = lambda device: None  # type: ignore[method-assign]


@pytest.mark.parametrize("goes_on", [False, True], ids=["the worker dies too", "the worker goes on"])
def test_killed_at_any_step_a_personality_that_did_nothing_is_asked_back(
    tmp_path: Path, goes_on: bool
) -> None:
    scenario = Scenario(Flavour.VFIO, with_idle_personality, frozenset({CHAMELEON}), CHAMELEON)
    failures = Failures()
    at = 0
    while True:
        kernel = FakeKernel(tmp_path / str(at))
        device = kernel.add_device()
        if not killed_at(kernel, device, scenario, at, goes_on=goes_on):
            break
        with failures.collected(f"after {at} operations, having written {kernel.writes}"):
            asyncio.run(restart(kernel))
            assert (kernel.path(device) / "enable_vfio").read_text(encoding="ascii") == "0\n"
            assert on_disk(kernel) == []
        at += 1
    failures.check()
    assert at >= 8  # the write, the one back, and what is read before, between and after


@pytest.mark.parametrize("goes_on", [False, True], ids=["the worker dies too", "the worker goes on"])
def test_killed_again_while_recovering_it_still_comes_to_an_end(tmp_path: Path, goes_on: bool) -> None:
    scenario = SCENARIOS["after a refusal"]
    failures = Failures()
    at = again = 0
    while True:
        kernel = FakeKernel(tmp_path / f"{at}-{again}")
        device = kernel.add_device()
        if not killed_at(kernel, device, scenario, at, goes_on=False):
            break
        kernel.crash_after, kernel.batch_goes_on = again, goes_on
        try:
            asyncio.run(restart(kernel))
        except Crash:
            kernel.crash_after = None
            with failures.collected(f"after {at} operations, then after {again} of the next daemon's"):
                asyncio.run(_check_recovered(kernel, device, scenario))
            again += 1
        else:
            kernel.crash_after = None
            at, again = at + 1, 0
    failures.check()


def test_a_restart_changes_no_device_and_forgets_nothing(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    idle = kernel.add_device("0000:02:00.0", device=0x1533, group=8)
    kernel.add_native(device)

    async def run() -> None:
        await ask(make_engine(kernel), Flavour.VFIO)
        kernel.writes.clear()
        for _ in range(3):
            engine = await restart(kernel)
            assert kernel.writes == []
            assert has(device) == VFIO
            assert engine.device(ADDRESS).origin_driver == "e1000e"
            assert engine.device(ADDRESS).held
            assert not engine.device(parse_address(idle.address)).held
        await ask(await restart(kernel), Flavour.NATIVE)
        assert has(device) == NATIVE
        assert on_disk(kernel) == []

    asyncio.run(run())


def test_a_restart_leaves_what_others_changed_meanwhile_as_they_made_it(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        await ask(make_engine(kernel), Flavour.VFIO)
        kernel.release(device)
        device.override = None
        kernel.probe(kernel.drivers["e1000e"], device)
        kernel.writes.clear()
        await restart(kernel)
        assert kernel.writes == []
        assert has(device) == NATIVE

    asyncio.run(run())


def test_without_a_record_nothing_is_done_at_all(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    by_others_on_vfio(kernel, device)
    asyncio.run(restart(kernel))
    assert kernel.writes == []
    assert has(device) == VFIO
    assert on_disk(kernel) == []


@pytest.mark.parametrize("switching", [False, True], ids=["held", "cut off"])
@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced"])
def test_a_record_of_a_device_that_is_no_more_is_void_and_its_successor_untouched(
    tmp_path: Path, switching: bool, replaced: bool
) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    kernel.add_native(device)
    if switching:
        with killed_after(kernel, "unbind"):
            asyncio.run(ask(make_engine(kernel), Flavour.VFIO))
    else:
        asyncio.run(ask(make_engine(kernel), Flavour.VFIO))
    assert on_disk(kernel) == [f"{ADDRESS}.json"]
    kernel.remove_device(device)
    if replaced:
        successor = kernel.add_device(device=0x1533)
        kernel.add_native(successor, "igb")
    kernel.writes.clear()
    engine = asyncio.run(restart(kernel))
    assert kernel.writes == []
    assert on_disk(kernel) == []
    assert engine._host.ledger.find(ADDRESS) is None
    if replaced:
        assert has(successor) == ("igb", None)


def test_a_device_that_an_earlier_worker_still_writes_to_is_stuck_and_others_are_served(
    tmp_path: Path,
) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    other = kernel.add_device("0000:02:00.0", device=0x1533, group=8)
    native = kernel.add_native(device)

    async def run() -> None:
        native.remove_blocks = asyncio.Event()
        first = make_engine(kernel, bind=0.05)
        with pytest.raises(FlavourError, match="has not returned"):
            await ask(first, Flavour.VFIO)
        # That daemon is killed now: nobody waits for its worker any more, which goes on.
        for task in pending(first):
            task.cancel()
        kernel.writes.clear()

        second = make_engine(kernel)
        second.recover()
        stuck = second.device(ADDRESS)
        assert str(stuck.phase) == "stuck"
        assert "process" in stuck.stuck
        with pytest.raises(FlavourError) as caught:
            await ask(second, Flavour.VFIO)
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(FlavourError) as caught:
            await reset(second)
        assert caught.value.errno == errno.EBUSY
        assert kernel.writes == []
        request = Request(parse_address(other.address), Flavour.VFIO)
        outcome = await second.set_flavour(request, lambda _: None)
        assert outcome.driver == "vfio-pci"
        assert on_disk(kernel) == ["0000:01:00.0.json", "0000:02:00.0.json"]

        blocks, native.remove_blocks = native.remove_blocks, None
        blocks.set()
        await settled(second)
        assert second.device(ADDRESS).stuck == ""
        assert has(device) == VFIO
        await reset(second)
        assert has(device) == NATIVE

    asyncio.run(run())


@pytest.mark.parametrize("driver", ["vfio-pci", "chameleon"])
def test_a_device_that_an_earlier_daemons_recovery_still_writes_to_is_left_alone(
    tmp_path: Path, driver: str
) -> None:
    """The way home was cut off, then what the next daemon did about it got stuck, and that was killed too."""
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    (with_native if driver == "vfio-pci" else with_idle_personality)(kernel, device)
    if driver == "vfio-pci":
        asyncio.run(ask(make_engine(kernel), Flavour.VFIO))
        flavour, attribute, held_up = Flavour.NATIVE, "unbind", "/e1000e/bind"
    else:
        flavour, attribute, held_up = Flavour.VFIO, "enable_vfio", "/enable_vfio"
    with killed_after(kernel, attribute):
        asyncio.run(ask(make_engine(kernel), flavour))
    real = kernel.write

    async def run() -> None:
        held = asyncio.Event()

        async def write(path: str, text: str) -> None:
            if path.endswith(held_up):
                await held.wait()
            await real(path, text)

        kernel.write = write  # type: ignore[method-assign]
        second = make_engine(kernel, bind=0.05)
        second.recover()
        await asyncio.sleep(0.2)
        assert "has not returned" in second.device(ADDRESS).stuck
        for task in pending(second):
            task.cancel()
        kernel.writes.clear()

        third = make_engine(kernel, bind=0.05)
        third.recover()
        await asyncio.sleep(0.2)
        assert "of an earlier daemon is still in the kernel with it" in third.device(ADDRESS).stuck
        assert kernel.writes == []
        held.set()
        await settled(third)
        assert third.device(ADDRESS).stuck == ""
        assert has(device) == (NATIVE if driver == "vfio-pci" else CHAMELEON)
        assert on_disk(kernel) == []

    asyncio.run(run())


def test_a_number_that_another_process_has_by_now_is_not_taken_for_the_worker(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    kernel.add_native(device)
    with killed_after(kernel, "unbind"):
        asyncio.run(ask(make_engine(kernel), Flavour.VFIO))
    (path,) = (tmp_path / "run/devices").glob("*.json")
    ledger = PassingLedger(path.parent)
    ledger.load()
    record = ledger.find(ADDRESS)
    assert record is not None
    assert record.worker is not None
    proc = tmp_path / f"proc/{record.worker.pid}"
    proc.mkdir()
    fields = " ".join(str(number) for number in range(5, 31))
    (proc / "stat").write_text(f"{record.worker.pid} (bad) name) R {fields}", encoding="ascii")
    engine = asyncio.run(restart(kernel))
    assert engine.device(ADDRESS).stuck == ""
    assert has(device) == NATIVE
    assert on_disk(kernel) == []


def test_one_device_that_cannot_be_put_back_keeps_the_daemon_from_nothing_else(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    other = kernel.add_device("0000:02:00.0", group=8)
    native = kernel.add_native(device)

    async def run() -> None:
        for each in (device, other):
            request = Request(parse_address(each.address), Flavour.VFIO)
            with killed_after(kernel, "unbind"):
                await make_engine(kernel).set_flavour(request, lambda _: None)
            assert each.driver is None
        native.on_probe = lambda each: setattr(native, "probe_errno", errno.EIO if each is device else 0)
        engine = await restart(kernel)
        assert has(other) == NATIVE
        assert has(device)[0] is None
        assert on_disk(kernel) == ["0000:01:00.0.json"]
        native.on_probe, native.probe_errno = None, 0
        await reset(engine)
        assert has(device) == NATIVE
        assert on_disk(kernel) == []

    asyncio.run(run())


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_state_directory_does_not_keep_the_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    kernel.add_native(device)
    assert killed_at(kernel, device, SCENARIOS["native to vfio"], 4, goes_on=True)
    assert has(device) == VFIO

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        asyncio.run(restart(kernel))
    assert has(device) in (NATIVE, VFIO)
    asyncio.run(reset(asyncio.run(restart(kernel))))
    assert has(device) == NATIVE


def test_a_full_state_directory_does_not_keep_a_personality_from_being_asked_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was asked for is on record already."""
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    with_idle_personality(kernel, device)
    with killed_after(kernel, "enable_vfio"):
        asyncio.run(ask(make_engine(kernel), Flavour.VFIO))

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        asyncio.run(restart(kernel))
    assert (kernel.path(device) / "enable_vfio").read_text(encoding="ascii") == "0\n"
    assert on_disk(kernel) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_switch_whose_end_finds_no_room_on_disk_is_told_and_comes_to_an_end_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    kernel.add_native(device)
    real = kernel.write

    async def write(path: str, text: str) -> None:
        await real(path, text)
        if path.endswith("/vfio-pci/bind"):
            monkeypatch.setattr(os, call, no_space)

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kernel.write = write  # type: ignore[method-assign]

    async def run() -> None:
        engine = make_engine(kernel)
        try:
            outcome = await ask(engine, Flavour.VFIO)
        except FlavourError as error:
            told = str(error)
            assert engine.attempts.history[-1].error == told
        else:
            assert (outcome.driver, outcome.flavour) == ("vfio-pci", Flavour.VFIO)

    with monkeypatch.context():
        asyncio.run(run())
    monkeypatch.undo()
    engine = asyncio.run(restart(kernel))
    assert has(device) in (NATIVE, VFIO)
    asyncio.run(reset(engine))
    assert has(device) == NATIVE


def test_a_device_held_while_the_daemon_starts_is_stuck_and_holds_up_nobody(tmp_path: Path) -> None:
    """A guest holds it: the unbind on the way back blocks, not the start of the daemon."""
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    kernel.add_device("0000:02:00.0", device=0x1533, group=8)
    kernel.add_native(device)

    async def run() -> None:
        await ask(make_engine(kernel), Flavour.VFIO)
        with killed_after(kernel, "driver_override"):
            await ask(make_engine(kernel), Flavour.NATIVE)
        assert has(device) == ("vfio-pci", "e1000e")
        assert device.driver is not None
        held = device.driver.remove_blocks = asyncio.Event()
        engine = make_engine(kernel, bind=0.3)
        engine.recover()
        status = engine.device(ADDRESS)
        # Either left on VFIO, which needs no unbind, or shown as what it is.
        assert status.stuck or has(device) == VFIO
        other = Request(parse_address("0000:02:00.0"), Flavour.VFIO)
        assert (await engine.set_flavour(other, lambda _: None)).driver == "vfio-pci"
        kernel.drivers["vfio-pci"].remove_blocks = None
        held.set()
        await settled(engine)
        assert engine.device(ADDRESS).stuck == ""
        assert has(device) in (NATIVE, VFIO)
        await reset(engine)
        assert has(device) == NATIVE
        assert on_disk(kernel) == ["0000:02:00.0.json"]

    asyncio.run(run())


def test_a_driver_that_was_unloaded_meanwhile_is_loaded_to_put_a_device_back(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    kernel.add_native(device)
    with killed_after(kernel, "unbind"):
        asyncio.run(ask(make_engine(kernel), Flavour.VFIO))
    kernel.unload("e1000e")
    engine = asyncio.run(restart(kernel))
    if has(device) != NATIVE:  # told, and `reset` does it
        asyncio.run(reset(engine))
    assert has(device) == NATIVE
    assert on_disk(kernel) == []


def test_a_record_that_cannot_be_read_is_reported_and_its_device_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = FakeKernel(tmp_path)
    device = kernel.add_device()
    kernel.add_native(device)
    asyncio.run(ask(make_engine(kernel), Flavour.VFIO))
    path = tmp_path / f"run/devices/{ADDRESS}.json"
    path.write_bytes(path.read_bytes()[:40])
    kernel.writes.clear()
    host = make_host(kernel)
    caplog.clear()
    path.with_suffix(".corrupt").replace(path)  # make_host has loaded the ledger once already

    async def run() -> None:
        Engine(host).recover()

    asyncio.run(run())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set aside" in caplog.text
    assert kernel.writes == []
    assert has(device) == VFIO
    assert on_disk(kernel) == [f"{ADDRESS}.corrupt"]
