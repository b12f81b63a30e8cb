"""Loading modules: what counts is what is in sysfs afterwards."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import RELEASE, FakeDriver, FakeHands, FakeKernel

from vfio_flavourd.kernel.loading import Asked
from vfio_flavourd.kernel.modules import Modules, NotLoaded
from vfio_flavourd.kernel.sysfs import Sysfs


class Loader:
    """`commands` is what was asked of modprobe."""

    def __init__(self, root: Path) -> None:
        self.kernel = FakeKernel(root)
        self.commands: list[tuple[Asked, str]] = []
        self.started = asyncio.Event()
        hands = FakeHands(self.kernel)

        async def modprobe(asked: Asked, name: str) -> tuple[int, str]:
            self.commands.append((asked, name))
            self.started.set()
            return await hands.modprobe(asked, name)

        self.modules = Modules(Sysfs(str(root)), modprobe)

    async def refused(self, module: str, timeout: float = 1.0) -> str:
        with pytest.raises(NotLoaded) as caught:
            await self.modules.load(module, timeout)
        return str(caught.value)


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


def test_a_modules_drivers_have_the_names_that_sysfs_gives_them(loader: Loader) -> None:
    assert asyncio.run(loader.modules.load("vfio_pci", 1)) == ("vfio-pci",)
    assert loader.commands == [(Asked.MODULE, "vfio_pci")]
    assert loader.modules.has_driver("vfio-pci")
    assert not loader.modules.has_driver("vfio_pci")


def test_a_module_that_is_there_is_not_loaded_again(loader: Loader) -> None:
    loader.kernel.load("vfio_pci")
    assert asyncio.run(loader.modules.load("vfio_pci", 1)) == ("vfio-pci",)
    assert loader.commands == []


def test_a_module_may_bring_more_than_one_pci_driver_and_others_too(loader: Loader) -> None:
    loader.kernel.add_module(FakeDriver("two", "mod"), FakeDriver("one", "mod"), name="mod")
    loader.kernel.load("mod")
    (loader.kernel.root / "sys/module/mod/drivers/platform:three").mkdir()
    assert asyncio.run(loader.modules.load("mod", 1)) == ("one", "two")


def test_a_module_that_is_part_of_the_kernel_has_no_initstate_and_is_there(loader: Loader) -> None:
    loader.kernel.load("vfio_pci")
    (loader.kernel.root / "sys/module/vfio_pci/initstate").unlink()
    assert asyncio.run(loader.modules.load("vfio_pci", 1)) == ("vfio-pci",)
    assert loader.commands == []


@pytest.mark.parametrize("state", ["coming", "going"])
def test_a_module_that_is_on_its_way_is_waited_for_by_modprobe(loader: Loader, state: str) -> None:
    loader.kernel.load("vfio_pci")
    path = loader.kernel.root / "sys/module/vfio_pci/initstate"
    path.write_text(f"{state}\n", encoding="ascii")
    assert loader.modules.find_drivers("vfio_pci") == ()

    async def run() -> None:
        hang = loader.kernel.modules["vfio_pci"].hang = asyncio.Event()
        task = asyncio.create_task(loader.modules.load("vfio_pci", 1))
        await loader.started.wait()
        path.write_text("live\n", encoding="ascii")
        hang.set()
        assert await task == ("vfio-pci",)

    asyncio.run(run())
    assert loader.commands == [(Asked.MODULE, "vfio_pci")]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "modprobe: ERROR: could not insert 'mod': Key was",
            "its init failed: could not insert 'mod': Key was",
        ),
        ("modprobe: FATAL: Module mod not found", "no such module: Module mod not found"),
        ("first line\nthe last is the reason", "the last is the reason"),
        ("", "modprobe ended with status 1"),
    ],
)
def test_why_modprobe_failed_is_the_reason_in_one_line(loader: Loader, said: str, reason: str) -> None:
    loader.kernel.add_module(name="mod", status=1, said=said)
    told = asyncio.run(loader.refused("mod"))
    assert told.startswith(reason)
    assert len(told.splitlines()) == 1


def test_a_module_that_nobody_has_is_named(loader: Loader) -> None:
    assert f"not found in directory /lib/modules/{RELEASE}" in asyncio.run(loader.refused("none_such"))


def test_a_modprobe_that_ends_well_and_loads_nothing_is_not_believed(loader: Loader) -> None:
    loader.kernel.add_module(name="empty")
    assert "not there" in asyncio.run(loader.refused("empty"))


def test_a_module_without_a_pci_driver_is_none_to_switch_to(loader: Loader) -> None:
    base = loader.kernel.root / "sys/module/other"
    base.mkdir()
    (base / "initstate").write_text("live\n", encoding="ascii")
    loader.kernel.add_module(name="other")
    assert "registers no PCI driver" in asyncio.run(loader.refused("other"))


def test_a_load_that_hangs_is_given_up_in_time_and_waited_for_by_the_next_one(loader: Loader) -> None:
    async def run() -> None:
        hang = asyncio.Event()
        slow = loader.kernel.add_module(FakeDriver("slow", "slow"), hang=hang)
        assert "not loaded within 0.05 s" in await loader.refused("slow", 0.05)
        assert "another 0.05 s" in await loader.refused("slow", 0.05)
        waiting = asyncio.create_task(loader.modules.load("slow", 5))
        await asyncio.sleep(0)
        hang.set()
        assert await waiting == ("slow",)
        assert slow.loads == 1
        assert await loader.modules.load("slow", 5) == ("slow",)
        assert slow.loads == 1

    asyncio.run(run())


def test_a_load_that_failed_after_it_hung_is_tried_anew(loader: Loader) -> None:
    async def run() -> None:
        hang = asyncio.Event()
        slow = loader.kernel.add_module(FakeDriver("slow", "slow"), hang=hang, status=1, said="no luck")
        await loader.refused("slow", 0.05)
        waiting = asyncio.create_task(loader.refused("slow", 5))
        await asyncio.sleep(0)
        hang.set()
        assert await waiting == "no luck"
        slow.status, slow.hang = 0, None
        assert await loader.modules.load("slow", 5) == ("slow",)
        assert slow.loads == 2

    asyncio.run(run())


def test_a_module_that_hangs_holds_up_no_other(loader: Loader) -> None:
    async def run() -> None:
        hang = asyncio.Event()
        loader.kernel.add_module(FakeDriver("slow", "slow"), hang=hang)
        waiting = asyncio.create_task(loader.refused("slow", 1))
        await asyncio.sleep(0)
        assert await loader.modules.load("vfio_pci", 1) == ("vfio-pci",)
        assert not waiting.done()
        waiting.cancel()
        hang.set()

    asyncio.run(run())


def test_a_native_driver_is_loaded_by_its_alias_with_blacklists_respected(loader: Loader) -> None:
    modalias = "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00"
    asyncio.run(loader.modules.load_native(modalias, 1))
    assert loader.commands == [(Asked.ALIAS, modalias)]


def test_a_native_driver_whose_load_hangs_is_no_error_here(loader: Loader) -> None:
    async def run() -> None:
        hang = asyncio.Event()
        loader.kernel.add_module(name="pci:x", hang=hang)
        await loader.modules.load_native("pci:x", 0.05)
        hang.set()

    asyncio.run(run())


def test_the_modules_are_a_collection_of_what_is_loaded(loader: Loader) -> None:
    assert "vfio_pci" not in loader.modules
    assert len(loader.modules) == 0
    assert loader.modules  # true all the same: nothing loaded is known, too
    loader.kernel.load("vfio_pci")
    assert "vfio_pci" in loader.modules
    assert list(loader.modules) == ["vfio_pci"]


def test_those_who_want_the_same_module_at_once_share_one_modprobe(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    module = kernel.modules["vfio_pci"]

    async def run() -> list[tuple[str, ...]]:
        modules = Modules(Sysfs(str(kernel.root)), FakeHands(kernel).modprobe)
        module.hang = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, module.hang.set)
        return await asyncio.gather(*(modules.load("vfio_pci", 5.0) for _ in range(16)))

    assert set(asyncio.run(run())) == {("vfio-pci",)}
    assert module.loads == 1


def test_who_waits_for_another_ones_modprobe_has_no_more_time_than_alone(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    module = kernel.modules["vfio_pci"]

    async def run() -> list[Any]:
        modules = Modules(Sysfs(str(kernel.root)), FakeHands(kernel).modprobe)
        module.hang = asyncio.Event()
        loads = (modules.load("vfio_pci", 0.1) for _ in range(3))
        return await asyncio.wait_for(asyncio.gather(*loads, return_exceptions=True), 5)

    assert {type(each) for each in asyncio.run(run())} == {NotLoaded}
