"""What was asked for by hand holds once it has come true, also late; what a reset undoes holds no more."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from ..kernel.inventory import find_driver_module
from ..model.address import PciAddress
from ..model.codes import Code
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Outcome, Request
from ..model.message_ids import MessageId, log_fields
from ..model.policy import Decision
from .host import Host
from .ledger import Record
from .reconcile import Ends, Reconciler
from .work import Work

_log = logging.getLogger(__name__)


class Grants:
    """What the end of a switch means for the wishes, which the reconciler keeps."""

    def __init__(self, host: Host, reconciler: Reconciler) -> None:
        self._host = host
        self._reconciler = reconciler

    def keep(self, work: Work, outcome: Outcome) -> None:
        """Raises FlavourError (EIO) when they are to last and can't be kept, or not all of them."""
        failed: FlavourError | None = None
        for device, decision in self._tell_what_became(work, outcome):
            is_first = device.address == work.request.address
            drivers = work.request.drivers if is_first else ()
            request = replace(work.request, address=device.address, drivers=drivers)
            try:
                self._reconciler.keep_wish(device, decision, request)
            except FlavourError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def check_may_drop(self, request: Request, addresses: Iterable[PciAddress]) -> None:
        """Raises FlavourError (EACCES) where one has a wish that lasts, which not everyone may undo."""
        lasting = self._reconciler.wishes.lasting
        if not request.may_undo_lasting and any(str(address) in lasting for address in addresses):
            raise FlavourError(
                f"{request.address}: only root may undo what was asked for to last",
                code=Code.NOT_PERMITTED,
                hint="use sudo",
            )

    def drop_all(self, work: Work, outcome: Outcome) -> bool:
        """As `drop`, after a reset."""
        ends = self._tell_what_became(work, outcome)
        return self.drop(tuple(device.address for device, _ in ends), ends)

    def drop(self, addresses: tuple[PciAddress, ...], ends: Ends = ()) -> bool:
        """Whether the next boot has to follow, as one was to last; `addresses` has at least one. Raises
        FlavourError (EIO) when such a one can't be taken off the disk."""
        try:
            return self._reconciler.drop_wishes(addresses, ends)
        except OSError as error:
            raise FlavourError(
                f"{addresses[0]}: reset for this boot only: taking what was asked for to last off the "
                f"disk failed ({error.strerror})",
                code=Code.NOT_SAVED,
                hint=f"see whether {self._host.lasting_state} is full or read-only, then reset it again",
            ) from error

    async def end_late(self, record: Record) -> None:
        """A switch that nobody waits for has come to its end; `record` is of before that."""
        asked = record.asked
        if asked is None or not self._has_come_true(record):
            return
        request = Request(
            record.address, record.flavour, asked.drivers, others=asked.others, persist=asked.persist
        )
        try:
            device = self._host.read_device(record.address)
            decision = self._reconciler.decide(device)
            if asked.drops:
                changed = self.drop((record.address,), [(device, decision)])
            else:
                self._reconciler.keep_wish(device, decision, request)
                changed = asked.persist
        except FlavourError as error:
            _log.error("%s", error, extra=log_fields(MessageId.NOT_KEPT, record.address))
            return
        if changed:
            await self._reconciler.lasting_wishes_changed()

    def _has_come_true(self, record: Record) -> bool:
        try:
            device = self._host.read_device(record.address)
        except FlavourError:
            return False  # it is gone
        return device.identity == record.identity and self._host.find_flavour(device) == record.flavour

    def _tell_what_became(self, work: Work, outcome: Outcome) -> list[tuple[Device, Decision]]:
        """The devices after their switch, as the workers have read them back, each with what the policy says
        of it: by the driver that it had, which a rule may go by."""
        return [
            (
                replace(
                    member.device,
                    driver=each.driver,
                    driver_module=find_driver_module(self._host.sysfs, each.driver),
                    vfio_device=each.vfio_device,
                ),
                self._reconciler.decide(member.device),
            )
            for member, each in zip(work.members, (outcome, *outcome.others), strict=True)
        ]
