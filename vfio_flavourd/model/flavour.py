"""Flavours, what is asked for, and what came of it."""

import errno
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from .address import PciAddress
from .aliases import Resolution
from .device import Device
from .errors import FlavourError
from .transition import Phase


class Flavour(StrEnum):
    """Whose a device is: the host's, by its own driver, or VFIO's."""

    NATIVE = "native"
    VFIO = "vfio"


def parse_flavour(text: str) -> Flavour:
    """Raises FlavourError (EINVAL) that names what is allowed."""
    try:
        return Flavour(text)
    except ValueError:
        allowed = " or ".join(Flavour)
        near = get_close_matches(text[:64].lower(), list(Flavour), n=1)
        question = f"; did you mean {near[0]}?" if near else ""
        raise FlavourError(
            f"no flavour is called {text[:64]!r}", errno=errno.EINVAL, hint=f"allowed: {allowed}{question}"
        ) from None


def find_flavour(device: Device, vfio_modules: Collection[str]) -> Flavour:
    """A device's flavour is what it is, not what was asked.

    `vfio_modules` are the modules that have an alias of the flavour; a driver is a VFIO one when its
    module is among them.
    """
    if device.vfio_device is not None or (device.driver_module or "") in vfio_modules:
        return Flavour.VFIO
    return Flavour.NATIVE


@dataclass(frozen=True, slots=True)
class Request:
    """A wish for one device.

    `drivers` are modules or drivers named by the one who asks, in the order to try them; none means
    that resolution decides. `timeout` (seconds) bounds the whole switch. `requester` is for the log.
    """

    address: PciAddress
    flavour: Flavour
    drivers: tuple[str, ...] = ()
    timeout: float | None = None
    requester: str = ""


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
    known; `reason` says in one line why this driver. `duration` is in seconds.
    """

    address: PciAddress
    flavour: Flavour
    driver: str | None
    previous_driver: str | None
    fallback: bool
    reason: str
    vfio_device: str | None
    iommu_group: int | None
    duration: float
    changed: bool
    steps: tuple[StepReport, ...]


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
    """All that is known of one device."""

    device: Device
    flavour: Flavour
    resolution: Resolution
    origin_driver: str | None
    held: bool
    phase: Phase | None
    stuck: str
    last: Attempt | None
