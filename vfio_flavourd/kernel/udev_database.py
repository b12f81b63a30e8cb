"""What udev has stored of PCI devices.

Read from its files (systemd: sd-device.c, handle_db_line), not by libudev: for any property that reads
the device's `uevent` file as well, and that blocks its reader while an unbind of the device is stuck
(seen on 6.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..model.address import PciAddress, parse_address
from ..model.errors import FlavourError

# The tag that the project's udev rule gives to a device with a wish.
_TAG = "vfio-flavour"

# The kernel counts in 64 bits.
_LONGEST_NUMBER = 20


@dataclass(frozen=True, slots=True)
class Uevent:
    """`wish` is the flavour asked for by the event, or None; `seqnum` the kernel's number for it."""

    action: str
    address: PciAddress
    wish: str | None
    seqnum: int


class UdevDatabase:
    """The files of udevd, with their root injected."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._run = root / "run/udev"

    def wishes(self) -> Iterator[Uevent]:
        """Wishes that came by an event which nobody was there to receive."""
        tagged = self._run / "tags" / _TAG
        for path in tagged.iterdir() if tagged.is_dir() else ():
            try:
                address = parse_address(path.name.removeprefix("+pci:"))
            except FlavourError:
                continue
            properties = self._read(address)
            wish = properties.get("VFIO_FLAVOUR_WISH")
            seqnum = properties.get("VFIO_FLAVOUR_WISH_SEQNUM", "")
            if wish and seqnum.isdecimal() and len(seqnum) <= _LONGEST_NUMBER:
                yield Uevent("change", address, wish, int(seqnum))

    def find_name(self, address: PciAddress) -> str:
        """What the hardware database calls a device, or an empty text."""
        properties = self._read(address)
        vendor = properties.get("ID_VENDOR_FROM_DATABASE", "")
        model = properties.get("ID_MODEL_FROM_DATABASE", "")
        return f"{vendor} {model}".strip()

    def _read(self, address: PciAddress) -> dict[str, str]:
        try:
            text = (self._run / "data" / f"+pci:{address}").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return {}
        lines = (line[2:] for line in text.split("\n") if line.startswith("E:"))
        return dict(line.split("=", 1) for line in lines if "=" in line)
