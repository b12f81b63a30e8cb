"""Wishes that come as uevents, and word of devices that change."""

import asyncio
import json
import logging
from pathlib import Path

from ..engine.engine import Engine
from ..engine.whole_file import write_whole_file
from ..kernel.udev_database import UdevDatabase, Uevent
from ..kernel.uevents import Uevents
from ..model.errors import FlavourError
from ..model.flavour import Request, StepBegun, StepReport, parse_flavour
from ..model.message_ids import MessageId, log_fields
from ..model.requester import name_requester

_log = logging.getLogger(__name__)


class UeventDoor:
    """Hands wishes to the engine. `mark` is the file that keeps, for each device, the number of the last
    event whose wish was taken up, so that none is taken up twice when the daemon starts again."""

    def __init__(self, engine: Engine, uevents: Uevents, database: UdevDatabase, mark: Path) -> None:
        self._engine = engine
        self._uevents = uevents
        self._database = database
        self._mark = mark
        self._last = _read_mark(mark)
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Listen, then take up what came while nobody did."""
        self._uevents.listen(self.receive, self._resync, self._engine.needs_no_events)
        self._take_up_wishes()

    def _resync(self) -> None:
        """Events were lost: what they said is in sysfs, and a wish in udev's database."""
        self._engine.notice_all()
        self._take_up_wishes()

    def _take_up_wishes(self) -> None:
        for event in sorted(self._database.wishes(), key=lambda event: event.seqnum):
            self.receive(event)

    def receive(self, event: Uevent) -> None:
        self._engine.notice(event.address)
        if event.action == "remove":
            self._engine.forget(event.address)
        elif event.action in ("add", "bind"):
            self._engine.reconciler.consider(event.address)
        address = str(event.address)
        # By device: udev may pass on the events of two devices in another order than the kernel's.
        if event.wish is None or event.seqnum <= self._last.get(address, 0):
            return
        self._last[address] = event.seqnum
        try:
            # Whole or not at all: what an empty one says is that each wish in udev's database is new.
            write_whole_file(self._mark, json.dumps(self._last), synced=False)
        except OSError as error:
            _log.warning(
                "%s: marking a uevent's request as taken up failed (%s), ignoring",
                address,
                error.strerror,
                extra=log_fields(MessageId.NOT_KEPT, event.address),
            )
        task = asyncio.create_task(self._fulfil(event, event.wish))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fulfil(self, event: Uevent, wish: str) -> None:
        try:
            request = Request(
                event.address, parse_flavour(wish, self._engine.flavours), requester=f"uevent {event.seqnum}"
            )
        except FlavourError as error:
            _log.error(
                "%s: a uevent asks for a flavour: %s (%s), ignoring",
                event.address,
                error,
                error.hint,
                extra={
                    **log_fields(MessageId.WISH_INVALID, event.address),
                    **name_requester(f"uevent {event.seqnum}"),
                    "ERROR_CODE": error.code,
                },
            )
            return
        try:
            await self._engine.set_flavour(request, _unheard)
        except FlavourError:
            return  # the engine has logged it and keeps it for `show`: nobody waits for an answer here


def _read_mark(path: Path) -> dict[str, int]:
    """A mark that is spoilt is no mark."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {address: seqnum for address, seqnum in data.items() if isinstance(seqnum, int)}


def _unheard(_: StepBegun | StepReport) -> None:
    """Nobody follows the steps of a uevent's wish."""
