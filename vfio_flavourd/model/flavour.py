"""Flavours, what is asked for, and what came of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
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
    it outlive the boot.
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


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a switch as it happened.

    `started` and `duration` are in seconds, `started` from the beginning of the switch. `error` is
    empty when the step did what it says.
    """

    phase: Phase
    what: str
    started: float
    duration: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a request, as read back from the kernel.

    `fallback` is true when the generic driver serves the device although a better candidate was
    known; `reason` says in one line why this driver. `duration` is in seconds. `forced` are the users it
    was taken from by force, `others` the outcomes of the others in its IOMMU group, switched with it.
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


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last attempt on a device, kept for those who ask later. `error` is empty after a success;
    `when` is in seconds since the epoch."""

    flavour: Flavour
    requester: str
    when: float
    reason: str
    error: str
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
