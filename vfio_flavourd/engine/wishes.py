"""Flavours that were asked for by hand: they stand above the policy until `reset`.

For the boot they are kept beside its other state, and hold for the very device they were made for. Those
that are to last are kept with what outlives the boot, and hold for a device with the same IDs at the same
address.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.address import PciAddress, parse_address
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour
from ..model.message_ids import MessageId, log_fields
from ..model.policy import OthersInGroup
from ..model.udev_header import Ids, find_ids
from .whole_file import write_whole_file

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wish:
    """`inode` is 0 for one that lasts; `drivers` are those that were named, `others` is what was said of the
    others in its IOMMU group."""

    flavour: Flavour
    drivers: tuple[str, ...]
    ids: Ids
    inode: int
    others: OthersInGroup | None = None


class Wishes:
    """Kept in memory and in two files."""

    def __init__(self, boot: Path, lasting: Path) -> None:
        self._boot_file = boot
        self._lasting_file = lasting
        self._boot = _read(boot)
        self._lasting = _read(lasting)
        # Dropped, but on disk still: they hold from the next boot on.
        self._on_disk_only: set[str] = set()

    def find(self, device: Device) -> Wish | None:
        address = str(device.address)
        wish = self._boot.get(address)
        if wish is not None and wish.ids == find_ids(device.identity) and wish.inode == device.identity.inode:
            return wish
        wish = None if address in self._on_disk_only else self._lasting.get(address)
        return wish if wish is not None and wish.ids == find_ids(device.identity) else None

    def has(self, address: PciAddress) -> bool:
        return str(address) in self._boot or str(address) in self._lasting

    @property
    def lasting(self) -> dict[str, Wish]:
        """By address."""
        return self._lasting

    def keep(
        self,
        device: Device,
        flavour: Flavour,
        drivers: tuple[str, ...],
        others: OthersInGroup | None = None,
        *,
        persist: bool,
    ) -> None:
        """Raises OSError when one that is to last can't be put on disk."""
        address = str(device.address)
        ids = find_ids(device.identity)
        self._boot[address] = Wish(flavour, drivers, ids, device.identity.inode, others)
        self._write_boot()
        if persist:
            lasting = {**self._lasting, address: Wish(flavour, drivers, ids, 0, others)}
            _write(self._lasting_file, lasting)
            self._lasting = lasting
            self._on_disk_only.discard(address)

    def drop(self, addresses: Iterable[PciAddress]) -> bool:
        """Whether one was to last. Raises OSError when those can't be taken off the disk: then they hold no
        more in this boot, and again in the next."""
        dropped = set(map(str, addresses))
        if not dropped.isdisjoint(self._boot):
            self._boot = {address: wish for address, wish in self._boot.items() if address not in dropped}
            self._write_boot()
        if dropped.isdisjoint(self._lasting):
            return False
        lasting = {address: wish for address, wish in self._lasting.items() if address not in dropped}
        self._on_disk_only |= dropped & self._lasting.keys()
        _write(self._lasting_file, lasting)
        self._on_disk_only -= dropped
        self._lasting = lasting
        return True

    def _write_boot(self) -> None:
        try:
            _write(self._boot_file, self._boot, synced=False)
        except OSError as error:
            _warn(self._boot_file, error)


def _parse_ids(ids: list[int]) -> Ids:
    vendor, device, subsystem_vendor, subsystem_device = map(_parse_number, ids)
    return (vendor, device, subsystem_vendor, subsystem_device)


def _parse_number(number: object) -> int:
    """int() raises an error of its own for JSON's Infinity."""
    if not isinstance(number, int):
        raise TypeError(f"{number!r} is no number")
    return number


def _parse(data: dict[str, Any]) -> Wish:
    flavour, drivers, others = data["flavour"], data["drivers"], data.get("others")
    if not isinstance(flavour, str) or not isinstance(drivers, list):
        raise TypeError(f"{flavour!r} is no flavour, or {drivers!r} no list")
    if not all(isinstance(driver, str) for driver in drivers):
        raise TypeError(f"{drivers!r} are no drivers")
    return Wish(
        Flavour(flavour),
        tuple(drivers),
        _parse_ids(data["ids"]),
        _parse_number(data["inode"]),
        None if others is None else OthersInGroup(others),
    )


def _warn(path: Path, error: OSError) -> None:
    _log.warning(
        "what was asked for by hand can't be saved in %r (%s), ignoring",
        str(path),
        error.strerror,
        extra=log_fields(MessageId.NOT_KEPT),
    )


def _read(path: Path) -> dict[str, Wish]:
    try:
        data = json.loads(path.read_bytes())
        return {str(parse_address(address)): _parse(each) for address, each in data.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, FlavourError) as error:
        _log.warning("what was asked for by hand can't be read from %r (%r), ignoring", str(path), error)
        return {}


def _write(path: Path, wishes: dict[str, Wish], *, synced: bool = True) -> None:
    """Raises OSError."""
    data = {
        address: {
            "flavour": str(wish.flavour),
            "drivers": list(wish.drivers),
            "ids": list(wish.ids),
            "inode": wish.inode,
            "others": wish.others,
        }
        for address, wish in wishes.items()
    }
    write_whole_file(path, json.dumps(data), synced=synced)
