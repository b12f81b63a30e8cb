"""What a switch would do, in words, without doing it."""

from ..model.device import Binding, Device, Personality
from ..model.flavour import Flavour, Request
from ..model.plan import plan_move, plan_release
from ..model.policy import Decision, OthersInGroup
from ..model.udev_rules import PLACEHOLDER
from .guards import Verdict, Wanted, check_personality, has_it_already, judge
from .host import Host
from .ledger import find_record
from .recovery import is_still_kept, was_kept_from_its_driver
from .to_native import did_it_itself, find_personality, is_to_be_asked_back

# Seconds: nobody's switch hangs on it.
_LOOK = 5.0


async def forecast(host: Host, device: Device, request: Request, wanted: Wanted) -> list[str]:
    """The steps as far as they can be told beforehand; none when the device has the flavour already.

    Raises FlavourError where the switch itself would be refused. `driver_override` is taken to be what the
    record says, or empty, since reading it may block; a worker reads it of a device without a driver, that is
    to be native: then all hangs on it. Raises StuckError where the kernel holds it.
    """
    decision = wanted.decide(device)
    settled = has_it_already(host, device, request, decision.settings)
    verdict = Verdict()
    # Who asks for the whole group may have a part of it already.
    if not settled or request.others is OthersInGroup.TOGETHER:
        verdict = await judge(host, device, request, decision.settings, wanted, settled=settled)
    lines = [f"take it by force from: {user.what}" for user in verdict.forced]
    if settled:
        lines += await _forecast_settled(host, device, request, decision)
    else:
        lines += _forecast_one(host, device, request, decision)
    for other in verdict.others:
        own = Request(other.address, request.flavour)
        lines += [
            f"{other.address}: {line}" for line in _forecast_one(host, other, own, wanted.decide(other))
        ]
    if verdict.remark and (verdict.others or not settled):
        lines.append(verdict.remark)
    return lines


async def _forecast_settled(host: Host, device: Device, request: Request, decision: Decision) -> list[str]:
    """What is done to a device that has the flavour: to one that is native by not having come to anything."""
    if request.flavour != Flavour.NATIVE:
        return []
    record = find_record(host.ledger, device)
    if device.driver is not None:
        if record is not None and is_to_be_asked_back(record):
            return _describe_asking_back(device, find_personality(device, record))
        return []
    if not await is_still_kept(host, device, min(decision.settings.bind_timeout, _LOOK)):
        return []
    return [str(step) for step in plan_release(Binding(None, PLACEHOLDER))]


def _forecast_one(host: Host, device: Device, request: Request, decision: Decision) -> list[str]:
    if request.flavour == Flavour.NATIVE:
        return _forecast_native(host, device)
    check_personality(device, request)
    if device.personality is not None and request.flavour == Flavour.VFIO:
        personality = device.personality
        return [f"write {personality.on} to {personality.attribute} of {device.driver}, which is not unbound"]
    return _forecast_vfio(host, device, request, decision)


def _forecast_vfio(host: Host, device: Device, request: Request, decision: Decision) -> list[str]:
    record = find_record(host.ledger, device)
    now = Binding(device.driver, record.binding.override if record is not None else None)
    named = request.drivers or (decision.drivers if decision.flavour == request.flavour else ())
    kind = host.find_kind(request.flavour)
    lines: list[str] = []
    for candidate in host.resolve(device.modalias, kind, named, decision.settings.denied).accepted:
        if lines:
            lines.append(f"if that fails: {candidate.module}")
        drivers = host.modules.find_drivers(candidate.module)
        if not drivers:
            lines.append(f"load {candidate.module}")
        driver = drivers[0] if drivers else f"the driver of {candidate.module}"
        steps = plan_move(now, Binding(driver, driver))
        if not steps:
            return lines
        lines += [str(step) for step in steps]
        now = Binding(None, driver)  # where that one leaves it that does not take it
    return lines


def _forecast_native(host: Host, device: Device) -> list[str]:
    record = find_record(host.ledger, device)
    if did_it_itself(host, device, record):
        return _describe_asking_back(device, find_personality(device, record))
    now = Binding(device.driver, device.driver)
    known = record is not None and record.origin_flavour == Flavour.NATIVE
    if record is not None and known and not was_kept_from_its_driver(host, record):
        return [str(step) for step in plan_move(now, record.origin)]
    return [str(step) for step in plan_release(now)]


def _describe_asking_back(device: Device, personality: Personality) -> list[str]:
    return [f"write {personality.off} to {personality.attribute} of {device.driver}, which is not unbound"]
