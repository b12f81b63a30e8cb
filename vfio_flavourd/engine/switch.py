"""One switch of one device: what all of them share, whichever way they go.

It keeps the phase, tells the steps, writes the record before the first write, and puts back.
"""

import errno
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from ..kernel.hands import Result
from ..kernel.modules import NotLoaded
from ..kernel.processes import read_worker
from ..model.address import PciAddress
from ..model.codes import Code
from ..model.device import Binding, Device, Personality
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Outcome, Request, StepAction, StepBegun, StepReport
from ..model.occupancy import User
from ..model.plan import Action, Step, plan_ask_back, plan_move
from ..model.policy import Decision
from ..model.transition import LAST, Phase, check_move
from .attempts import Report, without_address
from .delay import READ_BACK, Delay
from .guards import check_users
from .host import Host
from .ledger import Asked, Record, find_record
from .moves import (
    GoneError,
    Observed,
    StaleError,
    StepError,
    StuckError,
    TakenError,
    describe_errno,
    move,
    observe,
)


@dataclass(frozen=True, slots=True)
class Aim:
    """What a move is for, as the record keeps it.

    `binding` is what the device is to have (None: the kernel's choice), `personality` how its driver is
    asked, where it is not moved at all.
    """

    flavour: Flavour
    binding: Binding | None = None
    personality: Personality | None = None


class NotRecordedError(FlavourError):
    """The record could not be made to last, so nothing more is written to the device."""

    def __init__(self, device: Device, cause: OSError, *, touched: bool) -> None:
        end = "so it is not switched on" if touched else "so it is not touched"
        super().__init__(
            f"{device.address}: what it has now can't be recorded ({cause.strerror}), {end}",
            code=Code.NOT_SAVED,
            hint="see whether /run is full or read-only",
        )


class Switch:
    """Carries out one request.

    `phase` and `steps` can be looked at while it runs; `touched` tells whether anything has been written,
    from when on it is carried to an end and no longer given up. `before` is what the device had at the
    beginning, from the first move on. `is_late` says that time has gone by since it was seen who uses the
    device; `forced` are those who came in that time, and are no obstacle. With `together` it is one of
    several that are for all of these devices or none: it stays open after its end, until `commit` or `undo`.
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
        self._report = report
        self._began = began
        self._read_from = began
        self.candidate = ""
        self.phase = Phase.WAITING
        self.steps: list[StepReport] = []
        self.touched = False
        self.before: Binding | None = None
        self.is_late = False
        self.forced: tuple[User, ...] = ()
        self._kept: Record | None = None
        self._aim = Aim(request.flavour)
        self._written: set[str | None] = set()
        self._was_taken = False
        self.delay = Delay()

    async def run(self, device: Device, way: "Way") -> Outcome:
        """Raises FlavourError when the device does not have the flavour afterwards."""
        try:
            outcome = await self._go(device, way)
        except StuckError as error:
            self.get_stuck(error)
            raise
        except GoneError:
            self.host.ledger.forget(self.request.address)  # the record was of a device that is no more
            self._fail()
            raise
        except FlavourError:
            self._fail()
            raise
        self.enter(Phase.DONE)
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
            if not is_open or self.phase is Phase.UNDOING:
                raise
            raise await self.undo(device, error) from error

    def get_stuck(self, error: StuckError) -> None:
        """It is given up on; what has not come back is its last step."""
        action, what = StepAction.VERIFY, READ_BACK
        if error.step is not None:
            action, what = StepAction(error.step.action), str(error.step)
        waited = f"has not returned for {round(error.seconds, 2):g} s (process {error.blocked.pid})"
        self._add_step(action, what, self._read_from, waited)
        self.enter(Phase.STUCK)

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
        start = self._begin_step(f"load {module}")
        self.is_late |= not self.host.modules.find_drivers(module)
        try:
            drivers = await self.host.modules.load(module, self._limit(self.settings.load_timeout))
        except NotLoaded as error:
            self._add_step(StepAction.LOAD, f"load {module}", start, str(error))
            raise
        self._add_step(StepAction.LOAD, f"load {module}", start)
        return drivers

    async def load_native(self, modalias: str) -> None:
        """What udev would load for the device."""
        start = self._begin_step("load the native driver")
        self.is_late = True
        await self.host.modules.load_native(modalias, self._limit(self.settings.load_timeout))
        self._add_step(StepAction.LOAD, "load the native driver", start)

    async def observe(self, device: Device) -> Observed:
        """Raises GoneError and StuckError."""
        self._read_from = time.monotonic()
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
            self.before = self._expected(device, kept)
            try:
                return await self._carry_out(device, self.before, plan, aim, expected=self.before)
            except StaleError:
                self._take_back_record(device, kept)
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
            self.forced = await check_users(self.host, device, self.request, self.settings)
        except FlavourError:
            self._add_step(StepAction.GUARD, "see again whether it may be taken", start, "refused")
            raise

    def _take_back_record(self, device: Device, kept: Record | None) -> None:
        """What was written down as there before has turned out not to be."""
        if kept is None:
            self.host.ledger.forget(device.address)
        else:
            self.host.ledger.settle(kept)

    async def undo(self, device: Device, cause: FlavourError) -> FlavourError:
        """Put the device back as it was at the beginning; returns what to tell the one who asked."""
        if self.before is None:
            return cause
        self.enter(Phase.UNDOING)
        try:
            return await self._undo(device, self.before, cause)
        except (StuckError, GoneError):
            raise
        except FlavourError as error:
            return self._could_not(device, cause, without_address(error, device.address))

    async def _undo(self, device: Device, before: Binding, cause: FlavourError) -> FlavourError:
        """Raises FlavourError where it can't be."""
        bind = self.settings.bind_timeout
        seen = await observe(self.host, device, bind)
        now, goal = seen.binding, before
        if isinstance(cause, StepError) and cause.step.action in (Action.OVERRIDE, Action.UNBIND):
            # It was not unbound by us: whoever changed its driver meanwhile keeps it.
            goal = Binding(now.driver, goal.override)
        if self._aim.binding is not None and now.driver not in (None, goal.driver, *self._written):
            # A driver that is neither the one it had nor one of ours came to it meanwhile, and stays.
            goal = Binding(now.driver, goal.override)
        steps = plan_move(now, goal)
        if self._aim.personality is not None:
            wanted = self._aim.flavour == Flavour.VFIO
            steps = plan_ask_back(
                self._aim.personality, seen.vfio_device, wanted=wanted, was_taken=self._was_taken
            )
        # Going back has the full time, also where the one who asked has run out of his.
        after = await self._move_on_record(device, steps, bind)
        if after.binding != goal:
            return self._could_not(device, cause, f"it has {_name(after.binding)}")
        again = f"{after.binding.driver} again" if after.binding.driver else "no driver, as before"
        if self._aim.personality is not None:
            if not await self._has_changed(device, self._aim.flavour):
                return self._could_not(device, cause, f"{goal.driver} did not change back")
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
            steps=tuple(self.steps),
        )

    def _find_group_node(self, device: Device, vfio_device: str | None) -> str | None:
        if device.iommu_group is None and vfio_device is not None:
            device = self.host.read_device(device.address)  # VFIO has made a group up
        return replace(device, vfio_device=vfio_device).group_node

    def unchanged(self, device: Device, reason: str, *, fallback: bool = False) -> Outcome:
        now = Observed(Binding(device.driver, None), device.vfio_device)
        return replace(self.outcome(device, now, reason, fallback=fallback), changed=False)

    @property
    def is_out_of_time(self) -> bool:
        timeout = self.request.timeout
        return timeout is not None and time.monotonic() >= self._began + timeout

    def enter(self, phase: Phase) -> None:
        check_move(self.phase, phase)
        self.phase = phase

    async def wait_for(self, device: Device, is_so: Callable[[], bool]) -> bool:
        """Whether it became so while a bind may take."""
        start = time.monotonic()
        became = await self.host.changes.wait_for(
            device.address, is_so, self._limit(self.settings.bind_timeout)
        )
        failed = "" if became else "it has not changed"
        self._add_step(StepAction.WAIT, "wait for its driver", start, failed)
        return became

    @staticmethod
    def _expected(device: Device, record: Record | None) -> Binding:
        """What the device has, as far as that is known without reading what may block its reader."""
        override = record.binding.override if record is not None and not record.switching else None
        return Binding(device.driver, override)

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
        self.enter(Phase.SWITCHING)
        limit = self._limit(self.settings.bind_timeout)
        after = await self._move_on_record(device, plan(now), limit, expected=expected)
        self.enter(Phase.VERIFYING)
        self._add_step(StepAction.VERIFY, READ_BACK, self._read_from)
        return after

    async def _move_on_record(
        self, device: Device, steps: tuple[Step, ...], timeout: float, *, expected: Binding | None = None
    ) -> Observed:
        assert self.before is not None
        self._read_from = time.monotonic()
        self._written |= {step.value for step in steps if step.action is Action.OVERRIDE}
        record = self._make_record(device, self._aim, self.before)

        def begun(pid: int) -> None:
            self.delay.begin(pid, steps)
            try:
                self.host.ledger.write(replace(record, worker=read_worker(self.host.sysfs, pid)))
            except OSError as error:
                # To go back, what was written down at the beginning is enough.
                if self.phase is not Phase.UNDOING or not self._is_on_record(device):
                    raise NotRecordedError(device, error, touched=self.touched) from error
            self.touched = True
            self._tell_what_it_is_at()

        try:
            return await move(
                self.host, device, steps, timeout, expected=expected, begun=begun, watch=self._watch
            )
        finally:
            self.delay.end()

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

    def _could_not(self, device: Device, cause: FlavourError, why: str) -> FlavourError:
        return FlavourError(
            f"{cause}; and it could not be put back: {why}",
            code=Code.NOT_PUT_BACK,
            errno=cause.errno,
            hint=f"flavourctl reset {device.address} tries again",
        )

    def _fail(self) -> None:
        if self.phase not in LAST:
            self.enter(Phase.FAILED)

    def _limit(self, seconds: float) -> float:
        """A step's time limit, shortened to what is left of the request's own."""
        if self.request.timeout is None:
            return seconds
        left = self._began + self.request.timeout - time.monotonic()
        if left <= 0 and not self.touched:
            raise FlavourError(
                f"{self.request.address}: the time limit of {self.request.timeout:g} s ran out before it was "
                "touched",
                code=Code.TIMED_OUT,
                hint="try again with a longer --timeout",
            )
        return max(min(seconds, left), 0.1)

    def _watch(self, step: Step, result: Result) -> None:
        self.delay.pass_on()
        self._read_from = result.end
        failed = describe_errno(result.errno) if result.errno else ""
        self._add_step(StepAction(step.action), str(step), result.start, failed, end=result.end)
        if not result.errno:
            self._was_taken |= step.action is Action.ASK
            self._tell_what_it_is_at()

    def _tell_what_it_is_at(self) -> None:
        if self.delay.step:
            self._report(StepBegun(self.delay.step))

    def _begin_step(self, what: str) -> float:
        """Now, by the clock that steps are timed by."""
        self._report(StepBegun(what))
        return time.monotonic()

    def _add_step(
        self, action: StepAction, what: str, start: float, error: str = "", *, end: float | None = None
    ) -> None:
        """Times are monotonic; a step without an end ends now."""
        took = (time.monotonic() if end is None else end) - start
        step = StepReport(self.phase, action, what, start - self._began, took, error, self.candidate)
        self.steps.append(step)
        self._report(step)


Way = Callable[[Switch, Device], Coroutine[Any, Any, Outcome]]


def _name(binding: Binding) -> str:
    return binding.driver or "no driver"
