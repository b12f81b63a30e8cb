"""`ids=` of vfio-pci: which devices it claims as soon as it is loaded.

Read as vfio_pci_fill_ids() in drivers/vfio/pci/vfio_pci.c does, matched as pci_match_one_device() in
drivers/pci/pci.h: `vendor:device[:subvendor[:subdevice[:class[:class_mask]]]]`, hexadecimal, by commas.
"""

import re
from dataclasses import dataclass

from .device import Device
from .modprobe_conf import ModprobeConf, split_parameters

VFIO_PCI = "vfio_pci"

# PCI_ANY_ID as an unsigned number.
_ANY = 0xFFFFFFFF

# sscanf() with %x:%x…: blanks and 0x before a number are taken, and the rest of a text is left alone from
# where it makes no sense.
_NUMBER = re.compile(r"\s*(?:0[xX](?=[0-9a-fA-F]))?([0-9a-fA-F]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class VfioId:
    """One entry. `None` is any; with a `class_mask` of 0 any class. `text` is as it is written."""

    vendor: int | None
    device: int | None
    subvendor: int | None = None
    subdevice: int | None = None
    device_class: int = 0
    class_mask: int = 0
    text: str = ""

    def fits(self, device: Device) -> bool:
        identity = device.identity
        return (
            self.vendor in (None, identity.vendor)
            and self.device in (None, identity.device)
            and self.subvendor in (None, identity.subsystem_vendor)
            and self.subdevice in (None, identity.subsystem_device)
            and not (self.device_class ^ device.class_code) & self.class_mask
        )

    def covers(self, other: "VfioId") -> bool:
        """Whether it surely fits whatever the other one fits."""
        pairs = (
            (self.vendor, other.vendor),
            (self.device, other.device),
            (self.subvendor, other.subvendor),
            (self.subdevice, other.subdevice),
        )
        classes = (other.device_class, other.class_mask)
        return all(mine in (None, theirs) for mine, theirs in pairs) and (
            self.class_mask == 0 or (self.device_class, self.class_mask) == classes
        )

    @property
    def can_fit(self) -> bool:
        """Whether there can be such a device: its IDs have 16 bits, its class 24."""
        numbers = (self.vendor, self.device, self.subvendor, self.subdevice)
        beyond = self.device_class & self.class_mask & ~0xFFFFFF
        return not beyond and all(number is None or number <= 0xFFFF for number in numbers)


@dataclass(frozen=True, slots=True)
class VfioIds:
    """What is in force, and where it stands. `malformed` are entries that the kernel passes over, `replaced`
    places whose `ids=` a later one puts out of force."""

    ids: tuple[VfioId, ...] = ()
    origin: str = ""
    malformed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()


def find_vfio_ids(conf: ModprobeConf) -> VfioIds:
    """All options go to the kernel in one line, where a string parameter's last value counts."""
    found: list[tuple[str, str]] = []
    for line in conf.options:
        if line.module != VFIO_PCI:
            continue
        for word in split_parameters(line.parameters):
            name, equals, value = word.replace('"', "").partition("=")
            if name == "ids" and equals:
                found.append((value, line.origin))
    if not found:
        return VfioIds()
    value, origin = found[-1]
    ids, malformed = parse_vfio_ids(value)
    replaced = tuple(dict.fromkeys(place for _, place in found[:-1]))
    return VfioIds(ids, origin, malformed, replaced)


def parse_vfio_ids(value: str) -> tuple[tuple[VfioId, ...], tuple[str, ...]]:
    """The entries, and those that are none."""
    ids, malformed = [], []
    for entry in filter(None, value.split(",")):
        numbers = _numbers(entry)
        if len(numbers) < 2:
            malformed.append(entry)
            continue
        numbers += (_ANY, _ANY, 0, 0)[len(numbers) - 2 :]
        vendor, device, subvendor, subdevice = map(_id, numbers[:4])
        ids.append(VfioId(vendor, device, subvendor, subdevice, numbers[4], numbers[5], entry.strip()))
    return tuple(ids), tuple(malformed)


def _numbers(entry: str) -> list[int]:
    numbers: list[int] = []
    at = 0
    while len(numbers) < 6 and (found := _NUMBER.match(entry, at)):
        numbers.append(int(found[1], 16) & _ANY)
        at = found.end()
        if not entry.startswith(":", at):
            break
        at += 1
    return numbers


def _id(number: int) -> int | None:
    return None if number == _ANY else number
