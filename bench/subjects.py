"""What there is to measure."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.guest.vm import Guest

from . import many_devices, resolution, service, start_up, switch, virtual_functions
from .measure import Row, Scale


@dataclass(frozen=True, slots=True)
class Native:
    """On this machine, without a device."""

    name: str
    title: str
    measure: Callable[[Scale], list[Row]]


@dataclass(frozen=True, slots=True)
class InGuest:
    """Leaves the guest as it was."""

    name: str
    title: str
    measure: Callable[[Guest, Scale], list[Row]]


NATIVE = (
    Native("resolution", "Finding the modules for a device", resolution.measure),
    Native("start-up", "Starting flavourctl", start_up.measure),
    Native("many-devices", "Many devices, on a fake host", many_devices.measure),
)
IN_GUEST = (
    InGuest("switch", "A switch, in the guest", switch.measure),
    InGuest("virtual-functions", "Many VFs by policy, in the guest", virtual_functions.measure),
    InGuest("service", "The service, in the guest", service.measure),
    InGuest("storm", "A storm of uevents, in the guest", service.measure_storm),
    InGuest("overflow", "Uevents that were lost, in the guest", service.measure_overflow),
)
NAMES = tuple(subject.name for subject in (*NATIVE, *IN_GUEST))
