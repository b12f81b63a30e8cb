"""A switch to VFIO and back: by each of the ways there are, and how long the device is without a driver."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.guest.channel import COMMAND_TIMEOUT, Pending
from tests.guest.conftest import running
from tests.guest.devices import ROLES
from tests.guest.vm import Guest

from . import guest as rig
from .measure import Row, Scale, Side, run_rounds

DEVICE = ROLES["good"]
VARIANT, MODULE = DEVICE.variants[0], "vft_good"
GENERIC = "vfio-pci"
DRIVERS = "/sys/bus/pci/drivers"

RAW, FILE, CTL, DRIVERCTL, VIRSH = "raw writes", "driver_flavour", "flavourctl set", "driverctl", "virsh"
TO_VFIO, TO_NATIVE, NOTHING_LOADED = "to vfio, module loaded", "back to native", "to vfio, nothing loaded yet"
BARE_TO_VFIO, BARE_TO_NATIVE = "without a driver, to vfio", "without a driver, back to native"

SWITCH_AIMS = {RAW: 1.2, DRIVERCTL: 0.4, VIRSH: 0.4}
BARE_AIMS = {RAW: 1.05}

_STAMP = re.compile(rf"KERNEL\[(\d+\.\d+)\] (bind|unbind) +\S*/{DEVICE.bdf} \(pci\)")


@dataclass(frozen=True, slots=True)
class Way:
    """In bash; `driver` is what the device has at the end."""

    to_vfio: str
    to_native: str
    driver: str = VARIANT
    before: str = ":"
    after: str = ":"


# After each, what sysfs says the device has: its driver, and whether VFIO has it.
_LOOK = f"""
    echo $(basename $(readlink {DEVICE.sysfs}/driver)) $(ls {DEVICE.sysfs}/vfio-dev 2> /dev/null | wc -l)
"""
_BOTH_LAPS = f"lap to_vfio{_LOOK}lap to_native{_LOOK}"

_VIRSH = "virsh -q -c qemu:///system"
_NODE = f"pci_{re.sub('[:.]', '_', DEVICE.bdf)}"
_FLAVOUR = f"/run/vfio-flavour/{DEVICE.bdf}/driver_flavour"
# The raw way is what an administrator's script would do: bash's own echo, no process started.
WAYS = {
    RAW: Way(
        f"echo {VARIANT} > {DEVICE.sysfs}/driver_override;"
        f" echo {DEVICE.bdf} > {DRIVERS}/{DEVICE.native}/unbind;"
        f" echo {DEVICE.bdf} > {DRIVERS}/{VARIANT}/bind",
        f"echo {DEVICE.native} > {DEVICE.sysfs}/driver_override;"
        f" echo {DEVICE.bdf} > {DRIVERS}/{VARIANT}/unbind;"
        f" echo {DEVICE.bdf} > {DRIVERS}/{DEVICE.native}/bind; echo > {DEVICE.sysfs}/driver_override",
    ),
    FILE: Way(f"echo vfio > {_FLAVOUR}", f"echo native > {_FLAVOUR}"),
    CTL: Way(f"flavourctl set {DEVICE.bdf} vfio", f"flavourctl set {DEVICE.bdf} native"),
    DRIVERCTL: Way(
        f"driverctl --nosave set-override {DEVICE.bdf} {GENERIC}",
        f"driverctl --nosave unset-override {DEVICE.bdf}",
        GENERIC,
    ),
    # Its daemon runs for its own laps only, and has looked at the devices when they begin.
    VIRSH: Way(
        f"{_VIRSH} nodedev-detach {_NODE} --driver {GENERIC}",
        f"{_VIRSH} nodedev-reattach {_NODE}",
        GENERIC,
        f"systemctl start libvirtd; {_VIRSH} nodedev-dumpxml {_NODE} > /dev/null",
        "systemctl stop libvirtd 2> /dev/null",
    ),
}


def measure(guest: Guest, scale: Scale) -> list[Row]:
    ways = {name: way for name, way in WAYS.items() if name not in (DRIVERCTL, VIRSH) or rig.has(guest, name)}
    with _following_the_kernel(guest) as gaps:
        guest.run(f"modprobe {MODULE}; modprobe {GENERIC}")
        loaded = {name: _loaded(guest, way, gaps) for name, way in ways.items()}
        samples = run_rounds(loaded, scale.guest_rounds, warm_up=scale.warm_up)
        unloaded = {
            name: _unloaded(guest, WAYS[name], f"modprobe {MODULE};" * (name == RAW)) for name in (RAW, FILE)
        }
        samples |= run_rounds(unloaded, scale.guest_rounds, warm_up=scale.warm_up)
    rig.unload(guest)
    aims = {
        TO_VFIO: SWITCH_AIMS,
        NOTHING_LOADED: {RAW: 1.2},
        TO_NATIVE: SWITCH_AIMS,
        BARE_TO_VFIO: BARE_AIMS,
        BARE_TO_NATIVE: BARE_AIMS,
    }
    return [Row(what, "ms", FILE, samples[what], aims[what]) for what in aims]


def _loaded(guest: Guest, way: Way, gaps: "_Gaps") -> Side:
    script = f"""
        to_vfio() {{ {way.to_vfio}; }}
        to_native() {{ {way.to_native}; }}
        {way.before}
        {_BOTH_LAPS}
        udevadm settle
        {way.after}
    """

    def side() -> Mapping[str, float]:
        gaps.forget()
        to_vfio, to_native = _check(rig.run(guest, script), way)
        to_vfio_bare, to_native_bare = gaps.wait()
        return {
            TO_VFIO: to_vfio,
            TO_NATIVE: to_native,
            BARE_TO_VFIO: to_vfio_bare,
            BARE_TO_NATIVE: to_native_bare,
        }

    return side


def _unloaded(guest: Guest, way: Way, first: str) -> Side:
    """Only the way there: the way back is the same."""
    script = f"""
        to_vfio() {{ {first} {way.to_vfio}; }}
        to_native() {{ {way.to_native}; }}
        if grep '^vfio' /proc/modules >&2; then exit 1; fi
        {_BOTH_LAPS}
    """

    def side() -> Mapping[str, float]:
        rig.unload(guest)
        return {NOTHING_LOADED: _check(rig.run(guest, script), way)[0]}

    return side


def _check(said: list[str], way: Way) -> tuple[float, float]:
    """Milliseconds there and back, if the device had the driver each time."""
    to_vfio, there, to_native, back = said
    assert there == f"{way.driver} 1", there
    assert back == f"{DEVICE.native} 0", back
    return int(to_vfio) / 1000, int(to_native) / 1000


class _Gaps:
    """Milliseconds from each unbind of the device to the next bind. The kernel sends the one when the driver
    has let go, the other when the next one has the device."""

    def __init__(self, events: Pending) -> None:
        self._events = events
        self._read = 0

    def forget(self) -> None:
        self._read = len(self._events.stdout)

    def wait(self) -> tuple[float, float]:
        """Those of a switch and of the way back, as soon as they have come."""
        deadline = time.monotonic() + COMMAND_TIMEOUT
        while len(gaps := self._find()) < 2:
            assert time.monotonic() < deadline, self._events.stdout[self._read :]
            time.sleep(0.05)
        there, back = gaps
        return there, back

    def _find(self) -> list[float]:
        gaps, unbound = [], 0.0
        for stamp, action in _STAMP.findall(self._events.stdout[self._read :]):
            if action == "unbind":
                unbound = float(stamp)
            elif unbound:
                gaps.append((float(stamp) - unbound) * 1000)
                unbound = 0.0
        return gaps


@contextmanager
def _following_the_kernel(guest: Guest) -> Iterator[_Gaps]:
    """An event's stamp is of when it was received, so the receiver goes before everybody else."""
    monitor = "exec chrt -f 10 stdbuf -oL udevadm monitor --kernel --subsystem-match=pci"
    with running(guest, monitor) as events:
        events.wait_for("the kernel uevent")
        yield _Gaps(events)
