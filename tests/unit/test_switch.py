"""Every move of the switch, and its undo, on the fake kernel."""

import asyncio
import errno

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, before_write, has, make_engine, pending

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request, StepAction, StepBegun, StepReport
from vfio_flavourd.model.policy import OthersInGroup
from vfio_flavourd.model.udev_rules import PLACEHOLDER

VARIANT_ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
BOARD_ALIAS = "vfio_pci:v00008086d000010D3sv00001AF4sd00001100bc*sc*i*"


def intrude_before(kernel: FakeKernel, device: FakeDevice, attribute: str) -> None:
    """Somebody else gives the device a driver of his, right before that write."""
    intruder = FakeDriver("intruder", None)
    kernel.register(intruder)

    def intrude() -> None:
        kernel.release(device)
        device.override = "intruder"
        kernel.probe(intruder, device)

    before_write(kernel, attribute, intrude)


async def all_over(engine: Engine) -> None:
    async with asyncio.timeout(10):
        while tasks := pending(engine):
            await asyncio.gather(*tasks)


def switch(
    engine: Engine,
    flavour: Flavour,
    address: str = "0000:01:00.0",
    *drivers: str,
    timeout: float | None = None,
) -> Outcome:
    async def run() -> Outcome:
        request = Request(parse_address(address), flavour, drivers, timeout, "a test")
        return await engine.set_flavour(request, lambda _: None)

    return asyncio.run(run())


def refuse(engine: Engine, flavour: Flavour, address: str = "0000:01:00.0", *drivers: str) -> FlavourError:
    with pytest.raises(FlavourError) as caught:
        switch(engine, flavour, address, *drivers)
    return caught.value


def test_the_best_variant_gets_the_device_under_its_drivers_own_name(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("good-vfio-pci", "good_vfio", vfio=True), alias=VARIANT_ALIAS)
    outcome = switch(make_engine(kernel), Flavour.VFIO)
    assert (outcome.driver, outcome.previous_driver, outcome.fallback) == ("good-vfio-pci", "e1000e", False)
    assert (outcome.vfio_device, outcome.group_node) == ("vfio0", "/dev/vfio/7")
    assert (outcome.flavour, outcome.changed) == (Flavour.VFIO, True)
    assert outcome.reason == "good_vfio: matches vendor, device"
    assert has(device) == ("good-vfio-pci", "good-vfio-pci")
    assert "vfio_pci" not in [path.name for path in (kernel.root / "sys/module").iterdir()]


def test_the_device_loses_its_driver_only_after_the_new_one_is_loaded_and_named(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    switch(make_engine(kernel), Flavour.VFIO)
    path = f"/sys/devices/pci0000:00/{device.address}"
    assert kernel.writes == [
        f"{path}/driver_override vfio-pci",
        f"drivers/e1000e/unbind {device.address}",
        f"drivers/vfio-pci/bind {device.address}",
    ]


def test_native_brings_back_the_very_driver_and_an_empty_override(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    outcome = switch(engine, Flavour.NATIVE)
    assert (outcome.driver, outcome.flavour) == ("e1000e", Flavour.NATIVE)
    assert (outcome.reason, outcome.fallback) == ("what the device had before", False)
    assert (outcome.vfio_device, outcome.group_node) == (None, None)
    assert has(device) == ("e1000e", None)


def test_an_override_that_was_there_before_comes_back(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    other = FakeDriver("mine", "mine")
    kernel.add_module(other)
    device.override = "mine"
    kernel.load("mine")
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    switch(engine, Flavour.NATIVE)
    assert has(device) == ("mine", "mine")


def test_a_device_without_a_driver_has_none_again(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    outcome = switch(engine, Flavour.NATIVE)
    assert (outcome.driver, outcome.reason) == (None, "the device had no driver before")
    assert has(device) == (None, None)


def test_a_vf_that_may_not_probe_by_itself_gets_its_native_driver_back(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    device.can_probe = False  # the PF's sriov_drivers_autoprobe is 0
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    switch(engine, Flavour.NATIVE)
    assert has(device) == ("e1000e", None)


def test_a_native_driver_that_was_unloaded_meanwhile_is_loaded_again(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    kernel.unload("e1000e")
    switch(engine, Flavour.NATIVE)
    assert has(device) == ("e1000e", None)


def test_a_variant_that_cannot_be_loaded_gives_way_to_vfio_pci_and_says_why(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(name="bad_vfio", alias=VARIANT_ALIAS, status=1, said="modprobe: ERROR: no such luck")
    outcome = switch(make_engine(kernel), Flavour.VFIO)
    assert (outcome.driver, outcome.fallback) == ("vfio-pci", True)
    assert "bad_vfio: no such luck" in outcome.reason
    assert has(device) == ("vfio-pci", "vfio-pci")


def test_that_the_generic_driver_had_to_do_is_told_as_long_as_it_has_the_device(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(name="bad_vfio", alias=VARIANT_ALIAS, status=1)
    engine = make_engine(kernel)
    assert switch(engine, Flavour.VFIO).fallback
    again = switch(engine, Flavour.VFIO)
    assert (again.changed, again.fallback) == (False, True)
    by_name = switch(engine, Flavour.VFIO, device.address, "bad_vfio")
    assert (by_name.changed, by_name.fallback) == (False, True)
    assert not switch(engine, Flavour.VFIO, device.address, "vfio-pci").fallback  # just what was asked for
    assert [attempt.fallback for attempt in engine.attempts.history] == [True, False, False, False]


def test_a_modprobe_that_says_ok_and_loads_nothing_is_not_believed(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    kernel.add_module(name="empty_vfio", alias=VARIANT_ALIAS)
    outcome = switch(make_engine(kernel), Flavour.VFIO)
    assert outcome.driver == "vfio-pci"
    assert "not there" in outcome.reason


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENODEV, "No such device (ENODEV)"),
        (errno.EINVAL, "Invalid argument (EINVAL)"),
        (errno.EBUSY, "Device or resource busy (EBUSY)"),
        (517, "Resource temporarily unavailable (EAGAIN)"),  # EPROBE_DEFER
        (524, "Unknown error 524 (524)"),  # ENOTSUPP, which no program should see
    ],
)
def test_a_probe_that_refuses_gives_way_to_the_next_candidate(
    kernel: FakeKernel, code: int, told: str
) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("board", "board_vfio", vfio=True, probe_errno=code), alias=BOARD_ALIAS)
    kernel.add_module(FakeDriver("second", "second_vfio", vfio=True), alias=VARIANT_ALIAS)
    outcome = switch(make_engine(kernel), Flavour.VFIO)
    assert outcome.driver == "second"
    assert not outcome.fallback
    assert f"board_vfio refused: {told}" in outcome.reason
    assert has(device) == ("second", "second")


def test_when_all_refuse_the_device_is_as_it_was_and_the_whole_story_is_told(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("bad", "bad_vfio", vfio=True, probe_errno=errno.EINVAL), alias=VARIANT_ALIAS)
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY
    error = refuse(make_engine(kernel), Flavour.VFIO)
    assert error.errno == errno.EBUSY
    assert "bad_vfio refused: Invalid argument (EINVAL)" in str(error)
    assert "vfio_pci refused: Device or resource busy (EBUSY)" in str(error)
    assert "it has e1000e again" in str(error)
    assert has(device) == ("e1000e", None)
    assert not list((kernel.root / "run/devices").glob("*.json"))


def test_when_all_refuse_a_device_without_a_driver_has_none_again_and_it_is_said(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY
    error = refuse(make_engine(kernel), Flavour.VFIO)
    assert str(error).endswith("; it has no driver, as before")
    assert error.code == Code.NO_DRIVER_TOOK_IT
    assert has(device) == (None, None)


def test_a_driver_that_takes_the_device_without_a_vfio_device_is_not_a_success(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("hollow", "hollow_vfio"), alias=VARIANT_ALIAS)
    outcome = switch(make_engine(kernel), Flavour.VFIO)
    assert outcome.driver == "vfio-pci"
    assert "no VFIO device appeared" in outcome.reason
    assert has(device) == ("vfio-pci", "vfio-pci")


def test_where_the_last_of_them_makes_no_vfio_device_the_device_is_as_it_was(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.modules["vfio_pci"].drivers[0].vfio = False
    error = refuse(make_engine(kernel), Flavour.VFIO)
    assert "vfio_pci took the device, but no VFIO device appeared; it has e1000e again" in str(error)
    assert (error.code, error.errno) == (Code.NO_DRIVER_TOOK_IT, errno.EIO)
    assert has(device) == ("e1000e", None)


def test_a_module_that_hangs_gives_way_in_time_and_is_not_started_twice(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    other = kernel.add_device("0000:02:00.0", group=8)
    kernel.add_native(device)

    async def run() -> list[Outcome]:
        kernel.add_module(
            FakeDriver("slow", "slow_vfio", vfio=True), alias=VARIANT_ALIAS, hang=asyncio.Event()
        )
        engine = make_engine(kernel, load=0.05)
        requests = [Request(parse_address(each.address), Flavour.VFIO) for each in (device, other)]
        return [await engine.set_flavour(request, lambda _: None) for request in requests]

    for outcome in asyncio.run(run()):
        assert outcome.driver == "vfio-pci"
        assert "slow_vfio: " in outcome.reason
    assert kernel.modules["slow_vfio"].loads == 1


def test_a_late_variant_does_not_take_the_device_from_the_fallback(kernel: FakeKernel) -> None:
    device = kernel.add_device()

    async def run() -> None:
        hang = asyncio.Event()
        kernel.add_module(FakeDriver("slow", "slow_vfio", vfio=True), alias=VARIANT_ALIAS, hang=hang)
        await make_engine(kernel, load=0.05).set_flavour(
            Request(parse_address(device.address), Flavour.VFIO), lambda _: None
        )
        hang.set()
        async with asyncio.timeout(30):
            while "slow" not in kernel.drivers:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert has(device) == ("vfio-pci", "vfio-pci")


def test_writing_the_flavour_it_has_touches_nothing(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel)
    assert not switch(engine, Flavour.NATIVE).changed
    switch(engine, Flavour.VFIO)
    before = list(kernel.writes)
    outcome = switch(engine, Flavour.VFIO)
    assert outcome.changed is False
    assert (outcome.flavour, outcome.driver, outcome.vfio_device) == (Flavour.VFIO, "vfio-pci", "vfio0")
    assert (outcome.previous_driver, outcome.reason) == ("vfio-pci", "the device had this flavour already")
    assert kernel.writes == before


def test_a_bridge_is_refused(kernel: FakeKernel) -> None:
    kernel.add_device(class_code=0x060400)
    error = refuse(make_engine(kernel), Flavour.VFIO)
    assert error.errno == errno.EBUSY
    assert "bridge" in str(error)
    assert kernel.writes == []


def test_a_device_without_an_iommu_group_is_refused(kernel: FakeKernel) -> None:
    kernel.add_device(group=None)
    error = refuse(make_engine(kernel), Flavour.VFIO)
    assert "no IOMMU group" in str(error)
    assert "IOMMU" in error.hint
    assert kernel.writes == []


def test_a_device_that_does_not_exist_is_enodev(kernel: FakeKernel) -> None:
    assert refuse(make_engine(kernel), Flavour.VFIO, "0000:0f:00.0").errno == errno.ENODEV


def test_a_device_unplugged_in_the_middle_is_enodev_and_leaves_no_record(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(
        FakeDriver("good", "good_vfio", vfio=True, on_probe=kernel.remove_device), alias=VARIANT_ALIAS
    )
    error = refuse(make_engine(kernel), Flavour.VFIO)
    assert (error.code, error.errno) == (Code.DEVICE_GONE, errno.ENODEV)
    assert "went away" in str(error)
    assert "when it is back" in error.hint
    assert not list((kernel.root / "run/devices").glob("*.json"))


def test_another_device_at_the_same_address_is_not_touched(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)

    def replace(old: FakeDevice) -> None:
        kernel.remove_device(old)
        kernel.add_device(device=0x1533)

    kernel.add_module(
        FakeDriver("bad", "bad_vfio", vfio=True, probe_errno=errno.EINVAL, on_probe=replace),
        alias=VARIANT_ALIAS,
    )
    assert refuse(make_engine(kernel), Flavour.VFIO).errno == errno.ENODEV
    assert has(kernel.devices[device.address]) == (None, None)


def test_a_driver_changed_by_somebody_else_meanwhile_is_left_alone(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    device.override = "e1000e"
    intrude_before(kernel, device, "/e1000e/unbind")
    engine = make_engine(kernel)

    async def run() -> None:
        await engine.set_flavour(Request(parse_address(device.address), Flavour.VFIO), lambda _: None)

    with pytest.raises(FlavourError, match="'unbind from e1000e' failed"):
        asyncio.run(run())
    assert has(device) == ("intruder", "e1000e")


def test_a_native_probe_that_fails_on_the_way_back_leaves_the_device_on_vfio(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    native = kernel.add_native(device)
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    native.probe_errno = errno.EIO
    error = refuse(engine, Flavour.NATIVE)
    assert "it has vfio-pci again" in str(error)
    assert has(device) == ("vfio-pci", "vfio-pci")
    native.probe_errno = 0
    switch(engine, Flavour.NATIVE)
    assert has(device) == ("e1000e", None)


def test_a_personality_is_asked_and_never_unbound(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device, "chameleon")
    (kernel.path(device) / "enable_vfio").write_text("0\n", encoding="ascii")
    engine = make_engine(kernel)
    outcome = switch(engine, Flavour.VFIO)
    assert (outcome.driver, outcome.flavour, outcome.vfio_device) == ("chameleon", Flavour.VFIO, "vfio0")
    outcome = switch(engine, Flavour.NATIVE)
    assert (outcome.driver, outcome.flavour) == ("chameleon", Flavour.NATIVE)
    path = f"/sys/devices/pci0000:00/{device.address}/enable_vfio"
    assert kernel.writes == [f"{path} 1", f"{path} 0"]
    assert not list((kernel.root / "run/devices").glob("*.json"))


def test_a_personality_that_refuses_is_left_as_it_is(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device, "chameleon")
    (kernel.path(device) / "enable_vfio").write_text("0\n", encoding="ascii")
    device.personality_errno = errno.EBUSY
    error = refuse(make_engine(kernel), Flavour.VFIO)
    assert (error.code, error.errno) == (Code.WRITE_REFUSED, errno.EBUSY)
    assert "dmesg" in error.hint
    assert has(device) == ("chameleon", None)
    assert not list((kernel.root / "run/devices").glob("*.json"))


def test_a_personality_that_never_becomes_ready_is_a_timeout(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device, "chameleon")
    (kernel.path(device) / "enable_vfio").write_text("0\n", encoding="ascii")
    kernel.add_vfio_device = lambda device: None  # type: ignore[method-assign]
    assert refuse(make_engine(kernel, bind=0.1), Flavour.VFIO).errno == errno.ETIMEDOUT


def test_a_personality_that_does_not_return_is_stuck_in_that_write(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device, "chameleon")
    attribute = kernel.path(device) / "enable_vfio"
    attribute.write_text("0\n", encoding="ascii")
    write = kernel.write

    async def run() -> None:
        returns = asyncio.Event()

        async def hang(path: str, text: str) -> None:
            await returns.wait()
            await write(path, text)

        kernel.write = hang  # type: ignore[method-assign]
        engine = make_engine(kernel, bind=0.1)
        request = Request(parse_address(device.address), Flavour.VFIO)
        with pytest.raises(FlavourError, match=r"'write 1 to enable_vfio' has not returned for 0\.1 s"):
            await engine.set_flavour(request, lambda _: None)
        assert engine.attempts.history[-1].steps[-1].action is StepAction.ASK
        returns.set()
        await all_over(engine)

    asyncio.run(run())


def test_a_driver_with_a_personality_is_not_unbound_for_a_named_driver(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device, "chameleon")
    (kernel.path(device) / "enable_vfio").write_text("0\n", encoding="ascii")
    assert refuse(make_engine(kernel), Flavour.VFIO, device.address, "vfio-pci").errno == errno.EINVAL
    assert kernel.writes == []


def test_a_named_driver_is_tried_first_and_only_the_fallback_after_it(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=VARIANT_ALIAS)
    outcome = switch(make_engine(kernel), Flavour.VFIO, device.address, "vfio-pci")
    assert outcome.driver == "vfio-pci"
    assert not outcome.fallback


def test_a_device_on_vfio_can_be_given_to_another_vfio_driver_and_still_goes_home(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=VARIANT_ALIAS)
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    assert switch(engine, Flavour.VFIO, device.address, "vfio-pci").previous_driver == "good"
    switch(engine, Flavour.NATIVE)
    assert has(device) == ("e1000e", None)


def test_a_device_that_others_put_on_vfio_goes_to_the_kernels_choice(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.load("vfio_pci")
    device.override = "vfio-pci"
    kernel.probe(kernel.drivers["vfio-pci"], device)
    kernel.add_native(device)
    outcome = switch(make_engine(kernel), Flavour.NATIVE)
    assert outcome.driver == "e1000e"
    assert has(device) == ("e1000e", None)


def test_a_device_on_a_vfio_pci_that_is_part_of_the_kernel_goes_back_too(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    built_in = FakeDriver("vfio-pci", None, vfio=True)
    kernel.register(built_in)
    kernel.release(device)
    device.override = "vfio-pci"
    kernel.probe(built_in, device)
    outcome = switch(make_engine(kernel), Flavour.NATIVE)
    assert outcome.driver == "e1000e"
    assert has(device) == ("e1000e", None)


def test_what_udev_would_load_is_loaded_before_a_device_is_left_to_the_kernels_choice(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    kernel.load("vfio_pci")
    device.override = "vfio-pci"
    kernel.probe(kernel.drivers["vfio-pci"], device)
    native = FakeDriver("e1000e", "e1000e", frozenset({(device.vendor, device.device)}))
    kernel.add_module(native)
    # As modprobe finds it.
    kernel.modules[device.modalias] = kernel.modules["e1000e"]
    told: list[StepBegun | StepReport] = []
    request = Request(parse_address(device.address), Flavour.NATIVE)
    outcome = asyncio.run(make_engine(kernel).set_flavour(request, told.append))
    assert (outcome.driver, outcome.flavour) == ("e1000e", Flavour.NATIVE)
    assert outcome.reason == "the kernel chose the driver: what the device had before is not recorded"
    assert (outcome.steps[1].action, outcome.steps[1].what) == (StepAction.LOAD, "load the native driver")
    assert told.index(StepBegun("load the native driver")) + 1 == told.index(outcome.steps[1])


def test_a_driver_that_comes_before_a_device_is_left_to_the_kernels_choice_keeps_it(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    kernel.load("vfio_pci")
    device.override = "vfio-pci"
    kernel.probe(kernel.drivers["vfio-pci"], device)
    intrude_before(kernel, device, "/vfio-pci/unbind")
    error = refuse(make_engine(kernel), Flavour.NATIVE)
    assert "'unbind from vfio-pci' failed" in str(error)
    assert has(device) == ("intruder", "vfio-pci")


def test_a_reset_with_nothing_recorded_says_so_and_touches_nothing(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel)
    outcome = asyncio.run(
        engine.reset(Request(parse_address(device.address), Flavour.NATIVE), lambda _: None)
    )
    assert (outcome.changed, outcome.reason) == (False, "nothing is recorded for this device")
    assert kernel.writes == []


def test_a_device_without_a_driver_that_is_held_is_stuck_when_it_is_to_be_native(kernel: FakeKernel) -> None:
    device = kernel.add_device()

    async def run() -> None:
        device.held = asyncio.Event()
        engine = make_engine(kernel, bind=0.05)
        request = Request(parse_address(device.address), Flavour.NATIVE)
        with pytest.raises(FlavourError) as caught:
            await engine.set_flavour(request, lambda _: None)
        assert (caught.value.code, caught.value.errno) == (Code.STUCK, errno.ETIMEDOUT)
        device.held.set()
        await asyncio.gather(*pending(engine))
        assert engine.device(request.address).stuck == ""

    asyncio.run(run())
    assert kernel.writes == []


def test_reset_restores_what_others_had_set_up_even_if_that_was_vfio(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.load("vfio_pci")
    device.override = "vfio-pci"
    kernel.probe(kernel.drivers["vfio-pci"], device)
    kernel.add_native(device)
    engine = make_engine(kernel)
    switch(engine, Flavour.NATIVE)

    async def reset() -> Outcome:
        return await engine.reset(Request(parse_address(device.address), Flavour.NATIVE), lambda _: None)

    assert asyncio.run(reset()).flavour == Flavour.VFIO
    assert has(device) == ("vfio-pci", "vfio-pci")
    assert not list((kernel.root / "run/devices").glob("*.json"))


def test_a_driver_that_gives_the_device_up_by_itself_is_no_reason_to_fail(kernel: FakeKernel) -> None:
    """As nvme does on 6.1, whose probe fails in the background."""
    device = kernel.add_device()
    kernel.add_native(device)
    real = kernel.write

    async def write(path: str, text: str) -> None:
        if path.endswith("e1000e/unbind"):
            kernel.release(device)
        await real(path, text)

    kernel.write = write  # type: ignore[method-assign]
    outcome = switch(make_engine(kernel), Flavour.VFIO)
    assert (outcome.driver, outcome.previous_driver) == ("vfio-pci", None)
    assert has(device) == ("vfio-pci", "vfio-pci")


def test_an_unbind_that_blocks_is_a_timeout_and_ends_by_itself_when_the_kernel_lets_go(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    other = kernel.add_device("0000:02:00.0", group=8)
    sibling = kernel.add_device("0000:01:00.1")
    native = kernel.add_native(device)

    async def run() -> None:
        native.remove_blocks = asyncio.Event()
        engine = make_engine(kernel, bind=0.1, group=0.1)
        request = Request(parse_address(device.address), Flavour.VFIO, others=OthersInGroup.IGNORE)
        with pytest.raises(FlavourError) as caught:
            await engine.set_flavour(request, lambda _: None)
        assert (caught.value.code, caught.value.errno) == (Code.STUCK, errno.ETIMEDOUT)
        assert "unbind from e1000e" in str(caught.value)
        assert "when the kernel returns" in caught.value.hint
        assert "unbind from e1000e" in engine.device(request.address).stuck
        with pytest.raises(FlavourError) as caught:
            await engine.set_flavour(request, lambda _: None)
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(FlavourError) as caught:
            await engine.set_flavour(Request(parse_address(sibling.address), Flavour.VFIO), lambda _: None)
        assert caught.value.errno == errno.EAGAIN
        blocks, native.remove_blocks = native.remove_blocks, None
        outcome = await engine.set_flavour(
            Request(parse_address(other.address), Flavour.VFIO), lambda _: None
        )
        assert outcome.driver == "vfio-pci"
        blocks.set()
        await all_over(engine)
        assert engine.device(request.address).stuck == ""
        assert has(device) == ("vfio-pci", "vfio-pci")
        await engine.set_flavour(Request(request.address, Flavour.NATIVE), lambda _: None)
        assert has(device) == ("e1000e", None)

    asyncio.run(run())


def test_one_group_switches_one_device_at_a_time_and_two_groups_side_by_side(kernel: FakeKernel) -> None:
    addresses = ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"]
    for address, group in zip(addresses, (1, 1, 2), strict=True):
        kernel.add_device(address, group=group)

    async def run() -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []
        hang = asyncio.Event()
        kernel.modules["vfio_pci"].hang = hang
        engine = make_engine(kernel)

        async def one(address: str) -> None:
            def report(step: StepBegun | StepReport) -> None:
                if isinstance(step, StepReport):
                    seen.append((address, step.what))

            await engine.set_flavour(Request(parse_address(address), Flavour.VFIO), report)

        tasks = [asyncio.create_task(one(address)) for address in addresses]

        def phases() -> list[str | None]:
            return [engine.device(parse_address(address)).phase for address in addresses]

        async with asyncio.timeout(10):
            while phases() != ["loading", None, "loading"]:  # noqa: ASYNC110 - nothing tells of a phase
                await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert phases() == ["loading", None, "loading"]
        hang.set()
        await asyncio.gather(*tasks)
        return seen

    seen = asyncio.run(run())
    first = [index for index, (address, _) in enumerate(seen) if address == addresses[0]]
    second = [index for index, (address, _) in enumerate(seen) if address == addresses[1]]
    assert max(first) < min(second)


def test_one_who_goes_away_before_anything_is_touched_stops_the_switch(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        kernel.modules["vfio_pci"].hang = asyncio.Event()
        engine = make_engine(kernel)
        task = asyncio.create_task(
            engine.set_flavour(Request(parse_address(device.address), Flavour.VFIO), lambda _: None)
        )
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert kernel.writes == []
    assert has(device) == ("e1000e", None)


def test_a_request_with_a_time_limit_of_its_own_leaves_the_device_untouched(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        kernel.modules["vfio_pci"].hang = asyncio.Event()
        request = Request(parse_address(device.address), Flavour.VFIO, timeout=0.05)
        await make_engine(kernel).set_flavour(request, lambda _: None)

    with pytest.raises(FlavourError) as caught:
        asyncio.run(run())
    assert caught.value.errno == errno.ETIMEDOUT
    assert has(device) == ("e1000e", None)


def test_a_request_that_has_no_time_left_for_the_next_candidate_says_so(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)

    async def run() -> None:
        kernel.add_module(
            FakeDriver("slow", "slow_vfio", vfio=True), alias=VARIANT_ALIAS, hang=asyncio.Event()
        )
        request = Request(parse_address(device.address), Flavour.VFIO, timeout=0.05)
        await make_engine(kernel).set_flavour(request, lambda _: None)

    with pytest.raises(
        FlavourError, match=r"the time limit of 0\.05 s ran out before it was touched"
    ) as caught:
        asyncio.run(run())
    assert (caught.value.code, caught.value.errno) == (Code.TIMED_OUT, errno.ETIMEDOUT)
    assert "--timeout" in caught.value.hint
    assert kernel.writes == []
    assert has(device) == ("e1000e", None)


def test_going_back_has_its_full_time_when_the_request_has_run_out_of_its_own(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY

    async def run() -> None:
        real = kernel.write

        async def write(path: str, text: str) -> None:
            await asyncio.sleep({"/vfio-pci/bind": 1.5, "/e1000e/bind": 3}.get(path[20:], 0))
            await real(path, text)

        kernel.write = write  # type: ignore[method-assign]
        request = Request(parse_address(device.address), Flavour.VFIO, timeout=4.0)
        await make_engine(kernel, bind=5.0).set_flavour(request, lambda _: None)

    with pytest.raises(FlavourError, match="it has e1000e again"):
        asyncio.run(run())
    assert has(device) == ("e1000e", None)
    assert not list((kernel.root / "run/devices").glob("*.json"))


def test_what_cannot_be_recorded_is_not_touched(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel)
    directory = kernel.root / "run/devices"
    directory.rmdir()
    directory.write_text("not a directory", encoding="ascii")
    error = refuse(engine, Flavour.VFIO)
    assert "can't be recorded" in str(error)
    assert kernel.writes == []


def test_what_is_rejected_before_the_driver_that_takes_the_device_is_told_with_it(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    kernel.add_module(FakeDriver("good-vfio-pci", "good_vfio", vfio=True), alias=VARIANT_ALIAS)
    conf = kernel.root / "etc/modprobe.d/no.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("blacklist good_vfio\n", encoding="ascii")
    outcome = switch(make_engine(kernel), Flavour.VFIO)
    assert (outcome.driver, outcome.fallback) == ("vfio-pci", True)
    assert f"good_vfio is rejected: blacklisted by {conf}:1" in outcome.reason


def test_where_all_are_rejected_each_is_told_and_nothing_is_touched(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    conf = kernel.root / "etc/modprobe.d/no.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("blacklist vfio_pci\n", encoding="ascii")
    error = refuse(make_engine(kernel), Flavour.VFIO)
    assert error.code == Code.NO_CANDIDATE
    assert f"no VFIO driver took it: vfio_pci is rejected: blacklisted by {conf}:1" in str(error)
    assert kernel.writes == []


def test_who_asked_is_told_of_each_step_as_it_begins_and_as_it_has_ended(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(name="bad_vfio", alias=VARIANT_ALIAS, status=1, said="modprobe: ERROR: no such luck")
    told: list[StepBegun | StepReport] = []
    request = Request(parse_address(device.address), Flavour.VFIO)
    outcome = asyncio.run(make_engine(kernel).set_flavour(request, told.append))
    begun = [step.what for step in told if isinstance(step, StepBegun)]
    ended = [step for step in told if isinstance(step, StepReport)]
    steps = [
        (StepAction.LOAD, "load bad_vfio"),
        (StepAction.LOAD, "load vfio_pci"),
        (StepAction.OVERRIDE, "set driver_override to vfio-pci"),
        (StepAction.UNBIND, "unbind from e1000e"),
        (StepAction.BIND, "bind to vfio-pci"),
        (StepAction.VERIFY, "read back what it has"),
    ]
    assert begun == [what for _, what in steps]
    assert [(step.action, step.what) for step in ended] == steps
    assert [step.error for step in ended] == ["no such luck", "", "", "", "", ""]
    assert [step.candidate for step in ended] == ["bad_vfio", *["vfio_pci"] * 5]
    assert list(outcome.steps[1:]) == ended  # the first one is the guards
    assert outcome.address == parse_address(device.address)


def test_writing_native_to_what_never_left_its_driver_says_so(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    outcome = switch(make_engine(kernel), Flavour.NATIVE)
    assert (outcome.changed, outcome.reason) == (False, "the device had this flavour already")
    assert (outcome.driver, outcome.flavour) == ("e1000e", Flavour.NATIVE)


def test_a_driver_that_is_named_and_has_the_device_already_is_told_as_such(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    before = list(kernel.writes)
    outcome = switch(engine, Flavour.VFIO, device.address, "vfio-pci")
    assert (outcome.changed, outcome.reason) == (False, "vfio-pci has the device already")
    assert kernel.writes == before


def test_a_named_driver_without_an_alias_that_made_a_vfio_device_is_unbound_again(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("special", "special", vfio=True))
    engine = make_engine(kernel)
    assert switch(engine, Flavour.VFIO, device.address, "special").driver == "special"
    assert switch(engine, Flavour.NATIVE).driver == "e1000e"
    assert has(device) == ("e1000e", None)


def test_a_driver_is_loaded_again_by_the_name_of_its_module(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    native = FakeDriver("sample", "sample_core", frozenset({(device.vendor, device.device)}))
    kernel.add_module(native)
    kernel.load("sample_core")
    engine = make_engine(kernel)
    switch(engine, Flavour.VFIO)
    kernel.unload("sample_core")
    assert switch(engine, Flavour.NATIVE).driver == "sample"
    assert has(device) == ("sample", None)


def test_what_is_rejected_after_the_driver_that_takes_the_device_is_not_told(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=BOARD_ALIAS)
    kernel.add_module(FakeDriver("other", "other_vfio", vfio=True), alias=VARIANT_ALIAS)
    conf = kernel.root / "etc/modprobe.d/no.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("blacklist other_vfio\n", encoding="ascii")
    outcome = switch(make_engine(kernel), Flavour.VFIO)
    assert outcome.driver == "good"
    assert "rejected" not in outcome.reason


def test_the_story_of_several_that_were_not_had_is_told_one_after_the_other(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    kernel.add_module(name="a_vfio", alias=BOARD_ALIAS)
    kernel.add_module(name="b_vfio", alias=VARIANT_ALIAS)
    kernel.add_module(name="c_vfio", alias="vfio_pci:v00008086d*", status=1, said="modprobe: ERROR: no luck")
    kernel.add_module(name="d_vfio", alias="vfio_pci:v0000808*", status=1, said="modprobe: ERROR: none here")
    conf = kernel.root / "etc/modprobe.d/no.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("blacklist a_vfio\nblacklist b_vfio\n", encoding="ascii")
    engine = make_engine(kernel)
    rejected = f"a_vfio is rejected: blacklisted by {conf}:1; b_vfio is rejected: blacklisted by {conf}:2"
    refused = "c_vfio: no luck; d_vfio: none here"
    kernel.modules["vfio_pci"].status, kernel.modules["vfio_pci"].said = 1, "modprobe: ERROR: not either"
    error = refuse(engine, Flavour.VFIO)
    assert f"no VFIO driver took it: {rejected}; {refused}; vfio_pci: not either" in str(error)
    assert (error.code, error.errno) == (Code.MODULE_NOT_LOADED, errno.EIO)
    kernel.modules["vfio_pci"].status = 0
    outcome = switch(engine, Flavour.VFIO)
    assert outcome.reason.endswith(f"; {rejected}; tried before: {refused}")


@pytest.mark.parametrize(
    "way", [[Flavour.NATIVE], [Flavour.VFIO, Flavour.NATIVE]], ids=["at once", "from VFIO"]
)
def test_what_an_early_rule_kept_from_its_driver_gets_it_and_goes_back_to_it_ever_after(
    kernel: FakeKernel, way: list[Flavour]
) -> None:
    device = kernel.add_device()
    device.override = PLACEHOLDER
    native = FakeDriver("e1000e", "e1000e", frozenset({(device.vendor, device.device)}))
    kernel.add_module(native)
    kernel.modules[device.modalias] = kernel.modules["e1000e"]  # as modprobe finds it
    engine = make_engine(kernel)
    for flavour in way:
        outcome = switch(engine, flavour)
        assert (outcome.flavour, outcome.changed) == (flavour, True)
    assert outcome.reason == "the kernel chose the driver: the policy kept its native driver away since boot"
    assert has(device) == ("e1000e", None)
    switch(engine, Flavour.VFIO)
    assert switch(engine, Flavour.NATIVE).driver == "e1000e"
    assert has(device) == ("e1000e", None)
    assert not list((kernel.root / "run/devices").glob("*.json"))
