"""A driver that changes its own personality is asked, and never unbound."""

import errno

from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Outcome
from ..model.plan import Action, Step
from .moves import StepError, describe_errno
from .switch import Aim, Switch


async def ask(switch: Switch, device: Device, attribute: str, value: str) -> Outcome:
    """Write 1 or 0 to the attribute of a bound driver; it has worked when `vfio-dev/` has come or gone.

    Raises FlavourError: the driver's own errno where it fits, ETIMEDOUT when nothing came of it.
    """
    wanted = value == "1"
    step = Step(Action.ASK, value, attribute)
    aim = Aim(Flavour.VFIO if wanted else Flavour.NATIVE, personality=attribute)
    try:
        after = await switch.carry_out(device, lambda _: (step,), aim)
    except StepError as error:
        switch.settle(device, await switch.observe(device))
        raise FlavourError(
            f"{device.address}: {device.driver} refused {value} in {attribute}: {describe_errno(error.code)}",
            errno=error.errno,
        ) from error
    if (after.vfio_device is not None) is not wanted:
        sysfs = switch.host.sysfs
        await switch.wait_for(device, lambda: bool(sysfs.list(f"{device.path}/vfio-dev")) is wanted)
        after = await switch.observe(device)
    switch.settle(device, after)
    if (after.vfio_device is not None) is not wanted or after.binding.driver != device.driver:
        raise FlavourError(
            f"{device.address}: {device.driver} took {value} in {attribute}, but "
            + ("no VFIO device appeared" if wanted else "its VFIO device is still there"),
            errno=errno.ETIMEDOUT,
        )
    reason = f"{device.driver} changed its own personality ({attribute}), it was not unbound"
    return switch.outcome(device, after, reason)
