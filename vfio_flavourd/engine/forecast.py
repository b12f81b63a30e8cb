"""What a switch would do, in words, without doing it."""

from ..model.device import Binding, Device
from ..model.flavour import Flavour, Request
from ..model.plan import plan_move, plan_release
from ..model.policy import Decision
from .guards import FindWanted, check_personality, has_it_already, judge
from .host import Host
from .ledger import find_record


async def forecast(host: Host, device: Device, request: Request, find_wanted: FindWanted) -> list[str]:
    """The steps as far as they can be told beforehand; none when the device has the flavour already.

    Raises FlavourError where the switch itself would be refused. `driver_override` is not read, since
    that may block: it is taken to be what the record says, or empty.
    """
    decision = host.decide(device)
    if has_it_already(host, device, request, decision.settings):
        return []
    verdict = await judge(host, device, request, decision.settings, find_wanted)
    lines = [f"take it by force from: {user.what}" for user in verdict.forced]
    lines += _forecast_one(host, device, request, decision)
    for other in verdict.others:
        own = Request(other.address, request.flavour)
        lines += [f"{other.address}: {line}" for line in _forecast_one(host, other, own, host.decide(other))]
    if verdict.remark:
        lines.append(verdict.remark)
    return lines


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
    kind = host.policy.policy.flavours[request.flavour]
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
    if record is not None and record.personality is not None:
        personality = record.personality
        return [
            f"write {personality.off} to {personality.attribute} of {device.driver}, which is not unbound"
        ]
    now = Binding(device.driver, device.driver)
    known = record is not None and record.origin_flavour == Flavour.NATIVE
    steps = plan_move(now, record.origin) if record is not None and known else plan_release(now)
    return [str(step) for step in steps]
