"""A driver that changes its own personality is asked, and never unbound."""

from ..model.codes import Code
from ..model.device import Device, Personality
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Outcome
from ..model.plan import plan_ask
from .moves import StepError, describe_errno
from .switch import Switch
from .undo import Aim


async def ask(switch: Switch, device: Device, personality: Personality, *, wanted: bool) -> Outcome:
    """Write to the attribute of a bound driver; it has worked when `vfio-dev/` has come or gone.

    Raises FlavourError: the driver's own errno where it fits, ETIMEDOUT when nothing came of it. The driver
    has taken the value then, so it is asked for the opposite: what was asked for might still come later.
    """
    sysfs = switch.host.sysfs
    steps = plan_ask(personality, wanted=wanted)
    attribute, value = steps[0].attribute, steps[0].value
    aim = Aim(Flavour.VFIO if wanted else Flavour.NATIVE, personality=personality)

    def is_so() -> bool:
        ready = _is_ready(switch, device, personality)
        has_vfio_device = bool(sysfs.list(f"{device.path}/vfio-dev"))
        return ready and has_vfio_device if wanted else not ready and not has_vfio_device

    try:
        after = await switch.carry_out(device, lambda _: steps, aim)
    except StepError as error:
        switch.settle(device, await switch.observe(device))
        raise FlavourError(
            f"{device.address}: {device.driver} refused {value} in {attribute}: "
            f"{describe_errno(error.kernel_errno)}",
            code=error.code,
            errno=error.errno,
            hint=error.hint,
        ) from error
    if not is_so():
        await switch.wait_for(device, is_so)
        after = await switch.observe(device)
    is_its_driver = after.binding.driver == device.driver
    if is_so() and is_its_driver:
        switch.settle(device, after)
        reason = f"{device.driver} changed its own personality ({attribute}), it was not unbound"
        return switch.outcome(device, after, reason)
    late = FlavourError(
        f"{device.address}: {device.driver} took {value} in {attribute}, but "
        + ("no VFIO device appeared" if wanted else "its VFIO device is still there"),
        code=Code.TIMED_OUT,
        hint="the end of dmesg may say why",
    )
    if is_its_driver:
        raise await switch.undo(device, late)
    switch.settle(device, after)  # whoever changed its driver meanwhile keeps it
    raise late


def _is_ready(switch: Switch, device: Device, personality: Personality) -> bool:
    """What tells it is there: a directory with something in it, or anything else."""
    sysfs, path = switch.host.sysfs, f"{device.path}/{personality.ready}"
    return bool(sysfs.list(path)) if sysfs.is_directory(path) else sysfs.exists(path)
