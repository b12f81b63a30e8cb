"""Flavours that were asked for by hand: they stand above the policy until `reset`.

For the boot they are kept beside its other state, and hold for the very device they were made for. Those
that are to last are kept with what outlives the boot, and hold for a device with the same IDs at the same
address.
"""

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model.address import PciAddress, parse_address
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour
from ..model.message_ids import MessageId, log_fields
from ..model.policy import OthersInGroup
from ..model.udev_header import Ids, Kept, find_ids
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


class _File:
    """One that can't be read as a whole is there still, under another name, once it is written anew."""

    def __init__(self, path: Path, *, synced: bool = True) -> None:
        self._path = path
        self._synced = synced
        self._is_spoilt = False

    def read(self) -> dict[str, Wish]:
        """By address; what makes no sense is told and left out."""
        try:
            entries = dict(json.loads(self._path.read_bytes()).items())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            self._complain("what was asked for by hand", error)
            return {}
        wishes = {}
        for address, entry in entries.items():
            try:
                wishes[str(parse_address(address))] = _parse(entry)
            except (ValueError, KeyError, TypeError, AttributeError, FlavourError) as error:
                self._complain(f"what was asked for by hand of {address!r}", error)
        return wishes

    def write(self, wishes: dict[str, Wish]) -> None:
        """Raises OSError."""
        if self._is_spoilt:
            self._set_aside()
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
        write_whole_file(self._path, json.dumps(data), synced=self._synced)

    def write_or_warn(self, wishes: dict[str, Wish]) -> None:
        try:
            self.write(wishes)
        except OSError as error:
            _log.warning(
                "what was asked for by hand can't be saved in %r (%s), ignoring",
                str(self._path),
                error.strerror,
                extra=log_fields(MessageId.NOT_KEPT),
            )

    def _set_aside(self) -> None:
        """By a second name, so that there is no moment without the first."""
        aside = self._path.with_suffix(".corrupt")
        aside.unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # somebody has seen to it
            os.link(self._path, aside)
            _log.warning("%r, of which not all can be read, is kept as %r", str(self._path), str(aside))
        self._is_spoilt = False

    def _complain(self, what: str, error: Exception) -> None:
        self._is_spoilt = True
        _log.warning("%s can't be read from %r (%r), ignoring", what, str(self._path), error)


class Wishes:
    """Kept in memory and in two files."""

    def __init__(self, boot: Path, lasting: Path) -> None:
        self._boot_file = _File(boot, synced=False)
        self._lasting_file = _File(lasting)
        self._boot = self._boot_file.read()
        self._lasting = self._lasting_file.read()
        # Dropped, but on disk still: they hold from the next boot on.
        self._on_disk_only: set[str] = set()

    def find(self, device: Device) -> Wish | None:
        address = str(device.address)
        wish = self._boot.get(address)
        if wish is not None and wish.ids == find_ids(device.identity) and wish.inode == device.identity.inode:
            return wish
        wish = None if address in self._on_disk_only else self._lasting.get(address)
        return wish if wish is not None and wish.ids == find_ids(device.identity) else None

    def find_kept(self) -> tuple[Kept, ...]:
        """Those that last, as the rules for early boot name them."""
        return tuple(
            Kept(parse_address(address), wish.ids, str(wish.flavour), wish.drivers)
            for address, wish in self._lasting.items()
        )

    def has(self, address: PciAddress) -> bool:
        """For whichever device there was at the address."""
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
        self._boot_file.write_or_warn(self._boot)
        if persist:
            lasting = {**self._lasting, address: Wish(flavour, drivers, ids, 0, others)}
            self._lasting_file.write(lasting)
            self._lasting = lasting
            self._on_disk_only.discard(address)

    def drop(self, addresses: Iterable[PciAddress]) -> bool:
        """Whether one was to last. Raises OSError when those can't be taken off the disk: then they hold no
        more in this boot, and again in the next."""
        dropped = set(map(str, addresses))
        if not dropped.isdisjoint(self._boot):
            self._boot = {address: wish for address, wish in self._boot.items() if address not in dropped}
            self._boot_file.write_or_warn(self._boot)
        if dropped.isdisjoint(self._lasting):
            return False
        lasting = {address: wish for address, wish in self._lasting.items() if address not in dropped}
        self._on_disk_only |= dropped & self._lasting.keys()
        self._lasting_file.write(lasting)
        self._on_disk_only -= dropped
        self._lasting = lasting
        return True


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
