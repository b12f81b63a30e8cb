"""What becomes of a switch that nobody finished: forward if it got there, else back."""

import errno
from dataclasses import replace

from ..kernel.inventory import read_device
from ..model.device import Binding
from ..model.errors import FlavourError
from ..model.flavour import Flavour
from ..model.plan import plan_move
from .host import Host
from .ledger import Record
from .moves import move, observe


async def converge(host: Host, record: Record) -> str:
    """Bring the device of an unfinished switch to a state that can be named; returns that in words.

    Raises FlavourError when it can't be: the record stays, and `reset` can be tried again.
    """
    address = record.address
    try:
        device = read_device(host.sysfs, address)
    except FlavourError:
        host.ledger.forget(address)
        return "the device is gone"
    if device.identity != record.identity:
        host.ledger.forget(address)
        return "another device is at this address now; it is left alone"
    now = await observe(host, device, host.timeouts.bind)
    settled = replace(record, switching=False, worker=None)
    there = (now.vfio_device is not None) == (record.flavour is Flavour.VFIO)
    if record.personality is not None:
        if there and record.flavour is Flavour.VFIO:
            host.ledger.write(settled)
        else:
            host.ledger.forget(address)
        return f"{now.binding.driver} has the device as {'vfio' if now.vfio_device else 'native'}"
    forward = there and now.binding.driver == record.binding.driver
    goal = record.binding if forward else record.origin
    ours = {
        each for binding in (record.binding, record.origin) for each in (binding.driver, binding.override)
    }
    if now.binding.override not in ours | {None}:
        # Not written by the switch that was cut off, so it is somebody else's.
        goal = replace(goal, override=now.binding.override)
    after = await move(host, device, plan_move(now.binding, goal), host.timeouts.bind)
    if after.binding != goal:
        raise FlavourError(
            f"{address}: it should have {_name(goal)}, but has {_name(after.binding)}", errno=errno.EIO
        )
    if not forward or goal == record.origin:
        host.ledger.forget(address)
        return f"it is back on {_name(goal)}"
    host.ledger.write(settled)
    return f"it is on {_name(goal)}"


def _name(binding: Binding) -> str:
    return binding.driver or "no driver"
