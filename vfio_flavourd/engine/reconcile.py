"""Has each device be what the policy says, once: what someone else does to it afterwards is told, not fought.

What was applied to which device is kept for the boot, so that a daemon that starts again touches nothing; a
policy that has changed takes effect when it is reloaded.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from ..kernel.claims import find_driverctl_override
from ..kernel.inventory import DEVICES
from ..kernel.places import Places
from ..model.address import PciAddress, parse_address
from ..model.codes import Code
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Outcome, Request
from ..model.message_ids import MessageId, log_fields
from ..model.policy import Decision, Facts
from .agenda import Agenda
from .applied import NOTHING, SPOILT, Applied, AppliedFile, describe, find_same, is_so, was_taken
from .attempts import Report
from .guards import check_still_wanted
from .host import Host
from .moves import StuckError
from .nodes import Nodes
from .recovery import forget_what_is_undone, is_still_kept
from .tries import MOST_TRIES, Tries
from .wishes import Wish, Wishes

_log = logging.getLogger(__name__)

# Seconds that the start of the service waits for what the policy wants: a module that hangs and a driver that
# does not let go may take 40 (see model/policy.py), and systemd gives a start 90.
_FIRST_ROUND = 45.0

# Switches by policy at one time, without those that hang: what the others wait for is the processor.
_WORKERS = max(2, min(8, os.cpu_count() or 2))

REQUESTER = "policy"

_Switch = Callable[[Request, Report], Coroutine[Any, Any, Outcome]]
_IsSo = Callable[[PciAddress], bool]

# Devices as they have become, each with what the policy says of it.
Ends = Iterable[tuple[Device, Decision]]


class Reconciler:
    """`switch` is the engine's, `is_in_work` whether a switch of the device is under way, `is_coming` whether
    it is one to VFIO; `forgotten` is called when a device is, `held` where a look at one has not come back.

    `lasting_wishes_changed` has the next boot follow when what is to hold there is something else now.
    """

    def __init__(
        self,
        host: Host,
        switch: _Switch,
        is_in_work: _IsSo,
        is_coming: _IsSo,
        forgotten: Callable[[PciAddress], None],
        held: Callable[[PciAddress, StuckError], None],
    ) -> None:
        self._host = host
        self._switch = switch
        self._is_in_work = is_in_work
        self._forgotten = forgotten
        self.wishes = Wishes(host.state / "wishes.json", host.lasting_state / "wishes.json")
        self._applied = AppliedFile(host.state / "applied.json")
        self._tries = Tries()
        self._remarks: dict[PciAddress, str] = {}
        self._held_back: set[PciAddress] = set()
        self._agenda = Agenda(self._look, is_in_work, held)
        self._places = Places(_WORKERS)
        self.nodes = Nodes(host, self.decide, is_coming)
        self.lasting_wishes_changed: Callable[[], Awaitable[None]] = _nobody_listens

    # wishes by hand

    def keep_wish(self, device: Device, decision: Decision, request: Request) -> None:
        """A request by hand was granted; `device` is as it has become, `decision` what the policy says of it.
        Raises FlavourError (EIO) when it is to last and can't be kept."""
        self._note(device, str(request.flavour), decision, done=True, driver=device.driver)
        try:
            self.wishes.keep(
                device, request.flavour, request.drivers, request.others, persist=request.persist
            )
        except OSError as error:
            raise FlavourError(
                f"{request.address}: it has the flavour, but for this boot only: saving that failed "
                f"({error.strerror})",
                code=Code.NOT_SAVED,
                hint=f"see whether {self._host.lasting_state} is full or read-only",
            ) from error

    def drop_wishes(self, addresses: tuple[PciAddress, ...], ends: Ends = ()) -> bool:
        """Whether one was to last. Where a device has come to what the policy says, that is known to hold.
        Raises OSError when those that last can't be taken off the disk."""
        for address in addresses:
            self._applied.devices.pop(str(address), None)
            self._remarks.pop(address, None)
            self._tries.forget(address)
        for device, decision in ends:
            if decision.flavour == self._host.find_flavour(device):
                self._note(device, describe(decision), decision, done=True, driver=device.driver)
        return self.wishes.drop(addresses)

    def check_still_wanted(self, device: Device, request: Request, decision: Decision) -> None:
        """A request of the policy's own has its turn. Raises FlavourError, as the guard does."""
        wish = self._find_wish_in_force(device)
        check_still_wanted(request, None if wish is None else wish.flavour, decision)

    def find_wanted(self, device: Device) -> Flavour | None:
        """What it is to be by a wish, or else by the policy."""
        wish = self._find_wish_in_force(device)
        flavour = self.decide(device).flavour if wish is None else wish.flavour
        return None if flavour is None else Flavour(flavour)

    def decide(self, device: Device, facts: Facts | None = None) -> Decision:
        """What the policy says of a device, whose `facts` may have been read. A rule that goes by the driver
        holds also while it is applied and when it was, and has changed that; where it says something else by
        now, it is a rule like any."""
        address, applied = device.address, self._applied.devices.get(str(device.address))
        if (
            applied is not None
            and applied.inode == device.identity.inode
            and (applied.done or self._is_in_work(address) or is_so(self._host, device, applied.wanted))
        ):
            decision = self._host.decide(device, applied.rule, facts)
            if (decision.flavour or NOTHING) == applied.flavour:
                return decision
        return self._host.decide(device, facts=facts)

    def find_remarks(self, device: Device) -> tuple[str, ...]:
        """What someone else did to the device, or has written down about it."""
        remarks = [self._remarks[device.address]] if device.address in self._remarks else []
        if claim := find_driverctl_override(self._host.root, device.address):
            remarks.append(_describe_claim(claim))
        return tuple(remarks)

    # the policy

    async def start(self) -> None:
        """Apply the policy to the devices that it was not applied to in this boot. Waits for that, so that
        what is started after the service finds them as they should be; but not for ever."""
        self._agenda.open()
        self.nodes.update()
        devices = self._host.read_devices()
        try:
            self._applied.load()
        except SPOILT as error:
            _log.warning(
                "%r can't be read (%r), so the policy is not applied until a reload",
                str(self._applied.path),
                error,
            )
            # It was applied, so this is no first start: nothing is touched until someone says so.
            self._applied.devices = {
                str(each.address): Applied(each.identity.inode, NOTHING, done=True) for each in devices
            }
        for device in devices:
            applied = self._applied.devices.get(str(device.address))
            if applied is None or applied.inode != device.identity.inode:
                self._agenda.begin(device.address)
                continue
            self._host.policy.serials[device.address] = (applied.inode, applied.serials)
            decision = self.decide(device)
            wanted = self._describe(device, decision)
            if wanted not in (NOTHING, applied.wanted):
                if is_so(self._host, device, wanted):
                    self._note(device, wanted, decision, done=True)  # a wish of just before the end
                else:
                    self._held_back.add(device.address)
            elif not applied.done:
                self._agenda.begin(device.address)
            elif not self._is_in_work(device.address):
                self._compare(device, applied)
        if self._held_back:
            _log.warning(
                "devices left as an earlier policy said: %d; flavourctl reload applies the present one",
                len(self._held_back),
                extra=log_fields(MessageId.HELD_BACK),
            )
        for record in self._host.ledger.all():
            self.consider(record.address)
        if looks := self._agenda.looks:
            await asyncio.wait(looks, timeout=_FIRST_ROUND)

    def reload(self) -> None:
        """The policy has been read again: apply what differs."""
        self._tries.clear()
        self._held_back.clear()
        self.nodes.update()
        rules = {rule.name for rule in self._host.policy.policy.rules}
        for device in self._host.read_devices():
            same = find_same(self._applied.devices.get(str(device.address)), rules)
            if self._describe(device, self.decide(device)) not in same:
                self._applied.devices.pop(str(device.address), None)
                self._agenda.call_off(device.address)
                self.consider(device.address)

    def consider_all(self) -> None:
        for device in self._host.read_devices():
            self.consider(device.address)

    def consider(self, address: PciAddress, *, anew: bool = False) -> None:
        """See in a moment whether a device is what it should be; `anew`: nobody has chosen what it has."""
        if anew:
            self._applied.devices.pop(str(address), None)
        self._agenda.consider(address)

    @property
    def seen(self) -> tuple[PciAddress, ...]:
        """Where there was a device when it was looked."""
        return tuple(map(parse_address, self._applied.devices))

    def has_lost(self, address: PciAddress) -> bool:
        """Whether there is no device any more, or another one than was seen."""
        try:
            inode = self._host.sysfs.read_inode(f"{DEVICES}/{address}")
        except FlavourError as error:
            return error.errno == errno.ENODEV
        applied = self._applied.devices.get(str(address))
        return applied is not None and applied.inode != inode

    def forget(self, address: PciAddress) -> None:
        """The device is gone, and with it what came of it and when it is to be tried again."""
        if self._applied.devices.pop(str(address), None) is not None:
            self._applied.save_soon()
        self._tries.forget(address)
        self._remarks.pop(address, None)
        self._held_back.discard(address)
        self._host.policy.serials.pop(address, None)
        self._agenda.call_off(address)
        self._forgotten(address)
        self.nodes.take_back(address)

    def stop(self) -> None:
        """Begin nothing any more."""
        self._agenda.close()
        self._applied.close()

    async def _look(self, address: PciAddress) -> None:
        try:
            await forget_what_is_undone(
                self._host, self._host.read_device(address), lambda: self._is_in_work(address)
            )
            device = self._host.read_device(address)
        except StuckError:
            raise
        except FlavourError:
            return
        if self.has_lost(address):
            self.forget(address)
        self.nodes.take_back(address)
        decision = self.decide(device)
        wanted = self._describe(device, decision)
        applied = self._applied.devices.get(str(address))
        if applied is not None and applied.done:
            # What tells a device apart may be known only now: a serial, once its driver has it.
            if wanted in (NOTHING, applied.wanted):
                self._compare(device, applied)
                return
            if address in self._held_back:
                return
        elif applied is not None and self._tries.is_given_up(address):
            return
        # A rule for early boot that holds no more may keep its native driver from it.
        is_native = wanted in (NOTHING, Flavour.NATIVE)
        if is_native and await is_still_kept(self._host, device, decision.settings.bind_timeout):
            await self._apply(device, str(Flavour.NATIVE), decision)
            return
        claim = find_driverctl_override(self._host.root, address)
        if wanted == NOTHING or is_so(self._host, device, wanted):
            self._note(device, wanted, decision, done=True, is_left=claim is not None)
            if device.vfio_device is not None:
                self.nodes.update()  # udev itself may have had it bound
            return
        if claim is not None:
            _log.warning(
                "%s: the policy says %s, but %s: it is left alone", address, wanted, _describe_claim(claim),
                extra=log_fields(MessageId.LEFT_TO_DRIVERCTL, address),
            )  # fmt: skip
            self._note(device, wanted, decision, done=True, is_left=True)
            return
        await self._apply(device, wanted, decision)

    async def _apply(self, device: Device, wanted: str, decision: Decision) -> None:
        address = device.address
        wish = self._find_wish_in_force(device)
        flavour = Flavour(wanted.partition(" ")[0])
        # The policy's are known to the switch; naming them has it change the driver and not the flavour.
        drivers = decision.drivers if self._host.find_flavour(device) == flavour else ()
        request = Request(
            address,
            flavour,
            drivers if wish is None else wish.drivers,
            requester=REQUESTER if wish is None else "an earlier set --persist",
            others=None if wish is None else wish.others,
            by_hand=False,
        )
        async with self._places.take():
            # From the unbind on, a rule that goes by the driver would not be known to be the one.
            self._note(device, wanted, decision, done=False)
            try:
                outcome = await self._switch(request, lambda _: None)  # nobody follows its steps
            except FlavourError as error:
                if error.errno == errno.ENODEV:
                    return  # it is gone
                if was_taken(self._host, device, flavour):
                    # Trying again would take it from whoever has it now.
                    self._note(device, wanted, decision, done=True)
                    self.consider(address)
                    return
                self._note(device, wanted, decision, done=False)
                self._try_again(address, error)
                return
        self._note(device, wanted, decision, done=True, driver=outcome.driver)

    def _try_again(self, address: PciAddress, error: FlavourError) -> None:
        """After a pause, or never: the engine has told the failure itself."""
        pause = self._tries.fail(address, error)
        if pause is None:
            _log.error(
                "%s: applying the policy failed %d times, giving up until a reload", address, MOST_TRIES,
                extra=log_fields(MessageId.NOT_APPLIED, address),
            )  # fmt: skip
            return
        # The failed switch's own end has it considered in a moment, and so have its events.
        self._agenda.postpone(address, pause)

    def _compare(self, device: Device, applied: Applied) -> None:
        """It was made what it should be once: is it still?"""
        address = device.address
        if applied.wanted == NOTHING or is_so(self._host, device, applied.wanted, applied.driver):
            self._remarks.pop(address, None)
            return
        if applied.is_left or find_driverctl_override(self._host.root, address):
            return  # left to that, and told as such
        remark = (
            f"someone else made it {self._host.find_flavour(device)} ({device.driver or 'no driver'}), "
            f"it was {applied}"
        )
        if self._remarks.get(address) != remark:
            self._remarks[address] = remark
            _log.warning(
                "%s: %s: left as it is; flavourctl reset %s changes it back", address, remark, address,
                extra=log_fields(MessageId.CHANGED_BY_OTHERS, address),
            )  # fmt: skip

    def _describe(self, device: Device, decision: Decision) -> str:
        """What is wanted of a device, as it is kept and compared. Never anything of a bridge, which a rule by
        slot matches with what is behind it."""
        if device.is_bridge:
            return NOTHING
        wish = self._find_wish_in_force(device)
        if wish is None:
            return describe(decision)
        # One of this boot has come true by whichever driver; one that lasts is to, by those it names.
        return " ".join((wish.flavour, *(() if wish.inode else wish.drivers)))

    def _find_wish_in_force(self, device: Device) -> Wish | None:
        wish = self.wishes.find(device)
        if wish is not None and wish.flavour not in self._host.policy.flavours:
            return None  # it was made under another policy
        return wish

    def _note(
        self,
        device: Device,
        wanted: str,
        decision: Decision,
        *,
        done: bool,
        driver: str | None = None,
        is_left: bool = False,
    ) -> None:
        """`driver` is the one that it came to have by a switch; one that `is_left` is driverctl's."""
        serials = self._host.policy.find_serials(device)
        rule = decision.rule
        name = rule.name if rule is not None and wanted != NOTHING else ""
        self._applied.devices[str(device.address)] = Applied(
            device.identity.inode, wanted, done, serials, name, driver or "", is_left
        )
        if done:
            self._tries.forget(device.address)
            self.nodes.take_back(device.address)
        self._held_back.discard(device.address)
        self._remarks.pop(device.address, None)
        self._applied.save_soon()


def _describe_claim(driver: str) -> str:
    return f"driverctl has {driver} saved for it (driverctl unset-override removes that)"


async def _nobody_listens() -> None:
    """Nothing is made from the wishes."""
