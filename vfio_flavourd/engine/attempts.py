"""What came of each attempt, for those who ask later, those who listen, and the journal."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from ..kernel.inventory import DEVICES
from ..kernel.sysfs import Sysfs
from ..model.address import PciAddress
from ..model.errors import FlavourError
from ..model.flavour import Attempt, Outcome, Request, StepBegun, StepReport

_log = logging.getLogger(__name__)

# Attempts kept for `history`.
_HISTORY = 256

# Seconds after the end of an attempt until it is in the log; the answer is sent in less.
_LOG_DELAY = 0.05

Listener = Callable[[PciAddress, Attempt | StepReport], None]
Report = Callable[[StepBegun | StepReport], None]


class Attempts:
    """`listeners` are told of each step and each end as they happen."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs
        self._last: dict[PciAddress, Attempt] = {}
        self._unlogged: deque[Callable[[], None]] = deque()
        self.history: deque[tuple[PciAddress, Attempt]] = deque(maxlen=_HISTORY)
        self.listeners: set[Listener] = set()

    def find_last(self, address: PciAddress) -> Attempt | None:
        return self._last.get(address)

    def forget(self, address: PciAddress) -> None:
        self._last.pop(address, None)

    def fan_out(self, address: PciAddress, report: Report) -> Report:
        """A report that tells the listeners of what has been done, too."""

        def fan_out(step: StepBegun | StepReport) -> None:
            report(step)
            if isinstance(step, StepBegun):
                return
            for listener in list(self.listeners):
                listener(address, step)

        return fan_out

    def conclude(
        self,
        request: Request,
        started: float,
        seconds: float,
        steps: tuple[StepReport, ...],
        *,
        error: FlavourError | None = None,
        outcome: Outcome | None = None,
        rule: str = "",
    ) -> None:
        """An attempt is at its end. `started` is in seconds since the epoch, `seconds` what it took."""
        attempt = Attempt(
            flavour=request.flavour,
            requester=request.requester,
            when=started,
            reason="" if outcome is None else outcome.reason,
            error="" if error is None else str(error),
            steps=steps,
        )
        self._last[request.address] = attempt
        self.history.append((request.address, attempt))
        # The one who asked need not wait for the journal.
        driver = self._sysfs.find_link(f"{DEVICES}/{request.address}/driver")
        self._unlogged.append(lambda: _log_end(request, driver, seconds, error, outcome, rule))
        asyncio.get_running_loop().call_later(_LOG_DELAY, self.log)
        for listener in list(self.listeners):
            listener(request.address, attempt)

    def log(self) -> None:
        """Write to the journal what is not in it yet."""
        while self._unlogged:
            self._unlogged.popleft()()


def _log_end(
    request: Request,
    driver: str | None,
    seconds: float,
    error: FlavourError | None,
    outcome: Outcome | None,
    rule: str,
) -> None:
    """The one record of an attempt; `driver` is the one that the device has after it."""
    done = "failed" if outcome is None else "done" if outcome.changed else "unchanged"
    fields = {
        "PCI_ADDRESS": str(request.address),
        "FLAVOUR": str(request.flavour),
        "REQUESTER": request.requester,
        "OUTCOME": done,
        "DRIVER": driver or "",
        "DURATION_USEC": str(int(seconds * 1e6)),
        "RULE": rule,
        "FORCED": "yes" if request.force or (outcome is not None and outcome.forced) else "",
    }
    if error is not None:
        said = without_address(error, request.address)
        _log.error("%s: to %s: %s", request.address, request.flavour, said, extra=fields)
    elif outcome is not None and outcome.changed:
        forced = "; ".join(user.what for user in outcome.forced)
        _log.log(
            logging.WARNING if outcome.fallback or forced else logging.INFO,
            "%s: %s -> %s in %d ms: %s%s",
            request.address,
            outcome.previous_driver or "no driver",
            driver or "no driver",
            seconds * 1000,
            outcome.reason,
            f"; taken by force from: {forced}" if forced else "",
            extra=fields,
        )
    elif outcome is not None:
        _log.info("%s: to %s: %s", request.address, request.flavour, outcome.reason, extra=fields)


def without_address(error: FlavourError, address: PciAddress) -> str:
    """For where the address is told anyway."""
    return str(error).removeprefix(f"{address}: ")
