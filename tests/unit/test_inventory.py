"""What is read of a device, and what is never opened."""

import errno
import os
from pathlib import Path

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, make_engine

from vfio_flavourd.kernel.inventory import is_made_up, read_device, read_devices
from vfio_flavourd.kernel.sysfs import Sysfs
from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.device import ENABLE_VFIO, Device
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour

ADDRESS = parse_address("0000:01:00.0")


def read(kernel: FakeKernel) -> Device:
    return read_device(Sysfs(str(kernel.root)), ADDRESS)


def flavour(kernel: FakeKernel) -> Flavour:
    return make_engine(kernel).device(ADDRESS).flavour


def give_to(kernel: FakeKernel, device: FakeDevice, driver: FakeDriver) -> None:
    kernel.add_module(driver)
    kernel.load(driver.module or "")
    device.override = driver.name
    assert kernel.probe(driver, device) == 0


def test_a_device_is_read_as_it_is(kernel: FakeKernel) -> None:
    made = kernel.add_device(vendor=0x15B3, device=0x101E, class_code=0x020700, group=12)
    kernel.add_native(made, "mlx5_core")
    device = read(kernel)
    assert device.address == ADDRESS
    assert device.path == "/sys/devices/pci0000:00/0000:01:00.0"
    assert (device.identity.vendor, device.identity.device) == (0x15B3, 0x101E)
    assert (device.identity.subsystem_vendor, device.identity.subsystem_device) == (0x1AF4, 0x1100)
    assert device.identity.revision == 0
    assert device.identity.inode == kernel.path(made).stat().st_ino
    assert device.class_code == 0x020700
    assert device.modalias == "pci:v000015B3d0000101Esv00001AF4sd00001100bc02sc07i00"
    assert (device.driver, device.driver_module) == ("mlx5_core", "mlx5_core")
    assert device.iommu_group == 12
    assert device.vfio_device is None
    assert device.personality is None
    assert not device.is_bridge


@pytest.mark.parametrize("class_code", [0x060000, 0x060400, 0x068000])
def test_every_kind_of_bridge_is_one(kernel: FakeKernel, class_code: int) -> None:
    kernel.add_device(class_code=class_code)
    assert read(kernel).is_bridge


def test_a_device_without_an_iommu_or_a_driver_has_none(kernel: FakeKernel) -> None:
    kernel.add_device(group=None)
    device = read(kernel)
    assert (device.iommu_group, device.driver, device.driver_module) == (None, None, None)


def test_a_driver_in_the_kernel_itself_has_no_module(kernel: FakeKernel) -> None:
    made = kernel.add_device()
    builtin = FakeDriver("pcieport", None, frozenset({(made.vendor, made.device)}))
    kernel.register(builtin)
    device = read(kernel)
    assert (device.driver, device.driver_module) == ("pcieport", None)
    assert flavour(kernel) == Flavour.NATIVE


def test_the_flavour_of_a_device_on_a_native_driver_and_of_one_without_is_native(kernel: FakeKernel) -> None:
    made = kernel.add_device()
    assert flavour(kernel) == Flavour.NATIVE
    kernel.add_native(made)
    assert flavour(kernel) == Flavour.NATIVE


def test_the_flavour_of_a_device_on_vfio_pci_is_vfio_though_no_alias_names_it(kernel: FakeKernel) -> None:
    made = kernel.add_device()
    give_to(kernel, made, kernel.modules["vfio_pci"].drivers[0])
    assert read(kernel).vfio_device == "vfio0"
    assert flavour(kernel) == Flavour.VFIO


def test_the_flavour_of_a_device_on_a_variant_is_vfio_by_its_modules_alias(kernel: FakeKernel) -> None:
    made = kernel.add_device()
    kernel.add_module(
        FakeDriver("good-vfio-pci", "good_vfio", vfio=True), alias="vfio_pci:v00008086d*sv*sd*bc*sc*i*"
    )
    give = kernel.modules["good_vfio"].drivers[0]
    kernel.load("good_vfio")
    made.override = give.name
    kernel.probe(give, made)
    kernel.remove_vfio_device(made)  # it is being made ready still
    device = read(kernel)
    assert (device.driver, device.driver_module, device.vfio_device) == ("good-vfio-pci", "good_vfio", None)
    assert flavour(kernel) == Flavour.VFIO


def test_the_flavour_of_a_device_whose_driver_changed_its_personality_is_vfio(kernel: FakeKernel) -> None:
    made = kernel.add_device()
    kernel.add_native(made, "chameleon")
    kernel.add_personality(made)
    assert read(kernel).personality == ENABLE_VFIO
    assert flavour(kernel) == Flavour.NATIVE
    kernel.add_vfio_device(made)
    assert flavour(kernel) == Flavour.VFIO


def test_a_personality_without_a_driver_is_none(kernel: FakeKernel) -> None:
    made = kernel.add_device()
    kernel.add_personality(made)
    assert read(kernel).personality is None


@pytest.mark.timeout(10)
def test_what_may_block_its_reader_is_never_opened(kernel: FakeKernel) -> None:
    """driver_override and uevent of a device whose unbind is blocked: as a FIFO, which blocks as well."""
    for address in ("0000:01:00.0", "0000:02:00.0"):
        made = kernel.add_device(address)
        for name in ("driver_override", "uevent"):
            os.mkfifo(kernel.path(made) / name)
    engine = make_engine(kernel)
    assert [str(status.device.address) for status in engine.devices()] == ["0000:01:00.0", "0000:02:00.0"]
    assert engine.device(ADDRESS).flavour == Flavour.NATIVE
    assert engine.device(ADDRESS).flavour == Flavour.NATIVE


def test_all_devices_come_by_their_addresses(kernel: FakeKernel) -> None:
    for address in ("0000:a0:00.0", "0000:01:00.1", "10000:00:00.0", "0000:01:00.0"):
        kernel.add_device(address)
    found = [str(device.address) for device in read_devices(Sysfs(str(kernel.root)))]
    assert sorted(found) == sorted(kernel.devices)
    assert found.index("0000:01:00.0") < found.index("0000:01:00.1") < found.index("0000:a0:00.0")


def test_no_devices_are_no_error(kernel: FakeKernel) -> None:
    assert read_devices(Sysfs(str(kernel.root))) == ()


def test_a_device_that_is_not_there_is_enodev_with_a_hint(kernel: FakeKernel) -> None:
    with pytest.raises(FlavourError, match=r"0000:0f:00\.0: no such PCI device") as caught:
        read_device(Sysfs(str(kernel.root)), PciAddress(0, 15, 0, 0))
    assert caught.value.errno == errno.ENODEV
    assert "lspci" in caught.value.hint


@pytest.mark.parametrize("name", ["modalias", "revision"])
def test_a_device_that_goes_away_while_it_is_read_is_enodev_and_left_out_of_the_list(
    kernel: FakeKernel, name: str
) -> None:
    made = kernel.add_device()
    kernel.add_device("0000:02:00.0")
    (kernel.path(made) / name).unlink()
    with pytest.raises(FlavourError) as caught:
        read(kernel)
    assert caught.value.errno == errno.ENODEV
    assert [str(device.address) for device in read_devices(Sysfs(str(kernel.root)))] == ["0000:02:00.0"]


def test_a_link_whose_device_is_gone_is_enodev(kernel: FakeKernel) -> None:
    made = kernel.add_device()
    kernel.path(made).rename(kernel.root / "gone")
    with pytest.raises(FlavourError) as caught:
        read(kernel)
    assert caught.value.errno == errno.ENODEV


def test_one_device_that_cannot_be_made_sense_of_does_not_hide_the_others(kernel: FakeKernel) -> None:
    made = kernel.add_device()
    kernel.add_device("0000:02:00.0")
    (kernel.path(made) / "revision").write_text("nonsense\n", encoding="ascii")
    with pytest.raises(FlavourError) as caught:
        read(kernel)
    assert caught.value.errno == errno.EIO
    assert "0000:02:00.0" in [str(device.address) for device in read_devices(Sysfs(str(kernel.root)))]


# sysfs


def test_reads_and_links_and_lists_stay_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    (tmp_path / "sys/attribute").write_bytes(b"value\n")
    (tmp_path / "sys/link").symlink_to("../../bus/pci/drivers/e1000e")
    sysfs = Sysfs(str(tmp_path))
    assert sysfs.read("/sys/attribute") == "value"
    assert sysfs.find_link("/sys/link") == "e1000e"
    assert sysfs.find_link("/sys/none") is None
    assert sysfs.list("/sys") == ("attribute", "link")
    assert sysfs.list("/sys/none") == ()
    assert sysfs.list("/sys/attribute") == ()
    assert sysfs.exists("/sys/attribute")
    assert sysfs.exists("/sys/link")  # a link that leads nowhere is there all the same
    assert not sysfs.exists("/sys/none")


@pytest.mark.parametrize(
    ("call", "path", "code"),
    [
        (Sysfs.read, "/sys/none", errno.ENODEV),
        (Sysfs.read, "/sys/directory", errno.EIO),
        (Sysfs.find_link, "/sys/file", errno.EIO),
        (Sysfs.read_inode, "/sys/none", errno.ENODEV),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_path(
    tmp_path: Path, call: object, path: str, code: int
) -> None:
    (tmp_path / "sys/directory").mkdir(parents=True)
    (tmp_path / "sys/file").touch()
    assert callable(call)
    with pytest.raises(FlavourError, match=path) as caught:
        call(Sysfs(str(tmp_path)), path)
    assert caught.value.errno == code


def test_a_group_that_goes_while_it_is_looked_at_was_made_up(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sysfs, "exists", lambda *_: True)
    assert is_made_up(Sysfs(str(kernel.root)), f"/sys/bus/pci/devices/{ADDRESS}/iommu_group")
