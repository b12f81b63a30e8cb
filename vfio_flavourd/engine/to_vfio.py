"""The way to VFIO, or to a flavour of the policy's own: by the driver's own doing, or by the first candidate
that takes the device."""

import errno
from itertools import takewhile

from ..kernel.modules import NotLoaded
from ..model.aliases import Candidate, Resolution, Source
from ..model.codes import Code
from ..model.device import Binding, Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Outcome
from ..model.plan import Action, plan_move
from ..model.transition import Phase
from .guards import check_isolation, check_personality
from .moves import StepError, TakenError, describe_errno
from .personality import ask
from .switch import Switch
from .undo import Aim


async def to_vfio(switch: Switch, device: Device) -> Outcome:
    """To the flavour of the request, which is any but `native`.

    Raises FlavourError; the device then is as it was, or the text says that it could not be.
    """
    flavour, named = switch.request.flavour, switch.drivers
    kind = switch.host.find_kind(flavour)
    resolution = switch.host.resolve(device.modalias, kind, named, switch.settings.denied)
    if switch.host.find_flavour(device) == flavour and not switch.request.drivers:
        module = device.driver_module or str(device.driver).replace("-", "_")
        generic = module == resolution.candidates[-1].module and _knows_better(resolution)
        return switch.unchanged(device, "the device had this flavour already", fallback=generic)
    check_personality(device, switch.request)
    if flavour == Flavour.VFIO:
        check_isolation(switch.host, device, switch.settings)
        if device.personality is not None:
            return await ask(switch, device, device.personality, wanted=True)
    return await _Candidates(switch, device, resolution).run()


class _Candidates:
    """Tries one after the other; `_refusals` is the story so far."""

    def __init__(self, switch: Switch, device: Device, resolution: Resolution) -> None:
        self._switch = switch
        self._device = device
        self._resolution = resolution
        self._flavour = switch.request.flavour
        self._refusals: list[str] = []
        self._errno = errno.EIO
        self._code = Code.NO_CANDIDATE

    async def run(self) -> Outcome:
        for candidate in self._resolution.accepted:
            for driver in await self._load(candidate):
                if outcome := await self._try(candidate, driver):
                    return outcome
        address = self._device.address
        which = "VFIO" if self._flavour == Flavour.VFIO else self._flavour
        failure = FlavourError(
            f"{address}: no {which} driver took it: "
            + ("; ".join([*self._tell_rejected(), *self._refusals])),
            code=self._code,
            errno=errno.ETIMEDOUT if self._switch.is_out_of_time else self._errno,
            hint=f"flavourctl show {address} shows the candidates, dmesg what a driver said",
        )
        raise await self._switch.undo(self._device, failure)

    async def _load(self, candidate: Candidate) -> tuple[str, ...]:
        self._switch.steps.candidate = candidate.module
        self._switch.steps.enter(Phase.LOADING)
        try:
            return await self._switch.load(candidate.module)
        except NotLoaded as error:
            self._refusals.append(f"{candidate.module}: {error}")
            if self._code is Code.NO_CANDIDATE:
                self._code = Code.MODULE_NOT_LOADED
            return ()

    async def _try(self, candidate: Candidate, driver: str) -> Outcome | None:
        """None when it refused and the next one is to be tried."""
        switch, device = self._switch, self._device
        if switch.before is None and device.driver == driver and self._is_had(driver, device.vfio_device):
            reason = f"{driver} has the device already"
            return switch.unchanged(device, reason, fallback=self._is_fallback(candidate))
        if switch.before is None and self._flavour == Flavour.VFIO:
            check_isolation(switch.host, device, switch.settings)  # its module is there by now
        goal = Binding(driver, driver)
        try:
            after = await switch.carry_out(device, lambda now: plan_move(now, goal), Aim(self._flavour, goal))
        except TakenError as error:
            raise await switch.undo(device, error) from error
        except StepError as error:
            if error.step.action is not Action.BIND:
                raise await switch.undo(device, error) from error
            self._refusals.append(f"{candidate.module} refused: {describe_errno(error.kernel_errno)}")
            self._code = Code.NO_DRIVER_TOOK_IT
            self._errno = error.errno
            return None
        if after.binding.driver != driver or not self._is_had(driver, after.vfio_device):
            what = f"it is not {self._flavour} by that driver"
            if self._flavour == Flavour.VFIO:
                what = "no VFIO device appeared"
            self._refusals.append(f"{candidate.module} took the device, but {what}")
            self._code = Code.NO_DRIVER_TOOK_IT
            return None
        switch.settle(device, after)
        reason = f"{candidate.module}: {candidate.reason}"
        if rejected := self._tell_rejected(before=candidate):
            reason = f"{reason}; {'; '.join(rejected)}"
        if self._refusals:
            reason = f"{reason}; tried before: {'; '.join(self._refusals)}"
        return switch.outcome(device, after, reason, fallback=self._is_fallback(candidate))

    def _tell_rejected(self, before: Candidate | None = None) -> list[str]:
        """Why those that go first were not even tried: one may be a typo, or somebody's forgotten line."""
        first = takewhile(lambda each: each is not before, self._resolution.candidates)
        return [f"{each.module} is rejected: {each.reason}" for each in first if not each.accepted]

    def _is_had(self, driver: str, vfio_device: str | None) -> bool:
        if self._flavour == Flavour.VFIO:
            return vfio_device is not None
        return self._switch.host.find_flavour_of(driver, vfio_device) == self._flavour

    def _is_fallback(self, candidate: Candidate) -> bool:
        """The generic driver, though something better was known."""
        return candidate.source is Source.FALLBACK and _knows_better(self._resolution)


def _knows_better(resolution: Resolution) -> bool:
    """Than the generic driver."""
    return any(candidate.source is not Source.FALLBACK for candidate in resolution.candidates)
