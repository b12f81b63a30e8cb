"""The varlink interface, for its server and its clients.

The types here are what travels: their field names are promises. Times are seconds.
"""

import errno
import inspect
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypedDict

from asyncvarlink import TypedVarlinkErrorReply, VarlinkInterface, varlinkmethod

from ..model.codes import Code
from ..model.errors import FlavourError
from .protocol import NAME


@dataclass(frozen=True)
class CandidateInfo:
    """A module that could serve a device. `pattern` is the alias that matched, `source` the file it stands
    in or what else named it; `reason` says why it is taken or, where `accepted` is false, why not.
    """

    module: str
    pattern: str
    source: str
    accepted: bool
    reason: str


@dataclass(frozen=True)
class ResolutionInfo:
    """What could serve a modalias, the best first; `winner` is the first module that is accepted."""

    modalias: str
    candidates: list[CandidateInfo]
    winner: str | None
    warnings: list[str]


@dataclass(frozen=True)
class StepInfo:
    """A step of a switch. action is turn, guard, load, override, unbind, bind, probe, ask, wait or verify;
    candidate the module that is tried meanwhile, empty where none is. started counts from when the switch was
    asked for; error is empty where it went well."""

    phase: str
    action: str
    what: str
    started: float
    duration: float
    error: str
    candidate: str


@dataclass(frozen=True)
class AttemptInfo:
    """What came of a switch. `id` counts the attempts of this boot. `outcome` is done, unchanged, refused,
    failed, stuck, given-up or cut-off. `when` is in seconds since the epoch, and the steps count from then.
    `hint` and `code` are those of the error; `reason` is empty where `error` is not.
    """

    id: int
    device: str
    flavour: str
    requester: str
    when: float
    duration: float
    outcome: str
    driver: str | None
    previous_driver: str | None
    fallback: bool
    forced: list[str]
    rule: str
    reason: str
    error: str
    hint: str
    code: str
    steps: list[StepInfo]


@dataclass(frozen=True)
class MemberInfo:
    """Another device of the IOMMU group, switched with the one that was asked for."""

    device: str
    flavour: str
    driver: str | None
    previous_driver: str | None
    reason: str


@dataclass(frozen=True)
class UserInfo:
    """Who uses a device; `pid` is the process that holds it, where one does."""

    use: str
    what: str
    pid: int | None


@dataclass(frozen=True)
class OutcomeInfo:
    """What a device is after a switch; `attempt` is the number under which History keeps it. `fallback`:
    the generic driver had to do although a better one was known. `changed` is false where nothing had to be
    done. `forced` are those it was taken from, `others` the other devices of its IOMMU group that were
    switched with it.
    """

    attempt: int
    device: str
    flavour: str
    driver: str | None
    previous_driver: str | None
    fallback: bool
    reason: str
    vfio_device: str | None
    group_node: str | None
    duration: float
    changed: bool
    steps: list[StepInfo]
    forced: list[UserInfo]
    others: list[MemberInfo]


@dataclass(frozen=True)
class DeviceInfo:
    """A device as it is now. `flavour` is what it is, not what was asked for. `recorded`: what it had
    before its first switch is known, and `reset` goes back to that. `rule` is the rule of the policy that
    decides, `wish` what was asked for by hand, which stands above it. `stuck` and `phase` tell of a switch
    that is under way. `users` are looked for by Get only.
    """

    device: str
    name: str
    ids: str
    class_code: str
    flavour: str
    driver: str | None
    previous_driver: str | None
    recorded: bool
    iommu_group: int | None
    vfio_device: str | None
    group_node: str | None
    personality: str | None
    phase: str | None
    stuck: str
    resolution: ResolutionInfo
    last: AttemptInfo | None
    rule: str | None
    policy_flavour: str | None
    policy_reason: str
    wish: str | None
    remarks: list[str]
    slot: str
    serials: list[str]
    users: list[UserInfo]


@dataclass(frozen=True)
class GroupMemberInfo:
    """A device as a member of its IOMMU group. standing is vfio, harmless (no driver, or one that does no
    DMA), host driver, or stuck; the last two keep the group from being viable."""

    device: str
    name: str
    flavour: str
    driver: str | None
    bridge: bool
    standing: str


@dataclass(frozen=True)
class GroupInfo:
    """state is ready (a guest can have it), free (nobody has it), host, mixed (a part of it is on VFIO and no
    guest can have it), bridges (nothing in it to give away) or unprotected (VFIO made it up, noiommu). viable
    tells whether the kernel would let a guest have it, in_the_way which members keep it from that, takes the
    commands by which a guest could have it."""

    group: int
    state: str
    viable: bool
    in_the_way: list[str]
    takes: list[str]
    members: list[GroupMemberInfo]


class Grouping(TypedDict):
    """ungrouped are the devices that no IOMMU isolates."""

    groups: list[GroupInfo]
    ungrouped: list[GroupMemberInfo]


class Listing(TypedDict):
    """policy_trouble says why the policy on disk is not the one in force, and is empty otherwise."""

    devices: list[DeviceInfo]
    policy_trouble: str


class Shown(TypedDict):
    """group is the IOMMU group that it is in, flavours are all that a device can be asked to have."""

    device: DeviceInfo
    group: GroupInfo | None
    flavours: list[str]
    policy_trouble: str


class Progress(TypedDict):
    """What is under way now, or a step as it happened, or, in the last reply, the outcome."""

    running: str | None
    step: StepInfo | None
    outcome: OutcomeInfo | None


class Event(TypedDict):
    """Of one device: a step of its switch, or the end of an attempt."""

    device: str
    step: StepInfo | None
    attempt: AttemptInfo | None


class _Told:
    code: str
    errno: int
    message: str
    hint: str


class NoSuchDevice(TypedVarlinkErrorReply, interface=NAME):
    """There is no such device, or it went away in the middle of a switch (ENODEV)."""

    Parameters = _Told


class InvalidArgument(TypedVarlinkErrorReply, interface=NAME):
    """No such flavour, not an address, not a driver's name (EINVAL)."""

    Parameters = _Told


class Busy(TypedVarlinkErrorReply, interface=NAME):
    """The host or a guest uses the device, or it is stuck (EBUSY)."""

    Parameters = _Told


class TryAgain(TypedVarlinkErrorReply, interface=NAME):
    """Its IOMMU group stayed busy with another switch for too long, or no connection is free (EAGAIN)."""

    Parameters = _Told


class TimedOut(TypedVarlinkErrorReply, interface=NAME):
    """The kernel has not come back in time (ETIMEDOUT)."""

    Parameters = _Told


class NotPermitted(TypedVarlinkErrorReply, interface=NAME):
    """This socket is for looking only (EACCES)."""

    Parameters = _Told


class InvalidPolicy(TypedVarlinkErrorReply, interface=NAME):
    """The policy's files can't be taken; the one in force stays (EINVAL)."""

    Parameters = _Told


class Failed(TypedVarlinkErrorReply, interface=NAME):
    """Anything else; the message has the whole story (EIO)."""

    Parameters = _Told


_BY_ERRNO = {
    errno.ENODEV: NoSuchDevice,
    errno.EINVAL: InvalidArgument,
    errno.EBUSY: Busy,
    errno.EAGAIN: TryAgain,
    errno.ETIMEDOUT: TimedOut,
    errno.EACCES: NotPermitted,
}


_TYPE = re.compile(r"^type (\w+)", re.MULTILINE)


def _comment_type(found: re.Match[str]) -> str:
    lines = inspect.cleandoc(globals()[found[1]].__doc__).splitlines()
    return "\n".join(["", *(f"# {line}" for line in lines), found[0]])


class Manager(VarlinkInterface, name=NAME):
    """Whose a PCI device is: the host's (native) or VFIO's, and the switch between them.

    A device is named by its address, with or without the domain. Every error carries a stable code, which
    `flavourctl explain` knows, an errno, one line that says what was being done to what, and a hint.
    """

    errors = (NoSuchDevice, InvalidArgument, Busy, TryAgain, TimedOut, NotPermitted, InvalidPolicy, Failed)

    @classmethod
    def render_interface_description(cls, *, comments: bool = True) -> str:
        """With comments, those of the types among them, which the library leaves out."""
        text = super().render_interface_description(comments=comments)
        return _TYPE.sub(_comment_type, text) if comments else text

    @varlinkmethod
    def List(self) -> Listing:
        """All PCI devices, by address. Who uses them is not looked for here."""
        raise NotImplementedError

    @varlinkmethod
    def Groups(self) -> Grouping:
        """The IOMMU groups, by number: VFIO gives a group away as a whole, or not at all."""
        raise NotImplementedError

    @varlinkmethod
    async def Get(self, *, device: str, users: bool | None = None) -> Shown:
        """One device, with its candidates and what came of the last attempt; who uses it is looked for where
        users is true."""
        raise NotImplementedError

    @varlinkmethod(return_parameter="resolution")
    def Resolve(self, *, modalias: str) -> ResolutionInfo:
        """Which drivers would serve a modalias, ranked."""
        raise NotImplementedError

    @varlinkmethod(return_parameter="steps")
    async def Plan(
        self,
        *,
        device: str,
        flavour: str,
        drivers: list[str] | None = None,
        force: bool | None = None,
        group: str | None = None,
    ) -> list[str]:
        """What SetFlavour would do, without doing it."""
        raise NotImplementedError

    @varlinkmethod(delay_generator=False)
    async def SetFlavour(
        self,
        *,
        device: str,
        flavour: str,
        drivers: list[str] | None = None,
        timeout: float | None = None,
        force: bool | None = None,
        group: str | None = None,
        persist: bool | None = None,
        uid: int | None = None,
        pid: int | None = None,
    ) -> AsyncIterator[Progress]:
        """Give a device a flavour (native, vfio, or one of the policy's own). The reply comes when it has it;
        with the more flag, each step is told as it happens. drivers (16 at most) are tried in their order
        instead of what the policy or resolution finds; timeout is in seconds. force takes a device that is in
        use; group (refuse, together or ignore) stands above the policy's word on the others in its IOMMU
        group; persist has the wish outlive the boot. uid and pid are whom the file system asks for, for the
        record. force, persist and uid are root's. A caller that hangs up ends a switch that has touched
        nothing yet. Only this and Reset can be called oneway.
        """
        raise NotImplementedError
        yield

    @varlinkmethod(delay_generator=False)
    async def Reset(
        self,
        *,
        device: str,
        timeout: float | None = None,
        force: bool | None = None,
        group: str | None = None,
    ) -> AsyncIterator[Progress]:
        """Drop what was asked for by hand: back to what the policy says, or else to the driver and the
        driver_override that were there before the first switch. What was asked for to last, and force, are
        root's."""
        raise NotImplementedError
        yield

    @varlinkmethod(return_parameter="attempts")
    def History(self, *, device: str | None = None) -> list[AttemptInfo]:
        """The attempts of this boot, or those on one device, oldest first; the last 256 of all are kept."""
        raise NotImplementedError

    @varlinkmethod(delay_generator=False)
    async def Monitor(self) -> AsyncIterator[Event]:
        """Steps and ends of all devices' switches as they happen; needs the more flag. Whom too many wait
        for is told no more."""
        raise NotImplementedError
        yield

    @varlinkmethod
    async def Reload(self) -> None:
        """Read the policy, the module index and modprobe.d again, and apply what differs. For root. Fails
        where the policy is switched off on the kernel command line, and is not read; and where it is in
        force, but the rules for early boot can't be written."""
        raise NotImplementedError


def render_error(error: FlavourError) -> TypedVarlinkErrorReply:
    invalid = error.code == Code.INVALID_POLICY
    kind = InvalidPolicy if invalid else _BY_ERRNO.get(error.errno, Failed)
    return kind(errno=error.errno, code=error.code, message=str(error), hint=error.hint)
