"""A loop whose clock jumps: pauses of minutes take no time, and come in the same order each time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Selector(self._jump))

    def time(self) -> float:
        return self._now

    def _jump(self, seconds: float) -> None:
        self._now += seconds

    def run_in_executor(  # type: ignore[override]  # its types are variadic
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """A thread would run by another clock."""
        done = self.create_future()
        done.set_result(func(*args))
        return done


class _Selector(selectors.DefaultSelector):
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits for what will never happen"
            self._jump(max(timeout, 0))
        return ready


def run_at_once(work: Coroutine[Any, Any, _Result]) -> _Result:
    """As asyncio.run()."""
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        return runner.run(work)


def now() -> float:
    """Seconds since the loop's beginning."""
    return asyncio.get_running_loop().time()
