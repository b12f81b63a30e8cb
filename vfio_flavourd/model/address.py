"""PCI addresses."""

import re
from dataclasses import dataclass

from .codes import Code
from .errors import FlavourError

# Domains have four digits, more only where a bridge made a domain of its own (VMD: 10000:e1:00.0).
_ADDRESS = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """A function's place: `str()` is the kernel's form, `0000:01:00.0`."""

    domain: int
    bus: int
    device: int
    function: int

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"


def parse_address(text: str) -> PciAddress:
    """Read `0000:01:00.0` or `01:00.0`, in either case.

    Raises FlavourError (EINVAL) for anything else.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise FlavourError(
            f"{text[:64]!r} is not a PCI address",
            code=Code.NOT_AN_ADDRESS,
            hint="an address looks like 0000:01:00.0 or 01:00.0; lspci -D lists them",
        )
    domain, bus, device, function = match.groups()
    return PciAddress(int(domain or "0", 16), int(bus, 16), int(device, 16), int(function, 16))
