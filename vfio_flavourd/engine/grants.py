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
from .host import Host
from .ledger import Record
from .reconcile import Reconciler
from .work import Work

_log = logging.getLogger(__name__)


class Grants:
    """What the end of a switch means for the wishes, which the reconciler keeps."""

    def __init__(self, host: Host, reconciler: Reconciler) -> None:
        self._host = host
        self._reconciler = reconciler

    def keep(self, work: Work, outcome: Outcome) -> None:
        """Raises FlavourError (EIO) when they are to last and can't be kept."""
        first, *others = (member.device for member in work.members)
        for device, other in zip(others, outcome.others, strict=True):
            request = replace(work.request, address=other.address, drivers=())
            self._reconciler.keep_wish(self._tell_what_became(device, other), request)
        self._reconciler.keep_wish(self._tell_what_became(first, outcome), work.request)

    def check_may_drop(self, request: Request, addresses: Iterable[PciAddress]) -> None:
        """Raises FlavourError (EACCES) where one has a wish that lasts, which not everyone may undo."""
        if not request.may_undo_lasting and any(map(self._reconciler.has_lasting_wish, addresses)):
            raise FlavourError(
                f"{request.address}: only root may undo what was asked for to last",
                code=Code.NOT_PERMITTED,
                hint="use sudo",
            )

    def drop(self, addresses: tuple[PciAddress, ...]) -> bool:
        """Whether the next boot has to follow, as one was to last; `addresses` has at least one. Raises
        FlavourError (EIO) when such a one can't be taken off the disk."""
        try:
            return self._reconciler.drop_wishes(addresses)
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
            if asked.drops:
                changed = self.drop((record.address,))
            else:
                self._reconciler.keep_wish(self._host.read_device(record.address), request)
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

    def _tell_what_became(self, device: Device, outcome: Outcome) -> Device:
        """It after its switch, as the worker has read it back."""
        return replace(
            device,
            driver=outcome.driver,
            driver_module=find_driver_module(self._host.sysfs, outcome.driver),
            vfio_device=outcome.vfio_device,
        )
