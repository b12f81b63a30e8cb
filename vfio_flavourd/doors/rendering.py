"""What the engine knows, as it travels by varlink."""

from collections.abc import Callable

from ..model.aliases import Candidate, Resolution
from ..model.device import Device
from ..model.flavour import Attempt, DeviceStatus, Outcome, StepReport
from ..model.iommu_group import GroupMember, IommuGroup
from ..model.occupancy import User
from .interface import (
    AttemptInfo,
    CandidateInfo,
    DeviceInfo,
    GroupInfo,
    GroupMemberInfo,
    MemberInfo,
    OutcomeInfo,
    ResolutionInfo,
    StepInfo,
    UserInfo,
)


def render_candidate(candidate: Candidate) -> CandidateInfo:
    return CandidateInfo(
        candidate.module, candidate.pattern, str(candidate.source), candidate.accepted, candidate.reason
    )


def render_resolution(resolution: Resolution) -> ResolutionInfo:
    return ResolutionInfo(
        modalias=resolution.modalias,
        candidates=[render_candidate(candidate) for candidate in resolution.candidates],
        winner=resolution.winner,
        warnings=list(resolution.warnings),
    )


def render_step(step: StepReport) -> StepInfo:
    return StepInfo(
        str(step.phase),
        str(step.action),
        step.what,
        step.started,
        step.duration,
        step.error,
        step.candidate,
    )


def render_attempt(attempt: Attempt) -> AttemptInfo:
    return AttemptInfo(
        id=attempt.id,
        device=str(attempt.address),
        flavour=str(attempt.flavour),
        requester=attempt.requester,
        when=attempt.when,
        duration=attempt.duration,
        outcome=str(attempt.ending),
        driver=attempt.driver,
        previous_driver=attempt.previous_driver,
        fallback=attempt.fallback,
        forced=list(attempt.forced),
        rule=attempt.rule,
        reason=attempt.reason,
        error=attempt.error,
        hint=attempt.hint,
        code=attempt.code,
        steps=[render_step(step) for step in attempt.steps],
    )


def render_outcome(outcome: Outcome) -> OutcomeInfo:
    return OutcomeInfo(
        attempt=outcome.attempt,
        device=str(outcome.address),
        flavour=str(outcome.flavour),
        driver=outcome.driver,
        previous_driver=outcome.previous_driver,
        fallback=outcome.fallback,
        reason=outcome.reason,
        vfio_device=outcome.vfio_device,
        group_node=outcome.group_node,
        duration=outcome.duration,
        changed=outcome.changed,
        steps=[render_step(step) for step in outcome.steps],
        forced=[render_user(user) for user in outcome.forced],
        others=[
            MemberInfo(
                device=str(other.address),
                flavour=str(other.flavour),
                driver=other.driver,
                previous_driver=other.previous_driver,
                reason=other.reason,
            )
            for other in outcome.others
        ],
    )


def render_user(user: User) -> UserInfo:
    return UserInfo(str(user.use), user.what, user.pid)


def render_device(status: DeviceStatus, name: str, users: tuple[UserInfo, ...] = ()) -> DeviceInfo:
    device = status.device
    return DeviceInfo(
        device=str(device.address),
        name=name,
        ids=f"{device.identity.vendor:04x}:{device.identity.device:04x}",
        class_code=f"{device.class_code:06x}",
        flavour=str(status.flavour),
        driver=device.driver,
        previous_driver=status.origin_driver,
        recorded=status.held,
        iommu_group=device.iommu_group,
        vfio_device=device.vfio_device,
        group_node=device.group_node,
        personality=None if device.personality is None else device.personality.attribute,
        phase=str(status.phase) if status.phase else None,
        stuck=status.stuck,
        resolution=render_resolution(status.resolution),
        last=render_attempt(status.last) if status.last else None,
        rule=status.decision.rule.name if status.decision.rule is not None else None,
        policy_flavour=status.decision.flavour,
        policy_reason=status.decision.reason,
        wish=None if status.wish is None else str(status.wish),
        remarks=list(status.remarks),
        slot=status.slot,
        serials=list(status.serials),
        users=list(users),
    )


def render_group(group: IommuGroup, find_name: Callable[[Device], str]) -> GroupInfo:
    return GroupInfo(
        group=group.number,
        state=str(group.state),
        viable=group.is_viable,
        in_the_way=[str(member.device.address) for member in group.in_the_way],
        takes=list(group.takes),
        members=[render_group_member(member, find_name(member.device)) for member in group.members],
    )


def render_group_member(member: GroupMember, name: str) -> GroupMemberInfo:
    return GroupMemberInfo(
        device=str(member.device.address),
        name=name or f"{member.device.identity.vendor:04x}:{member.device.identity.device:04x}",
        flavour=str(member.flavour),
        driver=member.device.driver,
        bridge=member.device.is_bridge,
        standing=str(member.standing),
    )
