"""What is kept of each attempt: all that one wants to know afterwards, also after a restart of the daemon."""

import asyncio
import errno
import gc
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, has, make_engine
from virtual_time import run_at_once

from vfio_flavourd.engine import history
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.history import MOST, History
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Attempt, Ending, Flavour, Outcome, Request, StepAction, StepReport
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import Match, Policy, Rule, Settings
from vfio_flavourd.model.transition import Phase

ADDRESS = parse_address("0000:01:00.0")
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def device(kernel: FakeKernel) -> FakeDevice:
    device = kernel.add_device()
    kernel.add_native(device)
    return device


async def ask(engine: Engine, flavour: Flavour = Flavour.VFIO, *, force: bool = False) -> Outcome:
    request = Request(ADDRESS, flavour, requester="uid 0 pid 1", force=force)
    return await engine.set_flavour(request, lambda _: None)


def only_attempt(kernel: FakeKernel) -> Attempt:
    """Of one that does not succeed."""
    engine = make_engine(kernel)

    async def run() -> None:
        with pytest.raises(FlavourError):
            await ask(engine)

    run_at_once(run())
    (attempt,) = engine.attempts.history
    return attempt


def make_attempt(number: int) -> Attempt:
    step = StepReport(Phase.SWITCHING, StepAction.UNBIND, "unbind from e1000e", 0.25, 0.125, "é is no driver")
    return Attempt(
        id=number,
        address=ADDRESS,
        flavour=Flavour.VFIO,
        requester="uid 0 pid 1",
        unit="a.service",
        when=1.5,
        duration=0.5,
        ending=Ending.FAILED,
        driver=None,
        previous_driver="e1000e",
        fallback=False,
        forced=("/mnt on é",),
        rule="mine",
        reason="",
        error="it failed",
        hint="try again",
        code="failed",
        steps=(step, step),
    )


def load(path: Path) -> History:
    history = History(path)
    history.load()
    return history


# what is kept


def test_all_there_is_to_know_of_a_switch_is_kept(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.users[str(ADDRESS)] = (User(Use.MOUNT, "/mnt on sda1"),)
    rule = Rule("mine", Match(device=(0x10D3,)), "vfio", (), Settings(), None, "50-test.yaml:3")
    engine = make_engine(kernel, Policy(rules=(rule,)))
    outcome = run_at_once(ask(engine, force=True))
    (attempt,) = engine.attempts.history
    assert (attempt.id, outcome.attempt) == (1, 1)
    assert (attempt.address, attempt.flavour, attempt.requester) == (ADDRESS, "vfio", "uid 0 pid 1")
    assert (attempt.driver, attempt.previous_driver) == ("vfio-pci", "e1000e")
    assert (attempt.ending, attempt.rule, attempt.forced) == (Ending.DONE, "mine", ("/mnt on sda1",))
    assert (attempt.reason, attempt.error, attempt.hint, attempt.code) == (outcome.reason, "", "", "")
    assert attempt.steps == outcome.steps


def test_the_steps_are_a_timeline_of_the_whole_attempt(kernel: FakeKernel, device: FakeDevice) -> None:
    refuses = FakeDriver("better", "better_vfio", vfio=True, probe_errno=errno.ENODEV)
    kernel.add_module(refuses, alias=ALIAS)
    engine = make_engine(kernel)
    asyncio.run(ask(engine))  # by the real clock
    (attempt,) = engine.attempts.history
    assert [(str(step.phase), step.what) for step in attempt.steps] == [
        ("waiting", "see whether it may be taken"),
        ("loading", "load better_vfio"),
        ("switching", "set driver_override to better"),
        ("switching", "unbind from e1000e"),
        ("switching", "bind to better"),
        ("loading", "load vfio_pci"),
        ("switching", "set driver_override to vfio-pci"),
        ("switching", "bind to vfio-pci"),
        ("verifying", "read back what it has"),
    ]
    assert [step.what for step in attempt.steps if step.error] == ["bind to better"]
    starts = [step.started for step in attempt.steps]
    assert starts == sorted(starts)
    assert all(
        0 <= step.started <= step.started + step.duration <= attempt.duration for step in attempt.steps
    )
    assert attempt.fallback


def test_who_waits_for_a_turn_finds_that_in_the_steps(kernel: FakeKernel, device: FakeDevice) -> None:
    hang = asyncio.Event()
    kernel.add_module(FakeDriver("slow", "slow_vfio", vfio=True), alias=ALIAS, hang=hang)
    engine = make_engine(kernel)

    async def run() -> None:
        asyncio.get_running_loop().call_later(0.2, hang.set)
        await asyncio.gather(ask(engine), ask(engine, Flavour.NATIVE))

    asyncio.run(run())  # by the real clock
    first, second = engine.attempts.history
    assert second.steps[0].what == "wait for the turn of its IOMMU group"
    assert second.steps[0].duration >= 0.1
    assert second.duration >= second.steps[0].duration
    assert "wait" not in first.steps[0].what


def test_what_a_guard_refuses_is_refused_and_not_failed(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.users[str(ADDRESS)] = (User(Use.SWAP, "swap on nvme0n1p3"),)
    attempt = only_attempt(kernel)
    assert attempt.ending is Ending.REFUSED
    assert (attempt.driver, attempt.previous_driver) == ("e1000e", "e1000e")
    assert "swap on nvme0n1p3" in attempt.error
    assert attempt.hint
    assert attempt.code
    assert [(step.what, step.error) for step in attempt.steps] == [("see whether it may be taken", "refused")]


def test_what_no_driver_takes_has_failed(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EIO
    attempt = only_attempt(kernel)
    assert attempt.ending is Ending.FAILED
    assert (attempt.driver, attempt.previous_driver) == ("e1000e", "e1000e")
    assert "vfio_pci refused" in attempt.error


def test_a_device_that_is_not_there_is_refused_and_no_failed_switch(kernel: FakeKernel) -> None:
    attempt = only_attempt(kernel)
    assert (attempt.ending, attempt.code) == (Ending.REFUSED, Code.NO_SUCH_DEVICE)
    assert (attempt.driver, attempt.previous_driver, attempt.steps) == (None, None, ())


def test_a_device_that_goes_away_in_the_middle_is_a_failed_switch(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    kernel.modules["vfio_pci"].hang = hang = asyncio.Event()
    engine = make_engine(kernel)

    def pull_out() -> None:
        kernel.remove_device(device)
        hang.set()

    async def run() -> None:
        asyncio.get_running_loop().call_later(0.2, pull_out)
        with pytest.raises(FlavourError):
            await ask(engine)

    run_at_once(run())
    (attempt,) = engine.attempts.history
    assert (attempt.ending, attempt.code) == (Ending.FAILED, Code.DEVICE_GONE)


@pytest.mark.parametrize("name", ["../x", "", "a" * 65, "vfio pci", "-C/tmp/evil"])
def test_what_can_not_be_the_name_of_a_driver_makes_no_attempt(
    kernel: FakeKernel, device: FakeDevice, name: str
) -> None:
    engine = make_engine(kernel)
    request = Request(ADDRESS, Flavour.VFIO, ("vfio-pci", name), requester="uid 0 pid 1")

    async def run() -> None:
        with pytest.raises(FlavourError, match="can't be the name of a driver") as caught:
            await engine.set_flavour(request, lambda _: None)
        assert caught.value.code == Code.INVALID_ARGUMENT

    run_at_once(run())
    assert list(engine.attempts.history) == []
    assert has(device) == ("e1000e", None)


def test_of_an_address_that_was_made_up_nothing_stays_beyond_the_history(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    made_up = [parse_address(f"{domain:08x}:00:00.0") for domain in range(0x10000, 0x10010)]

    async def run() -> None:
        engine = make_engine(kernel)
        await ask(engine)
        for address in made_up:
            for flavour, switch in ((Flavour.VFIO, engine.set_flavour), (Flavour.NATIVE, engine.reset)):
                with pytest.raises(FlavourError):
                    await switch(Request(address, flavour), lambda _: None)
        assert [attempt.address for attempt in engine.attempts.history][1::2] == made_up
        await engine.settle(1.0)
        restarted = make_engine(kernel)
        restarted.recover()
        for each in (engine, restarted):
            assert {each.attempts.find_last(address) for address in made_up} == {None}
            assert each.attempts.find_last(ADDRESS) is not None

    run_at_once(run())


def test_what_changes_nothing_says_so(kernel: FakeKernel, device: FakeDevice) -> None:
    engine = make_engine(kernel)
    run_at_once(ask(engine, Flavour.NATIVE))
    (attempt,) = engine.attempts.history
    assert attempt.ending is Ending.UNCHANGED


def test_what_the_kernel_does_not_come_back_from_is_stuck(kernel: FakeKernel, device: FakeDevice) -> None:
    assert device.driver is not None
    device.driver.remove_blocks = asyncio.Event()
    attempt = only_attempt(kernel)
    assert (attempt.ending, attempt.code) == (Ending.STUCK, "stuck")
    last = attempt.steps[-1]
    assert (last.phase, last.action, last.what) == (Phase.SWITCHING, StepAction.UNBIND, "unbind from e1000e")
    assert re.fullmatch(r"has not returned for 1 s \(process \d+\)", last.error)
    assert last.duration >= 1


def test_what_can_not_be_read_back_is_stuck_too(kernel: FakeKernel, device: FakeDevice) -> None:
    real = kernel.write

    async def write(path: str, text: str) -> None:
        await real(path, text)
        if path.endswith("/vfio-pci/bind"):
            device.held = asyncio.Event()

    kernel.write = write  # type: ignore[method-assign]
    attempt = only_attempt(kernel)
    assert attempt.ending is Ending.STUCK
    last = attempt.steps[-1]
    assert (last.action, last.what) == (StepAction.VERIFY, "read back what it has")


def test_one_who_gives_up_before_anything_is_touched_has_given_up(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    kernel.add_module(FakeDriver("slow", "slow_vfio", vfio=True), alias=ALIAS, hang=asyncio.Event())
    engine = make_engine(kernel)

    async def run() -> None:
        task = asyncio.create_task(ask(engine))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)

    run_at_once(run())
    (attempt,) = engine.attempts.history
    assert (attempt.ending, attempt.code, attempt.driver) == (Ending.GIVEN_UP, "interrupted", "e1000e")


# the file


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    attempts = [make_attempt(1), make_attempt(2)]
    History(tmp_path / "history").write(attempts)
    assert list(load(tmp_path / "history")) == attempts


def test_what_an_older_daemon_has_written_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "history"
    History(path).write([make_attempt(1)])
    data = json.loads(path.read_bytes())
    del data["unit"]
    path.write_text(json.dumps(data), encoding="ascii")
    assert list(load(path)) == [replace(make_attempt(1), unit="")]


def test_history_and_its_count_go_on_after_a_restart(kernel: FakeKernel, device: FakeDevice) -> None:
    async def run() -> None:
        engine = make_engine(kernel)
        await ask(engine)
        await ask(engine, Flavour.NATIVE)
        before = list(engine.attempts.history)
        await engine.settle(1.0)
        engine = make_engine(kernel)
        engine.recover()
        assert list(engine.attempts.history) == before
        assert engine.device(ADDRESS).last == before[-1]
        assert (await ask(engine)).attempt == 3

    run_at_once(run())


def test_nobody_waits_for_the_history_to_be_written(kernel: FakeKernel, device: FakeDevice) -> None:
    path = kernel.root / "run/history.jsonl"
    engine = make_engine(kernel)

    async def run() -> None:
        await ask(engine)
        assert not path.exists()
        await asyncio.sleep(0.1)
        assert path.exists()

    run_at_once(run())


def test_no_more_are_kept_than_was_said_in_memory_and_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = load(path)
    for _ in range(5 * MOST):
        attempt = make_attempt(history.next_id())
        history.add(attempt)
        history.write([attempt])
    expected = list(range(4 * MOST + 1, 5 * MOST + 1))
    assert [attempt.id for attempt in history] == expected
    assert MOST <= len(path.read_bytes().splitlines()) <= 2 * MOST
    again = load(path)
    assert [attempt.id for attempt in again] == expected
    assert again.next_id() == 5 * MOST + 1


def spoil_text(line: bytes) -> bytes:
    return line[: len(line) // 2]


def spoil(**values: object) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps(json.loads(line) | values).encode()


@pytest.mark.parametrize(
    "how",
    [
        spoil_text,
        lambda line: b"\xff\x00",
        lambda line: b"[" * 100_000,
        lambda line: b"[]",
        spoil(id=0),
        spoil(id="1"),
        spoil(when=float("nan")),
        spoil(duration=10**400),
        spoil(address="../../x"),
        spoil(ending="well"),
        spoil(error=None),
        spoil(unit=7),
        spoil(forced=[1]),
        spoil(steps=[{}]),
        spoil(steps=None),
    ],
)
def test_a_line_that_can_not_be_read_costs_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "history"
    History(path).write([make_attempt(number) for number in (1, 2, 3)])
    lines = path.read_bytes().splitlines()
    lines[1] = how(lines[1])
    path.write_bytes(b"\n".join(lines) + b"\n")
    history = load(path)
    assert [attempt.id for attempt in history] == [1, 3]
    assert history.next_id() == 4
    (record,) = caplog.records
    assert "1 of 3 lines" in record.getMessage()
    caplog.clear()
    assert len(load(path)) == 2
    assert caplog.records == []


def test_a_last_line_that_was_cut_off_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "history"
    History(path).write([make_attempt(1), make_attempt(2)])
    path.write_bytes(path.read_bytes()[:-20])
    history = load(path)
    history.write([make_attempt(3)])
    assert [attempt.id for attempt in load(path)] == [1, 3]


def test_a_full_disk_costs_history_and_no_switch(
    kernel: FakeKernel, device: FakeDevice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = kernel.root / "run/history.jsonl"
    opened, full = os.open, True

    def open_on_a_full_disk(name: str | Path, *rest: int) -> int:
        if full and str(name) == str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(name, *rest)

    monkeypatch.setattr(os, "open", open_on_a_full_disk)

    async def run() -> None:
        nonlocal full
        engine = make_engine(kernel)
        for flavour in (Flavour.VFIO, Flavour.NATIVE, Flavour.VFIO):
            assert (await ask(engine, flavour)).flavour == flavour
            await asyncio.sleep(0.1)
        assert len(engine.attempts.history) == 3
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        full = False
        await ask(engine, Flavour.NATIVE)
        await asyncio.sleep(0.1)
        assert [attempt.id for attempt in load(path)] == [4]

    run_at_once(run())


def test_half_a_line_that_a_full_disk_took_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history"
    history = load(path)
    history.write([make_attempt(1)])
    written = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: written(descriptor, data[:10]))
    history.write([make_attempt(2)])
    monkeypatch.undo()
    history.write([make_attempt(3)])
    assert [attempt.id for attempt in load(path)] == [1, 3]


def test_a_directory_in_the_file_s_place_keeps_no_daemon_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "history"
    path.mkdir()
    history = load(path)
    history.add(make_attempt(history.next_id()))
    history.write(list(history))
    assert len(history) == 1
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_no_file_is_read_beyond_what_it_should_ever_be(tmp_path: Path) -> None:
    path = tmp_path / "history"
    with path.open("wb") as file:
        file.truncate(1 << 33)  # a hole: reading all of it would take all memory
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    history = History(path)
    history.write([make_attempt(7)])
    assert [attempt.id for attempt in load(path)] == [7]


def test_nothing_but_the_history_is_kept_of_a_switch(
    kernel: FakeKernel, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST", 4)
    engine = make_engine(kernel)

    async def switch(count: int) -> Counter[str]:
        for _ in range(count // 2):
            await ask(engine, Flavour.VFIO)
            await ask(engine, Flavour.NATIVE)
        await asyncio.sleep(60)
        kernel.writes.clear()
        gc.collect()
        return Counter(type(each).__qualname__ for each in gc.get_objects())

    async def run() -> tuple[Counter[str], Counter[str]]:
        return await switch(20), await switch(200)

    before, after = run_at_once(run())
    # What is kept of each switch, or of every second or third one, would be more.
    assert {kind: count for kind, count in (after - before).items() if count > 50} == {}
