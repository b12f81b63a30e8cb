"""What has come of a wish or of the policy is known as what it is, to the next daemon too."""

import errno
import json

import pytest
from fake_kernel import FakeDriver, FakeKernel, has
from test_reconcile import (
    TO_VFIO,
    VFIO,
    add_with_native,
    ask,
    attempts,
    bind_by_others,
    event,
    new_boot,
    policy,
    reload,
    remarks,
    rule,
    start,
    stop,
)
from virtual_time import run_at_once

from vfio_flavourd.model.flavour import Flavour

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
