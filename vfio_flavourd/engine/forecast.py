"""What a switch would do, in words, without doing it."""

from ..model.aliases import Resolution
from ..model.device import Binding, Device
from ..model.flavour import Flavour, find_flavour
from ..model.plan import plan_move, plan_release
from .guards import check_allowed
from .host import Host
from .ledger import find_record


def forecast(host: Host, device: Device, resolution: Resolution, flavour: Flavour) -> list[str]:
    """The steps as far as they can be told beforehand; none when the device has the flavour already.

    Raises FlavourError (EBUSY) where the switch itself would be refused. `driver_override` is not
    read, since that may block: it is taken to be empty.
    """
    check_allowed(device)
    if find_flavour(device, host.index.table().flavoured_modules()) is flavour:
        return []
    if flavour is Flavour.NATIVE:
        return _forecast_native(host, device)
    if device.personality is not None:
        return [f"write 1 to {device.personality} of {device.driver}, which is not unbound"]
    lines: list[str] = []
    for candidate in resolution.accepted:
        if lines:
            lines.append(f"if that fails: {candidate.module}")
        drivers = host.modules.find_drivers(candidate.module)
        if not drivers:
            lines.append(f"load {candidate.module}")
        driver = drivers[0] if drivers else f"the driver of {candidate.module}"
        lines += [str(step) for step in plan_move(Binding(device.driver, None), Binding(driver, driver))]
    return lines


def _forecast_native(host: Host, device: Device) -> list[str]:
    record = find_record(host.ledger, device)
    if record is not None and record.personality is not None:
        return [f"write 0 to {record.personality} of {device.driver}, which is not unbound"]
    now = Binding(device.driver, device.driver)
    known = record is not None and record.origin_flavour is Flavour.NATIVE
    steps = plan_move(now, record.origin) if record is not None and known else plan_release(now)
    return [str(step) for step in steps]
