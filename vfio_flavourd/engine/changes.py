"""Who waits for a device to change, woken by its uevents."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from ..model.address import PciAddress


class Changes:
    """`notice` is called for each uevent of a device; `wait_for` looks again each time."""

    def __init__(self) -> None:
        self._waiting: defaultdict[PciAddress, set[asyncio.Event]] = defaultdict(set)

    @property
    def awaited(self) -> bool:
        return bool(self._waiting)

    def notice(self, address: PciAddress) -> None:
        for event in self._waiting.get(address, ()):
            event.set()

    def notice_all(self) -> None:
        for address in list(self._waiting):
            self.notice(address)

    async def wait_for(self, address: PciAddress, is_so: Callable[[], bool], timeout: float) -> bool:
        """Whether `is_so()` became true within `timeout` seconds. Looks once before it waits."""
        event = asyncio.Event()
        self._waiting[address].add(event)
        try:
            async with asyncio.timeout(timeout):
                while not is_so():
                    await event.wait()
                    event.clear()
        except TimeoutError:
            return is_so()
        finally:
            self._waiting[address].discard(event)
            if not self._waiting[address]:
                del self._waiting[address]
        return True
