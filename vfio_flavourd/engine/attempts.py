"""What came of each attempt, for those who ask later, those who listen, and the journal."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from ..model.address import PciAddress
from ..model.codes import Code
from ..model.errors import FlavourError
from ..model.flavour import Attempt, Ending, StepBegun, StepReport
from ..model.message_ids import MessageId, log_fields
from ..model.requester import name_requester
from .history import History

_log = logging.getLogger(__name__)

# Seconds after the end of an attempt until it is in the log; the answer is sent in less.
_LOG_DELAY = 0.05

_KINDS = {
    Ending.UNCHANGED: MessageId.UNCHANGED,
    Ending.REFUSED: MessageId.REFUSED,
    Ending.FAILED: MessageId.FAILED,
    Ending.STUCK: MessageId.STUCK,
    Ending.GIVEN_UP: MessageId.GIVEN_UP,
    Ending.CUT_OFF: MessageId.CUT_OFF,
}

# Nobody has to do anything about these.
_LEVELS = {Ending.GIVEN_UP: logging.INFO, Ending.CUT_OFF: logging.WARNING}

Listener = Callable[[PciAddress, Attempt | StepReport], None]
Report = Callable[[StepBegun | StepReport], None]


class Attempts:
    """`listeners` are told of each step and each end as they happen."""

    def __init__(self, history: History) -> None:
        self._last: dict[PciAddress, Attempt] = {}
        self._refusals: dict[PciAddress, Attempt] = {}
        self._unlogged: deque[Attempt] = deque()
        self.history = history
        self.listeners: set[Listener] = set()

    def load(self) -> None:
        """Take up what an earlier daemon of this boot left."""
        self.history.load()
        for attempt in self.history:
            self._keep(attempt)

    def find_last(self, address: PciAddress) -> Attempt | None:
        return self._last.get(address)

    def forget(self, address: PciAddress) -> None:
        self._last.pop(address, None)
        self._refusals.pop(address, None)

    def _keep(self, attempt: Attempt) -> None:
        # Anyone in the group can make up addresses: nothing stays of those beyond the history.
        if attempt.code != Code.NO_SUCH_DEVICE:
            self._last[attempt.address] = attempt

    def fan_out(self, address: PciAddress, report: Report) -> Report:
        """A report that tells the listeners of what has been done, too."""

        def fan_out(step: StepBegun | StepReport) -> None:
            report(step)
            if isinstance(step, StepBegun):
                return
            for listener in list(self.listeners):
                listener(address, step)

        return fan_out

    def conclude(self, attempt: Attempt, *, is_policys_refusal: bool) -> None:
        """An attempt is at its end.

        The policy tries again for as long as it is refused: that is kept and logged once until something else
        is attempted on the device, else one device in use would push out all that people have attempted.
        """
        if is_policys_refusal and self._is_repeated(attempt):
            _log.debug("%s", attempt.error)
        else:
            self._refusals.pop(attempt.address, None)
            if is_policys_refusal:
                self._refusals[attempt.address] = attempt
            self._keep(attempt)
            self.history.add(attempt)
            # The one who asked need not wait for the journal and the disk.
            self._unlogged.append(attempt)
            asyncio.get_running_loop().call_later(_LOG_DELAY, self.log)
        for listener in list(self.listeners):
            listener(attempt.address, attempt)

    def _is_repeated(self, refusal: Attempt) -> bool:
        """Whether the device's last attempt says the same, and is still in the history."""
        last = self._refusals.get(refusal.address)
        return last is not None and _tell_apart(last) == _tell_apart(refusal) and last in self.history

    def log(self) -> None:
        """Write to the journal and the history what is not in them yet."""
        if not self._unlogged:
            return
        attempts = tuple(self._unlogged)
        self._unlogged.clear()
        for attempt in attempts:
            _log_end(attempt)
        self.history.write(attempts)


def _tell_apart(attempt: Attempt) -> tuple[str, ...]:
    """What two refusals that say the same have in common."""
    return attempt.flavour, attempt.requester, attempt.rule, attempt.code, attempt.error


def _log_end(attempt: Attempt) -> None:
    """The one record of an attempt."""
    fields = {
        **log_fields(_find_kind(attempt), attempt.address),
        "FLAVOUR": str(attempt.flavour),
        **name_requester(attempt.requester),
        "REQUESTER_UNIT": attempt.unit,
        "OUTCOME": str(attempt.ending),
        "ERROR_CODE": attempt.code,
        "DRIVER": attempt.driver or "",
        "PREVIOUS_DRIVER": attempt.previous_driver or "",
        "DURATION_USEC": str(int(attempt.duration * 1e6)),
        "RULE": attempt.rule,
        "FALLBACK": "yes" if attempt.fallback else "",
        "FORCED": "yes" if attempt.forced else "",
        "ATTEMPT": str(attempt.id),
    }
    if attempt.error:
        said = attempt.error.removeprefix(f"{attempt.address}: ")
        level = _LEVELS.get(attempt.ending, logging.ERROR)
        _log.log(level, "%s: could not be made %s: %s", attempt.address, attempt.flavour, said, extra=fields)
    elif attempt.ending is Ending.DONE:
        forced = "; ".join(attempt.forced)
        _log.log(
            logging.WARNING if attempt.fallback or forced else logging.INFO,
            "%s: %s -> %s in %d ms: %s%s",
            attempt.address,
            attempt.previous_driver or "no driver",
            attempt.driver or "no driver",
            attempt.duration * 1000,
            attempt.reason,
            f"; taken by force from: {forced}" if forced else "",
            extra=fields,
        )
    else:
        _log.info("%s: stays %s: %s", attempt.address, attempt.flavour, attempt.reason, extra=fields)


def _find_kind(attempt: Attempt) -> MessageId:
    if attempt.ending is not Ending.DONE:
        return _KINDS[attempt.ending]
    if attempt.forced:
        return MessageId.FORCED
    return MessageId.FELL_BACK if attempt.fallback else MessageId.SWITCHED


def without_address(error: FlavourError, address: PciAddress) -> str:
    """For where the address is told anyway."""
    return str(error).removeprefix(f"{address}: ")
