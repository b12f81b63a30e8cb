"""Flavours, what is asked for, and what came of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from .address import PciAddress
from .aliases import Resolution
from .codes import Code
from .device import Device
from .errors import FlavourError
from .occupancy import User
from .policy import Decision, OthersInGroup
from .transition import Phase


class Flavour(str):
    """The name of a flavour: whose a device is. `native`, the host's, and `vfio` always exist; a policy may
    define more."""

    __slots__ = ()
    NATIVE: ClassVar["Flavour"]
    VFIO: ClassVar["Flavour"]


Flavour.NATIVE = Flavour("native")
Flavour.VFIO = Flavour("vfio")


def parse_flavour(text: str, known: Collection[str] = (Flavour.NATIVE, Flavour.VFIO)) -> Flavour:
    """Raises FlavourError (EINVAL) that names what is allowed."""
    if text in known:
        return Flavour(text)
    from difflib import get_close_matches  # only who mistypes waits for it

    names = list(known)
    near = get_close_matches(text[:64].lower(), names, n=1)
    question = f"; did you mean {near[0]}?" if near else ""
    raise FlavourError(
        f"no flavour is called {text[:64]!r}",
        code=Code.NO_SUCH_FLAVOUR,
        hint=f"allowed: {', '.join(names[:-1])} or {names[-1]}{question}",
    )


def find_flavour(
    vfio_device: str | None, driver_module: str | None, modules: Mapping[Flavour, Collection[str]]
) -> Flavour:
    """A device's flavour is what it is, not what was asked.

    `modules` are those that bring the drivers of each flavour. A driver without a module is a part of the
    kernel, and makes a VFIO device or is a native one.
    """
    if vfio_device is not None:
        return Flavour.VFIO
    if driver_module is not None:
        for flavour, names in modules.items():
            if driver_module in names:
                return flavour
    return Flavour.NATIVE


@dataclass(frozen=True, slots=True)
class Request:
    """A wish for one device.

    `drivers` are modules or drivers named by the one who asks, in the order to try them; none means
    that the policy or resolution decides. `timeout` (seconds) bounds the whole switch. `requester` is for
    the log. `force` takes a device that is in use; `others` stands above the policy's word on the others in
    its IOMMU group. `by_hand` tells a person's or a program's wish from the policy's own, and `persist` has
    it outlive the boot; `may_undo_lasting` is for a reset where one does.
    """

    address: PciAddress
    flavour: Flavour
    drivers: tuple[str, ...] = ()
    timeout: float | None = None
    requester: str = ""
    force: bool = False
    others: OthersInGroup | None = None
    by_hand: bool = True
    persist: bool = False
    may_undo_lasting: bool = True


class StepAction(StrEnum):
    """What a step of a switch is about; those that write are called as in the plan."""

    TURN = "turn"
    GUARD = "guard"
    LOAD = "load"
    OVERRIDE = "override"
    UNBIND = "unbind"
    BIND = "bind"
    PROBE = "probe"
    ASK = "ask"
    WAIT = "wait"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class StepBegun:
    """What a switch is at from now on."""

    what: str


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a switch as it happened.

    `started` and `duration` are in seconds, `started` from when the switch was asked for. `error` is
    empty when the step did what it says. `candidate` is the module that is tried meanwhile, or empty.
    """

    phase: Phase
    action: StepAction
    what: str
    started: float
    duration: float
    error: str = ""
    candidate: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request, as read back from the kernel.

    `fallback` is true when the generic driver serves the device although a better candidate was
    known; `reason` says in one line why this driver. `duration` is in seconds. `forced` are the users it
    was taken from by force, `others` the outcomes of the others in its IOMMU group, switched with it.
    `attempt` is the number under which it is kept.
    """

    address: PciAddress
    flavour: Flavour
    driver: str | None
    previous_driver: str | None
    fallback: bool
    reason: str
    vfio_device: str | None
    group_node: str | None
    duration: float
    changed: bool
    steps: tuple[StepReport, ...]
    forced: tuple[User, ...] = ()
    others: tuple["Outcome", ...] = ()
    attempt: int = 0


class Ending(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    UNCHANGED = "unchanged"  # it had the flavour already
    REFUSED = "refused"  # no such device, a guard's word, or its turn did not come; nothing was begun
    FAILED = "failed"
    STUCK = "stuck"  # the kernel has not come back; recovery brings the device to an end
    GIVEN_UP = "given-up"  # by the one who asked, before anything was touched
    CUT_OFF = "cut-off"  # by the end of the daemon; the next one takes it up


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one attempt on one device, kept for those who ask later.

    `id` counts the attempts of this boot from 1 on. `unit` is the systemd unit of the process that asked, as
    it was then. `when` (seconds since the epoch) is when it was asked for, and the steps and `duration`
    (seconds) count from then. `driver` is what the device had afterwards, `previous_driver` what it had
    before. `forced` are the users that it was taken from. `rule` is the policy's for this device. `reason` is
    empty where `error` is not; `hint` and `code` are the error's.
    """

    id: int
    address: PciAddress
    flavour: Flavour
    requester: str
    unit: str
    when: float
    duration: float
    ending: Ending
    driver: str | None
    previous_driver: str | None
    fallback: bool
    forced: tuple[str, ...]
    rule: str
    reason: str
    error: str
    hint: str
    code: str
    steps: tuple[StepReport, ...]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """All that is known of one device. `decision` is what the policy says of it, `wish` the flavour that was
    asked for by hand and stands above that, `remarks` what someone else did to it or claims of it. `slot` and
    `serials` are what rules can name it by; the latter only where one asks for them."""

    device: Device
    flavour: Flavour
    resolution: Resolution
    origin_driver: str | None
    held: bool
    phase: Phase | None
    stuck: str
    last: Attempt | None
    decision: Decision
    wish: Flavour | None = None
    remarks: tuple[str, ...] = ()
    slot: str = ""
    serials: tuple[str, ...] = ()
