"""Devices that the kernel holds: shown as stuck, left alone, brought to an end when it lets go."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Protocol

from ..kernel.processes import is_alive
from ..model.address import PciAddress
from ..model.codes import Code
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.message_ids import MessageId, log_fields
from ..model.occupancy import User
from .attempts import without_address
from .group_turns import GroupTurns
from .host import Host
from .ledger import Record
from .moves import StuckError
from .recovery import converge, rebuild

_log = logging.getLogger(__name__)


class Freed(Protocol):
    """What is called when a device gets out; `is_done`: it has been brought to its end."""

    def __call__(self, address: PciAddress, *, is_done: bool) -> None: ...


class Quarantine:
    """The turn of a device's IOMMU group is held for as long as one of the group's devices is in here.
    `ended` is called when a switch has come to its end, with the record of before that, and `freed` when a
    device gets out."""

    def __init__(
        self,
        host: Host,
        turns: GroupTurns,
        ended: Callable[[Record], Awaitable[None]],
        freed: Freed,
    ) -> None:
        self._host = host
        self._turns = turns
        self._ended = ended
        self._freed = freed
        self._stuck: dict[PciAddress, str] = {}
        self._since: dict[PciAddress, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, address: PciAddress) -> str:
        """Why a device is in here, in words; empty when it is not."""
        said = self._stuck.get(address, "")
        if address in self._since:
            # By the wall clock as it is now, whatever it was when it began.
            when = time.localtime(time.time() - (time.monotonic() - self._since[address]))
            said += f", since {time.strftime('%H:%M:%S', when)}"
        return said

    def count(self) -> int:
        return len(self._stuck)

    def check_turn(self, turn: asyncio.Lock, address: PciAddress) -> None:
        """Raises FlavourError (EAGAIN) where it won't come for as long as the kernel likes."""
        if any(self._turns.find(stuck) is turn for stuck in self._stuck):
            raise FlavourError(
                f"{address}: another device in its IOMMU group is stuck",
                code=Code.GROUP_BUSY,
                hint="try again when that one is done; flavourctl list shows it",
            )

    def check(self, address: PciAddress) -> None:
        """Raises FlavourError (EBUSY) for a device that is in here."""
        if said := self.find(address):
            raise FlavourError(
                f"{address}: stuck: {said}",
                code=Code.STUCK,
                hint="the switch is finished or undone by itself when the kernel returns",
            )

    def take(self, address: PciAddress, error: StuckError, users: tuple[User, ...] = ()) -> None:
        """A write has not come back; `users` may be why."""
        self._stuck[address] = without_address(error, address) + describe_holders(users)
        self._since[address] = time.monotonic() - error.seconds

    def hold(self, address: PciAddress, error: StuckError) -> None:
        """Somebody else's write has the device in the kernel, as a look at it has shown: no other look is
        begun, each of which would wait there in a process of its own."""
        self.take(address, error)
        self._spawn(self._in_turn(address, self._outlast(address, error.blocked.finished, self._converge)))

    def outlast(self, device: Device, error: StuckError) -> asyncio.Task[None]:
        """To be called when its switch has ended, which others may be part of; returns what ends when the
        device is out of here again."""
        return self._spawn(self._outlast(device.address, error.blocked.finished, self._converge))

    def recover(self) -> None:
        """Take up what an earlier daemon of this boot left: shown at once, ended in the background."""
        for address, complaint in self._host.ledger.load().items():
            _log.warning("%s", complaint, extra=log_fields(MessageId.RECORD_LOST, address))
            if address is not None:
                self._stuck[address] = "its record can't be read, so the device is being looked at"
                self._spawn(self._in_turn(address, self._outlast(address, _now(), self._rebuild)))
        # The last one first, as a switch of several devices is undone.
        records = [record for record in reversed(self._host.ledger.all()) if record.is_open]
        held = [record.address for record in records if self._take_up(record)]
        self._spawn(self._add_holders(held))

    def _take_up(self, record: Record) -> bool:
        """Whether an earlier daemon's worker still has it."""
        address, worker = record.address, record.worker
        if worker is not None and is_alive(self._host.sysfs, worker):
            said = f"process {worker.pid} of an earlier daemon is still in the kernel with it"
            finished = self._host.hands.await_exit(worker.pid)
        else:
            worker, finished = None, _now()
            said = "a switch that was cut off is being brought to its end"
        self._stuck[address] = said
        self._spawn(self._in_turn(address, self._outlast(address, finished, self._converge)))
        return worker is not None

    async def _add_holders(self, addresses: Iterable[PciAddress]) -> None:
        """Looking into all processes takes its time: the start of the service doesn't wait for it, and others
        who ask wait for one look at the most."""
        for address in addresses:
            said = self._stuck.get(address, "")
            holders = await self._find_holders(address)
            if said and self._stuck.get(address) == said:
                self._stuck[address] = said + holders

    async def _find_holders(self, address: PciAddress) -> str:
        group = self._host.sysfs.find_link(f"/sys/bus/pci/devices/{address}/iommu_group")
        if group is None:
            return ""
        try:
            holders = await asyncio.to_thread(self._host.occupancy.find_group_holders, int(group))
        except FlavourError as error:
            return f"; {error}"
        return describe_holders(holders)

    async def _in_turn(self, address: PciAddress, work: Coroutine[Any, Any, None]) -> None:
        async with self._turns.find(address):
            await work

    async def _outlast(
        self,
        address: PciAddress,
        finished: Awaitable[object],
        finish: Callable[[PciAddress], Coroutine[Any, Any, str]],
    ) -> None:
        """Bring a device to its end when the kernel has let go, however often it takes hold again. `finish`
        gives what there is to tell then; it may raise FlavourError, StuckError among them."""
        is_done = False
        try:
            while True:
                with suppress(FlavourError):  # a worker that died has let go as well
                    await finished
                try:
                    said = await finish(address)
                except StuckError as error:
                    self.take(address, error)
                    finished = error.blocked.finished
                    continue
                except FlavourError as error:
                    _log.error("%s", error, extra=log_fields(MessageId.NOT_RELEASED, address))
                    return
                _log.warning("%s: %s", address, said, extra=log_fields(MessageId.RELEASED, address))
                is_done = True
                return
        finally:
            self._stuck.pop(address, None)
            self._since.pop(address, None)
            self._freed(address, is_done=is_done)

    async def _converge(self, address: PciAddress) -> str:
        record = self._host.ledger.find(address)
        if record is None or not record.is_open:
            return "the kernel has let go of it, no switch was under way"
        said = await converge(self._host, record)
        await self._ended(record)
        return f"the switch that was cut off or stuck is over: {said}"

    async def _rebuild(self, address: PciAddress) -> str:
        return f"its record is lost: {await rebuild(self._host, address)}"

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _now() -> "asyncio.Future[None]":
    """Nobody holds it."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


def describe_holders(users: tuple[User, ...]) -> str:
    """A clause that names who holds a device; empty when that isn't known."""
    return f", held by {'; '.join(user.what for user in users)}" if users else ""
