"""What must not be switched, or can't be, as far as that is known beforehand."""

import asyncio
import errno
import math
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from ..model.aliases import parse_driver_name
from ..model.codes import Code
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour, Request, parse_flavour
from ..model.iommu_group import Standing, find_standing, tell_unbinding
from ..model.occupancy import UNFORCEABLE, Use, User
from ..model.policy import AUTO, Decision, InUse, NoIommu, OthersInGroup, Settings
from .host import Host
from .ledger import find_record

# From here on the kernel refuses a native driver in a group that a guest uses; before, it hits a BUG_ON
# (vfio_group_nb_add_dev(), gone with 5.19's DMA ownership).
_SAFE_NATIVE_BIND = (5, 19)

# There with CONFIG_VFIO_NOIOMMU only; using it taints the kernel.
_NOIOMMU_MODE = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


class Wanted(Protocol):
    """What devices are to be: the reconciler knows."""

    def decide(self, device: Device) -> Decision:
        """What the policy says of a device, by the rule that is in force."""
        ...

    def find_wanted(self, device: Device) -> Flavour | None:
        """The flavour that it is to have by a wish or else by the policy; None where nobody says so."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """A switch may go on. `forced` are the users it is taken from, `others` the devices of its IOMMU group
    that are switched with it, `remark` what is to be told besides."""

    forced: tuple[User, ...] = ()
    others: tuple[Device, ...] = ()
    remark: str = ""


def check_request(request: Request, flavours: tuple[Flavour, ...]) -> Request:
    """It as it is to be carried out. Raises FlavourError (EINVAL) for a flavour that there is not, and for
    drivers that can't be named. That makes no attempt: who asks for it is the door's to tell."""
    parse_flavour(request.flavour, flavours)
    trouble = hint = ""
    if request.drivers == (AUTO,):
        return replace(request, drivers=())
    if request.timeout is not None and not 0 < request.timeout < math.inf:
        trouble, hint = f"{request.timeout:g} s are no time limit", "allowed: more than 0"
    elif AUTO in request.drivers:
        trouble = f"{AUTO!r} is named beside other drivers"
        hint = "leave it out: the flavour's generic driver is always tried last"
    elif request.drivers and request.flavour == Flavour.NATIVE:
        trouble = "no driver can be named for native"
        hint = "the device gets the driver that it had before, or that the kernel chooses"
    if trouble:
        raise FlavourError(f"{request.address}: {trouble}", code=Code.INVALID_ARGUMENT, hint=hint)
    for name in request.drivers:
        parse_driver_name(name)
    return request


def check_still_wanted(request: Request, wish: Flavour | None, decision: Decision) -> None:
    """Raises FlavourError (EAGAIN) for a request of the policy's own that a wish or another policy has come
    before."""
    told = hint = ""
    if wish is not None:
        if wish != request.flavour:
            told = f"{wish} was asked for by hand in the meantime"
            hint = f"flavourctl reset {request.address} goes back to the policy"
    elif request.flavour != (decision.flavour or Flavour.NATIVE):
        told = f"the policy does not say {request.flavour} any more"
        hint = "what it says now is applied next"
    elif request.drivers not in ((), decision.drivers):
        told = "the policy names other drivers in the meantime"
        hint = "they are tried next"
    if told:
        raise FlavourError(
            f"{request.address}: {told}", code=Code.CHANGED_BY_SOMEONE_ELSE, errno=errno.EAGAIN, hint=hint
        )


def out_of_time(request: Request) -> FlavourError:
    return FlavourError(
        f"{request.address}: the time limit of {request.timeout:g} s ran out before it was touched",
        code=Code.TIMED_OUT,
        hint="try again with a longer --timeout",
    )


@asynccontextmanager
async def in_time(request: Request, began: float) -> AsyncIterator[None]:
    """What is in it is given up when the time of the request, which counts from `began` (monotonic), has run
    out. Raises FlavourError (ETIMEDOUT) then; for before anything is touched."""
    left = None if request.timeout is None else began + request.timeout - time.monotonic()
    try:
        async with asyncio.timeout(left):
            yield
    except TimeoutError:
        raise out_of_time(request) from None


async def judge(
    host: Host,
    device: Device,
    request: Request,
    settings: Settings,
    wanted: Wanted,
    *,
    settled: bool = False,
    restores: bool = False,
) -> Verdict:
    """Whether a device that is about to be touched may be, and the others of its group with it; one that is
    `settled` is what it should be. One that `restores` takes only those along that go back to the same.
    Raises FlavourError (EBUSY)."""
    forced = () if settled else await check_users(host, device, request, settings)
    others: tuple[Device, ...] = ()
    remark = ""
    policy = request.others or settings.group
    if request.flavour == Flavour.VFIO:
        check_isolation(host, device, settings)
        if device.iommu_group is None:
            remark = "no IOMMU isolates it: whoever has it can read and write all of the host's memory"
        in_the_way = find_in_the_way(host, device)
        if not request.by_hand:
            # Those that are to be VFIO's too are on their way themselves.
            in_the_way = tuple(
                each for each in in_the_way if each.is_bridge or wanted.find_wanted(each) != Flavour.VFIO
            )
        if in_the_way and policy is OthersInGroup.REFUSE:
            raise _refuse_group(device, in_the_way)
        if in_the_way and policy is OthersInGroup.IGNORE:
            remark = f"IOMMU group {device.iommu_group} is not usable: {_tell(in_the_way)}"
        staying = tuple(each for each in in_the_way if each.is_bridge)
        if staying and policy is OthersInGroup.TOGETHER:
            raise _refuse_bridges(device, staying)
    if policy is OthersInGroup.TOGETHER:
        others = _find_others(host, device, request.flavour, restores=restores)
    for other in others:
        forced += await check_users(host, other, request, wanted.decide(other).settings)
    return Verdict(forced, others, remark)


def check_others_may_come(
    device: Device, others: tuple[Device, ...], flavour: Flavour, wanted: Wanted
) -> None:
    """Raises FlavourError (EBUSY) where another one is to be something else: only who asks by hand takes it
    from a wish, or from its own rule."""
    for other in others:
        if (its_own := wanted.find_wanted(other)) not in (None, flavour):
            group = device.iommu_group
            raise FlavourError(
                f"{device.address}: {other.address} in its IOMMU group {group} is to be {its_own}, so it "
                "does not go with it",
                code=Code.GROUP_NOT_VIABLE,
                hint=f"flavourctl show {other.address} says who wants that; flavourctl reset ends a wish",
            )


def has_it_already(host: Host, device: Device, request: Request, settings: Settings) -> bool:
    """Whether nothing will be touched, so that nobody needs to be asked."""
    if host.find_flavour(device) != request.flavour:
        return False
    if not request.drivers or request.flavour == Flavour.NATIVE:
        return True
    if request.flavour == Flavour.VFIO and device.vfio_device is None:
        return False
    kind = host.find_kind(request.flavour)
    accepted = host.resolve(device.modalias, kind, request.drivers, settings.denied).accepted
    return bool(accepted) and host.modules.find_drivers(accepted[0].module)[:1] == (device.driver,)


def check_isolation(host: Host, device: Device, settings: Settings) -> None:
    """Raises FlavourError where VFIO can't isolate the device, and nobody has said that this is all right, or
    VFIO would not do it. The latter is known once its module is there."""
    if device.iommu_group is None and settings.noiommu is NoIommu.REFUSE:
        raise FlavourError(
            f"{device.address}: it is in no IOMMU group, so VFIO can't isolate it",
            code=Code.NO_IOMMU,
            hint="enable the IOMMU in the firmware and on the kernel command line (intel_iommu=on); "
            "`noiommu: allow` in the policy gives the device away unprotected",
        )
    # A driver that becomes a VFIO driver itself may isolate what it hands out by its own means.
    if device.iommu_group is None and device.personality is None and host.sysfs.exists("/sys/module/vfio"):
        _check_noiommu_mode(host, device)


def _check_noiommu_mode(host: Host, device: Device) -> None:
    """Without it any probe fails with EINVAL (vfio_group_find_or_alloc() in drivers/vfio/group.c)."""
    try:
        mode = host.sysfs.read(_NOIOMMU_MODE)
    except FlavourError:
        raise FlavourError(
            f"{device.address}: it is in no IOMMU group, and this kernel's VFIO can't do without one",
            code=Code.NO_IOMMU,
            hint="enable the IOMMU; or take a kernel that has been built with CONFIG_VFIO_NOIOMMU",
        ) from None
    if mode != "Y":
        raise FlavourError(
            f"{device.address}: it is in no IOMMU group, and VFIO has not been told to do without one",
            code=Code.NO_IOMMU,
            hint=f"echo Y > {_NOIOMMU_MODE}; at each boot: `options vfio enable_unsafe_noiommu_mode=1` in "
            "/etc/modprobe.d",
        )


def check_personality(device: Device, request: Request) -> None:
    """Raises FlavourError (EINVAL) where the device's driver would have to be unbound, and never is."""
    if device.personality is not None and (request.drivers or request.flavour != Flavour.VFIO):
        raise FlavourError(
            f"{device.address}: its driver {device.driver} becomes a VFIO driver itself "
            f"({device.personality.attribute}) and is never unbound",
            code=Code.DRIVER_STAYS_BOUND,
            hint="leave out the driver's name" if request.drivers else "this device can be native or vfio",
        )


async def check_users(host: Host, device: Device, request: Request, settings: Settings) -> tuple[User, ...]:
    """Those it is taken from by force. Raises FlavourError (EBUSY) that names who uses it."""
    users = await host.occupancy.see_users(device)
    if request.flavour != Flavour.VFIO:
        users = tuple(dict.fromkeys((*users, *await find_endangered(host, device))))
    return judge_users(device, users, host.release, forced=request.force or settings.in_use is InUse.FORCE)


async def find_endangered(host: Host, device: Device) -> tuple[User, ...]:
    """Whom this kernel would crash under if a native driver were bound in the device's IOMMU group: also to a
    member without a driver, which nobody uses."""
    if device.iommu_group is None or _may_bind_beside_a_guest(host.release):
        return ()
    return await asyncio.to_thread(host.occupancy.find_group_holders, device.iommu_group)


def judge_users(device: Device, users: tuple[User, ...], release: str, *, forced: bool) -> tuple[User, ...]:
    """As `check_users`, for users that are known. `release` is the kernel's."""
    if not users:
        return ()
    named = "; ".join(user.what for user in users)
    if any(user.use is Use.BRIDGE for user in users):
        raise FlavourError(
            f"{device.address}: it is a bridge, and everything behind it uses it",
            code=Code.IS_A_BRIDGE,
            hint="switch the devices behind it; flavourctl groups says whether it is in their way",
        )
    if never := [user for user in users if user.use in UNFORCEABLE]:
        code, hint = Code.NEEDED_BY_HOST, "not even --force takes it: the host could not go on without it"
        if all(user.use is Use.VFS for user in never):
            attribute = f"/sys/bus/pci/devices/{device.address}/sriov_numvfs"
            code, hint = Code.IN_USE, f"VFIO refuses it while it has VFs: echo 0 > {attribute}"
        raise FlavourError(f"{device.address}: in use: {named}", code=code, hint=hint)
    held = any(user.use is Use.GUEST for user in users)
    if held and not _may_bind_beside_a_guest(release):
        raise FlavourError(
            f"{device.address}: in use: {named}",
            code=Code.IN_USE,
            hint=f"stop the guest: kernel {release} crashes when a native driver binds in a group that a "
            "guest uses, so not even --force takes it",
        )
    if not forced:
        hint = "stop that first, or take the device away regardless with --force"
        if held:
            hint = "stop the guest; with --force the switch waits in the kernel until the guest lets go"
        raise FlavourError(f"{device.address}: in use: {named}", code=Code.IN_USE, hint=hint)
    return users


def _may_bind_beside_a_guest(release: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= _SAFE_NATIVE_BIND


def find_in_the_way(host: Host, device: Device) -> tuple[Device, ...]:
    """The others in its IOMMU group that make the group unusable for a guest."""
    return tuple(
        other
        for other in host.read_others_in_group(device)
        if find_standing(other, host.find_flavour(other)) is Standing.HOST_DRIVER
    )


def _find_others(host: Host, device: Device, flavour: Flavour, *, restores: bool) -> tuple[Device, ...]:
    """All other endpoints of its group that have not got the flavour."""
    return tuple(
        other
        for other in host.read_others_in_group(device)
        if not other.is_bridge
        and host.find_flavour(other) != flavour
        and (not restores or _find_origin_flavour(host, other) == flavour)
    )


def _find_origin_flavour(host: Host, device: Device) -> Flavour | None:
    record = find_record(host.ledger, device)
    return None if record is None else record.origin_flavour


def _refuse_group(device: Device, in_the_way: tuple[Device, ...]) -> FlavourError:
    return FlavourError(
        f"{device.address}: no guest could use it: "
        f"{_tell(in_the_way)} in its IOMMU group {device.iommu_group}",
        code=Code.GROUP_NOT_VIABLE,
        hint="--group together (or `group: together` in the policy) switches all devices of the group or "
        "none, --group ignore only this one",
    )


def _refuse_bridges(device: Device, staying: tuple[Device, ...]) -> FlavourError:
    """They are never switched, so the others' going would not help."""
    return FlavourError(
        f"{device.address}: no guest could use it: {_tell(staying)} in its IOMMU group {device.iommu_group}",
        code=Code.GROUP_NOT_VIABLE,
        hint=f"a bridge is not switched: {tell_unbinding(staying[0])} "
        "frees the group where the host can do without that driver",
    )


def _tell(devices: tuple[Device, ...]) -> str:
    *more, last = [f"{device.address} ({device.driver})" for device in devices]
    return f"{', '.join(more)} and {last} have host drivers" if more else f"{last} has a host driver"
