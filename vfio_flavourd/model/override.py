"""What driverctl has written down about a device."""

from dataclasses import dataclass

from .address import PciAddress


@dataclass(frozen=True, slots=True)
class Override:
    """The name of driverctl's file, and the driver in it. `address` is None for what isn't on the PCI bus."""

    name: str
    driver: str
    address: PciAddress | None
