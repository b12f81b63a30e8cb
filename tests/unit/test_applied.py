"""What has come of a wish or of the policy is known as what it is, to the next daemon too."""

import asyncio
import errno
import json

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, has
from test_reconcile import (
    TO_NATIVE,
    TO_VFIO,
    VFIO,
    add_with_native,
    ask,
    at,
    attempts,
    bind_by_others,
    break_lasting_writes,
    event,
    named,
    new_boot,
    policy,
    reload,
    remarks,
    reset,
    rule,
    start,
    stop,
)
from virtual_time import run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Request
from vfio_flavourd.model.policy import OthersInGroup

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

GOOD = ("good", "good")
TO_GOOD = policy(rule("vfio", "good_vfio", device=(0x10D3,)))


def add_good(kernel: FakeKernel, probe_errno: int = 0) -> None:
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True, probe_errno=probe_errno))


# a driver that is named, and not had


@pytest.mark.parametrize("is_installed", [True, False])
def test_where_the_driver_that_a_rule_names_is_not_had_nobody_else_is_said_to_have_changed_it(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture, is_installed: bool
) -> None:
    device = add_with_native(kernel)
    if is_installed:
        add_good(kernel, errno.EINVAL)

    async def run() -> None:
        engine = await start(kernel, TO_GOOD)
        for _ in range(2):
            await event(engine, device)
            await reload(engine, TO_GOOD)
            assert remarks(engine, device) == ()
            await stop(engine)
            engine = await start(kernel, TO_GOOD)
        assert (has(device), remarks(engine, device)) == (VFIO, ())
        assert len(attempts(engine)) == 1
        assert "someone else" not in caplog.text
        # What someone else does is told all the same, and what it was.
        kernel.add_module(FakeDriver("other", "other", vfio=True), alias="vfio_pci:v00008086d000010D4sv*")
        kernel.load("other")
        bind_by_others(kernel, device, "other")
        await event(engine, device)
        assert remarks(engine, device) == ("someone else made it vfio (other), it was vfio (vfio-pci)",)

    run_at_once(run())


def test_a_driver_that_a_rule_names_and_someone_else_has_taken_away_is_told(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    add_good(kernel)

    async def run() -> None:
        engine = await start(kernel, TO_GOOD)
        assert has(device) == GOOD
        kernel.load("vfio_pci")
        bind_by_others(kernel, device, "vfio-pci")
        for _ in range(2):
            await event(engine, device)
            assert remarks(engine, device) == ("someone else made it vfio (vfio-pci), it was vfio (good)",)
            await stop(engine)
            engine = await start(kernel, TO_GOOD)

    run_at_once(run())


def test_what_an_earlier_daemon_has_kept_of_what_was_applied_is_read(kernel: FakeKernel) -> None:
    """One that did not keep the driver."""
    device = add_with_native(kernel)

    async def run() -> None:
        await stop(await start(kernel, TO_VFIO))
        path = kernel.root / "run/applied.json"
        data = json.loads(path.read_bytes())
        data = {address: entry[:5] for address, entry in data.items()}
        path.write_text(json.dumps(data), encoding="ascii")
        kernel.writes.clear()
        engine = await start(kernel, TO_VFIO)
        await reload(engine, TO_VFIO)
        assert (has(device), remarks(engine, device), kernel.writes) == (VFIO, (), [])

    run_at_once(run())


# a driver that is named by hand, to last


def test_a_wish_that_lasts_has_its_driver_also_where_another_vfio_driver_has_the_device_at_boot(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)
    add_good(kernel)

    async def first() -> None:
        engine = await start(kernel, policy())
        await ask(engine, device, Flavour.VFIO, "good_vfio", persist=True)
        await stop(engine)

    run_at_once(first())
    again = new_boot(kernel)
    add_good(again)
    device = add_with_native(again)
    again.load("vfio_pci")
    bind_by_others(again, device, "vfio-pci")

    async def second() -> None:
        engine = await start(again, policy())
        assert has(device) == GOOD
        await stop(engine)
        engine = await start(again, policy())
        await reload(engine, policy())
        assert len(attempts(engine)) == 1
        assert remarks(engine, device) == ()

    run_at_once(second())


@pytest.mark.parametrize("is_another_boot", [False, True])
def test_a_wish_whose_driver_is_not_had_is_not_tried_again_nor_said_to_be_someone_elses_doing(
    kernel: FakeKernel, is_another_boot: bool
) -> None:
    device = add_with_native(kernel)
    add_good(kernel, errno.EINVAL)

    async def first() -> None:
        engine = await start(kernel, policy())
        assert (await ask(engine, device, Flavour.VFIO, "good_vfio", persist=True)).driver == "vfio-pci"
        await stop(engine)

    run_at_once(first())
    if is_another_boot:
        kernel = new_boot(kernel)
        add_good(kernel, errno.EINVAL)
        device = add_with_native(kernel)

    async def second() -> None:
        for _ in range(2):
            engine = await start(kernel, policy())
            await event(engine, device)
            await reload(engine, policy())
            assert (has(device), remarks(engine, device)) == (VFIO, ())
            assert len(attempts(engine)) == 1
            await stop(engine)

    run_at_once(second())


# a rule by driver, which matches no more what it was applied to

ALL_ELSE = named("all else", "native", vendor=(0x8086,))
BY_DRIVER = policy(named("by driver", "vfio", driver=("e1000e",)), ALL_ELSE)
GOOD_BY_DRIVER = policy(named("by driver", "vfio", "good_vfio", driver=("e1000e",)), ALL_ELSE)


def rule_of(engine: Engine, device: FakeDevice) -> str:
    decided = engine.device(at(device)).decision.rule
    return decided.name if decided is not None else ""


@pytest.mark.parametrize("wish", [None, Flavour.NATIVE, Flavour.VFIO])
def test_nothing_follows_a_reset_to_what_a_rule_by_driver_says(
    kernel: FakeKernel, wish: Flavour | None
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, BY_DRIVER)
        if wish is not None:
            await ask(engine, device, wish)
        assert (await reset(engine, device)).flavour == Flavour.VFIO
        count = len(attempts(engine))
        for _ in range(2):
            await event(engine, device)
            await reload(engine, BY_DRIVER)
            await stop(engine)
            engine = await start(kernel, BY_DRIVER)
        assert (has(device), rule_of(engine, device), remarks(engine, device)) == (VFIO, "by driver", ())
        assert len(attempts(engine)) == count == (2 if wish is None else 3)

    run_at_once(run())


def test_a_wish_for_what_a_rule_by_driver_says_is_reset_without_taking_the_device_away(
    kernel: FakeKernel,
) -> None:
    """Also where it was made while another wish held."""
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, BY_DRIVER)
        await ask(engine, device, Flavour.NATIVE)
        await ask(engine, device, Flavour.VFIO)
        kernel.writes.clear()
        assert not (await reset(engine, device)).changed
        await event(engine, device)
        assert (has(device), kernel.writes) == (VFIO, [])

    run_at_once(run())


def test_a_reset_gives_the_driver_that_the_rule_by_driver_names(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    add_good(kernel)
    kernel.add_module(FakeDriver("other", "other"))
    kernel.load("other")

    async def run() -> None:
        engine = await start(kernel, GOOD_BY_DRIVER)
        bind_by_others(kernel, device, "other")
        assert (await reset(engine, device)).driver == "good"
        await event(engine, device)
        assert (has(device), len(attempts(engine))) == (GOOD, 2)

    run_at_once(run())


def test_where_a_reset_does_not_have_the_driver_that_a_rule_names_it_is_not_tried_once_more(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)
    add_good(kernel, errno.EINVAL)

    async def run() -> None:
        engine = await start(kernel, TO_GOOD)
        assert (await reset(engine, device)).driver == "vfio-pci"
        await event(engine, device)
        assert (has(device), len(attempts(engine)), remarks(engine, device)) == (VFIO, 2, ())

    run_at_once(run())


def test_nothing_follows_a_reset_that_got_stuck_on_the_way_to_what_a_rule_by_driver_says(
    kernel: FakeKernel,
) -> None:
    device = add_with_native(kernel)

    async def run() -> None:
        engine = await start(kernel, BY_DRIVER)
        bind_by_others(kernel, device, "e1000e")
        kernel.drivers["e1000e"].remove_blocks = held = asyncio.Event()
        with pytest.raises(FlavourError):
            await reset(engine, device)
        held.set()
        await asyncio.sleep(100)
        assert (has(device), rule_of(engine, device)) == (VFIO, "by driver")
        assert len(attempts(engine)) == 2

    run_at_once(run())


def test_the_rule_that_is_shown_and_gone_by_is_the_one_in_force(kernel: FakeKernel) -> None:
    device = add_with_native(kernel)
    add_good(kernel)
    kernel.add_module(FakeDriver("other", "other"))
    kernel.load("other")

    async def run() -> None:
        engine = await start(kernel, GOOD_BY_DRIVER)
        assert rule_of(engine, device) == "by driver"
        await ask(engine, device, Flavour.NATIVE)
        last = engine.device(at(device)).last
        assert last is not None and last.rule == "by driver"
        await reset(engine, device)
        bind_by_others(kernel, device, "other")
        planned = await engine.plan(Request(at(device), Flavour.VFIO))
        assert any("bind to good" in line for line in planned)
        assert (await ask(engine, device, Flavour.VFIO)).driver == "good"

    run_at_once(run())


# a group that is to last


def test_where_no_wish_of_a_group_can_be_made_to_last_all_of_them_hold_for_the_boot(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [add_with_native(kernel), add_with_native(kernel, "0000:01:00.1")]

    async def run() -> None:
        engine = await start(kernel, TO_NATIVE)
        with monkeypatch.context() as patch:
            break_lasting_writes(patch)
            with pytest.raises(FlavourError, match=r"01:00\.0: .* for this boot only") as caught:
                await ask(engine, devices[0], Flavour.VFIO, persist=True, others=OthersInGroup.TOGETHER)
        assert caught.value.code is Code.NOT_SAVED
        for _ in range(2):
            await reload(engine, TO_NATIVE)
            for device in devices:
                await event(engine, device)
                assert (has(device), engine.device(at(device)).wish) == (VFIO, Flavour.VFIO)
                assert remarks(engine, device) == ()
            await stop(engine)
            engine = await start(kernel, TO_NATIVE)

    run_at_once(run())
