"""What a switch is for, and how one that has come to nothing goes back: decided without touching anything."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ..model.address import PciAddress
from ..model.codes import Code
from ..model.device import Binding, Personality
from ..model.errors import FlavourError
from ..model.flavour import Flavour, StepAction
from ..model.plan import Action, Step, plan_ask_back, plan_move
from .moves import Observed, StepError


@dataclass(frozen=True, slots=True)
class Aim:
    """What a move is for, as the record keeps it.

    `binding` is what the device is to have (None: the kernel's choice), `personality` how its driver is
    asked, where it is not moved at all.
    """

    flavour: Flavour
    binding: Binding | None = None
    personality: Personality | None = None


def plan_undo(
    seen: Observed,
    before: Binding,
    cause: FlavourError,
    aim: Aim,
    written: AbstractSet[str | None],
    done: AbstractSet[StepAction],
) -> tuple[Binding, tuple[Step, ...]]:
    """What a device that was on its way to `aim` is to have again, and the writes to there.

    `seen` is what it has, `before` what it had at the beginning, `written` the overrides that were written
    since, `done` what was done to it since without an error.
    """
    now, goal = seen.binding, before
    was_refused = isinstance(cause, StepError) and cause.step.action in (Action.OVERRIDE, Action.UNBIND)
    if was_refused and StepAction.UNBIND not in done:
        # Whoever changed its driver meanwhile keeps it, also where he has left it none.
        goal = Binding(now.driver, goal.override)
    if aim.binding is not None and now.driver not in (None, goal.driver, *written):
        # A driver that is neither the one it had nor one of ours came to it meanwhile, and stays.
        goal = Binding(now.driver, goal.override)
    if aim.personality is None:
        return goal, plan_move(now, goal)
    wanted = aim.flavour == Flavour.VFIO
    was_taken = StepAction.ASK in done
    return goal, plan_ask_back(aim.personality, seen.vfio_device, wanted=wanted, was_taken=was_taken)


def tell_put_back(now: Binding, before: Binding) -> str:
    """What it has after an undo, in words."""
    if now.driver == before.driver:
        return f"{now.driver} again" if now.driver else "no driver, as before"
    return f"{now.driver or 'no driver'}, by someone else's doing"


def tell_not_put_back(address: PciAddress, cause: FlavourError, why: str) -> FlavourError:
    """The one who asked is told both: why the switch failed, and why the way back did."""
    return FlavourError(
        f"{cause}; and it could not be put back: {why}",
        code=Code.NOT_PUT_BACK,
        errno=cause.errno,
        hint=f"flavourctl reset {address} tries again",
    )
