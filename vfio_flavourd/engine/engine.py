"""All devices' switches: one at a time in an IOMMU group, side by side otherwise; the stuck ones apart."""

import asyncio
import errno
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..kernel.inventory import DEVICES, read_device, read_devices
from ..kernel.processes import is_alive
from ..model.address import PciAddress
from ..model.aliases import AliasTable, Resolution
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Attempt, DeviceStatus, Flavour, Outcome, Request, StepReport, find_flavour
from ..model.transition import Phase
from .forecast import forecast
from .host import Host
from .ledger import Record, find_record
from .moves import StuckError
from .recovery import converge
from .switch import Switch, Way
from .to_native import restore, to_native
from .to_vfio import to_vfio

_log = logging.getLogger(__name__)

# Attempts kept for `history`.
_HISTORY = 256

# Seconds after the end of an attempt until it is in the log; the answer is sent in less.
_LOG_DELAY = 0.05

Listener = Callable[[PciAddress, Attempt | StepReport], None]


class Engine:
    """What the doors talk to."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._turns: dict[str, asyncio.Lock] = {}
        self._running: dict[PciAddress, Switch] = {}
        self._stuck: dict[PciAddress, str] = {}
        self._last: dict[PciAddress, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._switches: set[asyncio.Task[Outcome]] = set()
        self._unlogged: deque[Callable[[], None]] = deque()
        self.history: deque[tuple[PciAddress, Attempt]] = deque(maxlen=_HISTORY)
        self.listeners: set[Listener] = set()

    # looking

    def devices(self) -> list[DeviceStatus]:
        table = self._host.index.table()
        return [self._status(device, table) for device in read_devices(self._host.sysfs)]

    def device(self, address: PciAddress) -> DeviceStatus:
        """Raises FlavourError (ENODEV)."""
        return self._status(read_device(self._host.sysfs, address), self._host.index.table())

    def resolve(self, modalias: str) -> Resolution:
        """Raises FlavourError (EINVAL) for anything that is not a PCI modalias."""
        return self._host.resolve(modalias)

    def notice(self, address: PciAddress) -> None:
        """A uevent of this device has come."""
        self._host.changes.notice(address)

    def notice_all(self) -> None:
        """Events were lost: whoever waits for a device looks again."""
        self._host.changes.notice_all()

    def needs_no_events(self) -> bool:
        """A switch is under way, and nobody waits for a device to change."""
        return bool(self._running) and not self._host.changes.awaited

    def forget(self, address: PciAddress) -> None:
        """The device was removed. A running switch finds that out by itself."""
        record = self._host.ledger.find(address)
        if record is not None and address not in self._running and address not in self._stuck:
            self._check_held(record)
        if not self._host.sysfs.exists(f"{DEVICES}/{address}"):
            self._last.pop(address, None)

    def plan(self, request: Request) -> list[str]:
        """What `set_flavour` would do. Raises FlavourError where it would be refused."""
        device = read_device(self._host.sysfs, request.address)
        return forecast(self._host, device, request)

    # switching

    async def set_flavour(self, request: Request, report: Callable[[StepReport], None]) -> Outcome:
        """Raises FlavourError. A caller that is cancelled gives the switch up while nothing is touched;
        later it goes on without him."""
        return await self._take(request, report, to_vfio if request.flavour is Flavour.VFIO else to_native)

    async def reset(self, request: Request, report: Callable[[StepReport], None]) -> Outcome:
        """Back to what was there before the first switch. Raises FlavourError."""
        return await self._take(request, report, restore)

    async def _take(self, request: Request, report: Callable[[StepReport], None], way: Way) -> Outcome:
        switch = Switch(self._host, request, self._fan_out(request, report))
        task = asyncio.create_task(self._run(request, switch, way))
        self._switches.add(task)
        task.add_done_callback(self._switches.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if switch.touched:
                _log.info(
                    "%s: the one who asked has gone, carrying the switch to its end",
                    request.address,
                    extra={"PCI_ADDRESS": str(request.address)},
                )
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            else:
                task.cancel()
            raise

    async def _run(self, request: Request, switch: Switch, way: Way) -> Outcome:
        address = request.address
        started = time.time()
        try:
            outcome = await self._in_turn(request, switch, way)
        except FlavourError as error:
            self._conclude(request, switch, started, "", error)
            raise
        except asyncio.CancelledError:
            cancelled = FlavourError(
                f"{address}: given up by the one who asked, nothing was touched", errno=errno.EINTR
            )
            self._conclude(request, switch, started, "", cancelled)
            raise
        self._conclude(request, switch, started, outcome.reason, None, outcome)
        return outcome

    async def _in_turn(self, request: Request, switch: Switch, way: Way) -> Outcome:
        address = request.address
        if address in self._stuck:
            raise FlavourError(
                f"{address}: stuck: {self._stuck[address]}",
                errno=errno.EBUSY,
                hint="it is finished or undone by itself when the kernel lets go",
            )
        turn = self._find_turn(address)
        await self._wait_for_turn(turn, request)
        keep_turn = False
        try:
            device = read_device(self._host.sysfs, address)
            self._running[address] = switch
            return await switch.run(device, way)
        except StuckError as error:
            keep_turn = True
            self._stuck[address] = _describe_stuck(error, address)
            self._spawn(self._outlast(address, error.blocked.finished, turn))
            raise
        finally:
            self._running.pop(address, None)
            if not keep_turn:
                turn.release()

    def _find_turn(self, address: PciAddress) -> asyncio.Lock:
        """The turn of its IOMMU group; a device without one shares its turn with nobody."""
        group = self._host.sysfs.find_link(f"{DEVICES}/{address}/iommu_group")
        return self._turns.setdefault(str(address) if group is None else f"group {group}", asyncio.Lock())

    async def _wait_for_turn(self, turn: asyncio.Lock, request: Request) -> None:
        limit = self._host.timeouts.group
        if request.timeout is not None:
            limit = min(limit, request.timeout)
        try:
            async with asyncio.timeout(limit):
                await turn.acquire()
        except TimeoutError:
            raise FlavourError(
                f"{request.address}: its IOMMU group stayed busy with another switch for {limit:g} s",
                errno=errno.EAGAIN,
                hint="try again when that one has ended; flavourctl list shows it",
            ) from None

    async def settle(self, grace: float) -> None:
        """Let the running switches come to their end, for `grace` seconds at most. What is left then is
        finished by the worker that is at it, and taken up by the next daemon."""
        if self._switches:
            await asyncio.wait(self._switches, timeout=grace)
        self._log_ends()

    # the stuck ones

    async def _outlast(self, address: PciAddress, finished: Awaitable[object], turn: asyncio.Lock) -> None:
        """Bring a device to its end when the kernel has let go, however often it takes hold again."""
        fields = {"PCI_ADDRESS": str(address)}
        try:
            while True:
                with suppress(FlavourError):  # a worker that died has let go as well
                    await finished
                record = self._host.ledger.find(address)
                try:
                    said = await converge(self._host, record) if record else "nothing is on record for it"
                except StuckError as error:
                    self._stuck[address] = _describe_stuck(error, address)
                    finished = error.blocked.finished
                    continue
                except FlavourError as error:
                    _log.error("%s", error, extra=fields)
                    return
                _log.warning(
                    "%s: a switch that was cut off or stuck is at its end: %s", address, said, extra=fields
                )
                return
        finally:
            del self._stuck[address]
            turn.release()

    async def recover(self) -> None:
        """Take up what an earlier daemon of this boot left; what takes longer goes on in the background."""
        for complaint in self._host.ledger.load():
            _log.warning("%s", complaint)
        for record in self._host.ledger.all():
            if not record.switching:
                self._check_held(record)
                continue
            finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if record.worker is not None and is_alive(self._host.sysfs, record.worker):
                self._stuck[record.address] = (
                    f"process {record.worker.pid} of an earlier daemon is in the kernel with it"
                )
                finished = self._host.hands.await_exit(record.worker.pid)
            else:
                self._stuck[record.address] = "a switch that was cut off is being brought to its end"
                finished.set_result(None)
            self._spawn(self._take_up(record.address, finished))

    async def _take_up(self, address: PciAddress, finished: Awaitable[object]) -> None:
        turn = self._find_turn(address)
        await turn.acquire()
        await self._outlast(address, finished, turn)

    def _check_held(self, record: Record) -> None:
        try:
            same = read_device(self._host.sysfs, record.address).identity == record.identity
        except FlavourError as error:
            same = error.errno != errno.ENODEV  # what can't be read now is no reason to forget
        if not same:
            self._host.ledger.forget(record.address)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # telling

    def _status(self, device: Device, table: AliasTable) -> DeviceStatus:
        record = find_record(self._host.ledger, device)
        running = self._running.get(device.address)
        stuck = self._stuck.get(device.address, "")
        return DeviceStatus(
            device=device,
            flavour=find_flavour(device, table.flavoured_modules()),
            resolution=table.resolve(device.modalias, loaded=self._host.modules),
            origin_driver=record.origin.driver if record else None,
            held=record is not None,
            phase=Phase.STUCK if stuck else (running.phase if running else None),
            stuck=stuck,
            last=self._last.get(device.address),
        )

    def _log_ends(self) -> None:
        while self._unlogged:
            self._unlogged.popleft()()

    def _fan_out(
        self, request: Request, report: Callable[[StepReport], None]
    ) -> Callable[[StepReport], None]:
        def fan_out(step: StepReport) -> None:
            report(step)
            for listener in list(self.listeners):
                listener(request.address, step)

        return fan_out

    def _conclude(
        self,
        request: Request,
        switch: Switch,
        started: float,
        reason: str,
        error: FlavourError | None,
        outcome: Outcome | None = None,
    ) -> None:
        attempt = Attempt(
            flavour=request.flavour,
            requester=request.requester,
            when=started,
            reason=reason,
            error="" if error is None else str(error),
            steps=tuple(switch.steps),
        )
        self._last[request.address] = attempt
        self.history.append((request.address, attempt))
        # The one who asked need not wait for the journal.
        seconds = time.time() - started
        driver = self._host.sysfs.find_link(f"{DEVICES}/{request.address}/driver")
        self._unlogged.append(lambda: _log_end(request, driver, seconds, error, outcome))
        asyncio.get_running_loop().call_later(_LOG_DELAY, self._log_ends)
        for listener in list(self.listeners):
            listener(request.address, attempt)


def _describe_stuck(error: StuckError, address: PciAddress) -> str:
    return f"{_without(error, address)}, since {time.strftime('%H:%M:%S')}"


def _log_end(
    request: Request, driver: str | None, seconds: float, error: FlavourError | None, outcome: Outcome | None
) -> None:
    """The one record of an attempt; `driver` is the one that the device has after it."""
    done = "failed" if outcome is None else "done" if outcome.changed else "unchanged"
    fields = {
        "PCI_ADDRESS": str(request.address),
        "FLAVOUR": str(request.flavour),
        "REQUESTER": request.requester,
        "OUTCOME": done,
        "DRIVER": driver or "",
        "DURATION_USEC": str(int(seconds * 1e6)),
    }
    if error is not None:
        said = _without(error, request.address)
        _log.error("%s: to %s: %s", request.address, request.flavour, said, extra=fields)
    elif outcome is not None and outcome.changed:
        _log.log(
            logging.WARNING if outcome.fallback else logging.INFO,
            "%s: %s -> %s in %d ms: %s",
            request.address,
            outcome.previous_driver or "no driver",
            driver or "no driver",
            seconds * 1000,
            outcome.reason,
            extra=fields,
        )
    elif outcome is not None:
        _log.info("%s: to %s: %s", request.address, request.flavour, outcome.reason, extra=fields)


def _without(error: FlavourError, address: PciAddress) -> str:
    return str(error).removeprefix(f"{address}: ")
