"""One switch of one device: load, override, unbind, bind, read back; the next candidate; undo."""

import errno
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from ..kernel.hands import Result
from ..kernel.inventory import read_device
from ..kernel.modules import NotLoaded
from ..kernel.processes import read_worker
from ..kernel.sysfs import Sysfs
from ..model.aliases import Candidate, Resolution
from ..model.device import Binding, Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Outcome, Request, StepReport, find_flavour
from ..model.plan import Action, Step, plan_move, plan_release
from ..model.transition import Phase, check_move
from .host import Host
from .ledger import Record
from .moves import Observed, StepError, StuckError, describe_errno, gone, move, observe


class Switch:
    """Carries out one request.

    `phase` and `steps` can be looked at while it runs; `touched` tells whether anything has been
    written, from when on it is carried to an end and no longer given up.
    """

    def __init__(self, host: Host, request: Request, report: Callable[[StepReport], None]) -> None:
        self._host = host
        self._request = request
        self._report = report
        self._began = time.monotonic()
        self.phase = Phase.WAITING
        self.steps: list[StepReport] = []
        self.touched = False

    async def run(self) -> Outcome:
        """Raises FlavourError when the device does not have the flavour afterwards."""
        device = read_device(self._host.sysfs, self._request.address)
        check_allowed(device)
        try:
            if self._request.flavour is Flavour.VFIO:
                return await self._to_vfio(device)
            return await self._to_native(device)
        except StuckError:
            self._enter(Phase.STUCK)
            raise
        except FlavourError as error:
            if error.errno == errno.ENODEV:
                self._host.ledger.forget(device.address)  # the record was of a device that is no more
            if self.phase is not Phase.FAILED:
                self._enter(Phase.FAILED)
            raise

    # to VFIO

    async def _to_vfio(self, device: Device) -> Outcome:
        request = self._request
        if device.vfio_device is not None and not request.drivers:
            return self._unchanged(device, "the device had this flavour already")
        if device.iommu_group is None:
            raise FlavourError(
                f"{device.address}: the device is in no IOMMU group, so VFIO can't isolate it",
                errno=errno.EIO,
                hint="enable the IOMMU in the firmware and on the kernel command line (intel_iommu=on)",
            )
        if device.personality is not None:
            if request.drivers:
                raise FlavourError(
                    f"{device.address}: its driver {device.driver} becomes a VFIO driver itself "
                    f"({device.personality}) and is never unbound",
                    errno=errno.EINVAL,
                    hint="leave out the driver's name",
                )
            return await self._ask(device, device.personality, "1")
        resolution = self._host.index.table().resolve(
            device.modalias, named=request.drivers, loaded=LoadedModules(self._host.sysfs)
        )
        return await self._try_candidates(device, resolution)

    async def _try_candidates(self, device: Device, resolution: Resolution) -> Outcome:
        before: Observed | None = None
        refusals: list[str] = []
        refused = FlavourError(f"{device.address}: there is no candidate left to try", errno=errno.EIO)
        for candidate in resolution.accepted:
            drivers = await self._load(candidate.module, refusals)
            for driver in drivers:
                if before is None:
                    before = await observe(self._host, device, self._limit(self._host.timeouts.bind))
                    now = before
                goal = Binding(driver, driver)
                if now.binding.driver == driver and now.vfio_device is not None:
                    return self._unchanged(device, f"{driver} has the device already")
                try:
                    after = await self._move(device, now.binding, goal, Flavour.VFIO, before.binding)
                except StepError as error:
                    if error.step.action is not Action.BIND:
                        raise await self._undo(device, before, error) from error
                    refusals.append(f"{candidate.module} refused: {describe_errno(error.code)}")
                    refused = error
                    now = await observe(self._host, device, self._limit(self._host.timeouts.bind))
                    continue
                self._enter(Phase.VERIFYING)
                if after.binding.driver == driver and after.vfio_device is not None:
                    reason = _explain(candidate, refusals)
                    return self._settle(device, before, after, reason, candidate, resolution)
                refusals.append(f"{candidate.module} took the device, but no VFIO device appeared")
                now = after
        story = "; ".join(refusals) or "none is accepted"
        failure = FlavourError(
            f"{device.address}: no VFIO driver could be had: {story}",
            errno=refused.errno,
            hint=f"flavourctl resolve {device.address} shows the candidates, dmesg what a driver said",
        )
        if before is None:
            raise failure
        raise await self._undo(device, before, failure)

    async def _load(self, module: str, refusals: list[str]) -> tuple[str, ...]:
        self._enter(Phase.LOADING)
        start = time.monotonic()
        failure = ""
        drivers: tuple[str, ...] = ()
        try:
            drivers = await self._host.modules.load(module, self._limit(self._host.timeouts.load))
        except NotLoaded as error:
            failure = str(error)
            refusals.append(f"{module}: {failure}")
        self._add_step(f"load {module}", start, time.monotonic(), failure)
        return drivers

    # back to native

    async def _to_native(self, device: Device) -> Outcome:
        record = find_record(self._host, device)
        table = self._host.index.table()
        if find_flavour(device, table.flavoured_modules()) is Flavour.NATIVE and not (record and record.switching):
            return self._unchanged(device, "the device had this flavour already")
        if record is not None and record.personality is not None:
            return await self._ask(device, record.personality, "0")
        if device.vfio_device is not None and device.driver_module not in table.flavoured_modules():
            # On VFIO by its driver's own doing, and nobody here asked for it.
            if device.personality is None:
                raise FlavourError(
                    f"{device.address}: {device.driver} made it a VFIO device by itself, and there is no "
                    "attribute to ask it back with",
                    errno=errno.EIO,
                )
            return await self._ask(device, device.personality, "0")
        known = record is not None and record.origin_flavour is Flavour.NATIVE
        return await self._give_back(device, record.origin if record is not None and known else None, record)

    async def restore(self) -> Outcome:
        """Back to the very binding that was there before the first switch, whatever flavour that was."""
        device = read_device(self._host.sysfs, self._request.address)
        record = find_record(self._host, device)
        if record is None:
            return self._unchanged(device, "nothing is on record for this device")
        if record.origin_flavour is Flavour.NATIVE or record.personality is not None:
            return await self.run()
        return await self._give_back(device, record.origin, record)

    async def _give_back(self, device: Device, goal: Binding | None, record: Record | None) -> Outcome:
        """Move to `goal`, or to whatever the kernel picks when it is None."""
        self._enter(Phase.LOADING)
        await self._load_native(device, goal, record)
        before = await observe(self._host, device, self._limit(self._host.timeouts.bind))
        flavour = record.origin_flavour if record is not None and goal is not None else Flavour.NATIVE
        try:
            after = await self._move(device, before.binding, goal, flavour, before.binding)
        except StepError as error:
            raise await self._undo(device, before, error) from error
        self._enter(Phase.VERIFYING)
        if goal is not None and after.binding != goal:
            other = FlavourError(
                f"{device.address}: it should have {goal.driver or 'no driver'} again, but has "
                f"{after.binding.driver or 'none'}",
                errno=errno.EIO,
            )
            raise await self._undo(device, before, other)
        if goal is None and after.vfio_device is not None:
            still = FlavourError(f"{device.address}: it is still a VFIO device", errno=errno.EIO)
            raise await self._undo(device, before, still)
        kept = find_record(self._host, device)
        if kept is not None and (goal is not None or kept.origin_flavour is Flavour.NATIVE):
            self._host.ledger.forget(device.address)
        elif kept is not None:
            self._host.ledger.write(replace(kept, binding=after.binding, switching=False, worker=None))
        self._enter(Phase.DONE)
        if goal is not None:
            reason = "what the device had before" if goal.driver else "the device had no driver before"
        else:
            reason = "the kernel's own choice: nothing is on record of what the device had before"
        return self._outcome(device, after, before.binding.driver, reason)

    async def _load_native(self, device: Device, goal: Binding | None, record: Record | None) -> None:
        """The native driver may have been unloaded meanwhile; load it while VFIO still has the device."""
        timeout = self._limit(self._host.timeouts.load)
        start = time.monotonic()
        if goal is None:
            await self._host.modules.load_native(device.modalias, timeout)
            self._add_step("load the native driver", start, time.monotonic())
            return
        if goal.driver is None or self._host.modules.has_driver(goal.driver):
            return
        module = (record.origin_module if record is not None else None) or goal.driver
        failure = ""
        try:
            await self._host.modules.load(module, timeout)
        except NotLoaded as error:
            failure = str(error)
        self._add_step(f"load {module}", start, time.monotonic(), failure)
        if failure:
            raise FlavourError(
                f"{device.address}: its driver {goal.driver} is no longer there and {module} can't be loaded: {failure}",
                errno=errno.EIO,
                hint=f"modprobe {module}",
            )

    # a driver that changes its own personality

    async def _ask(self, device: Device, attribute: str, value: str) -> Outcome:
        """Ask a bound driver through its attribute; it is never unbound."""
        wanted = value == "1"
        before = await observe(self._host, device, self._limit(self._host.timeouts.bind))
        step = Step(Action.ASK, value, attribute)
        try:
            await self._carry_out(device, (step,), Flavour.VFIO if wanted else Flavour.NATIVE, before.binding, attribute)
        except StepError as error:
            self._host.ledger.forget(device.address) if wanted else None
            raise FlavourError(
                f"{device.address}: {device.driver} refused {value} in {attribute}: {describe_errno(error.code)}",
                errno=error.errno,
            ) from error
        self._enter(Phase.VERIFYING)
        sysfs = self._host.sysfs
        came = await self._host.changes.wait_for(
            device.address,
            lambda: bool(sysfs.list(f"{device.path}/vfio-dev")) == wanted,
            self._limit(self._host.timeouts.bind),
        )
        after = await observe(self._host, device, self._limit(self._host.timeouts.bind))
        if not came or after.binding.driver != device.driver:
            raise FlavourError(
                f"{device.address}: {device.driver} took {value} in {attribute}, but "
                + ("no VFIO device appeared" if wanted else "its VFIO device is still there"),
                errno=errno.ETIMEDOUT,
            )
        if wanted:
            self._settle_record(device)
        else:
            self._host.ledger.forget(device.address)
        self._enter(Phase.DONE)
        reason = f"{device.driver} changed its own personality ({attribute}), it was not unbound"
        return self._outcome(device, after, device.driver, reason)

    # the common parts

    async def _move(
        self, device: Device, now: Binding, goal: Binding | None, flavour: Flavour, before: Binding
    ) -> Observed:
        steps = plan_release(now) if goal is None else plan_move(now, goal)
        return await self._carry_out(device, steps, flavour, before, None, goal)

    async def _carry_out(
        self,
        device: Device,
        steps: tuple[Step, ...],
        flavour: Flavour,
        before: Binding,
        personality: str | None,
        goal: Binding | None = None,
    ) -> Observed:
        """Write down what there was, then touch the device."""
        kept = find_record(self._host, device)
        table = self._host.index.table()
        record = Record(
            address=device.address,
            identity=device.identity,
            origin=kept.origin if kept else before,
            origin_flavour=kept.origin_flavour if kept else find_flavour(device, table.flavoured_modules()),
            origin_module=kept.origin_module if kept else device.driver_module,
            flavour=flavour,
            binding=goal if goal is not None else Binding(None, None),
            personality=personality,
            switching=True,
            worker=None,
        )

        def begun(pid: int) -> None:
            try:
                self._host.ledger.write(replace(record, worker=read_worker(self._host.sysfs, pid)))
            except OSError as error:
                raise FlavourError(
                    f"{device.address}: what it has now can't be recorded ({error.strerror}), so it is left alone",
                    errno=errno.EIO,
                    hint="see whether /run is full or read-only",
                ) from error
            self.touched = True

        self._enter(Phase.SWITCHING)
        return await move(
            self._host,
            device,
            steps,
            self._limit(self._host.timeouts.bind),
            begun=begun,
            watch=self._watch,
        )

    async def _undo(self, device: Device, before: Observed, cause: FlavourError) -> FlavourError:
        """Put the device back as it was at the beginning; returns what to tell the caller."""
        self._enter(Phase.UNDOING)
        bind = self._host.timeouts.bind
        now = await observe(self._host, device, bind)
        goal = before.binding
        if isinstance(cause, StepError) and cause.step.action in (Action.OVERRIDE, Action.UNBIND):
            # Never unbound by us: whoever changed its driver meanwhile keeps it.
            goal = Binding(now.binding.driver, goal.override)
        try:
            after = await move(self._host, device, plan_move(now.binding, goal), bind, watch=self._watch)
        except StepError as error:
            self._enter(Phase.FAILED)
            return FlavourError(
                f"{cause}; and it could not be put back: {error}", errno=cause.errno, hint=f"flavourctl reset {device.address}"
            )
        if after.binding != goal:
            self._enter(Phase.FAILED)
            return FlavourError(
                f"{cause}; and it could not be put back: it has {after.binding.driver or 'no driver'}",
                errno=cause.errno,
                hint=f"flavourctl reset {device.address}",
            )
        record = find_record(self._host, device)
        if record is not None and record.origin == after.binding:
            self._host.ledger.forget(device.address)
        elif record is not None:
            flavour = Flavour.VFIO if after.vfio_device is not None else Flavour.NATIVE
            self._host.ledger.write(
                replace(record, flavour=flavour, binding=after.binding, switching=False, worker=None)
            )
        self._enter(Phase.FAILED)
        has = f"{after.binding.driver} again" if after.binding.driver else "no driver, as before"
        return FlavourError(f"{cause}; it has {has}", errno=cause.errno, hint=cause.hint)

    def _settle(
        self,
        device: Device,
        before: Observed,
        after: Observed,
        reason: str,
        candidate: Candidate,
        resolution: Resolution,
    ) -> Outcome:
        self._settle_record(device)
        self._enter(Phase.DONE)
        last = resolution.candidates[-1]
        fallback = candidate is last and len(resolution.candidates) > 1
        return self._outcome(device, after, before.binding.driver, reason, fallback=fallback)

    def _settle_record(self, device: Device) -> None:
        record = find_record(self._host, device)
        if record is not None:
            self._host.ledger.write(replace(record, switching=False, worker=None))

    def _outcome(
        self, device: Device, after: Observed, previous: str | None, reason: str, *, fallback: bool = False
    ) -> Outcome:
        vfio = after.vfio_device is not None
        return Outcome(
            address=device.address,
            flavour=Flavour.VFIO if vfio else Flavour.NATIVE,
            driver=after.binding.driver,
            previous_driver=previous,
            fallback=fallback,
            reason=reason,
            vfio_device=after.vfio_device,
            iommu_group=device.iommu_group,
            duration=time.monotonic() - self._began,
            changed=True,
            steps=tuple(self.steps),
        )

    def _unchanged(self, device: Device, reason: str) -> Outcome:
        self._enter(Phase.DONE)
        now = Observed(Binding(device.driver, None), device.vfio_device)
        return replace(self._outcome(device, now, device.driver, reason), changed=False)

    def _limit(self, seconds: float) -> float:
        """A step's time limit, shortened to what is left of the request's own."""
        if self._request.timeout is None:
            return seconds
        left = self._began + self._request.timeout - time.monotonic()
        if left <= 0 and not self.touched:
            raise FlavourError(
                f"{self._request.address}: not done within {self._request.timeout:g} s, and left untouched",
                errno=errno.ETIMEDOUT,
            )
        return max(min(seconds, left), 0.1)

    def _watch(self, step: Step, result: Result) -> None:
        self._add_step(str(step), result.start, result.end, describe_errno(result.errno) if result.errno else "")

    def _add_step(self, what: str, start: float, end: float, error: str = "") -> None:
        step = StepReport(self.phase, what, start - self._began, end - start, error)
        self.steps.append(step)
        self._report(step)

    def _enter(self, phase: Phase) -> None:
        check_move(self.phase, phase)
        self.phase = phase


class LoadedModules(Collection[str]):
    """Which modules are loaded, asked of sysfs one by one."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs

    def __contains__(self, module: object) -> bool:
        return self._sysfs.exists(f"/sys/module/{module}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._sysfs.list("/sys/module"))

    def __len__(self) -> int:
        return len(self._sysfs.list("/sys/module"))

    def __bool__(self) -> bool:
        return True


def check_allowed(device: Device) -> None:
    """Raises FlavourError (EBUSY) for a device that must not be switched, whatever is asked."""
    if device.is_bridge:
        raise FlavourError(
            f"{device.address}: it is a bridge, in use by all that is behind it",
            errno=errno.EBUSY,
            hint="switch the devices behind it; a bridge does not count when their IOMMU group is judged",
        )


def find_record(host: Host, device: Device) -> Record | None:
    """The device's record; one of another device that was at the same address is void."""
    record = host.ledger.find(device.address)
    return record if record is not None and record.identity == device.identity else None


def _explain(candidate: Candidate, refusals: list[str]) -> str:
    return f"{candidate.reason}; tried before: {'; '.join(refusals)}" if refusals else candidate.reason
