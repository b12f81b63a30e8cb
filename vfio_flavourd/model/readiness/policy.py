"""The policy: whether it is in force, now and at the next boot, and whether it can be followed."""

import re
from collections.abc import Sequence

from ..device import Device
from ..flavour import Flavour
from ..iommu_group import GroupMember, GroupState, Standing, find_groups, find_standing, tell_unbinding
from ..modprobe_conf import ModprobeConf
from ..policy import Decision, NoIommu, OthersInGroup, Rule
from .facts import Applied, Daemon, Platform, Present
from .finding import Finding, State, name_some

_NOIOMMU_ON = re.compile(r"\benable_unsafe_noiommu_mode=[\"']?[1yYtT]")


def judge_applied(applied: Applied) -> list[Finding]:
    """Whether this host is what its policy says already, also when it comes up."""
    if applied.trouble[0]:
        return [Finding("early-rules", State.WARNING, *applied.trouble)]
    findings = []
    if applied.is_newer:
        what = "files have changed since the policy was applied"
        findings.append(Finding("early-rules", State.WARNING, what, "flavourctl reload"))
    findings += [
        Finding(
            "initramfs",
            State.WARNING,
            f"{image.path} ({image.which}) is older than the policy's rules for early boot",
            applied.rebuild,
        )
        for image in applied.stale
    ]
    return findings


def judge_daemon(daemon: Daemon) -> list[Finding]:
    findings = []
    if daemon.trouble:
        findings.append(Finding("daemon", State.PROBLEM, daemon.trouble, daemon.hint))
    else:
        findings.append(Finding("daemon", State.OK, "the daemon answers"))
    if daemon.policy_trouble:
        what = f"the policy on disk is not in force: {daemon.policy_trouble}"
        findings.append(Finding("policy", State.PROBLEM, what, "flavourctl check"))
    findings += [
        Finding("stuck", State.PROBLEM, f"{address}: {why}", f"flavourctl show {address}")
        for address, why in daemon.stuck.items()
    ]
    if not daemon.is_door_mounted:
        what = "the file system on /run/vfio-flavour is not mounted"
        findings.append(
            Finding("file-system", State.WARNING, what, "systemctl start vfio-flavour-fs.service")
        )
    return findings


def judge_in_force(daemon: Daemon, rules: Sequence[Rule], devices: Sequence[Present]) -> list[Finding]:
    """Whether the daemon goes by what is on disk, which has these rules."""
    other = [
        present
        for present in devices
        if not _is_gone_by(daemon.decisions.get(str(present.address)), rules, present.decision)
    ]
    if not other or daemon.policy_trouble:
        return []
    first = other[0]
    what = (
        f"the policy on disk is not in force yet: of {_name(other)} it says "
        f"{first.decision.reason}, and the daemon goes by: {daemon.decisions[str(first.address)]}"
    )
    return [Finding("policy", State.WARNING, what, "flavourctl reload")]


def _is_gone_by(reason: str | None, rules: Sequence[Rule], decision: Decision) -> bool:
    """The daemon, whose reason is given, knows serials that a device told before VFIO had it, and what was
    applied by the driver that it had then: a rule by these may decide that does not match any more."""
    if reason in (None, decision.reason):
        return True
    for rule in rules:
        if rule is decision.rule:
            return False
        if rule.reason == reason:
            return bool(rule.match.serial or rule.match.driver)
    return False


def judge_groups(platform: Platform, conf: ModprobeConf, devices: Sequence[Present]) -> list[Finding]:
    """Whether a guest could use what the policy gives to VFIO; those that share a reason are one finding."""
    apart: dict[NoIommu, list[Present]] = {}
    grouped: dict[tuple[int, OthersInGroup], list[Present]] = {}
    for present in devices:
        if present.decision.flavour != Flavour.VFIO or present.device.is_bridge:
            continue
        group, settings = present.device.iommu_group, present.decision.settings
        if group is None:
            apart.setdefault(settings.noiommu, []).append(present)
        else:
            grouped.setdefault((group, settings.group), []).append(present)
    findings = [
        each for noiommu, wanted in apart.items() for each in _judge_apart(platform, conf, noiommu, wanted)
    ]
    for (group, others), wanted in grouped.items():
        findings += _judge_group(group, others, wanted, devices)
    return findings


def judge_mixed_groups(devices: Sequence[Present]) -> list[Finding]:
    """Groups of which a part is on VFIO by hand, or by another program; the policy's are told above."""
    by_policy = {each.device.iommu_group for each in devices if each.decision.flavour == Flavour.VFIO}
    findings = []
    for group in find_groups(GroupMember(each.device, each.flavour) for each in devices):
        if group.state is not GroupState.MIXED or group.number in by_policy:
            continue
        on_vfio = [each.device.address for each in group.members if each.standing is Standing.VFIO]
        what = (
            f"{name_some(on_vfio)}: no guest can use it, though it is on VFIO: in IOMMU group {group.number} "
            f"{_tell_host_drivers([each.device for each in group.in_the_way])}"
        )
        findings.append(Finding("group", State.WARNING, what, "; ".join(group.takes)))
    return findings


def _tell_host_drivers(devices: Sequence[Device]) -> str:
    named = ", ".join(f"{each.address} ({each.driver})" for each in devices)
    return f"{named} {'has a host driver' if len(devices) == 1 else 'have host drivers'}"


def _judge_apart(
    platform: Platform, conf: ModprobeConf, noiommu: NoIommu, wanted: Sequence[Present]
) -> list[Finding]:
    what = f"{_name(wanted)}: in no IOMMU group, though {wanted[0].decision.reason} says vfio"
    if noiommu is NoIommu.REFUSE:
        # Where no device is in any, that is told once.
        advice = "leave it out of the rule"
        return [Finding("group", State.PROBLEM, what, advice)] if platform.groups else []
    told = any(line.module == "vfio" and _NOIOMMU_ON.search(line.parameters) for line in conf.options)
    if platform.is_noiommu_enabled or told:
        return []
    what += ", and VFIO has not been told to do without an IOMMU"
    advice = "echo options vfio enable_unsafe_noiommu_mode=1 > /etc/modprobe.d/vfio-noiommu.conf && reboot"
    return [Finding("group", State.PROBLEM, what, advice)]


def _judge_group(
    group: int, others: OthersInGroup, wanted: Sequence[Present], devices: Sequence[Present]
) -> list[Finding]:
    in_the_way = [each for each in devices if each.device.iommu_group == group and _is_in_the_way(each)]
    staying = [each for each in in_the_way if each.device.is_bridge]
    if others is OthersInGroup.TOGETHER:
        in_the_way = staying
    if not in_the_way:
        return []
    what = (
        f"{_name(wanted)}: no guest can use it, though {wanted[0].decision.reason} says vfio: in IOMMU group "
        f"{group} {_tell_host_drivers([each.device for each in in_the_way])}"
    )
    state = State.WARNING if others is OthersInGroup.IGNORE else State.PROBLEM
    advice = "write group: together in the rule, or move the device to another slot"
    if staying:
        advice = "; ".join(tell_unbinding(each.device) for each in staying)
    return [Finding("group", state, what, advice)]


def _is_in_the_way(member: Present) -> bool:
    """Those that the policy gives to VFIO are on their way; a bridge is not switched."""
    has_host_driver = find_standing(member.device, member.flavour) is Standing.HOST_DRIVER
    return has_host_driver and (member.device.is_bridge or member.decision.flavour != Flavour.VFIO)


def _name(devices: Sequence[Present]) -> str:
    return name_some(present.address for present in devices)
