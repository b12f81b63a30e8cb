"""Flavours and personalities of the policy's own."""

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import Crash, FakeDevice, FakeDriver, FakeKernel, has, make_engine, pending
from virtual_time import run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.device import ENABLE_VFIO, Personality
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request, StepAction, parse_flavour
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import VFIO as VFIO_KIND
from vfio_flavourd.model.policy import FlavourKind, Match, OthersInGroup, Policy, Rule, Settings
from vfio_flavourd.model.transition import Phase

QUICK = Settings(1.0, 1.0)
ADDRESS = parse_address("0000:01:00.0")
UIO, DPDK = Flavour("uio"), Flavour("dpdk")
KINDS = {
    VFIO_KIND.name: VFIO_KIND,
    "uio": FlavourKind("uio", None, "uio_pci_generic"),
    "dpdk": FlavourKind("dpdk", "dpdk_pci", "igb_uio"),
}
DPDK_ALIAS = "dpdk_pci:v00008086d000010D3sv*sd*bc*sc*i*"
VFIO_ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
VGPU = Personality("nvidia", "nvidia/current_vgpu_type", on="558", off="0")

NATIVE = ("e1000e", None)
ON_VFIO = ("vfio-pci", "vfio-pci")
ON_UIO = ("uio_pci_generic", "uio_pci_generic")


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return make_kernel(tmp_path)


def make_kernel(root: Path) -> FakeKernel:
    kernel = FakeKernel(root)
    kernel.add_module(FakeDriver("uio_pci_generic", "uio_pci_generic"))
    kernel.add_module(FakeDriver("igb_uio", "igb_uio"))
    return kernel


def policy(
    *rules: Rule, personalities: tuple[Personality, ...] = (ENABLE_VFIO,), settings: Settings = QUICK
) -> Policy:
    return Policy(settings, rules, dict(KINDS), personalities)


def ask(engine: Engine, flavour: Flavour, *drivers: str, **more: Any) -> Outcome:
    async def run() -> Outcome:
        return await engine.set_flavour(Request(ADDRESS, flavour, drivers, **more), lambda _: None)

    return run_at_once(run())


def refused(engine: Engine, flavour: Flavour, *drivers: str, **more: Any) -> FlavourError:
    with pytest.raises(FlavourError) as caught:
        ask(engine, flavour, *drivers, **more)
    return caught.value


def records(kernel: FakeKernel) -> list[str]:
    return sorted(path.name for path in (kernel.root / "run/devices").iterdir())


# flavours


def test_a_flavour_without_aliases_is_had_by_its_driver_and_given_back(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=VFIO_ALIAS)
    engine = make_engine(kernel, policy())
    outcome = ask(engine, UIO)
    assert (outcome.flavour, outcome.driver, outcome.vfio_device) == ("uio", "uio_pci_generic", None)
    assert not outcome.fallback
    assert has(device) == ON_UIO
    status = engine.device(ADDRESS)
    assert (status.flavour, status.origin_driver, status.wish) == ("uio", "e1000e", "uio")
    record = json.loads((kernel.root / f"run/devices/{ADDRESS}.json").read_text(encoding="utf-8"))
    assert (record["flavour"], record["origin_flavour"], record["switching"]) == ("uio", "native", False)
    assert "good" not in kernel.drivers
    assert ask(engine, Flavour.NATIVE).flavour == Flavour.NATIVE
    assert has(device) == NATIVE
    assert records(kernel) == []


def test_a_flavour_with_aliases_has_the_best_of_its_own_and_then_its_fallback(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    best = FakeDriver("net-dpdk", "net_dpdk")
    kernel.add_module(best, alias=DPDK_ALIAS)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=VFIO_ALIAS)
    engine = make_engine(kernel, policy())
    assert ask(engine, DPDK).driver == "net-dpdk"
    assert engine.device(ADDRESS).flavour == "dpdk"
    ask(engine, Flavour.NATIVE)
    best.probe_errno = errno.EINVAL
    outcome = ask(engine, DPDK)
    assert (outcome.driver, outcome.fallback, outcome.flavour) == ("igb_uio", True, "dpdk")
    ask(engine, Flavour.NATIVE)
    assert has(device) == NATIVE


def test_from_one_flavour_to_the_next_and_home_to_what_was_at_first(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    device.override = "e1000e"
    engine = make_engine(kernel, policy())
    for flavour in (UIO, Flavour.VFIO, DPDK, Flavour.VFIO, UIO):
        assert ask(engine, flavour).flavour == flavour
        assert engine.device(ADDRESS).flavour == flavour
    ask(engine, Flavour.NATIVE)
    assert has(device) == ("e1000e", "e1000e")
    assert records(kernel) == []


def test_a_flavour_that_can_not_be_had_leaves_the_device_as_it_was(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.modules["uio_pci_generic"].drivers[0].probe_errno = errno.ENODEV
    error = refused(make_engine(kernel, policy()), UIO)
    assert "no uio driver took it" in str(error)
    assert "it has e1000e again" in str(error)
    assert has(device) == NATIVE


def test_the_flavour_it_has_is_not_made_anew(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel, policy())
    ask(engine, UIO)
    kernel.writes.clear()
    kernel.users[device.address] = (User(Use.OPEN, "testpmd (pid 7) has /dev/uio0 open"),)
    assert not ask(engine, UIO).changed
    assert kernel.writes == []
    assert "testpmd (pid 7)" in str(refused(engine, Flavour.VFIO))
    assert "testpmd (pid 7)" in str(refused(engine, Flavour.NATIVE))
    assert kernel.writes == []


def test_only_vfio_needs_an_iommu(kernel: FakeKernel) -> None:
    device = kernel.add_device(group=None)
    kernel.add_native(device)
    engine = make_engine(kernel, policy())
    assert "no IOMMU group" in str(refused(engine, Flavour.VFIO))
    assert ask(engine, UIO).driver == "uio_pci_generic"
    assert ask(engine, Flavour.NATIVE).driver == "e1000e"


def test_only_vfio_asks_what_the_others_of_its_group_have(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    sibling = kernel.add_device("0000:01:00.1", device=0x1533)
    kernel.add_native(device)
    kernel.add_native(sibling, "igb")
    engine = make_engine(kernel, policy())
    ask(engine, UIO)
    # To a guest it is a host driver like any: it does DMA of its own.
    request = Request(parse_address(sibling.address), Flavour.VFIO)
    with pytest.raises(FlavourError, match=r"0000:01:00\.0 \(uio_pci_generic\) has a host driver"):
        run_at_once(engine.set_flavour(request, lambda _: None))


@pytest.mark.parametrize("flavour", ["uio_pci", "Vfio", "", "purple\n", "x" * 10_240])
def test_an_unknown_flavour_is_einval_and_told_which_there_are(kernel: FakeKernel, flavour: str) -> None:
    kernel.add_native(kernel.add_device())
    engine = make_engine(kernel, policy())
    assert engine.flavours == ("native", "vfio", "uio", "dpdk")
    with pytest.raises(FlavourError) as caught:
        parse_flavour(flavour, engine.flavours)
    assert caught.value.errno == errno.EINVAL
    assert "allowed: native, vfio, uio or dpdk" in caught.value.hint
    assert len(str(caught.value)) < 120
    # Also where a door did not ask: the policy may have changed since.
    error = refused(engine, Flavour(flavour))
    assert (error.errno, error.hint) == (errno.EINVAL, caught.value.hint)
    with pytest.raises(FlavourError) as caught:
        run_at_once(engine.plan(Request(ADDRESS, Flavour(flavour))))
    assert caught.value.errno == errno.EINVAL
    assert kernel.writes == []


def bind_by_others(kernel: FakeKernel, device: FakeDevice, driver: str) -> None:
    kernel.load(driver)
    if device.driver is not None:
        kernel.release(device)
    device.override = driver
    kernel.probe(kernel.drivers[driver], device)


def test_what_others_gave_a_flavour_is_shown_as_that_and_goes_to_the_kernels_choice(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    bind_by_others(kernel, device, "uio_pci_generic")
    kernel.add_native(device)
    engine = make_engine(kernel, policy())
    assert engine.device(ADDRESS).flavour == "uio"
    assert make_engine(kernel).device(ADDRESS).flavour == Flavour.NATIVE  # a host driver to any other policy
    assert ask(engine, Flavour.NATIVE).driver == "e1000e"
    assert has(device) == NATIVE


def test_where_the_kernels_choice_has_that_flavour_too_native_is_not_said_to_be_had(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    kernel.modules["uio_pci_generic"].drivers[0].ids = frozenset({(device.vendor, device.device)})
    bind_by_others(kernel, device, "uio_pci_generic")
    error = refused(make_engine(kernel, policy()), Flavour.NATIVE)
    assert (error.code, error.errno) == (Code.STILL_NOT_NATIVE, errno.EIO)
    assert "the kernel chose uio_pci_generic, so it is still uio" in str(error)
    assert "`vfio-pci ids=`" in error.hint
    assert has(device) == ON_UIO


def test_the_policy_applies_a_flavour_of_its_own_and_reset_goes_back_to_it(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    rule = Rule("a rule", Match(device=(0x10D3,)), "uio", (), QUICK, None, "x.yaml:1")

    async def run() -> None:
        engine = make_engine(kernel, policy(rule))
        await engine.reconciler.start()
        await asyncio.sleep(1)
        assert has(device) == ON_UIO
        await engine.set_flavour(Request(ADDRESS, Flavour.VFIO), lambda _: None)
        assert has(device) == ON_VFIO
        outcome = await engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None)
        assert outcome.flavour == "uio"
        assert has(device) == ON_UIO

    run_at_once(run())


def test_a_wish_for_a_flavour_that_the_policy_no_longer_has_is_no_wish(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        engine = make_engine(kernel, policy())
        await engine.reconciler.start()
        await engine.set_flavour(Request(ADDRESS, UIO, persist=True), lambda _: None)
        await engine.settle(1.0)
        without = make_engine(kernel, Policy(defaults=QUICK))
        await without.reconciler.start()
        without.reconciler.consider_all()
        without.reconciler.reload()
        await asyncio.sleep(600)
        without.devices()
        assert has(device) == ON_UIO
        assert list(without.attempts.history) == []
        await without.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None)
        assert has(device) == NATIVE

    run_at_once(run())
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("goes_on", [False, True], ids=["the worker dies too", "the worker goes on"])
@pytest.mark.parametrize(
    "way", [(Flavour.NATIVE, UIO), (UIO, Flavour.NATIVE), (Flavour.VFIO, UIO), (UIO, Flavour.VFIO)]
)
def test_killed_at_any_step_of_a_switch_to_or_from_it_a_device_is_somewhere_that_can_be_named(
    tmp_path: Path, way: tuple[Flavour, Flavour], goes_on: bool
) -> None:
    number = 0
    while True:
        kernel = make_kernel(tmp_path / str(number))
        device = kernel.add_device()
        kernel.add_native(device)
        if way[0] != Flavour.NATIVE:
            ask(make_engine(kernel, policy()), way[0])
        engine = make_engine(kernel, policy())
        kernel.crash_after, kernel.batch_goes_on = number, goes_on
        try:
            ask(engine, way[1])
        except Crash:
            kernel.crash_after = None
        else:
            break

        async def restart(kernel: FakeKernel) -> Engine:
            engine = make_engine(kernel, policy())
            engine.recover()
            await asyncio.gather(*pending(engine))
            return engine

        engine = run_at_once(restart(kernel))
        assert has(device) in (NATIVE, ON_UIO, ON_VFIO)
        assert engine.device(ADDRESS).flavour in way, "it is neither what it was nor what was asked for"
        ask(engine, Flavour.NATIVE)
        assert has(device) == NATIVE
        assert records(kernel) == []
        number += 1
    assert number >= 5


def test_all_of_a_group_get_a_flavour_of_the_policys_own_together(kernel: FakeKernel) -> None:
    devices = [kernel.add_device(), kernel.add_device("0000:01:00.1")]
    kernel.add_native(devices[0])
    engine = make_engine(kernel, policy())
    outcome = ask(engine, UIO, others=OthersInGroup.TOGETHER)
    assert [each.flavour for each in outcome.others] == ["uio"]
    assert [has(each) for each in devices] == [ON_UIO, ON_UIO]
    ask(engine, Flavour.NATIVE, others=OthersInGroup.TOGETHER)
    assert [has(each) for each in devices] == [NATIVE, NATIVE]


# personalities


class Vgpu:
    """nvidia's virtual functions: `nvidia/current_vgpu_type` makes one of them a VFIO device."""

    def __init__(self, kernel: FakeKernel, personality: Personality = VGPU, *, answers: bool = True) -> None:
        self.device = kernel.add_device(vendor=0x10DE, device=0x2236, class_code=0x030200)
        kernel.add_native(self.device, "nvidia")
        self.attribute = kernel.path(self.device) / personality.attribute
        self.attribute.parent.mkdir(parents=True, exist_ok=True)
        self.attribute.write_text(personality.off + "\n", encoding="ascii")
        self.written: list[str] = []
        self.refused: tuple[str, ...] = ()
        self.answers = answers
        real = kernel.write
        ready = kernel.path(self.device) / personality.ready

        async def write(path: str, text: str) -> None:
            if not path.endswith(f"/{personality.attribute}"):
                await real(path, text)
                return
            self.written.append(text)
            if text.strip() in self.refused:
                raise OSError(errno.EBUSY, "refused")
            self.attribute.write_text(text, encoding="ascii")
            if not self.answers:
                return
            if text.strip() == personality.on:
                kernel.add_vfio_device(self.device)
                if personality.ready != "vfio-dev":
                    ready.write_text("", encoding="ascii")
            elif (kernel.path(self.device) / "vfio-dev").exists():
                kernel.remove_vfio_device(self.device)
                if personality.ready != "vfio-dev":
                    ready.unlink()

        kernel.write = write  # type: ignore[method-assign]


@pytest.mark.parametrize("ready", ["vfio-dev", "nvidia/creatable"])
def test_a_personality_of_the_policy_is_asked_by_its_own_attribute_and_values(
    kernel: FakeKernel, ready: str
) -> None:
    personality = Personality("nvidia", "nvidia/current_vgpu_type", "558", "0", ready)
    vgpu = Vgpu(kernel, personality)
    engine = make_engine(kernel, policy(personalities=(personality, ENABLE_VFIO)))
    assert run_at_once(engine.plan(Request(ADDRESS, Flavour.VFIO))) == [
        "write 558 to nvidia/current_vgpu_type of nvidia, which is not unbound"
    ]
    outcome = ask(engine, Flavour.VFIO)
    assert (outcome.driver, outcome.flavour, outcome.vfio_device) == ("nvidia", "vfio", "vfio0")
    assert engine.device(ADDRESS).flavour == Flavour.VFIO
    assert ask(engine, Flavour.NATIVE).flavour == Flavour.NATIVE
    assert vgpu.written == ["558\n", "0\n"]
    assert kernel.writes == []
    assert has(vgpu.device) == ("nvidia", None)
    assert records(kernel) == []


def test_a_personality_is_of_the_driver_that_it_is_for(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    attribute = kernel.path(device) / VGPU.attribute
    attribute.parent.mkdir()
    attribute.write_text("0\n", encoding="ascii")
    outcome = ask(make_engine(kernel, policy(personalities=(VGPU,))), Flavour.VFIO)
    assert outcome.driver == "vfio-pci"
    assert attribute.read_text(encoding="ascii") == "0\n"


def test_a_personality_that_takes_the_value_and_makes_nothing_of_it_is_a_timeout(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel, answers=False)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    error = refused(engine, Flavour.VFIO)
    assert error.errno == errno.ETIMEDOUT
    assert "nvidia took 558 in nvidia/current_vgpu_type, but no VFIO device appeared" in str(error)
    assert str(error).endswith("; it has nvidia as before")
    assert vgpu.written == ["558\n", "0\n"]
    (attempt,) = engine.attempts.history
    assert [(step.what, step.error) for step in attempt.steps if step.action is StepAction.WAIT] == [
        ("wait for its driver", "it has not changed"),
        ("wait for its driver", ""),
    ]
    assert [step.what for step in attempt.steps if step.phase is Phase.UNDOING][:1] == [
        "write 0 to nvidia/current_vgpu_type"
    ]
    assert has(vgpu.device) == ("nvidia", None)
    assert engine.device(ADDRESS).flavour == Flavour.NATIVE
    assert records(kernel) == []


def test_a_personality_that_does_not_cease_in_time_is_asked_to_stay_as_it_was(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    ask(engine, Flavour.VFIO)
    kernel.remove_vfio_device = lambda device: None  # type: ignore[method-assign]
    kernel.add_vfio_device = lambda device: None  # type: ignore[method-assign]
    error = refused(engine, Flavour.NATIVE)
    assert error.code == Code.TIMED_OUT
    assert str(error).endswith("but its VFIO device is still there; it has nvidia as before")
    assert vgpu.written == ["558\n", "0\n", "558\n"]
    status = engine.device(ADDRESS)
    assert (status.flavour, status.held, status.device.vfio_device) == (Flavour.VFIO, True, "vfio0")


def test_a_personality_is_not_said_to_have_ceased_while_its_vfio_device_is_there(kernel: FakeKernel) -> None:
    """What tells that it is ready may go first."""
    personality = Personality("nvidia", "nvidia/current_vgpu_type", "558", "0", "nvidia/creatable")
    vgpu = Vgpu(kernel, personality)
    engine = make_engine(kernel, policy(personalities=(personality,)))
    ask(engine, Flavour.VFIO)
    remove = kernel.remove_vfio_device
    kernel.add_vfio_device = lambda device: None  # type: ignore[method-assign]

    def remove_late(device: FakeDevice, pause: float) -> None:
        def run() -> None:
            remove(device)
            engine.notice(ADDRESS)

        asyncio.get_running_loop().call_later(pause, run)

    kernel.remove_vfio_device = lambda device: remove_late(device, 60)  # type: ignore[method-assign]
    error = refused(engine, Flavour.NATIVE)
    assert error.code == Code.TIMED_OUT
    assert str(error).endswith("but its VFIO device is still there; it has nvidia as before")
    assert vgpu.written == ["558\n", "0\n", "558\n"]
    assert engine.device(ADDRESS).flavour == Flavour.VFIO

    kernel.remove_vfio_device = lambda device: remove_late(device, 0.5)  # type: ignore[method-assign]
    outcome = ask(engine, Flavour.NATIVE)
    assert (outcome.flavour, outcome.vfio_device) == (Flavour.NATIVE, None)
    assert records(kernel) == []


def test_a_personality_that_is_asked_back_has_its_full_time_when_the_request_has_run_out_of_its_own(
    kernel: FakeKernel,
) -> None:
    vgpu = Vgpu(kernel, answers=False)
    engine = make_engine(kernel, policy(personalities=(VGPU,), settings=Settings(1.0, 5.0)))
    real = kernel.write

    async def write(path: str, text: str) -> None:
        if text.strip() == "0":  # it makes one of itself by then, and takes its time to be rid of that
            kernel.add_vfio_device(vgpu.device)
            asyncio.get_running_loop().call_later(3, leave)
        await real(path, text)

    def leave() -> None:
        kernel.remove_vfio_device(vgpu.device)
        engine.notice(ADDRESS)

    kernel.write = write  # type: ignore[method-assign]
    error = refused(engine, Flavour.VFIO, timeout=1.0)
    assert (error.code, vgpu.written) == (Code.TIMED_OUT, ["558\n", "0\n"])
    assert str(error).endswith("; it has nvidia as before")
    assert engine.device(ADDRESS).flavour == Flavour.NATIVE
    assert records(kernel) == []


def test_a_personality_that_can_not_be_asked_back_is_told_of_and_a_reset_tries_again(
    kernel: FakeKernel,
) -> None:
    vgpu = Vgpu(kernel, answers=False)
    vgpu.refused = ("0",)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    error = refused(engine, Flavour.VFIO)
    assert (error.code, error.errno) == (Code.NOT_PUT_BACK, errno.ETIMEDOUT)
    assert "and it could not be put back: 'write 0 to nvidia/current_vgpu_type' failed" in str(error)
    assert error.hint == f"flavourctl reset {ADDRESS} tries again"
    assert records(kernel) == [f"{ADDRESS}.json"]

    vgpu.refused = ()
    assert run_at_once(engine.plan(Request(ADDRESS, Flavour.NATIVE))) == [
        "write 0 to nvidia/current_vgpu_type of nvidia, which is not unbound"
    ]
    run_at_once(engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None))
    assert vgpu.written == ["558\n", "0\n", "0\n"]
    assert records(kernel) == []


def test_a_vfio_device_that_appears_while_its_driver_is_asked_back_goes_again(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel, answers=False)
    real = kernel.write

    async def write(path: str, text: str) -> None:
        if text.strip() == "0":
            kernel.add_vfio_device(vgpu.device)
            asyncio.get_running_loop().call_later(0.5, leave)
        await real(path, text)

    def leave() -> None:
        kernel.remove_vfio_device(vgpu.device)
        engine.notice(ADDRESS)

    kernel.write = write  # type: ignore[method-assign]
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    error = refused(engine, Flavour.VFIO)
    assert (error.code, vgpu.written) == (Code.TIMED_OUT, ["558\n", "0\n"])
    assert engine.device(ADDRESS).flavour == Flavour.NATIVE
    assert records(kernel) == []


def test_a_vfio_device_that_appears_after_its_driver_was_asked_back_can_be_asked_back_again(
    kernel: FakeKernel,
) -> None:
    vgpu = Vgpu(kernel, answers=False)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    refused(engine, Flavour.VFIO)
    kernel.add_vfio_device(vgpu.device)
    assert engine.device(ADDRESS).flavour == Flavour.VFIO
    vgpu.answers = True
    assert ask(engine, Flavour.NATIVE).vfio_device is None
    assert vgpu.written == ["558\n", "0\n", "0\n"]


def test_a_personality_that_changes_later_is_waited_for(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel, answers=False)

    async def run() -> None:
        engine = make_engine(kernel, policy(personalities=(VGPU,)))

        def appear() -> None:
            kernel.add_vfio_device(vgpu.device)
            engine.notice(ADDRESS)

        asyncio.get_running_loop().call_later(0.5, appear)
        outcome = await engine.set_flavour(Request(ADDRESS, Flavour.VFIO), lambda _: None)
        assert outcome.vfio_device == "vfio0"
        last = outcome.steps[-1]
        assert (last.action, last.what, last.error) == (StepAction.WAIT, "wait for its driver", "")
        assert last.duration < 1

    run_at_once(run())


def test_a_personality_is_asked_back_as_it_was_asked_though_the_policy_has_changed(
    kernel: FakeKernel,
) -> None:
    vgpu = Vgpu(kernel)
    ask(make_engine(kernel, policy(personalities=(VGPU,))), Flavour.VFIO)
    (kernel.path(vgpu.device) / "other").write_text("0\n", encoding="ascii")
    other = Personality("nvidia", "other", on="1", off="0")
    assert ask(make_engine(kernel, policy(personalities=(other,))), Flavour.NATIVE).flavour == Flavour.NATIVE
    assert vgpu.written == ["558\n", "0\n"]


def test_a_reset_asks_a_personality_back(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    ask(engine, Flavour.VFIO)
    outcome = run_at_once(engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None))
    assert (outcome.driver, outcome.flavour, outcome.vfio_device) == ("nvidia", Flavour.NATIVE, None)
    assert vgpu.written == ["558\n", "0\n"]
    assert records(kernel) == []


def test_a_reset_asks_a_personality_to_be_what_it_was_before_anyone_here_saw_it(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel)
    kernel.add_vfio_device(vgpu.device)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    ask(engine, Flavour.NATIVE)
    assert records(kernel) == [f"{ADDRESS}.json"]
    outcome = run_at_once(engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None))
    assert (outcome.flavour, outcome.driver, outcome.changed) == (Flavour.VFIO, "nvidia", True)
    assert vgpu.written == ["0\n", "558\n"]
    assert engine.device(ADDRESS).flavour == Flavour.VFIO
    assert records(kernel) == []


def test_a_reset_leaves_a_personality_that_somebody_else_has_made_what_it_was(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel)
    kernel.add_vfio_device(vgpu.device)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    ask(engine, Flavour.NATIVE)
    kernel.add_vfio_device(vgpu.device)
    outcome = run_at_once(engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None))
    assert (outcome.flavour, outcome.changed) == (Flavour.VFIO, False)
    assert vgpu.written == ["0\n"]


def test_a_reset_asks_a_personality_again_to_be_what_it_was_where_that_failed(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel, answers=False)
    kernel.add_vfio_device(vgpu.device)
    vgpu.refused = ("558",)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    assert refused(engine, Flavour.NATIVE).code == Code.NOT_PUT_BACK
    vgpu.refused = ()
    outcome = run_at_once(engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None))
    assert outcome.flavour == Flavour.VFIO
    assert vgpu.written == ["0\n", "558\n", "558\n"]
    assert records(kernel) == []


def test_a_driver_of_which_nobody_knows_how_to_ask_it_back_is_left_alone_and_it_is_said_what_to_do(
    kernel: FakeKernel,
) -> None:
    vgpu = Vgpu(kernel)
    kernel.add_vfio_device(vgpu.device)
    error = refused(make_engine(kernel, policy()), Flavour.NATIVE)
    what = "nvidia made it a VFIO device itself, and no attribute is known to take that back"
    assert str(error) == f"{ADDRESS}: {what}"
    assert (error.code, error.errno) == (Code.DRIVER_STAYS_BOUND, errno.EIO)
    assert "`personalities`" in error.hint
    assert (vgpu.written, kernel.writes) == ([], [])
    assert has(vgpu.device) == ("nvidia", None)


def test_a_personality_of_somebody_elses_doing_is_asked_back(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel)
    kernel.add_vfio_device(vgpu.device)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    assert engine.device(ADDRESS).flavour == Flavour.VFIO
    ask(engine, Flavour.NATIVE)
    assert vgpu.written == ["0\n"]
    assert has(vgpu.device) == ("nvidia", None)


@pytest.mark.parametrize("flavour", [UIO, DPDK])
@pytest.mark.parametrize("is_vfio", [False, True])
def test_a_driver_with_a_personality_is_not_unbound_for_another_flavour_either(
    kernel: FakeKernel, flavour: Flavour, is_vfio: bool
) -> None:
    vgpu = Vgpu(kernel)
    engine = make_engine(kernel, policy(personalities=(VGPU,)))
    if is_vfio:
        ask(engine, Flavour.VFIO)
    error = refused(engine, flavour, force=True)
    assert error.errno == errno.EINVAL
    assert "is never unbound" in str(error)
    with pytest.raises(FlavourError, match="is never unbound"):
        run_at_once(engine.plan(Request(ADDRESS, flavour)))
    assert kernel.writes == []
    assert has(vgpu.device) == ("nvidia", None)


def test_a_driver_that_the_policy_names_is_of_no_concern_to_a_personality(kernel: FakeKernel) -> None:
    vgpu = Vgpu(kernel)
    rule = Rule("a rule", Match(vendor=(0x10DE,)), "vfio", ("vfio_pci",), QUICK, None, "x.yaml:1")

    async def run() -> None:
        engine = make_engine(kernel, policy(rule, personalities=(VGPU,)))
        await engine.reconciler.start()
        engine.reconciler.consider_all()
        await asyncio.sleep(600)
        assert vgpu.written == ["558\n"]
        assert engine.device(ADDRESS).remarks == ()
        assert len(engine.attempts.history) == 1
        engine.reconciler.reload()
        await asyncio.sleep(600)
        assert len(engine.attempts.history) == 1

    run_at_once(run())


def test_auto_is_no_drivers_name_but_the_best_ones(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=VFIO_ALIAS)
    engine = make_engine(kernel, policy())
    assert ask(engine, Flavour.VFIO, "auto").driver == "good"
    assert "'auto' is named beside other drivers" in str(refused(engine, Flavour.VFIO, "auto", "vfio-pci"))


def test_no_driver_can_be_named_for_native_and_that_is_said(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel, policy())
    ask(engine, Flavour.VFIO)
    error = refused(engine, Flavour.NATIVE, "igb")
    assert (error.code, error.errno) == (Code.INVALID_ARGUMENT, errno.EINVAL)
    assert "no driver can be named for native" in str(error)
    with pytest.raises(FlavourError, match="no driver can be named for native"):
        run_at_once(engine.plan(Request(ADDRESS, Flavour.NATIVE, ("igb",))))
    assert has(device) == ON_VFIO
