"""One request on its way: its switches, and what is told and kept of it at its end."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..kernel.inventory import DEVICES
from ..kernel.units import find_unit
from ..model.address import PciAddress
from ..model.codes import Code
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Attempt, Ending, Flavour, Outcome, Request, StepAction, StepBegun, StepReport
from ..model.policy import Decision
from ..model.transition import Phase
from .attempts import Attempts, Report
from .guards import Verdict
from .host import Host
from .ledger import Asked, find_record
from .switch import Switch, Way
from .to_native import to_native
from .to_vfio import to_vfio
from .together import Member


def find_way(request: Request) -> Way:
    return to_native if request.flavour == Flavour.NATIVE else to_vfio


class Work:
    """One request on its way: its switches, and what is known of it by now. With `drops_wish` what was asked
    for by hand counts no more once it is granted. Once it `is_concluded`, its attempt is on record and what
    follows from that is not given up any more."""

    def __init__(
        self, host: Host, request: Request, report: Report, way: Way, *, drops_wish: bool = False
    ) -> None:
        self.request = request
        # At the end one who does not wait may be gone.
        self._unit = find_unit(host.sysfs, request.requester)
        self.way = way
        self.drops_wish = drops_wish
        self.members: list[Member] = []
        self.is_begun = False
        self.is_concluded = False
        self.verdict = Verdict()
        self.rule = ""
        self._report = report
        self._steps: list[StepReport] = []
        self._started = time.time()
        self.began = time.monotonic()

    @property
    def is_touched(self) -> bool:
        return any(member.switch.touched for member in self.members)

    def aim_reset(self, host: Host, device: Device, decision: Decision) -> None:
        """Where a reset leads to: what the policy says, or else what was there before the first switch."""
        record = find_record(host.ledger, device)
        if decision.flavour is not None:
            # Named where it is only the driver that is another one.
            drivers = decision.drivers if host.find_flavour(device) == decision.flavour else ()
            flavour = Flavour(decision.flavour)
            self.request = replace(self.request, flavour=flavour, drivers=drivers, by_hand=False)
            self.way = find_way(self.request)
        elif record is not None:
            self.request = replace(self.request, flavour=record.origin_flavour)

    @contextmanager
    def step(self, action: StepAction, what: str, failed: str) -> Iterator[None]:
        """Something that is done before there is a switch, and kept without being told meanwhile: a refusal
        says it all. `failed` is what to call it when it raises."""
        start, error = time.monotonic(), ""
        try:
            yield
        except FlavourError:
            error = failed
            raise
        finally:
            took = time.monotonic() - start
            self._steps.append(StepReport(Phase.WAITING, action, what, start - self.began, took, error))

    def add(
        self,
        host: Host,
        device: Device,
        decision: Decision,
        request: Request,
        together: tuple[PciAddress, ...],
    ) -> Member:
        report = self._report
        if device.address != self.request.address:

            def report(step: StepBegun | StepReport) -> None:
                self._report(replace(step, what=f"{device.address}: {step.what}"))

        switch = Switch(host, request, decision, report, together, self._asked(request), began=self.began)
        member = Member(switch, device, self.way)
        self.members.append(member)
        return member

    def _asked(self, request: Request) -> Asked | None:
        """`request` is that of one of the devices."""
        if not self.request.by_hand and not self.drops_wish:
            return None
        return Asked(self.drops_wish, self.request.persist, request.drivers, self.request.others)

    def describe(self, outcomes: list[Outcome]) -> Outcome:
        """What the one who asked is told: his device's, with the others in it."""
        first, *others = outcomes
        reason = f"{first.reason}; {self.verdict.remark}" if self.verdict.remark else first.reason
        return replace(
            first,
            reason=reason,
            forced=self.verdict.forced if first.changed else (),
            others=tuple(others),
            steps=(*self._steps, *first.steps),
        )

    def conclude(
        self,
        host: Host,
        attempts: Attempts,
        *,
        error: FlavourError | None = None,
        ending: Ending | None = None,
        outcome: Outcome | None = None,
    ) -> int:
        """One attempt for each device that there was a switch for; returns the number of the first."""
        self.is_concluded = True
        first = self.members[0] if self.members else None
        attempt = self._describe_end(host, attempts.history.next_id(), first, error, ending, outcome)
        is_policys = not self.request.by_hand and not self.drops_wish
        is_refusal = is_policys and error is not None and not self.is_touched
        attempts.conclude(attempt, is_policys_refusal=is_refusal)
        for number, member in enumerate(self.members[1:]):
            other = outcome.others[number] if outcome is not None else None
            attempts.conclude(
                self._describe_end(host, attempts.history.next_id(), member, error, ending, other),
                is_policys_refusal=is_refusal,
            )
        return attempt.id

    def conclude_cancelled(self, host: Host, attempts: Attempts) -> None:
        """By the one who asked, while nothing was touched; or else by the end of the daemon."""
        address = self.request.address
        if self.is_touched:
            told = f"{address}: cut off because the daemon stopped, the next one takes it up"
            error = FlavourError(told, code=Code.DAEMON_WENT_AWAY, errno=errno.EINTR)
            self.conclude(host, attempts, error=error, ending=Ending.CUT_OFF)
        else:
            told = f"{address}: given up by whoever asked, nothing was touched"
            error = FlavourError(told, code=Code.INTERRUPTED)
            self.conclude(host, attempts, error=error, ending=Ending.GIVEN_UP)

    def _describe_end(
        self,
        host: Host,
        number: int,
        member: Member | None,
        error: FlavourError | None,
        ending: Ending | None,
        outcome: Outcome | None,
    ) -> Attempt:
        switch = member.switch if member is not None else None
        request = switch.request if switch is not None else self.request
        is_first = request.address == self.request.address
        before = None
        if member is not None:
            before = member.switch.before.driver if member.switch.before else member.device.driver
        late = switch.forced if switch is not None else ()
        forced = (*self.verdict.forced, *late) if is_first and self.is_touched else ()
        return Attempt(
            id=number,
            address=request.address,
            flavour=request.flavour,
            requester=request.requester,
            unit=self._unit,
            when=self._started,
            duration=time.monotonic() - self.began,
            ending=ending or self._find_ending(switch, error, outcome),
            driver=outcome.driver
            if outcome is not None
            else host.sysfs.find_link(f"{DEVICES}/{request.address}/driver"),
            previous_driver=outcome.previous_driver if outcome is not None else before,
            fallback=outcome is not None and outcome.fallback and outcome.changed,
            forced=tuple(dict.fromkeys(user.what for user in forced)),
            rule=self.rule,
            reason="" if outcome is None else outcome.reason,
            error="" if error is None else str(error),
            hint="" if error is None else error.hint,
            code="" if error is None else error.code,
            steps=(*(self._steps if is_first else ()), *(switch.steps.ended if switch is not None else ())),
        )

    def _find_ending(
        self, switch: Switch | None, error: FlavourError | None, outcome: Outcome | None
    ) -> Ending:
        if outcome is not None:
            return Ending.DONE if outcome.changed else Ending.UNCHANGED
        if switch is not None and switch.steps.phase is Phase.STUCK:
            return Ending.STUCK
        if not self.is_begun and error is not None:
            return Ending.REFUSED
        return Ending.FAILED
