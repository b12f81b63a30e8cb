"""A switch that is for several devices of an IOMMU group, or for none of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Outcome
from ..model.transition import Phase
from .ledger import forget_record
from .moves import GoneError, StuckError
from .switch import Switch, Way


@dataclass(frozen=True, slots=True)
class Member:
    """One device and its switch."""

    switch: Switch
    device: Device
    way: Way


async def run_together(
    members: Sequence[Member], quarantine: Callable[[Device, StuckError], None]
) -> list[Outcome]:
    """Switch one after the other; where one can't be, put those before it back, the last one first.

    `quarantine` is told of each device that a write has not come back from. Raises FlavourError of the one
    that failed, with what became of the others.
    """
    outcomes: list[Outcome] = []
    for number, member in enumerate(members):
        try:
            # What it has may have changed while the others had their turn.
            device = member.switch.look_again(member.device) if number else member.device
            member.switch.is_late = bool(number)
            outcomes.append(await member.switch.run(device, member.way))
        except FlavourError as error:
            if isinstance(error, StuckError):
                quarantine(member.device, error)
            else:
                member.switch.commit()
            if len(members) == 1:
                raise
            story = await _take_back(members[:number], quarantine)
            raise FlavourError(
                f"{error}{story}", code=error.code, errno=error.errno, hint=error.hint
            ) from error
    for member in members:
        member.switch.commit()
    return outcomes


async def _take_back(members: Sequence[Member], quarantine: Callable[[Device, StuckError], None]) -> str:
    """What became of the others, in words."""
    story = ""
    for member in reversed(members):
        if member.switch.before is None:
            continue  # it had the flavour already
        address = member.device.address
        cause = FlavourError("")
        try:
            said = str(await member.switch.undo(member.device, cause)).removeprefix("; ")
            member.switch.steps.enter(Phase.FAILED)
        except StuckError as stuck:
            quarantine(member.device, stuck)
            member.switch.get_stuck(stuck)
            said = "stuck on its way back"
        except GoneError:
            forget_record(member.switch.host.ledger, member.device)
            said = "gone"
        except FlavourError as error:
            said = str(error)
        story += f"; {address} of the same group: {said.removeprefix('and ')}"
    return story
