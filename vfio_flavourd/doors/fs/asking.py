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

# Calls for reads under way. The daemon answers one at once, so that the others are not held up.
_READS = 8

# Reads under way of one user, root aside: each is one of the kernel's requests that are served at one time.
READS_OF_ONE = 32

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
        self._read_calls = asyncio.Semaphore(_READS)
        self._unsent: dict[PciAddress, asyncio.Task[dict[str, Any]]] = {}
        self._reads: Counter[int] = Counter()
        self._writes_of_root = asyncio.Semaphore(WRITES_OF_ROOT)
        self._writes: Counter[int] = Counter()

    async def read_flavour(self, address: PciAddress, asks: Requester) -> tuple[str, list[str]]:
        """The one it has, and all that there are. Raises FlavourError. Reads of one device share a call until
        it is sent: no later, so that each sees what was written before it."""
        uid = asks.uid
        if uid and self._reads[uid] >= READS_OF_ONE:
            raise self._refuse(asks, "read", address, f"{self._reads[uid]} reads of uid {uid} are under way")
        with _counted(self._reads, uid):
            if (call := self._unsent.get(address)) is None:
                call = self._unsent[address] = asyncio.create_task(self._get(address))
            answer = await asyncio.shield(call)
        return answer["device"]["flavour"], answer["flavours"]

    async def _get(self, address: PciAddress) -> dict[str, Any]:
        async with self._read_calls:
            del self._unsent[address]
            return await self._call("Get", writes=False, device=str(address))

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
            raise self._refuse(asks, "write", address, waiting)
        with _counted(self._writes, uid):
            yield

    def _refuse(self, asks: Requester, what: str, address: PciAddress, why: str) -> FlavourError:
        self.refusals.tell(asks, what, MessageId.TOO_MANY_WRITES, Code.TOO_MANY_REQUESTS, address, why)
        return FlavourError(
            f"{address}: {why}",
            code=Code.TOO_MANY_REQUESTS,
            hint="try again when some of them are done; flavourctl list shows the devices",
        )

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


@contextlib.contextmanager
def _counted(counts: Counter[int], uid: int) -> Iterator[None]:
    counts[uid] += 1
    try:
        yield
    finally:
        counts[uid] -= 1
        if not counts[uid]:
            del counts[uid]
