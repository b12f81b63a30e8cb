"""What other programs have written down about a device."""

from pathlib import Path

from ..model.address import PciAddress

# driverctl(8) 0.115: save_override() keeps one file a device.
_DRIVERCTL = "etc/driverctl.d"


def find_driverctl_override(root: Path, address: PciAddress) -> str | None:
    """The driver that driverctl gives the device at each boot; None when it has nothing saved for it."""
    try:
        text = (root / _DRIVERCTL / f"pci-{address}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip()[:64] or None
