"""What a switch would do, in words, without doing it."""

from ..model.device import Binding, Device
from ..model.flavour import Flavour, Request, find_flavour
from ..model.plan import plan_move, plan_release
from .guards import check_allowed, check_vfio
from .host import Host
from .ledger import find_record


def forecast(host: Host, device: Device, request: Request) -> list[str]:
    """The steps as far as they can be told beforehand; none when the device has the flavour already.

    Raises FlavourError where the switch itself would be refused. `driver_override` is not read, since
    that may block: it is taken to be what the record says, or empty.
    """
    check_allowed(device)
    there = find_flavour(device, host.index.table().flavoured_modules()) is request.flavour
    if request.flavour is Flavour.NATIVE:
        return [] if there else _forecast_native(host, device)
    if there and not request.drivers:
        return []
    check_vfio(device, request.drivers)
    if device.personality is not None:
        return [f"write 1 to {device.personality} of {device.driver}, which is not unbound"]
    return _forecast_vfio(host, device, request.drivers)


def _forecast_vfio(host: Host, device: Device, named: tuple[str, ...]) -> list[str]:
    record = find_record(host.ledger, device)
    now = Binding(device.driver, record.binding.override if record is not None else None)
    lines: list[str] = []
    for candidate in host.resolve(device.modalias, named).accepted:
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
    return lines


def _forecast_native(host: Host, device: Device) -> list[str]:
    record = find_record(host.ledger, device)
    if record is not None and record.personality is not None:
        return [f"write 0 to {record.personality} of {device.driver}, which is not unbound"]
    now = Binding(device.driver, device.driver)
    known = record is not None and record.origin_flavour is Flavour.NATIVE
    steps = plan_move(now, record.origin) if record is not None and known else plan_release(now)
    return [str(step) for step in steps]
