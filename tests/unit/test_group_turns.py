"""One switch at a time in an IOMMU group, and nobody waits for his turn longer than he said."""

import asyncio
import errno

import pytest
from fake_kernel import FakeDevice, FakeKernel, has, make_engine
from virtual_time import now, run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request
from vfio_flavourd.model.policy import NoIommu, Policy, Settings

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def add_native(kernel: FakeKernel, group: int | None) -> FakeDevice:
    device = kernel.add_device(group=group)
    kernel.add_native(device)
    return device


async def ask(engine: Engine, device: FakeDevice, flavour: Flavour, timeout: float | None = None) -> Outcome:
    request = Request(parse_address(device.address), flavour, timeout=timeout)
    return await engine.set_flavour(request, lambda _: None)


@pytest.mark.parametrize("turns_of_the_loop", range(4))
def test_who_asks_in_the_moment_that_a_turn_is_passed_on_waits_no_longer_than_he_said(
    kernel: FakeKernel, turns_of_the_loop: int
) -> None:
    device = add_native(kernel, group=7)

    async def run() -> None:
        engine = make_engine(kernel, group=30.0)
        turn = engine._turns.find(parse_address(device.address))
        await turn.acquire()

        async def take_its_time() -> None:
            async with turn:
                await asyncio.sleep(1000)

        other = asyncio.create_task(take_its_time())
        await asyncio.sleep(0.1)
        asking = asyncio.create_task(ask(engine, device, Flavour.VFIO, timeout=2.0))
        for _ in range(turns_of_the_loop):
            await asyncio.sleep(0)
        turn.release()  # the other one has it now, but has not woken up
        began = now()
        with pytest.raises(FlavourError, match="busy with another switch for 2 s") as refusal:
            await asking
        assert refusal.value.code == Code.GROUP_BUSY
        assert now() - began == pytest.approx(2.0)
        other.cancel()
        await asyncio.wait([other])
        await ask(engine, device, Flavour.VFIO, timeout=2.0)

    run_at_once(run())


def test_a_group_that_vfio_makes_up_for_a_device_lets_in_no_second_switch(kernel: FakeKernel) -> None:
    device = add_native(kernel, group=None)
    mode = kernel.root / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    mode.parent.mkdir(parents=True)
    mode.write_text("Y\n", encoding="ascii")
    rules = Policy(defaults=Settings(load_timeout=1.0, bind_timeout=30.0, noiommu=NoIommu.ALLOW))
    at_once: list[int] = []
    writing = 0
    real = kernel.write

    async def write(path: str, text: str) -> None:
        nonlocal writing
        writing += 1
        at_once.append(writing)
        await asyncio.sleep(1)
        await real(path, text)
        writing -= 1

    async def run() -> None:
        engine = make_engine(kernel, rules, group=60.0)
        for _ in range(2):
            await ask(engine, device, Flavour.VFIO)
            kernel.write = write  # type: ignore[method-assign]  # this is what a fake is for
            going_home = asyncio.create_task(ask(engine, device, Flavour.NATIVE))
            await asyncio.sleep(2.5)
            assert not (kernel.path(device) / "iommu_group").exists()
            with pytest.raises(FlavourError, match="busy") as refusal:
                await ask(engine, device, Flavour.VFIO, timeout=0.1)
            assert refusal.value.errno == errno.EAGAIN
            await going_home
            assert has(device) == ("e1000e", None)
        assert set(at_once) == {1}
        assert engine._turns.taken == ()

    run_at_once(run())
