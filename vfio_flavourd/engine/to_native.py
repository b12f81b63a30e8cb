"""The way back: the very driver and override that were there, or the kernel's own choice."""

import errno
from dataclasses import replace

from ..kernel.modules import NotLoaded
from ..model.codes import Code
from ..model.device import Device, Personality
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Outcome
from ..model.plan import plan_move, plan_release
from ..model.transition import Phase
from ..model.udev_rules import PLACEHOLDER
from .host import Host
from .ledger import Record, find_record
from .moves import StepError, StuckError
from .personality import ask
from .recovery import was_kept_from_its_driver
from .switch import Switch
from .undo import Aim


async def to_native(switch: Switch, device: Device) -> Outcome:
    """Raises FlavourError; the device then is as it was, or the text says that it could not be."""
    record = find_record(switch.host.ledger, device)
    if switch.host.find_flavour(device) == Flavour.NATIVE:
        if device.driver is None and await _has_placeholder(switch, device):
            return await _let_go(switch, device)
        if record is not None and is_to_be_asked_back(record):
            return await _ask_back(switch, device, record)
        return switch.unchanged(device, "the device had this flavour already")
    if did_it_itself(switch.host, device, record):
        return await _ask_back(switch, device, record)
    if record is not None and record.origin_flavour == Flavour.NATIVE:
        return await _give_back(switch, device, record)
    return await _release(switch, device, "what the device had before is not recorded")


async def _has_placeholder(switch: Switch, device: Device) -> bool:
    """Whether an early rule keeps its native driver from it still: VFIO could not be had."""
    try:
        return (await switch.observe(device)).binding.override == PLACEHOLDER
    except StuckError:
        switch.steps.enter(Phase.LOADING)  # no longer waiting for its turn
        raise


def is_to_be_asked_back(record: Record) -> bool:
    """Whether its driver was asked for something that came to nothing, and could not be asked back."""
    return record.switching and record.personality is not None


def did_it_itself(host: Host, device: Device, record: Record | None) -> bool:
    """Whether it is a VFIO device by the doing of a driver that is not a VFIO one.

    A driver without a module is part of the kernel, and of those only vfio-pci makes VFIO devices.
    """
    if record is not None and record.flavour == Flavour.VFIO:
        return record.personality is not None
    by_driver = host.find_flavour_of(device.driver, None)
    return device.driver_module is not None and by_driver == Flavour.NATIVE


async def restore(switch: Switch, device: Device) -> Outcome:
    """What was there before the first switch, whatever flavour that was."""
    record = find_record(switch.host.ledger, device)
    if record is None:
        return switch.unchanged(device, "nothing is recorded for this device")
    if record.personality is None:
        return await _give_back(switch, device, record)
    if record.origin_flavour == Flavour.NATIVE:
        return await to_native(switch, device)
    if switch.host.find_flavour(device) == record.origin_flavour and not is_to_be_asked_back(record):
        return switch.unchanged(device, "the device is as it was before")
    return await ask(switch, device, record.personality, wanted=True)


async def _ask_back(switch: Switch, device: Device, record: Record | None) -> Outcome:
    return await ask(switch, device, find_personality(device, record), wanted=False)


def find_personality(device: Device, record: Record | None) -> Personality:
    """How a driver that made it a VFIO device itself is asked to cease: as it was asked. Raises FlavourError
    where nobody knows."""
    personality = record.personality if record is not None and record.personality else device.personality
    if personality is None:
        raise FlavourError(
            f"{device.address}: {device.driver} made it a VFIO device itself, and no attribute is known to "
            "take that back",
            code=Code.DRIVER_STAYS_BOUND,
            errno=errno.EIO,
            hint="if the driver has such an attribute, describe it under `personalities` in the policy",
        )
    return personality


async def _give_back(switch: Switch, device: Device, record: Record) -> Outcome:
    if was_kept_from_its_driver(switch.host, record):
        return await _let_go(switch, device)
    goal = record.origin
    await _load_driver(switch, device, record)
    try:
        after = await switch.carry_out(
            device, lambda now: plan_move(now, goal), Aim(record.origin_flavour, goal)
        )
    except StepError as error:
        raise await switch.undo(device, error) from error
    if after.binding != goal:
        wrong = FlavourError(
            f"{device.address}: it should have {goal.driver or 'no driver'} again, but has "
            f"{after.binding.driver or 'none'}",
            code=Code.NO_DRIVER_TOOK_IT,
            hint="the end of dmesg may say why",
        )
        raise await switch.undo(device, wrong)
    switch.settle(device, after)
    reason = "what the device had before" if goal.driver else "the device had no driver before"
    return switch.outcome(device, after, reason)


async def _let_go(switch: Switch, device: Device) -> Outcome:
    """What it gets now is what it would have had at first, and what a later switch goes back to."""
    outcome = await _release(switch, device, "the policy kept its native driver away since boot")
    record = find_record(switch.host.ledger, device)
    if record is not None:
        switch.keep(replace(record, origin=record.binding, origin_flavour=record.flavour))
    return outcome


async def _release(switch: Switch, device: Device, why: str) -> Outcome:
    """It was on VFIO before anyone here saw it: nobody knows what it had."""
    switch.steps.enter(Phase.LOADING)
    await switch.load_native(device.modalias)
    try:
        after = await switch.carry_out(device, plan_release, Aim(Flavour.NATIVE))
    except StepError as error:
        raise await switch.undo(device, error) from error
    flavour = switch.host.find_flavour_of(after.binding.driver, after.vfio_device)
    if flavour != Flavour.NATIVE:
        still = FlavourError(
            f"{device.address}: the kernel chose {after.binding.driver}, so it is still {flavour}",
            code=Code.STILL_NOT_NATIVE,
            hint="see whether `vfio-pci ids=` in modprobe.d or on the kernel command line claims it",
        )
        raise await switch.undo(device, still)
    switch.settle(device, after)
    return switch.outcome(device, after, f"the kernel chose the driver: {why}")


async def _load_driver(switch: Switch, device: Device, record: Record) -> None:
    """It may have been unloaded meanwhile; load it while VFIO still has the device."""
    driver = record.origin.driver
    if driver is None or switch.host.modules.has_driver(driver):
        return
    module = record.origin_module or driver
    switch.steps.enter(Phase.LOADING)
    try:
        await switch.load(module)
    except NotLoaded as error:
        raise FlavourError(
            f"{device.address}: its driver {driver} is gone and {module} can't be loaded: {error}",
            code=Code.MODULE_NOT_LOADED,
            hint=f"modprobe -v {module} shows why",
        ) from error
