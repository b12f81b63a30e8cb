"""What can go wrong in the middle of a switch: probes, modules, other people, clocks, an order to stop."""

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, after_write, before_write, has, make_engine
from virtual_time import now, run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request, StepBegun, StepReport

ADDRESS = parse_address("0000:01:00.0")
OTHER = parse_address("0000:02:00.0")
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
NATIVE, VFIO = ("e1000e", None), ("vfio-pci", "vfio-pci")
EPROBE_DEFER = 517
PROBE_ERRORS = {
    "ENODEV": (errno.ENODEV, errno.EIO),
    "EINVAL": (errno.EINVAL, errno.EIO),
    "EBUSY": (errno.EBUSY, errno.EBUSY),
    "EAGAIN": (EPROBE_DEFER, errno.EAGAIN),  # as which a deferral comes out of `bind`
}
HOUR = 3600.0


@pytest.fixture
def device(kernel: FakeKernel) -> FakeDevice:
    device = kernel.add_device()
    kernel.add_native(device)
    return device


def unheard(_: StepBegun | StepReport) -> None:
    """Nobody follows the steps."""


async def ask(engine: Engine, flavour: Flavour = Flavour.VFIO, *drivers: str, **more: Any) -> Outcome:
    return await engine.set_flavour(Request(ADDRESS, flavour, drivers, **more), unheard)


def switch(engine: Engine, flavour: Flavour = Flavour.VFIO) -> Outcome:
    async def run() -> Outcome:
        try:
            return await ask(engine, flavour)
        finally:
            engine.attempts.log()

    return asyncio.run(run())


def refuse(engine: Engine, flavour: Flavour = Flavour.VFIO) -> FlavourError:
    with pytest.raises(FlavourError) as caught:
        switch(engine, flavour)
    return caught.value


def records(kernel: FakeKernel) -> list[str]:
    return sorted(path.name for path in (kernel.root / "run/devices").iterdir())


# probes


@pytest.mark.parametrize("name", PROBE_ERRORS)
def test_when_every_probe_fails_the_device_has_its_driver_again_and_the_errno_is_told_by_name(
    kernel: FakeKernel, device: FakeDevice, name: str
) -> None:
    code, told = PROBE_ERRORS[name]
    kernel.add_module(FakeDriver("bad", "bad_vfio", vfio=True, probe_errno=code), alias=ALIAS)
    kernel.modules["vfio_pci"].drivers[0].probe_errno = code
    error = refuse(make_engine(kernel))
    assert (error.code, error.errno) == (Code.NO_DRIVER_TOOK_IT, told)
    assert error.hint == f"flavourctl show {ADDRESS} shows the candidates, dmesg what a driver said"
    assert str(error).startswith(f"{ADDRESS}: no VFIO driver took it: bad_vfio refused")
    assert str(error).count(f"({name})") == 2
    assert "bad_vfio refused" in str(error)
    assert "vfio_pci refused" in str(error)
    assert "it has e1000e again" in str(error)
    assert has(device) == NATIVE
    assert records(kernel) == []


@pytest.mark.parametrize("name", PROBE_ERRORS)
def test_when_the_native_probe_fails_on_the_way_home_the_device_stays_on_vfio_and_goes_home_later(
    kernel: FakeKernel, device: FakeDevice, name: str
) -> None:
    engine = make_engine(kernel)
    switch(engine)
    kernel.drivers["e1000e"].probe_errno = PROBE_ERRORS[name][0]
    error = refuse(engine, Flavour.NATIVE)
    assert f"({name})" in str(error)
    assert "it has vfio-pci again" in str(error)
    assert has(device) == VFIO
    assert engine.device(ADDRESS).origin_driver == "e1000e"
    kernel.drivers["e1000e"].probe_errno = 0
    switch(engine, Flavour.NATIVE)
    assert has(device) == NATIVE


def test_where_no_driver_takes_the_device_any_more_it_is_said_that_it_could_not_be_put_back(
    kernel: FakeKernel, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    vfio_pci = kernel.modules["vfio_pci"].drivers[0]
    vfio_pci.probe_errno = errno.EBUSY
    before_write(
        kernel, "/vfio-pci/bind", lambda: setattr(kernel.drivers["e1000e"], "probe_errno", errno.EIO)
    )
    engine = make_engine(kernel)
    error = refuse(engine)
    assert str(error).endswith(
        "vfio_pci refused: Device or resource busy (EBUSY); "
        "and it could not be put back: 'bind to e1000e' failed: Input/output error (EIO)"
    )
    assert (error.code, error.errno) == (Code.NOT_PUT_BACK, errno.EBUSY)
    assert error.hint == f"flavourctl reset {ADDRESS} tries again"
    assert "could not be put back" in caplog.text
    status = engine.device(ADDRESS)
    assert (status.flavour, status.held, status.origin_driver) == (Flavour.NATIVE, True, "e1000e")
    kernel.drivers["e1000e"].probe_errno = 0
    asyncio.run(engine.reset(Request(ADDRESS, Flavour.NATIVE), unheard))
    assert has(device) == NATIVE
    assert records(kernel) == []


# modules


@pytest.mark.parametrize(
    ("cause", "reason", "disabled"),
    [
        ("signature refused", "Key was rejected by service", "0"),
        (
            "no module can be loaded until the next boot (kernel.modules_disabled)",
            "Operation not permitted",
            "1",
        ),
        ("built for another kernel", "Exec format error", "0"),
    ],
    ids=["signature refused", "modules_disabled", "another kernel's"],
)
def test_a_module_that_the_kernel_refuses_gives_way_to_the_one_that_is_there_and_says_why(
    kernel: FakeKernel, device: FakeDevice, cause: str, reason: str, disabled: str
) -> None:
    said = f"could not insert 'good_vfio': {reason}"
    kernel.add_module(
        FakeDriver("good", "good_vfio", vfio=True),
        alias=ALIAS,
        status=1,
        said=f"warning\nmodprobe: ERROR: {said}\n",
    )
    flag = kernel.root / "proc/sys/kernel/modules_disabled"
    flag.parent.mkdir(parents=True)
    flag.write_text(f"{disabled}\n", encoding="ascii")
    kernel.load("vfio_pci")
    outcome = switch(make_engine(kernel))
    assert (outcome.driver, outcome.fallback) == ("vfio-pci", True)
    assert f"good_vfio: {cause}: {said}" in outcome.reason
    assert [step.what for step in outcome.steps if step.error] == ["load good_vfio"]
    assert has(device) == VFIO


@pytest.mark.parametrize("said", ["Key was rejected by service", "Operation not permitted"])
def test_where_no_module_can_be_loaded_at_all_the_device_is_not_touched_and_it_is_said_why(
    kernel: FakeKernel, device: FakeDevice, said: str
) -> None:
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)
    for name in ("good_vfio", "vfio_pci"):
        kernel.modules[name].status = 1
        kernel.modules[name].said = f"modprobe: ERROR: could not insert '{name}': {said}"
    error = refuse(make_engine(kernel))
    assert (error.code, error.errno) == (Code.MODULE_NOT_LOADED, errno.EIO)
    assert str(error).count(said) == 2
    assert kernel.writes == []
    assert has(device) == NATIVE
    assert records(kernel) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("blacklist good_vfio", "blacklist"),
        ("blacklist good-vfio", "blacklist"),
        ("install good_vfio /bin/false", "'/bin/false'"),
        ("install good_vfio /bin/true", "'/bin/true'"),
    ],
)
def test_a_variant_that_modprobe_d_forbids_is_not_even_tried_and_gives_way_with_the_reason_told(
    kernel: FakeKernel, device: FakeDevice, line: str, reason: str
) -> None:
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)
    (kernel.root / "etc/modprobe.d").mkdir(parents=True)
    (kernel.root / "etc/modprobe.d/local.conf").write_text(f"{line}\n", encoding="ascii")
    engine = make_engine(kernel)
    outcome = switch(engine)
    assert (outcome.driver, outcome.fallback) == ("vfio-pci", True)
    assert kernel.modules["good_vfio"].loads == 0
    rejected = engine.device(ADDRESS).resolution.candidates[0]
    assert (rejected.module, rejected.accepted) == ("good_vfio", False)
    assert reason in rejected.reason
    assert "local.conf" in rejected.reason
    assert has(device) == VFIO


def test_an_install_command_that_loads_nothing_is_not_believed(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    """modprobe says that all is well."""
    kernel.add_module(name="good_vfio", alias=ALIAS)
    (kernel.root / "etc/modprobe.d").mkdir(parents=True)
    (kernel.root / "etc/modprobe.d/local.conf").write_text(
        "install good_vfio /usr/bin/logger no\n", encoding="ascii"
    )
    outcome = switch(make_engine(kernel))
    assert (outcome.driver, outcome.fallback) == ("vfio-pci", True)
    assert "good_vfio: modprobe reported success, but the module is not there" in outcome.reason
    assert has(device) == VFIO


def test_a_variant_that_registers_after_the_fallback_has_neither_this_device_nor_its_sibling(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    sibling = kernel.add_device("0000:02:00.0", group=8)
    kernel.probe(kernel.drivers["e1000e"], sibling)

    async def run() -> None:
        hang = asyncio.Event()
        kernel.add_module(FakeDriver("slow", "slow_vfio", vfio=True), alias=ALIAS, hang=hang)
        engine = make_engine(kernel, load=1.0)
        outcome = await ask(engine)
        assert (outcome.driver, outcome.fallback) == ("vfio-pci", True)
        hang.set()
        await asyncio.sleep(1)
        assert "slow" in kernel.drivers
        assert (has(device), has(sibling)) == (VFIO, NATIVE)
        # From now on it is there, and the next switch gets it.
        await ask(engine, Flavour.NATIVE)
        assert (await ask(engine)).driver == "slow"

    run_at_once(run())


def test_a_native_driver_that_is_gone_for_good_leaves_the_device_on_vfio_and_is_named(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    engine = make_engine(kernel)
    switch(engine)
    kernel.unload("e1000e")
    del kernel.modules["e1000e"]
    kernel.writes.clear()
    error = refuse(engine, Flavour.NATIVE)
    assert "its driver e1000e is gone and e1000e can't be loaded: " in str(error)
    assert error.code == Code.MODULE_NOT_LOADED
    assert error.hint == "modprobe -v e1000e shows why"
    assert kernel.writes == []
    assert has(device) == VFIO
    assert engine.device(ADDRESS).held


# somebody else


@pytest.mark.parametrize("override", ["mine", "vfio-pci", "x" * 4094])
def test_an_override_that_someone_set_right_before_is_what_comes_back(
    kernel: FakeKernel, device: FakeDevice, override: str
) -> None:
    engine = make_engine(kernel)
    device.override = override
    switch(engine)
    assert has(device) == VFIO
    switch(engine, Flavour.NATIVE)
    assert has(device) == ("e1000e", override)
    assert records(kernel) == []


def test_an_override_that_someone_changes_while_vfio_has_the_device_does_not_keep_it_from_going_home(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    engine = make_engine(kernel)
    switch(engine)
    device.override = "somebody-elses"
    outcome = switch(engine, Flavour.NATIVE)
    assert (outcome.driver, outcome.flavour) == ("e1000e", Flavour.NATIVE)
    assert has(device) == NATIVE


def test_an_override_that_someone_changes_in_the_middle_is_overcome_or_told_of(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    """The bind then fails, since the override names another driver."""
    before_write(kernel, "/vfio-pci/bind", lambda: setattr(device, "override", "somebody-elses"))
    error = refuse(make_engine(kernel))
    assert "vfio_pci refused: No such device (ENODEV)" in str(error)
    assert "it has e1000e again" in str(error)
    assert device.driver is not None
    assert device.driver.name == "e1000e"
    assert records(kernel) == []


def test_a_driver_that_someone_binds_between_unbind_and_bind_is_not_taken_away_again(
    kernel: FakeKernel, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has looked who uses the device since."""
    device.override = "e1000e"
    intruder = FakeDriver("intruder", None)
    kernel.register(intruder)

    def intrude() -> None:
        device.override = "intruder"
        assert kernel.probe(intruder, device) == 0

    before_write(kernel, "/vfio-pci/bind", intrude)
    engine = make_engine(kernel)
    error = refuse(engine)
    assert has(device) == ("intruder", "e1000e")
    assert "intruder" in str(error)
    assert not any("intruder/unbind" in write for write in kernel.writes)
    assert "intruder" in caplog.text
    assert engine.device(ADDRESS).device.driver == "intruder"


def test_a_native_driver_that_someone_takes_away_at_once_leaves_the_device_on_vfio_as_it_was(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    engine = make_engine(kernel)
    switch(engine)
    after_write(kernel, "/e1000e/bind", lambda: kernel.release(device))
    error = refuse(engine, Flavour.NATIVE)
    assert "it should have e1000e again, but has none; it has vfio-pci again" in str(error)
    assert error.code == Code.NO_DRIVER_TOOK_IT
    assert "dmesg" in error.hint
    assert has(device) == VFIO


def test_a_driver_that_comes_to_a_device_that_is_to_have_none_is_told_and_keeps_it(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    kernel.release(device)
    engine = make_engine(kernel)
    switch(engine)
    intruder = FakeDriver("intruder", None, frozenset({(device.vendor, device.device)}))
    kernel.register(intruder)
    after_write(kernel, "/vfio-pci/unbind", lambda: kernel.probe(intruder, device))
    error = refuse(engine, Flavour.NATIVE)
    assert "it should have no driver again, but has intruder" in str(error)
    assert device.driver is intruder


def test_a_driver_that_someone_takes_away_when_it_is_back_is_said_not_to_be_there(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY
    after_write(kernel, "/e1000e/bind", lambda: kernel.release(device))
    error = refuse(make_engine(kernel))
    assert str(error).endswith("; and it could not be put back: it has no driver")
    assert (error.code, error.errno) == (Code.NOT_PUT_BACK, errno.EBUSY)


def test_a_driver_that_someone_binds_in_the_middle_is_not_taken_away_for_the_next_candidate(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)
    device.override = "e1000e"
    intruder = FakeDriver("intruder", None)
    kernel.register(intruder)

    def intrude() -> None:
        device.override = "intruder"
        assert kernel.probe(intruder, device) == 0

    before_write(kernel, "/good/bind", intrude)
    error = refuse(make_engine(kernel))
    assert has(device) == ("intruder", "e1000e")
    assert "someone else bound intruder to it during the switch" in str(error)
    assert error.code == Code.CHANGED_BY_SOMEONE_ELSE
    assert "find out what else manages this device" in error.hint
    assert not any("intruder/unbind" in write for write in kernel.writes)


def refuse_write(kernel: FakeKernel, attribute: str, value: str) -> None:
    """The kernel has no memory for that one."""
    real = kernel.write

    async def write(path: str, text: str) -> None:
        if path.endswith(f"/{attribute}") and text.strip() == value:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]


def test_where_the_next_candidate_is_not_come_to_the_device_has_what_it_had_and_not_the_one_before(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    kernel.add_module(FakeDriver("hollow", "hollow_vfio"), alias=ALIAS)
    refuse_write(kernel, "driver_override", "vfio-pci")
    error = refuse(make_engine(kernel))
    assert "'set driver_override to vfio-pci' failed: Cannot allocate memory (ENOMEM)" in str(error)
    assert str(error).endswith("; it has e1000e again")
    assert has(device) == NATIVE
    assert records(kernel) == []


def test_where_a_candidate_lets_go_by_itself_the_device_has_what_it_had(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    kernel.add_module(FakeDriver("hollow", "hollow_vfio"), alias=ALIAS)
    before_write(kernel, "/hollow/unbind", lambda: kernel.release(device))
    error = refuse(make_engine(kernel))
    assert "'unbind from hollow' failed: No such device (ENODEV)" in str(error)
    assert str(error).endswith("; it has e1000e again")
    assert has(device) == NATIVE
    assert records(kernel) == []


def test_where_the_last_write_on_the_way_home_fails_the_device_is_as_it_was(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    engine = make_engine(kernel)
    switch(engine)
    refuse_write(kernel, "driver_override", "")
    error = refuse(engine, Flavour.NATIVE)
    assert "'clear driver_override' failed: Cannot allocate memory (ENOMEM)" in str(error)
    assert str(error).endswith("; it has vfio-pci again")
    assert has(device) == VFIO
    assert engine.device(ADDRESS).held


@pytest.mark.parametrize("writes", ["override", "unbind"])
def test_a_driver_that_someone_takes_away_right_before_is_not_given_back_against_him(
    kernel: FakeKernel, device: FakeDevice, writes: str
) -> None:
    engine = make_engine(kernel)
    real = kernel.write

    async def write(path: str, text: str) -> None:
        if path.endswith({"override": "/driver_override", "unbind": "/e1000e/unbind"}[writes]):
            kernel.write = real  # type: ignore[method-assign]
            kernel.release(device)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]
    error = refuse(engine)
    assert has(device) == (None, None)
    assert not any("bind" in written for written in kernel.writes)
    assert str(error).endswith("; it has no driver, by someone else's doing")


# clocks


@pytest.fixture(
    params=[-(365 * 24 + 5) * HOUR, -60.0, 7 * HOUR], ids=["a year back", "a minute back", "7 h on"]
)
def jump(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Sets the wall clock, as a person, NTP or the end of a suspend do."""
    real, offset = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + offset) * 1e9))

    def jump() -> None:
        nonlocal offset
        offset += request.param

    return jump


def test_what_a_switch_took_is_told_and_logged_truly_when_the_clock_is_set_meanwhile(
    kernel: FakeKernel, device: FakeDevice, jump: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before_write(kernel, "/unbind", jump)
    engine = make_engine(kernel)
    started = time.monotonic()
    outcome = switch(engine)
    most = time.monotonic() - started
    assert 0 <= outcome.duration <= most
    assert all(0 <= step.started <= most and 0 <= step.duration <= most for step in outcome.steps)
    (record,) = [record for record in caplog.records if hasattr(record, "OUTCOME")]
    assert 0 <= int(vars(record)["DURATION_USEC"]) <= most * 1e6
    assert has(device) == VFIO


def test_no_time_limit_is_shorter_or_longer_when_the_clock_is_set(
    kernel: FakeKernel, device: FakeDevice, jump: Callable[[], None]
) -> None:
    async def run() -> None:
        kernel.modules["vfio_pci"].hang = asyncio.Event()
        engine = make_engine(kernel, load=10.0)
        asked = asyncio.create_task(ask(engine))
        await asyncio.sleep(5)
        jump()
        with pytest.raises(FlavourError):
            await asked
        assert now() == pytest.approx(10.0, abs=0.1)

    run_at_once(run())
    assert has(device) == NATIVE


def test_since_when_a_device_is_stuck_is_told_by_the_clock_as_it_is_now(
    kernel: FakeKernel, device: FakeDevice, jump: Callable[[], None]
) -> None:
    async def run() -> None:
        native = kernel.drivers["e1000e"]
        lets_go = native.remove_blocks = asyncio.Event()
        engine = make_engine(kernel, bind=0.3)
        with pytest.raises(FlavourError, match="has not returned"):
            await ask(engine)
        jump()
        told = engine.device(ADDRESS).stuck
        assert "unbind from e1000e" in told
        # Within the second or two that this takes.
        near = {time.strftime("%H:%M:%S", time.localtime(time.time() - ago)) for ago in (0, 1, 2, 3)}
        assert any(f"since {each}" in told for each in near), f"it says '{told}' at {max(near)}"
        native.remove_blocks = None
        lets_go.set()
        await asyncio.sleep(0.05)
        assert has(device) == VFIO

    asyncio.run(run())


def test_an_index_that_changes_after_the_clock_was_set_is_read_again(
    kernel: FakeKernel, device: FakeDevice, jump: Callable[[], None]
) -> None:
    engine = make_engine(kernel)
    assert engine.device(ADDRESS).resolution.winner == "vfio_pci"
    jump()
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)
    assert engine.device(ADDRESS).resolution.winner == "good_vfio"
    assert switch(engine).driver == "good"
    assert has(device) == ("good", "good")


# a daemon that is told to stop


@pytest.mark.parametrize("way", [Flavour.VFIO, Flavour.NATIVE], ids=["native remove", "held by a guest"])
def test_told_to_stop_while_an_unbind_is_held_it_stops_in_time_and_the_next_one_sees_to_it(
    kernel: FakeKernel, device: FakeDevice, way: Flavour
) -> None:
    other = kernel.add_device("0000:02:00.0", device=0x1533, group=8)

    async def run() -> None:
        engine = make_engine(kernel, bind=30.0)
        if way == Flavour.NATIVE:
            await ask(engine)
        assert device.driver is not None
        holds = device.driver
        lets_go = holds.remove_blocks = asyncio.Event()
        asked = asyncio.create_task(ask(engine, way))
        await asyncio.sleep(4)
        assert engine.device(ADDRESS).phase is not None
        began = now()
        await engine.settle(5.0)  # SIGTERM
        assert now() - began < 10
        asked.cancel()  # the process ends; its worker stays in the kernel

        second = make_engine(kernel, bind=1.0)
        second.recover()
        assert "of an earlier daemon" in second.device(ADDRESS).stuck
        outcome = await second.set_flavour(Request(OTHER, Flavour.VFIO), unheard)
        assert outcome.driver == "vfio-pci"
        holds.remove_blocks = None
        lets_go.set()
        await asyncio.sleep(5)
        status = second.device(ADDRESS)
        assert status.stuck == ""
        assert has(device) in (NATIVE, VFIO)
        assert status.held == (has(device) == VFIO)
        await ask(second, Flavour.NATIVE)
        assert has(device) == NATIVE

    run_at_once(run())
    assert has(other) == VFIO
