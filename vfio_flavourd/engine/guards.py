"""What must not be switched, or can't be, as far as that is known beforehand."""

import errno

from ..model.device import Device
from ..model.errors import FlavourError


def check_allowed(device: Device) -> None:
    """Raises FlavourError (EBUSY)."""
    if device.is_bridge:
        raise FlavourError(
            f"{device.address}: it is a bridge, in use by all that is behind it",
            errno=errno.EBUSY,
            hint="switch the devices behind it; a bridge does not count when their IOMMU group is judged",
        )


def check_vfio(device: Device, named: tuple[str, ...]) -> None:
    """Raises FlavourError where VFIO can't have the device, or not by the drivers that are named."""
    if device.iommu_group is None:
        raise FlavourError(
            f"{device.address}: the device is in no IOMMU group, so VFIO can't isolate it",
            errno=errno.EIO,
            hint="enable the IOMMU in the firmware and on the kernel command line (intel_iommu=on)",
        )
    if device.personality is not None and named:
        raise FlavourError(
            f"{device.address}: its driver {device.driver} becomes a VFIO driver itself "
            f"({device.personality}) and is never unbound",
            errno=errno.EINVAL,
            hint="leave out the driver's name",
        )
