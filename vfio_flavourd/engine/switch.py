"""One switch of one device: what all of them share, whichever way they go.

It keeps the phase, tells the steps, writes the record before the first write, and puts back.
"""

import errno
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from ..kernel.modules import NotLoaded
from ..kernel.processes import read_worker
from ..model.address import PciAddress
from ..model.device import Binding, Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Outcome, Request, StepAction
from ..model.occupancy import User
from ..model.plan import Action, Step
from ..model.policy import Decision
from ..model.transition import LAST, Phase
from .attempts import Report, without_address
from .guards import check_users, in_time, out_of_time
from .host import Host
from .ledger import Asked, Record, find_record, forget_record
from .moves import (
    ChangedError,
    GoneError,
    NotRecordedError,
    Observed,
    StaleError,
    StepError,
    StuckError,
    TakenError,
    is_there,
    move,
    observe,
)
from .steps import Steps
from .undo import Aim, plan_undo, tell_not_put_back, tell_put_back


class Switch:
    """Carries out one request.

    `steps` can be looked at while it runs; `touched` tells whether anything has been written, from when on
    it is carried to an end and no longer given up. `before` is what the device had at the beginning, from
    the first move on. `is_late` says that time has gone by since it was seen who uses the device; `forced`
    are those who came in that time, and are no obstacle. With `together` it is one of several that are for
    all of these devices or none: it stays open after its end, until `commit` or `undo`.
    Times count from `began` (monotonic), when the switch was asked for.
    """

    def __init__(
        self,
        host: Host,
        request: Request,
        decision: Decision,
        report: Report,
        together: tuple[PciAddress, ...] = (),
        asked: Asked | None = None,
        *,
        began: float,
    ) -> None:
        self.host = host
        self.request = request
        self.settings = decision.settings
        self.drivers = request.drivers
        if not self.drivers and decision.flavour == request.flavour:
            self.drivers = decision.drivers
        self.together = together
        self._asked = asked
        self.steps = Steps(report, began)
        self._began = began
        self.touched = False
        self.before: Binding | None = None
        self.is_late = False
        self.forced: tuple[User, ...] = ()
        self._kept: Record | None = None
        self._aim = Aim(request.flavour)
        self._written: set[str | None] = set()

    async def run(self, device: Device, way: "Way") -> Outcome:
        """Raises FlavourError when the device does not have the flavour afterwards."""
        try:
            outcome = await self._go(device, way)
        except StuckError as error:
            self.get_stuck(error)
            raise
        except GoneError:
            forget_record(self.host.ledger, device)
            self._fail()
            raise
        except FlavourError:
            self._fail()
            raise
        self.steps.enter(Phase.DONE)
        return outcome

    async def _go(self, device: Device, way: "Way") -> Outcome:
        """Also where a killed worker or a full /run ends it in the middle, the device goes back."""
        try:
            return await way(self, device)
        except (StuckError, GoneError):
            raise
        except FlavourError as error:
            record = find_record(self.host.ledger, device)
            is_open = record is not None and record.switching and self.before is not None
            if not is_open or self.steps.phase is Phase.UNDOING:
                raise
            raise await self.undo(device, error) from error

    def get_stuck(self, error: StuckError) -> None:
        """It is given up on; what has not come back is its last step."""
        waited = f"has not returned for {round(error.seconds, 2):g} s (process {error.blocked.pid})"
        self.steps.get_stuck(error.step, waited)

    # steps

    def look_again(self, device: Device) -> Device:
        """It as it is now; where it is another one by now, its steps say so."""
        try:
            now = self.host.read_device(device.address)
        except FlavourError:
            return device
        return now if now.identity == device.identity else device

    async def load(self, module: str) -> tuple[str, ...]:
        """The module's PCI drivers. Raises NotLoaded."""
        start = self.steps.begin(f"load {module}")
        self.is_late |= not self.host.modules.find_drivers(module)
        try:
            drivers = await self.host.modules.load(module, self._limit(self.settings.load_timeout))
        except NotLoaded as error:
            self.steps.end(StepAction.LOAD, f"load {module}", start, str(error))
            raise
        self.steps.end(StepAction.LOAD, f"load {module}", start)
        return drivers

    async def load_native(self, modalias: str) -> None:
        """What udev would load for the device."""
        start = self.steps.begin("load the native driver")
        self.is_late = True
        await self.host.modules.load_native(modalias, self._limit(self.settings.load_timeout))
        self.steps.end(StepAction.LOAD, "load the native driver", start)

    async def observe(self, device: Device) -> Observed:
        """Raises GoneError and StuckError."""
        self.steps.look()
        return await observe(self.host, device, self._limit(self.settings.bind_timeout))

    async def carry_out(
        self, device: Device, plan: Callable[[Binding], tuple[Step, ...]], aim: Aim
    ) -> Observed:
        """Write down what there was, then touch the device, then read it back.

        The first time it goes by what the device should have, and looks only where that is wrong: a
        look of its own takes as long as the writes. Raises FlavourError (EIO, nothing touched) when it
        can't be written down, EBUSY when somebody has come to use the device, and as `move` does.
        """
        if self.before is None:
            if self.is_late:
                await self._see_again(device)
            self._kept = kept = find_record(self.host.ledger, device)
            # As far as that is known without reading what may block its reader.
            override = kept.binding.override if kept is not None and not kept.switching else None
            self.before = Binding(device.driver, override)
            try:
                return await self._carry_out(device, self.before, plan, aim, expected=self.before)
            except StaleError:
                self.host.ledger.take_back(device.address, kept)
                self.touched = False
                self._written.clear()
                self.before = (await self.observe(device)).binding
                return await self._carry_out(device, self.before, plan, aim)
            except StepError as error:
                if error.step.action is not Action.UNBIND or error.kernel_errno != errno.ENODEV:
                    raise
                now = (await self.observe(device)).binding
                if now.driver is not None:
                    raise  # another driver has taken over
                # Its driver has given it up by itself: 6.1 ends an NVMe probe that fails in the background.
                self.before = Binding(None, self.before.override)
                return await self._carry_out(device, now, plan, aim)
        now = (await self.observe(device)).binding
        if now.driver is not None and now.driver not in (self.before.driver, *self._written):
            raise TakenError(device, now.driver)
        return await self._carry_out(device, now, plan, aim)

    async def _see_again(self, device: Device) -> None:
        """Who uses it by now: a module takes seconds to load, and others have had their turn before."""
        start = time.monotonic()
        try:
            async with in_time(self.request, self._began):
                self.forced = await check_users(self.host, device, self.request, self.settings)
        except FlavourError:
            self.steps.end(StepAction.GUARD, "see again whether it may be taken", start, "refused")
            raise

    async def undo(self, device: Device, cause: FlavourError) -> FlavourError:
        """Put the device back as it was at the beginning; returns what to tell the one who asked."""
        if self.before is None:
            return cause
        self.steps.enter(Phase.UNDOING)
        try:
            return await self._undo(device, self.before, cause)
        except (StuckError, GoneError):
            raise
        except FlavourError as error:
            return tell_not_put_back(device.address, cause, without_address(error, device.address))

    async def _undo(self, device: Device, before: Binding, cause: FlavourError) -> FlavourError:
        """Raises FlavourError where it can't be."""
        bind = self.settings.bind_timeout
        seen = await observe(self.host, device, bind)
        goal, steps = plan_undo(seen, before, cause, self._aim, self._written, self.steps.done)
        after = await self._move_on_record(device, steps, bind)
        if after.binding != goal:
            return tell_not_put_back(device.address, cause, f"it has {_name(after.binding)}")
        again = tell_put_back(after.binding, before)
        if self._aim.personality is not None:
            if not await self._has_changed(device, self._aim.flavour):
                return tell_not_put_back(device.address, cause, f"{goal.driver} did not change back")
            after = await observe(self.host, device, bind)
            again = f"{after.binding.driver} as before"
        self.settle(device, after)
        self.commit()
        return FlavourError(f"{cause}; it has {again}", code=cause.code, errno=cause.errno, hint=cause.hint)

    async def _has_changed(self, device: Device, flavour: Flavour) -> bool:
        """Whether a driver that was asked back has given up that flavour, in time."""
        path = f"{device.path}/vfio-dev"
        return await self.wait_for(
            device, lambda: bool(self.host.sysfs.list(path)) != (flavour == Flavour.VFIO)
        )

    def settle(self, device: Device, after: Observed) -> None:
        """Nothing is under way any more: keep what `reset` needs, and nothing when that is what it has."""
        record = find_record(self.host.ledger, device)
        if record is None:
            return
        flavour = self.host.find_flavour_of(after.binding.driver, after.vfio_device)
        self.keep(replace(record, flavour=flavour, binding=after.binding))

    def keep(self, record: Record) -> None:
        """It stays open where the switch is one of several."""
        if self.together:
            self.host.ledger.settle(record)
        else:
            self.host.ledger.conclude(record)

    def commit(self) -> None:
        """All the devices of the switch have come to their end, or this one is no longer among them."""
        self.together = ()
        record = self.host.ledger.find(self.request.address)
        if record is not None and record.together and not record.switching:
            self.host.ledger.conclude(record)

    # results

    def outcome(self, device: Device, after: Observed, reason: str, *, fallback: bool = False) -> Outcome:
        """What was read back, as the one who asked is told."""
        return Outcome(
            address=device.address,
            flavour=self.host.find_flavour_of(after.binding.driver, after.vfio_device),
            driver=after.binding.driver,
            previous_driver=self.before.driver if self.before else device.driver,
            fallback=fallback,
            reason=reason,
            vfio_device=after.vfio_device,
            group_node=self._find_group_node(device, after.vfio_device),
            duration=time.monotonic() - self._began,
            changed=True,
            steps=self.steps.ended,
        )

    def _find_group_node(self, device: Device, vfio_device: str | None) -> str | None:
        if device.iommu_group is None and vfio_device is not None:
            device = self.host.read_device(device.address)  # VFIO has made a group up
        return replace(device, vfio_device=vfio_device).group_node

    def unchanged(self, device: Device, reason: str, *, fallback: bool = False) -> Outcome:
        """It has what it had when it was looked at. Raises FlavourError where that is not so any more: a look
        for its users, or a load, has taken its time since."""
        there = self.host.read_device(device.address)
        if there.identity != device.identity:
            raise GoneError(device)
        if (there.driver, there.vfio_device) != (device.driver, device.vfio_device):
            raise ChangedError(there)
        now = Observed(Binding(device.driver, None), device.vfio_device)
        return replace(self.outcome(device, now, reason, fallback=fallback), changed=False)

    @property
    def is_out_of_time(self) -> bool:
        timeout = self.request.timeout
        return timeout is not None and time.monotonic() >= self._began + timeout

    async def wait_for(self, device: Device, is_so: Callable[[], bool]) -> bool:
        """Whether it became so while a bind may take."""
        start = time.monotonic()
        became = await self.host.changes.wait_for(
            device.address, is_so, self._limit(self.settings.bind_timeout)
        )
        failed = "" if became else "it has not changed"
        self.steps.end(StepAction.WAIT, "wait for its driver", start, failed)
        return became

    async def _carry_out(
        self,
        device: Device,
        now: Binding,
        plan: Callable[[Binding], tuple[Step, ...]],
        aim: Aim,
        *,
        expected: Binding | None = None,
    ) -> Observed:
        self._aim = aim
        self.steps.enter(Phase.SWITCHING)
        limit = self._limit(self.settings.bind_timeout)
        after = await self._move_on_record(device, plan(now), limit, expected=expected)
        self.steps.enter(Phase.VERIFYING)
        self.steps.end_read_back()
        return after

    async def _move_on_record(
        self, device: Device, steps: tuple[Step, ...], timeout: float, *, expected: Binding | None = None
    ) -> Observed:
        assert self.before is not None
        self.steps.look()
        self._written |= {step.value for step in steps if step.action is Action.OVERRIDE}
        record = self._make_record(device, self._aim, self.before)

        def begun(pid: int) -> None:
            self.steps.begin_batch(pid, steps)
            if not is_there(self.host, device):
                raise GoneError(device)  # the record is that of another one by now
            try:
                self.host.ledger.write(replace(record, worker=read_worker(self.host.sysfs, pid)))
            except OSError as error:
                # To go back, what was written down at the beginning is enough.
                if self.steps.phase is not Phase.UNDOING or not self._is_on_record(device):
                    raise NotRecordedError(device, error, touched=self.touched) from error
            self.touched = True
            self.steps.tell()

        try:
            return await move(
                self.host, device, steps, timeout, expected=expected, begun=begun, watch=self.steps.watch
            )
        finally:
            self.steps.delay.end()

    def _is_on_record(self, device: Device) -> bool:
        record = find_record(self.host.ledger, device)
        return record is not None and record.before == self.before

    def _make_record(self, device: Device, aim: Aim, before: Binding) -> Record:
        kept = self._kept
        if kept is not None:
            origin, flavour, module = kept.origin, kept.origin_flavour, kept.origin_module
        else:
            flavour = self.host.find_flavour(device)
            origin, module = before, device.driver_module
        return Record(
            address=device.address,
            identity=device.identity,
            origin=origin,
            origin_flavour=flavour,
            origin_module=module,
            flavour=aim.flavour,
            before=before,
            written=tuple(self._written),
            binding=aim.binding or before,
            personality=aim.personality,
            switching=True,
            worker=None,
            together=self.together,
            asked=self._asked,
        )

    def _fail(self) -> None:
        if self.steps.phase not in LAST:
            self.steps.enter(Phase.FAILED)

    def _limit(self, seconds: float) -> float:
        """A step's time limit; but for the way back, shortened to what is left of the request's own."""
        if self.request.timeout is None or self.steps.phase is Phase.UNDOING:
            return seconds
        left = self._began + self.request.timeout - time.monotonic()
        if left <= 0 and not self.touched:
            raise out_of_time(self.request)
        return max(min(seconds, left), 0.1)


Way = Callable[[Switch, Device], Coroutine[Any, Any, Outcome]]


def _name(binding: Binding) -> str:
    return binding.driver or "no driver"
