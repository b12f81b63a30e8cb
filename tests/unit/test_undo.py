"""How a switch that has come to nothing goes back, and what is told of a worker's writes."""

import time

import pytest

from vfio_flavourd.engine.moves import Observed
from vfio_flavourd.engine.steps import Steps
from vfio_flavourd.engine.undo import Aim, plan_undo
from vfio_flavourd.kernel.hands import Result
from vfio_flavourd.model.device import ENABLE_VFIO, Binding
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, StepAction, StepBegun, StepReport
from vfio_flavourd.model.plan import Action, Step, plan_ask

CHAMELEON = Binding("chameleon", None)


@pytest.mark.parametrize(("vfio_device", "is_asked"), [("vfio0", False), (None, True)])
def test_a_driver_that_was_to_cease_and_has_not_is_asked_back_only_where_it_has_lost_its_vfio_device(
    vfio_device: str | None, is_asked: bool
) -> None:
    """With it, nothing has changed: the write that asked it has failed."""
    seen, aim = Observed(CHAMELEON, vfio_device), Aim(Flavour.NATIVE, None, ENABLE_VFIO)
    goal, steps = plan_undo(seen, CHAMELEON, FlavourError("it failed"), aim, frozenset(), frozenset())
    assert goal == CHAMELEON
    assert steps == (plan_ask(ENABLE_VFIO, wanted=True) if is_asked else ())


def test_a_write_is_told_with_the_time_that_the_worker_has_taken_for_it() -> None:
    """Its word of that may come later: the loop was busy."""
    told: list[StepBegun | StepReport] = []
    began = time.monotonic() - 100
    steps = Steps(told.append, began)
    steps.watch(Step(Action.UNBIND, "e1000e"), Result(0, began + 1, began + 3, 0, None))
    (step,) = steps.ended
    assert step.action is StepAction.UNBIND
    assert [step.started, step.duration] == pytest.approx([1, 2])
    assert told == [step]
