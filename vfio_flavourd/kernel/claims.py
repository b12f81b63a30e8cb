"""What other programs have written down about a device."""

from pathlib import Path

from ..model.address import PciAddress, parse_address
from ..model.errors import FlavourError
from ..model.override import Override
from .host_files import HostFiles

# driverctl(8) 0.115: save_override() keeps one file a device.
DRIVERCTL = "etc/driverctl.d"


def find_driverctl_override(root: Path, address: PciAddress) -> str | None:
    """The driver that driverctl gives the device at each boot; None when it has nothing saved for it."""
    return _read_driver(root, f"pci-{address}")


def read_driverctl_overrides(root: Path) -> tuple[Override, ...]:
    """All of them, by the names of their files (`<bus>-<device>`)."""
    overrides = []
    for name in HostFiles(str(root).rstrip("/")).list(f"/{DRIVERCTL}"):
        if driver := _read_driver(root, name):
            bus, _, device = name.partition("-")
            overrides.append(Override(name, driver, _find_address(device) if bus == "pci" else None))
    return tuple(overrides)


def _read_driver(root: Path, name: str) -> str | None:
    try:
        text = (root / DRIVERCTL / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip()[:64] or None


def _find_address(text: str) -> PciAddress | None:
    try:
        return parse_address(text)
    except FlavourError:
        return None
