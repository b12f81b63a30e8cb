"""Which writes take a device from one binding to another.

The order is what keeps the device away for as short a time as possible and never open to a driver
nobody chose: the override names the goal before anything is unbound, so that no `modprobe` by
somebody else can claim the device in between; the unbind names the driver it expects, so that the
kernel refuses it when another has taken over meanwhile; the bind names the driver, because
`drivers_probe` swallows probe errors.
"""

from dataclasses import dataclass
from enum import StrEnum

from .device import Binding, Personality


class Action(StrEnum):
    """What a step writes."""

    OVERRIDE = "override"
    UNBIND = "unbind"
    BIND = "bind"
    PROBE = "probe"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class Step:
    """One write. `value` is a driver's name, for ASK the text written to `attribute`; None clears an
    override."""

    action: Action
    value: str | None = None
    attribute: str = ""

    def __str__(self) -> str:
        match self.action:
            case Action.OVERRIDE if self.value is None:
                return "clear driver_override"
            case Action.OVERRIDE:
                return f"set driver_override to {self.value}"
            case Action.UNBIND:
                return f"unbind from {self.value}"
            case Action.BIND:
                return f"bind to {self.value}"
            case Action.PROBE:
                return "let the kernel choose a native driver"
            case Action.ASK:
                return f"write {self.value} to {self.attribute}"


def plan_move(now: Binding, goal: Binding) -> tuple[Step, ...]:
    """The writes from `now` to `goal`; none when they are the same.

    The override names the goal's driver while it binds, also where the goal has none: a VF whose PF
    has `sriov_drivers_autoprobe=0` probes only with an override (kernel: `pci_device_can_probe`). The
    goal's own override is put in place last. Moving back is the same function with the values
    exchanged, so undo needs no code of its own.
    """
    steps: list[Step] = []
    override = now.override

    def set_override(value: str | None) -> None:
        nonlocal override
        if value != override:
            steps.append(Step(Action.OVERRIDE, value))
            override = value

    if now.driver != goal.driver:
        set_override(goal.driver if goal.driver is not None else goal.override)
        if now.driver is not None:
            steps.append(Step(Action.UNBIND, now.driver))
        if goal.driver is not None:
            steps.append(Step(Action.BIND, goal.driver))
    set_override(goal.override)
    return tuple(steps)


def plan_ask(personality: Personality, *, wanted: bool) -> tuple[Step, ...]:
    """The write by which a driver becomes a VFIO driver itself, or ceases to be one."""
    return (Step(Action.ASK, personality.on if wanted else personality.off, personality.attribute),)


def plan_ask_back(
    personality: Personality, vfio_device: str | None, *, wanted: bool, was_taken: bool = False
) -> tuple[Step, ...]:
    """What undoes `plan_ask` for a device that has this VFIO device.

    Nothing shows that a driver was asked to become a VFIO one and has not yet: it is asked back in any case.
    One that was asked to cease needs none while its VFIO device is there, unless the value `was_taken`.
    """
    is_to_ask = wanted or was_taken or vfio_device is None
    return plan_ask(personality, wanted=not wanted) if is_to_ask else ()


def plan_release(now: Binding) -> tuple[Step, ...]:
    """The writes that give a device back to whatever native driver the kernel picks.

    For a device that was on VFIO before this program saw it: nothing is known of what it had.
    """
    steps: list[Step] = []
    if now.override is not None:
        steps.append(Step(Action.OVERRIDE, None))
    if now.driver is not None:
        steps.append(Step(Action.UNBIND, now.driver))
    return (*steps, Step(Action.PROBE))
