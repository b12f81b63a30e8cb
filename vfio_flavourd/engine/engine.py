"""All devices' switches: one at a time in an IOMMU group, side by side otherwise; the stuck ones apart."""

import asyncio
import errno
import logging
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

from ..kernel.units import find_unit
from ..model.address import PciAddress
from ..model.aliases import Resolution
from ..model.codes import Code
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import DeviceStatus, Flavour, Outcome, Request, StepAction, parse_flavour
from ..model.iommu_group import GroupMember, IommuGroup
from ..model.occupancy import User
from ..model.policy import VFIO, Decision, OthersInGroup
from ..model.transition import Phase
from .attempts import Attempts, Report
from .forecast import forecast
from .grants import Grants
from .group_turns import GroupTurns, acquire, check_address_is_free
from .guards import check_others_may_come, check_request, has_it_already, in_time, judge
from .history import History
from .host import Host
from .ledger import find_record
from .metrics import Metrics
from .moves import GoneError, StuckError
from .quarantine import Quarantine, describe_holders
from .reconcile import Reconciler
from .recovery import forget_what_is_gone
from .switch import Switch
from .to_native import restore
from .together import Member, run_together
from .work import Work, find_way

_log = logging.getLogger(__name__)


class Engine:
    """What the doors talk to."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._turns = GroupTurns(host.sysfs)
        self._running: dict[PciAddress, tuple[Switch, tuple[User, ...]]] = {}
        self._switches: set[asyncio.Task[Outcome]] = set()
        self.attempts = Attempts(History(host.state / "history.jsonl"))
        self.reconciler = Reconciler(
            host, self.set_flavour, self._is_in_work, self._is_coming, self.attempts.forget, self._hold
        )
        self._grants = Grants(host, self.reconciler)
        self._quarantine = Quarantine(host, self._turns, self._grants.end_late, self._take_back)
        self.metrics = Metrics(host, self._quarantine.count)
        self.attempts.listeners.add(self.metrics.count)

    # looking

    @property
    def flavours(self) -> tuple[Flavour, ...]:
        return self._host.policy.flavours

    @property
    def policy_trouble(self) -> str:
        """Why the policy on disk is not the one in force; empty when it is."""
        return self._host.policy.trouble

    def devices(self) -> list[DeviceStatus]:
        with self._host.index.held():
            return [self._status(device) for device in self._host.read_devices()]

    def group_members(self) -> list[GroupMember]:
        """Every device, and what it means for its IOMMU group."""
        with self._host.index.held():
            return [self._make_member(device) for device in self._host.read_devices()]

    def find_group(self, device: Device) -> IommuGroup | None:
        """The IOMMU group that it is in."""
        if device.iommu_group is None:
            return None
        devices = sorted((device, *self._host.read_others_in_group(device)), key=lambda each: each.address)
        return IommuGroup(device.iommu_group, tuple(map(self._make_member, devices)))

    def _make_member(self, device: Device) -> GroupMember:
        return GroupMember(device, self._host.find_flavour(device), bool(self._find_stuck(device.address)))

    def device(self, address: PciAddress) -> DeviceStatus:
        """Raises FlavourError (ENODEV)."""
        return self._status(self._host.read_device(address))

    async def find_users(self, device: Device) -> tuple[User, ...]:
        """Who uses a device; nobody is looked for while the kernel holds it. Raises FlavourError."""
        if self._quarantine.find(device.address):
            return ()
        return await asyncio.to_thread(self._host.occupancy.find_users, device)

    def find_unit(self, requester: str) -> str:
        """Of the process that asks; empty where it is gone, or in none."""
        return find_unit(self._host.sysfs, requester)

    def resolve(self, modalias: str) -> Resolution:
        """Raises FlavourError (EINVAL) for anything that is not a PCI modalias."""
        return self._host.resolve(modalias, VFIO)

    def notice(self, address: PciAddress) -> None:
        """A uevent of this device has come."""
        self._host.changes.notice(address)
        self.metrics.touch()

    def notice_all(self) -> None:
        """Events were lost: whoever waits for a device looks again, and what was removed is found out."""
        self._host.changes.notice_all()
        self.metrics.touch()
        for address in {*self.reconciler.seen, *(record.address for record in self._host.ledger.all())}:
            self.forget(address)
        self.reconciler.consider_all()

    def needs_no_events(self) -> bool:
        """A switch is under way, and nobody waits for a device to change."""
        return bool(self._running) and not self._host.changes.awaited

    def forget(self, address: PciAddress) -> None:
        """A device was removed, and another one may be there. A running switch finds that out by itself."""
        record = self._host.ledger.find(address)
        if record is not None and not self._is_in_work(address):
            forget_what_is_gone(self._host, record)
        if self.reconciler.has_lost(address):
            self.reconciler.forget(address)
            self.reconciler.consider(address)

    async def plan(self, request: Request) -> list[str]:
        """What `set_flavour` would do. Raises FlavourError where it would be refused."""
        request = check_request(request, self.flavours)
        self._quarantine.check(request.address)
        device = self._host.read_device(request.address)
        try:
            return await forecast(self._host, device, request, self.reconciler)
        except StuckError as error:
            self._hold(request.address, error)
            raise

    def _hold(self, address: PciAddress, error: StuckError) -> None:
        """A look has not come back; where a switch is under way it is the one that holds the device."""
        if not self._is_in_work(address):
            self._quarantine.hold(address, error)

    # switching

    async def set_flavour(self, request: Request, report: Report) -> Outcome:
        """Raises FlavourError. A caller that is cancelled gives the switch up while nothing is touched;
        later it goes on without him."""
        request = check_request(request, self.flavours)
        report = self.attempts.fan_out(request.address, report)
        work = Work(self._host, request, report, find_way(request))
        return await self._take(work, self._run(work))

    async def reset(self, request: Request, report: Report) -> Outcome:
        """Back to what the policy says, or else to what was there before the first switch; then the wish that
        was made by hand is dropped, and stands where that is refused or fails. Raises FlavourError."""
        try:
            self._host.read_device(request.address)
        except FlavourError as error:
            work = Work(self._host, request, report, restore)
            return await self._take(work, self._reset_none(work, error))
        report = self.attempts.fan_out(request.address, report)
        work = Work(self._host, request, report, restore, drops_wish=True)
        return await self._take(work, self._run(work))

    async def _reset_none(self, work: Work, error: FlavourError) -> NoReturn:
        """A device that is gone may have left a wish behind. Raises FlavourError."""
        address = work.request.address
        lasting_changed = False
        if error.errno == errno.ENODEV and self.reconciler.wishes.has(address):
            try:
                self._grants.check_may_drop(work.request, (address,))
                work.is_begun = True
                lasting_changed = self._grants.drop((address,))
            except FlavourError as instead:
                error = instead
            else:
                told = f"{error}; what was asked for by hand is forgotten"
                error = FlavourError(told, code=error.code, hint=error.hint)
        work.conclude(self._host, self.attempts, error=error)
        if lasting_changed:
            await self.reconciler.lasting_wishes_changed()
        raise error

    async def _take(self, work: Work, run: Coroutine[Any, Any, Outcome]) -> Outcome:
        task = asyncio.create_task(run)
        self._switches.add(task)
        task.add_done_callback(self._switches.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if work.is_touched or work.is_concluded:
                address = work.request.address
                _log.info(
                    "%s: whoever asked has hung up, carrying it to its end",
                    address,
                    extra={"PCI_ADDRESS": str(address)},
                )
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            else:
                task.cancel()
            raise

    async def _run(self, work: Work) -> Outcome:
        try:
            outcome = await self._in_turn(work)
            lasting_changed = work.request.persist
            if work.drops_wish:
                lasting_changed = self._grants.drop_all(work, outcome)
            elif work.request.by_hand:
                self._grants.keep(work, outcome)
        except FlavourError as error:
            error.touched = work.is_touched
            work.conclude(self._host, self.attempts, error=error)
            raise
        except asyncio.CancelledError:
            work.conclude_cancelled(self._host, self.attempts)
            raise
        except Exception as error:  # a bug, which the door tells; its attempt is on record too
            told = FlavourError(
                f"{work.request.address}: the daemon itself failed: {error!r}",
                code=Code.FAILED,
                hint="journalctl -u vfio-flavourd shows where",
            )
            work.conclude(self._host, self.attempts, error=told)
            raise
        attempt = work.conclude(self._host, self.attempts, outcome=outcome)
        if lasting_changed:
            await self.reconciler.lasting_wishes_changed()
        return replace(outcome, attempt=attempt)

    async def _in_turn(self, work: Work) -> Outcome:
        address = work.request.address
        self._quarantine.check(address)
        asked_for = self._host.read_device(address)  # a turn for what isn't there would be kept for good
        turn = self._turns.find(address)
        if not work.request.by_hand:
            self._quarantine.check_turn(turn, address)  # the policy has others to see to
        await self._wait_for_turn(turn, work)
        stuck: list[tuple[Device, StuckError]] = []
        try:
            device = self._host.read_device(address)
            self._quarantine.check(address)
            if device.identity != asked_for.identity:
                raise GoneError(asked_for)  # another one's turn may be that of another group
            members = await self._prepare(work, device)
            for member in members:
                check_address_is_free(member.device.address, self._running)

            def quarantine(held: Device, error: StuckError) -> None:
                self._quarantine.take(held.address, error, self._running[held.address][1])
                stuck.append((held, error))

            for member in members:
                self._running[member.device.address] = (member.switch, work.verdict.forced)
            if work.request.flavour == Flavour.VFIO:
                self.reconciler.nodes.update()
            work.is_begun = True
            outcomes = await run_together(members, quarantine)
            return work.describe(outcomes)
        finally:
            for member in work.members:
                if self._running.get(member.device.address, (None, ()))[0] is member.switch:
                    del self._running[member.device.address]
                self.reconciler.consider(member.device.address)
                record = self._host.ledger.find(member.device.address)
                if work.verdict.others and record is not None and not record.is_open:
                    forget_what_is_gone(
                        self._host, record
                    )  # it may have gone while the others had their turn
            held = [self._quarantine.outlast(device, error) for device, error in stuck]
            self._turns.release(turn, held)

    async def _prepare(self, work: Work, device: Device) -> list[Member]:
        """Who is switched, after all guards. Raises FlavourError."""
        wanted = self.reconciler
        decision = wanted.decide(device)
        if work.drops_wish:
            work.aim_reset(self._host, device, decision)
        request = work.request
        work.rule = decision.rule.name if decision.rule is not None else ""
        if not request.by_hand and not work.drops_wish:
            wanted.check_still_wanted(device, request, decision)
        if work.way is not restore:
            parse_flavour(request.flavour, self.flavours)  # the policy may have been read again
        settled = self._is_settled(device, work, decision)
        # Who asks for the whole group may have a part of it already.
        if not settled or request.others is OthersInGroup.TOGETHER:
            try:
                with work.step(StepAction.GUARD, "see whether it may be taken", "refused"):
                    settings, restores = decision.settings, work.way is restore
                    async with in_time(request, work.began):
                        work.verdict = await judge(
                            self._host, device, request, settings, wanted, settled=settled, restores=restores
                        )
                    if not request.by_hand and not work.drops_wish:
                        check_others_may_come(device, work.verdict.others, request.flavour, wanted)
            except FlavourError:
                work.add(self._host, device, decision, request, ()).switch.steps.enter(Phase.FAILED)
                raise
        others = work.verdict.others
        if work.drops_wish:
            # Only now: until its turn came another one's wish may have been kept.
            self._grants.check_may_drop(request, (device.address, *(other.address for other in others)))
        together = tuple(each.address for each in (device, *others)) if others else ()
        work.add(self._host, device, decision, request, together)
        for other in others:
            own = replace(request, address=other.address, drivers=(), by_hand=False)
            work.add(self._host, other, wanted.decide(other), own, together)
        return work.members

    def _is_settled(self, device: Device, work: Work, decision: Decision) -> bool:
        """Whether nothing will be touched, so that nobody needs to be asked."""
        if work.way is restore:
            return find_record(self._host.ledger, device) is None
        return has_it_already(self._host, device, work.request, decision.settings)

    def _take_back(self, address: PciAddress, *, is_done: bool) -> None:
        """The kernel has let go of it."""
        self.metrics.touch()
        self.reconciler.consider(address, anew=not is_done)

    def _is_in_work(self, address: PciAddress) -> bool:
        return address in self._running or bool(self._quarantine.find(address))

    def _is_coming(self, address: PciAddress) -> bool:
        """Whether a switch to VFIO is under way."""
        running, _ = self._running.get(address, (None, ()))
        return running is not None and running.request.flavour == Flavour.VFIO

    async def _wait_for_turn(self, turn: asyncio.Lock, work: Work) -> None:
        limit, request = self._host.turn_timeout, work.request
        if request.timeout is not None:
            limit = min(limit, request.timeout)
        told: AbstractContextManager[None] = nullcontext()
        if turn.locked():
            told = work.step(StepAction.TURN, "wait for the turn of its IOMMU group", "it did not come")
        with told:  # one that nobody has may be about to be taken by who waits for it already
            await acquire(turn, request.address, limit)

    async def settle(self, grace: float) -> None:
        """Let the running switches come to their end, for `grace` seconds at most. What is left then is
        finished by the worker that is at it, and taken up by the next daemon."""
        self.reconciler.stop()
        if self._switches:
            _, left = await asyncio.wait(self._switches, timeout=grace)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
        self.attempts.log()
        await self.metrics.withdraw()

    def recover(self) -> None:
        """Take up what an earlier daemon of this boot left."""
        self.attempts.load()
        self._quarantine.recover()
        for record in self._host.ledger.all():
            if not record.is_open:
                forget_what_is_gone(self._host, record)

    def _status(self, device: Device) -> DeviceStatus:
        record = find_record(self._host.ledger, device)
        running, _ = self._running.get(device.address, (None, ()))
        stuck = self._find_stuck(device.address)
        facts = self._host.read_facts(device)
        wish, decision = self.reconciler.wishes.find(device), self.reconciler.decide(device, facts)
        kind = self._host.policy.policy.flavours.get(decision.flavour or "", VFIO)
        return DeviceStatus(
            device=device,
            flavour=self._host.find_flavour(device),
            resolution=self._host.resolve(device.modalias, kind, decision.drivers, decision.settings.denied),
            origin_driver=record.origin.driver if record else None,
            held=record is not None,
            phase=Phase.STUCK if stuck else (running.steps.phase if running else None),
            stuck=stuck,
            last=self.attempts.find_last(device.address),
            decision=decision,
            wish=None if wish is None else wish.flavour,
            remarks=self.reconciler.find_remarks(device),
            slot=facts.slot,
            serials=facts.serials,
        )

    def _find_stuck(self, address: PciAddress) -> str:
        """What a write that has not come back is about; empty where there is none."""
        running, users = self._running.get(address, (None, ()))
        stuck = self._quarantine.find(address)
        if not stuck and running is not None and (delay := running.steps.delay.find()):
            stuck = delay + describe_holders(users)
        return stuck
