"""sysfs -> Device snapshots.

Only files that are safe on a device whose unbind is blocked are read here: `driver_override` and
`uevent` of such a device block their reader in an uninterruptible sleep (seen on 6.12).
"""

import logging
from collections.abc import Sequence

from ..model.address import PciAddress, parse_address
from ..model.codes import Code
from ..model.device import ENABLE_VFIO, Device, Identity, Personality
from ..model.errors import FlavourError
from ..model.modalias import parse_modalias
from .sysfs import Sysfs

_log = logging.getLogger(__name__)

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
IOMMU_GROUPS = "/sys/kernel/iommu_groups"


def read_device(
    sysfs: Sysfs, address: PciAddress, personalities: Sequence[Personality] = (ENABLE_VFIO,)
) -> Device:
    """`personalities` are the ways to look for in which a driver becomes a VFIO driver itself.

    Raises FlavourError: ENODEV when there is no such device, or it went away while it was read.
    """
    link = f"{DEVICES}/{address}"
    path = sysfs.follow(link)
    if path is None:
        raise FlavourError(
            f"{address}: no such PCI device",
            code=Code.NO_SUCH_DEVICE,
            hint="flavourctl list and lspci -D list the devices",
        )
    # The kernel makes the modalias from the very IDs and class that have files of their own.
    modalias = parse_modalias(sysfs.read(f"{path}/modalias"))
    driver = sysfs.find_link(f"{path}/driver")
    group = sysfs.find_link(f"{path}/iommu_group")
    vfio_device = find_vfio_device(sysfs, path)
    return Device(
        address=address,
        path=path,
        identity=Identity(
            vendor=int(modalias.vendor, 16),
            device=int(modalias.device, 16),
            subsystem_vendor=int(modalias.subvendor, 16),
            subsystem_device=int(modalias.subdevice, 16),
            revision=_read_hex(sysfs, path, "revision"),
            inode=sysfs.read_inode(path),
        ),
        modalias=modalias.text,
        class_code=int(modalias.base_class + modalias.subclass + modalias.interface, 16),
        driver=driver,
        driver_module=find_driver_module(sysfs, driver),
        iommu_group=int(group) if group is not None else None,
        vfio_device=vfio_device,
        personality=_find_personality(sysfs, path, driver, personalities),
        is_noiommu=vfio_device is not None and is_made_up(sysfs, f"{path}/iommu_group"),
    )


def read_devices(
    sysfs: Sysfs, personalities: Sequence[Personality] = (ENABLE_VFIO,), directory: str = DEVICES
) -> tuple[Device, ...]:
    """All PCI functions in `directory`, by address. One that goes away meanwhile, or makes no sense, is left
    out."""
    devices = []
    for name in sysfs.list(directory):
        try:
            devices.append(read_device(sysfs, parse_address(name), personalities))
        except FlavourError as error:
            _log.debug("%s left out of the list: %s", name, error)
    return tuple(devices)


def read_others_in_group(
    sysfs: Sysfs, device: Device, personalities: Sequence[Personality] = (ENABLE_VFIO,)
) -> tuple[Device, ...]:
    """The other PCI functions of its IOMMU group, by address."""
    directory = f"{IOMMU_GROUPS}/{device.iommu_group}/devices"
    if device.iommu_group is None or sysfs.list(directory) == (str(device.address),):
        return ()
    others = read_devices(sysfs, personalities, directory)
    return tuple(other for other in others if other.address != device.address)


def is_made_up(sysfs: Sysfs, group: str) -> bool:
    """vfio_noiommu_group_alloc() in drivers/vfio/group.c; a group of the IOMMU's has no name."""
    try:
        return sysfs.exists(f"{group}/name") and sysfs.read(f"{group}/name") == "vfio-noiommu"
    except FlavourError:
        return True  # it went while it was looked at, as no other group does


def _find_personality(
    sysfs: Sysfs, path: str, driver: str | None, personalities: Sequence[Personality]
) -> Personality | None:
    if driver is None:
        return None
    for personality in personalities:
        if personality.driver in ("", driver) and sysfs.exists(f"{path}/{personality.attribute}"):
            return personality
    return None


def find_driver_module(sysfs: Sysfs, driver: str | None) -> str | None:
    """The module of a PCI driver; None for a built-in one and for no driver."""
    return None if driver is None else sysfs.find_link(f"{DRIVERS}/{driver}/module")


def find_vfio_device(sysfs: Sysfs, path: str) -> str | None:
    """The VFIO device of a PCI device, e.g. `vfio0` (kernel 6.1 and later: vfio_main.c names them so)."""
    names = sysfs.list(f"{path}/vfio-dev")
    return names[0] if names else None


def _read_hex(sysfs: Sysfs, path: str, name: str) -> int:
    text = sysfs.read(f"{path}/{name}")
    try:
        return int(text, 16)
    except ValueError:
        raise FlavourError(f"{path}/{name} reads {text[:32]!r}, not a hexadecimal number") from None
