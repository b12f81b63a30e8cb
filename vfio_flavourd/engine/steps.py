"""What one switch does, as it happens: told to the one who follows it, and kept for those who ask later."""

import time
from collections.abc import Iterable

from ..kernel.hands import Result
from ..model.flavour import StepAction, StepBegun, StepReport
from ..model.plan import Step
from ..model.transition import Phase, check_move
from .attempts import Report
from .delay import READ_BACK, Delay
from .moves import describe_errno


class Steps:
    """`candidate` is the module that is tried meanwhile. Times are monotonic, and are told from `began` on,
    when the switch was asked for."""

    def __init__(self, report: Report, began: float) -> None:
        self._report = report
        self._began = began
        self._since = began
        self._ended: list[StepReport] = []
        self.candidate = ""
        self.phase = Phase.WAITING
        self.delay = Delay()

    @property
    def ended(self) -> tuple[StepReport, ...]:
        return tuple(self._ended)

    @property
    def done(self) -> frozenset[StepAction]:
        """What has been done without an error."""
        return frozenset(step.action for step in self._ended if not step.error)

    def enter(self, phase: Phase) -> None:
        check_move(self.phase, phase)
        self.phase = phase

    def begin(self, what: str) -> float:
        """Now, by the clock that steps are timed by."""
        self._report(StepBegun(what))
        return time.monotonic()

    def end(
        self, action: StepAction, what: str, start: float, error: str = "", *, end: float | None = None
    ) -> None:
        """Without `end` it is now."""
        took = (time.monotonic() if end is None else end) - start
        step = StepReport(self.phase, action, what, start - self._began, took, error, self.candidate)
        self._ended.append(step)
        self._report(step)

    # those that a worker takes, and what it reads at their end

    def look(self) -> None:
        """From now on a worker is waited for."""
        self._since = time.monotonic()

    def begin_batch(self, pid: int, steps: Iterable[Step]) -> None:
        """That one has begun; it is told by `tell`."""
        self.delay.begin(pid, steps)

    def tell(self) -> None:
        """What a worker is at."""
        if self.delay.step:
            self._report(StepBegun(self.delay.step))

    def watch(self, step: Step, result: Result) -> None:
        """One of the batch has returned."""
        self.delay.pass_on()
        self._since = result.end
        failed = describe_errno(result.errno) if result.errno else ""
        self.end(StepAction(step.action), str(step), result.start, failed, end=result.end)
        if not result.errno:
            self.tell()

    def end_read_back(self) -> None:
        self.end(StepAction.VERIFY, READ_BACK, self._since)

    def get_stuck(self, step: Step | None, told: str) -> None:
        """What has not come back is the last step; None: the reading back."""
        action, what = (
            (StepAction.VERIFY, READ_BACK) if step is None else (StepAction(step.action), str(step))
        )
        self.end(action, what, self._since, told)
        self.enter(Phase.STUCK)
