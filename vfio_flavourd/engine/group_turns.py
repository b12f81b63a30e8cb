"""Whose turn it is in an IOMMU group: one switch at a time in each."""

import asyncio
from collections.abc import Collection, Container

from ..kernel.inventory import DEVICES, is_made_up
from ..kernel.sysfs import Sysfs
from ..model.address import PciAddress
from ..model.codes import Code
from ..model.errors import FlavourError


class GroupTurns:
    """A turn is a lock: of the IOMMU group, or of the device where it has none and shares with nobody."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._locks: dict[str, asyncio.Lock] = {}
        self._releases: set[asyncio.Task[None]] = set()

    @property
    def taken(self) -> tuple[str, ...]:
        """The names of those that somebody has."""
        return tuple(name for name, lock in self._locks.items() if lock.locked())

    def find(self, address: PciAddress) -> asyncio.Lock:
        """Kept for good, so that it is for devices that there are.

        A group that VFIO makes up comes and goes in the middle of a switch, and is of one device.
        """
        path = f"{DEVICES}/{address}/iommu_group"
        group = self._sysfs.find_link(path)
        if group is None or is_made_up(self._sysfs, path):
            return self._locks.setdefault(str(address), asyncio.Lock())
        return self._locks.setdefault(f"group {group}", asyncio.Lock())

    def release(self, turn: asyncio.Lock, outlasting: Collection[asyncio.Task[None]]) -> None:
        """At once, or when the last of those has come to its end."""
        if not outlasting:
            turn.release()
            return
        release = asyncio.create_task(_release_after(turn, outlasting))
        self._releases.add(release)
        release.add_done_callback(self._releases.discard)


async def acquire(turn: asyncio.Lock, address: PciAddress, limit: float) -> None:
    """Raises FlavourError (EBUSY) where it does not come within `limit` (seconds)."""
    try:
        async with asyncio.timeout(limit):
            await turn.acquire()
    except TimeoutError:
        raise FlavourError(
            f"{address}: its IOMMU group was busy with another switch for {limit:g} s",
            code=Code.GROUP_BUSY,
            hint="try again when that one is done; flavourctl list shows it",
        ) from None


def check_address_is_free(address: PciAddress, running: Container[PciAddress]) -> None:
    """Raises FlavourError (EAGAIN) where the switch of a device that was here before, in another IOMMU group,
    has not been given up yet."""
    if address in running:
        raise FlavourError(
            f"{address}: the switch of the device that was here before has not ended yet",
            code=Code.GROUP_BUSY,
            hint="try again in a moment",
        )


async def _release_after(turn: asyncio.Lock, outlasting: Collection[asyncio.Task[None]]) -> None:
    await asyncio.wait(outlasting)
    turn.release()
