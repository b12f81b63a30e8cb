"""Planned steps, carried out by a worker process, and what is read back after them."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from ..kernel.hands import Blocked, Operation, Result
from ..kernel.inventory import DRIVERS
from ..model.codes import FROM_THE_KERNEL, Code
from ..model.device import Binding, Device
from ..model.errors import FlavourError
from ..model.plan import Action, Step
from .delay import READ_BACK
from .host import Host

# How the kernel prints a missing string.
_NO_OVERRIDE = "(null)"


class GoneError(FlavourError):
    """The device is no more, or another one is at its address."""

    def __init__(self, device: Device) -> None:
        super().__init__(
            f"{device.address}: the device went away during the switch, or another one is there now",
            code=Code.DEVICE_GONE,
            hint="journalctl -k says what happened; switch it again when it is back",
        )


class StaleError(Exception):
    """`driver_override` was not what the steps were planned on; nothing has been written."""


class StuckError(FlavourError):
    """A write has not returned for `seconds`; `blocked` says which process is in the kernel with it, `step`
    which write it is, None for what is read after them."""

    def __init__(self, message: str, blocked: Blocked, seconds: float, step: Step | None) -> None:
        super().__init__(
            message,
            code=Code.STUCK,
            errno=errno.ETIMEDOUT,
            hint="somebody holds the device, or its driver does not let go; the switch is finished or undone "
            "when the kernel returns",
        )
        self.blocked = blocked
        self.seconds = seconds
        self.step = step


class NotRecordedError(FlavourError):
    """The record could not be made to last, so nothing more is written to the device."""

    def __init__(self, device: Device, cause: OSError, *, touched: bool) -> None:
        end = "so it is not switched on" if touched else "so it is not touched"
        super().__init__(
            f"{device.address}: what it has now can't be recorded ({cause.strerror}), {end}",
            code=Code.NOT_SAVED,
            hint="see whether /run is full or read-only",
        )


class TakenError(FlavourError):
    """A driver that nobody here chose has come to the device in the middle of its switch."""

    def __init__(self, device: Device, driver: str) -> None:
        super().__init__(
            f"{device.address}: someone else bound {driver} to it during the switch",
            code=Code.CHANGED_BY_SOMEONE_ELSE,
            hint="it is left with that driver; find out what else manages this device (driverctl, libvirt)",
        )


class ChangedError(FlavourError):
    """It had the flavour, and somebody has changed its driver before that could be said."""

    def __init__(self, now: Device) -> None:
        super().__init__(
            f"{now.address}: someone else has just given it {now.driver or 'no driver'}, nothing was touched",
            code=Code.CHANGED_BY_SOMEONE_ELSE,
            errno=errno.EAGAIN,
            hint="switch it again; find out what else manages this device (driverctl, libvirt)",
        )


class StepError(FlavourError):
    """A write failed; `step` says which, `kernel_errno` is the kernel's own. Of those, ENODEV is handed on as
    EIO: from a probe it says that the driver does not want the device, not that there is none."""

    def __init__(self, message: str, step: Step, kernel_errno: int) -> None:
        super().__init__(
            message,
            code=Code.WRITE_REFUSED,
            errno=kernel_errno if kernel_errno in FROM_THE_KERNEL else errno.EIO,
            hint="the end of dmesg may say why",
        )
        self.step = step
        self.kernel_errno = kernel_errno


@dataclass(frozen=True, slots=True)
class Observed:
    """What a device has now, read by a worker (`driver_override` may block its reader)."""

    binding: Binding
    vfio_device: str | None


def describe_errno(code: int) -> str:
    return f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"


def render_step(device: Device, step: Step) -> Operation:
    """The write that a step stands for."""
    address = str(device.address)
    match step.action:
        case Action.OVERRIDE:
            # A lone newline clears it; a zero-byte write would never reach the kernel.
            return ("write", f"{device.path}/driver_override", f"{step.value or ''}\n")
        case Action.UNBIND:
            return ("write", f"{DRIVERS}/{step.value}/unbind", address)
        case Action.BIND:
            return ("write", f"{DRIVERS}/{step.value}/bind", address)
        case Action.PROBE:
            return ("write", "/sys/bus/pci/drivers_probe", address)
        case Action.ASK:
            return ("write", f"{device.path}/{step.attribute}", f"{step.value}\n")


def _render_observation(device: Device) -> tuple[Operation, ...]:
    return (
        ("read", f"{device.path}/driver_override"),
        ("link", f"{device.path}/driver"),
        ("names", f"{device.path}/vfio-dev"),
    )


def _parse_observation(results: list[Result]) -> Observed:
    override, driver, names = (result.value for result in results)
    assert isinstance(override, str) and isinstance(names, list)
    return Observed(
        Binding(
            driver=str(driver) if driver is not None else None,
            override=None if override == _NO_OVERRIDE else override,
        ),
        vfio_device=str(names[0]) if names else None,
    )


async def observe(host: Host, device: Device, timeout: float) -> Observed:
    """Raises GoneError and StuckError."""
    return await move(host, device, (), timeout)


async def move(
    host: Host,
    device: Device,
    steps: tuple[Step, ...],
    timeout: float,
    *,
    expected: Binding | None = None,
    begun: Callable[[int], None] | None = None,
    watch: Callable[[Step, Result], None] | None = None,
) -> Observed:
    """Carry out the steps in order and read back what came of them, all in one batch.

    `timeout` is in seconds. `expected` is what the steps were planned on without having read the
    override: StaleError when that is another. Raises StepError for the first step that failed,
    StuckError when one does not return in time, GoneError when the device is another one than it was, and
    FlavourError when the process that writes can't be had, or is killed.
    """
    first = 0 if expected is None else 1

    def report(result: Result) -> None:
        if watch is not None and first <= result.index < first + len(steps):
            watch(steps[result.index - first], result)

    operations = [*(render_step(device, step) for step in steps), *_render_observation(device)]
    if expected is not None:
        held = expected.override or _NO_OVERRIDE
        operations.insert(0, ("expect", f"{device.path}/driver_override", held))
    try:
        results = await host.hands.carry_out(
            operations, timeout=timeout, guard=(device.path, device.identity.inode), begun=begun, watch=report
        )
    except Blocked as blocked:
        at = len(blocked.results) - first
        stuck = steps[at] if 0 <= at < len(steps) else None
        what = READ_BACK if stuck is None else str(stuck)
        raise StuckError(
            f"{device.address}: '{what}' has not returned for {round(timeout, 2):g} s "
            f"(process {blocked.pid})",
            blocked,
            timeout,
            stuck,
        ) from blocked
    except OSError as error:
        raise FlavourError(
            f"{device.address}: no process could be had to write for it: {error.strerror or error}",
            hint="the daemon's limits on processes and memory: systemctl status vfio-flavourd",
        ) from error
    last = results[-1]
    if not last.errno:
        return _parse_observation(results[first + len(steps) :])
    if last.errno in (errno.ENODEV, errno.ENOENT) and not is_there(host, device):
        raise GoneError(device)
    if last.index < first and last.errno == errno.ESTALE:
        raise StaleError
    if not first <= last.index < first + len(steps):
        raise FlavourError(
            f"{device.address}: reading its driver and override failed: {describe_errno(last.errno)}"
        )
    step = steps[last.index - first]
    raise StepError(f"{device.address}: '{step}' failed: {describe_errno(last.errno)}", step, last.errno)


def is_there(host: Host, device: Device) -> bool:
    """Whether it is that very device that has the address."""
    try:
        return host.sysfs.read_inode(device.path) == device.identity.inode
    except FlavourError:
        return False
