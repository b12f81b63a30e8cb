"""What becomes of a switch that nobody finished: forward if it got there, else back."""

import errno
from collections.abc import Callable
from dataclasses import replace

from ..kernel.inventory import DEVICES
from ..kernel.modules import NotLoaded
from ..kernel.processes import read_worker
from ..model.address import PciAddress
from ..model.codes import Code
from ..model.device import Binding, Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Request
from ..model.plan import Action, Step, plan_ask_back, plan_move, plan_release
from ..model.udev_rules import PLACEHOLDER
from .attempts import without_address
from .guards import check_users, find_endangered, judge_users
from .host import Host
from .ledger import Record, find_record
from .moves import GoneError, Observed, StuckError, move, observe


async def converge(host: Host, record: Record) -> str:
    """Bring the device of an unfinished switch to a state that can be named; returns that in words.

    A switch of several devices goes forward only where all of them have got there. Raises FlavourError when
    it can't be (the record stays, and `reset` can be tried again), and StuckError when the kernel holds it up
    again.
    """
    address = record.address
    try:
        device = host.read_device(address)
        if device.identity != record.identity:
            raise GoneError(device)
        timeout = host.decide(device).settings.bind_timeout
        now = await observe(host, device, timeout)
        back = bool(record.together) and not _all_are_there(host, record)
        kept = ""
        if record.personality is None:
            goal = _find_goal(host, record, now, back=back)
            if goal.driver != now.binding.driver and (
                kept := await _find_who_keeps_it(host, device, now, goal)
            ):
                goal = now.binding
            now = await _move(host, record, device, now, goal)
        elif now.binding.driver == record.before.driver:
            wanted = record.flavour == Flavour.VFIO
            if back or (wanted and now.vfio_device is None):
                kept = await _find_who_keeps_it(host, device, now, record.before)
                steps = () if kept else plan_ask_back(record.personality, now.vfio_device, wanted=wanted)
                now = await _move_on_record(host, record, device, steps, timeout)
    except GoneError:
        host.ledger.forget(address)
        return "the device is gone, or another one is at this address now"
    except FlavourError as error:
        if error.errno == errno.ENODEV and not host.sysfs.exists(f"{DEVICES}/{address}"):
            host.ledger.forget(address)
            return "the device is gone"
        raise
    flavour = host.find_flavour_of(now.binding.driver, now.vfio_device)
    as_at_first = flavour == record.origin_flavour and now.binding.driver == record.origin.driver
    if as_at_first or (flavour == Flavour.NATIVE and was_kept_from_its_driver(host, record)):
        host.ledger.forget(address)
    else:
        host.ledger.conclude(replace(record, flavour=flavour, binding=now.binding))
    as_before = now.binding.driver == record.before.driver
    if record.personality is not None:
        as_before = as_before and flavour != record.flavour  # its driver stays in any case
    end = ", as before" if as_before else ""
    if kept:
        end = f", and keeps it: {kept}"
    return f"it has {_name(now.binding)}{end}"


async def forget_what_is_undone(host: Host, device: Device, is_in_work: Callable[[], bool]) -> None:
    """Drop the record of a device that somebody else has made what it was before. Raises FlavourError,
    StuckError among them."""
    record = find_record(host.ledger, device)
    if record is None or record.is_open or record.origin_flavour != host.find_flavour(device):
        return
    if record.origin.driver != device.driver:
        return
    now = await observe(host, device, host.decide(device).settings.bind_timeout)
    if now.binding == record.origin and host.ledger.find(device.address) is record and not is_in_work():
        host.ledger.forget(device.address)


def forget_what_is_gone(host: Host, record: Record) -> None:
    """Where its device is no more, or another one is at the address."""
    try:
        same = host.read_device(record.address).identity == record.identity
    except FlavourError as error:
        same = error.errno != errno.ENODEV  # what can't be read now is no reason to forget
    if not same:
        host.ledger.forget(record.address)


async def rebuild(host: Host, address: PciAddress) -> str:
    """What can be told from sysfs of a device whose record is lost; a switch that was cut off in the middle
    is undone as far as that is known. Returns that in words. Raises FlavourError, as `converge` does."""
    try:
        device = host.read_device(address)
    except FlavourError:
        return "the device is gone"
    settings = host.decide(device).settings
    now = await observe(host, device, settings.bind_timeout)
    if now.binding.driver is not None or now.binding.override in (None, PLACEHOLDER):
        return f"it has {_name(now.binding)}, and keeps it"
    # Without a driver, but with an override: nobody leaves a device so on purpose.
    await _check_endangered(host, device, Binding(None, None))
    await host.modules.load_native(device.modalias, settings.load_timeout)
    after = await move(host, device, plan_release(now.binding), settings.bind_timeout)
    return f"it had no driver, and now has {_name(after.binding)}, which the kernel chose"


async def is_still_kept(host: Host, device: Device, timeout: float) -> bool:
    """Whether a rule for early boot keeps the native driver from a device without one; of one that is gone
    nothing does. Raises StuckError where the kernel holds it."""
    if device.driver is not None or device.is_bridge:
        return False
    try:
        return (await observe(host, device, timeout)).binding.override == PLACEHOLDER
    except StuckError:
        raise
    except FlavourError:
        return False


def was_kept_from_its_driver(host: Host, record: Record) -> bool:
    """Whether it had no driver because an override kept the native one away: the policy's udev rule."""
    override = record.origin.override
    if record.origin.driver is not None or override is None:
        return False
    return override == PLACEHOLDER or host.find_flavour_of(override, None) != Flavour.NATIVE


def _all_are_there(host: Host, record: Record) -> bool:
    try:
        return all(_is_there(host, each, record.flavour) for each in record.together)
    except FlavourError:
        return False  # one is gone


def _is_there(host: Host, address: PciAddress, flavour: Flavour) -> bool:
    device = host.read_device(address)
    if host.find_flavour(device) != flavour:
        return False
    # Without a driver it counts as native, also in the middle of a switch.
    record = find_record(host.ledger, device)
    return device.driver is not None or record is None or record.binding.driver is None


def _find_goal(host: Host, record: Record, now: Observed, *, back: bool) -> Binding:
    """What it is to have: no driver is taken from it that the cut-off switch has not brought."""
    reached = host.find_flavour_of(now.binding.driver, now.vfio_device) == record.flavour
    if record.flavour == Flavour.VFIO and now.vfio_device is None:
        reached = False  # the driver took it and made no VFIO device
    was_released = record.flavour == Flavour.NATIVE and record.binding == record.before
    ours = (None, record.before.driver, record.binding.driver, *record.written)
    if now.binding.driver == record.before.driver:
        goal = record.before
    elif now.binding.driver not in ours and not was_released:
        goal = replace(record.before, driver=now.binding.driver)  # somebody else's
    elif back:
        goal = record.before
    elif reached and now.binding.driver is not None and was_released:
        goal = now.binding  # the kernel's own choice
    elif record.binding == record.origin or (reached and now.binding.driver == record.binding.driver):
        goal = record.binding  # also where it was on its way back to what it had at first
    else:
        goal = record.before
    if now.binding.override not in (*record.written, record.before.override):
        # Not written by the switch that was cut off, so it is somebody else's.
        goal = replace(goal, override=now.binding.override)
    return goal


async def _find_who_keeps_it(host: Host, device: Device, now: Observed, goal: Binding) -> str:
    """Who has come to use it since it was switched, in words; empty where nobody keeps it from `goal`. Raises
    FlavourError where nobody can have what it should have: it has no driver, and this kernel would crash."""
    if now.binding.driver is None:
        await _check_endangered(host, device, goal)
        return ""
    request = Request(device.address, host.find_flavour_of(goal.driver, None))
    try:
        await check_users(host, device, request, host.decide(device).settings)
    except FlavourError as error:
        if error.errno != errno.EBUSY:
            raise  # it can't be seen
        return without_address(error, device.address)
    return ""


async def _check_endangered(host: Host, device: Device, goal: Binding) -> None:
    """Raises FlavourError (EBUSY)."""
    if host.find_flavour_of(goal.driver, None) == Flavour.NATIVE:
        judge_users(device, await find_endangered(host, device), host.release, forced=False)


async def _move(host: Host, record: Record, device: Device, now: Observed, goal: Binding) -> Observed:
    settings = host.decide(device).settings
    await _load_driver(host, record, goal, settings.load_timeout)
    steps = plan_move(now.binding, goal)
    overrides = (step.value for step in steps if step.action is Action.OVERRIDE)
    new = tuple(override for override in overrides if override not in record.written)
    record = replace(record, written=(*record.written, *new))
    after = await _move_on_record(host, record, device, steps, settings.bind_timeout)
    if after.binding != goal:
        raise FlavourError(
            f"{record.address}: it should have {_name(goal)}, but has {_name(after.binding)}",
            code=Code.NOT_PUT_BACK,
            hint=f"flavourctl reset {record.address} tries again",
        )
    return after


async def _move_on_record(
    host: Host, record: Record, device: Device, steps: tuple[Step, ...], timeout: float
) -> Observed:
    """As `move`; where this daemon ends meanwhile, the next one knows whom to wait for."""

    def begun(pid: int) -> None:
        try:
            host.ledger.write(replace(record, worker=read_worker(host.sysfs, pid)))
        except OSError as error:
            if record == host.ledger.find(record.address):
                return  # the writes are on record all the same
            raise FlavourError(
                f"{record.address}: the switch can't be finished, as recording it failed ({error.strerror})",
                code=Code.NOT_SAVED,
                hint="see whether /run is full or read-only",
            ) from error

    return await move(host, device, steps, timeout, begun=begun if steps else None)


async def _load_driver(host: Host, record: Record, goal: Binding, timeout: float) -> None:
    if goal.driver is None or host.modules.has_driver(goal.driver):
        return
    module = goal.driver
    if goal.driver == record.origin.driver and record.origin_module is not None:
        module = record.origin_module
    try:
        await host.modules.load(module, timeout)
    except NotLoaded as error:
        raise FlavourError(
            f"{record.address}: {goal.driver} is gone and can't be loaded: {error}",
            code=Code.MODULE_NOT_LOADED,
            hint=f"modprobe {module}, then flavourctl reset {record.address}",
        ) from error


def _name(binding: Binding) -> str:
    return binding.driver or "no driver"
