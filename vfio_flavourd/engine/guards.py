"""What must not be switched, whatever is asked."""

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
