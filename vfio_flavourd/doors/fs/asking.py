"""What the file system asks the daemon, and by how many connections.

To the daemon all of them are root's, whoever reads or writes the files. So reads, which anyone may, go by the
read-only socket, a few at a time; and of the writes, which wait for a device, only root may have so many that
his own calls would find no place on the control socket.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from ...kernel.sysfs import Sysfs
from ...kernel.units import find_unit
from ...model.address import PciAddress
from ...model.codes import Code
from ...model.errors import FlavourError
from ...model.message_ids import MessageId
from ...model.requester import Requester
from ..client import Client, connect
from ..refusals import Refusals

# The daemon answers a read at once, so that those that wait for one another are not held up.
_READS = 8

# Writes under way: of one user, and of all together since one may be many (subuid(5)). Root's don't count.
WRITES_OF_ONE = 16
WRITES_OF_ALL = 32

# Root's that are under way; more wait for those. With all the others' they leave him places on the control
# socket.
WRITES_OF_ROOT = 48

# Root's in all: fewer than the kernel's requests that are served at one time.
WAITING_OF_ROOT = 500


class Asking:
    """Connections are kept for the next call, by whether they may write."""

    def __init__(self, sysfs: Sysfs) -> None:
        self.refusals = Refusals(partial(find_unit, sysfs))
        self._idle: dict[bool, list[Client]] = {False: [], True: []}
        self._reads = asyncio.Semaphore(_READS)
        self._writes_of_root = asyncio.Semaphore(WRITES_OF_ROOT)
        self._writes: Counter[int] = Counter()

    async def read_flavour(self, address: PciAddress) -> tuple[str, list[str]]:
        """The one it has, and all that there are. Raises FlavourError."""
        async with self._reads:
            answer = await self._call("Get", writes=False, device=str(address))
        return answer["device"]["flavour"], answer["flavours"]

    async def set_flavour(self, address: PciAddress, flavour: str, asks: Requester) -> None:
        """On behalf of that user's process. Raises FlavourError."""
        with self._place(address, asks):
            async with contextlib.nullcontext() if asks.uid else self._writes_of_root:
                who = {"uid": asks.uid, "pid": asks.pid}
                await self._call("SetFlavour", writes=True, device=str(address), flavour=flavour, **who)

    @contextlib.contextmanager
    def _place(self, address: PciAddress, asks: Requester) -> Iterator[None]:
        """One of those for writes. Raises FlavourError (EAGAIN)."""
        uid = asks.uid
        own = self._writes[uid]
        others = self._writes.total() - self._writes[0] - own if uid else 0
        if own >= (WRITES_OF_ONE if uid else WAITING_OF_ROOT) or (uid and own + others >= WRITES_OF_ALL):
            waiting = f"{own} writes of uid {uid} and {others} of other users wait for their devices"
            self.refusals.tell(
                asks, "write", MessageId.TOO_MANY_WRITES, Code.TOO_MANY_REQUESTS, address, waiting
            )
            raise FlavourError(
                f"{address}: {waiting}",
                code=Code.TOO_MANY_REQUESTS,
                hint="try again when some of them are done; flavourctl list shows the devices",
            )
        self._writes[uid] += 1
        try:
            yield
        finally:
            self._writes[uid] -= 1
            self._writes += Counter()  # keeps no zeros

    async def _call(self, method: str, *, writes: bool, **parameters: object) -> dict[str, Any]:
        client = await self._take(writes=writes)
        try:
            answer = await client.call(method, **parameters)
        except BaseException:
            client.close()  # hanging up tells the daemon that nobody waits any more
            raise
        self._idle[writes].append(client)
        return answer

    async def _take(self, *, writes: bool) -> Client:
        while self._idle[writes]:
            client = self._idle[writes].pop()
            if client.is_open:
                return client
        return await connect(writes=writes)
