"""What becomes of a switch that nobody finished: forward if it got there, else back."""

import errno
from dataclasses import replace

from ..kernel.inventory import read_device
from ..kernel.modules import NotLoaded
from ..model.device import Binding, Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour
from ..model.plan import Action, plan_move
from .host import Host
from .ledger import Record
from .moves import GoneError, Observed, move, observe


async def converge(host: Host, record: Record) -> str:
    """Bring the device of an unfinished switch to a state that can be named; returns that in words.

    Raises FlavourError when it can't be (the record stays, and `reset` can be tried again), and
    StuckError when the kernel holds it up again.
    """
    address = record.address
    try:
        device = read_device(host.sysfs, address)
        if device.identity != record.identity:
            raise GoneError(device)
        now = await observe(host, device, host.timeouts.bind)
        if record.personality is None:
            now = await _move(host, record, device, now)
    except GoneError:
        host.ledger.forget(address)
        return "the device is gone, or another one is at this address now"
    except FlavourError as error:
        if error.errno == errno.ENODEV:
            host.ledger.forget(address)
            return "the device is gone"
        raise
    flavour = Flavour.VFIO if now.vfio_device is not None else Flavour.NATIVE
    if flavour is record.origin_flavour and now.binding.driver == record.origin.driver:
        host.ledger.forget(address)
        return f"it has {_name(now.binding)}, as before"
    host.ledger.settle(replace(record, flavour=flavour, binding=now.binding))
    return f"it has {_name(now.binding)}"


async def _move(host: Host, record: Record, device: Device, now: Observed) -> Observed:
    there = (now.vfio_device is not None) == (record.flavour is Flavour.VFIO)
    goal = record.binding if there and now.binding.driver == record.binding.driver else record.origin
    if now.binding.override not in (*record.written, record.before.override):
        # Not written by the switch that was cut off, so it is somebody else's.
        goal = replace(goal, override=now.binding.override)
    await _load_driver(host, record, goal)
    steps = plan_move(now.binding, goal)
    written = {*record.written, *(step.value for step in steps if step.action is Action.OVERRIDE)}
    if steps:
        try:
            host.ledger.write(replace(record, written=tuple(written), worker=None))
        except OSError as error:
            raise FlavourError(
                f"{record.address}: bringing a switch to its end can't be recorded ({error.strerror})",
                errno=errno.EIO,
            ) from error
    after = await move(host, device, steps, host.timeouts.bind)
    if after.binding != goal:
        raise FlavourError(
            f"{record.address}: it should have {_name(goal)}, but has {_name(after.binding)}", errno=errno.EIO
        )
    return after


async def _load_driver(host: Host, record: Record, goal: Binding) -> None:
    if goal.driver is None or host.modules.has_driver(goal.driver):
        return
    try:
        await host.modules.load(record.origin_module or goal.driver, host.timeouts.load)
    except NotLoaded as error:
        raise FlavourError(
            f"{record.address}: {goal.driver} is no longer there and can't be loaded: {error}",
            errno=errno.EIO,
        ) from error


def _name(binding: Binding) -> str:
    return binding.driver or "no driver"
