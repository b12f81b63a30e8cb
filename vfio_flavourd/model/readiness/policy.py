"""The policy: whether it is in force, now and at the next boot, and whether it can be followed."""

import re
from collections.abc import Sequence

from ..flavour import Flavour
from ..iommu_group import Standing, find_standing, tell_unbinding
from ..modprobe_conf import ModprobeConf
from ..policy import NoIommu, OthersInGroup
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


def judge_in_force(daemon: Daemon, devices: Sequence[Present]) -> list[Finding]:
    """Whether the daemon goes by what is on disk."""
    other = [
        present
        for present in devices
        if daemon.decisions.get(str(present.address), present.decision.reason) != present.decision.reason
    ]
    if not other or daemon.policy_trouble:
        return []
    first = other[0]
    what = (
        f"the policy on disk is not in force yet: of {name_some(each.address for each in other)} it says "
        f"{first.decision.reason}, and the daemon goes by {daemon.decisions[str(first.address)]}"
    )
    return [Finding("policy", State.WARNING, what, "flavourctl reload")]


def judge_groups(platform: Platform, conf: ModprobeConf, devices: Sequence[Present]) -> list[Finding]:
    """Whether a guest could use what the policy gives to VFIO."""
    findings = []
    for present in devices:
        if present.decision.flavour == Flavour.VFIO and not present.device.is_bridge:
            if present.device.iommu_group is None:
                findings += _judge_isolation(platform, conf, present)
            else:
                findings += _judge_group(present, devices)
    return findings


def _judge_isolation(platform: Platform, conf: ModprobeConf, present: Present) -> list[Finding]:
    what = f"{present.address} is in no IOMMU group, and {present.decision.reason} gives it to VFIO"
    if present.decision.settings.noiommu is NoIommu.REFUSE:
        # Where no device is in any, that is told once.
        return [Finding("group", State.PROBLEM, what, "leave it out of the rule")] if platform.groups else []
    told = any(
        line.module == "vfio" and _NOIOMMU_ON.search(line.parameters) is not None for line in conf.options
    )
    if platform.is_noiommu_enabled or told:
        return []
    what += ", but VFIO has not been told to do without an IOMMU"
    advice = "echo options vfio enable_unsafe_noiommu_mode=1 > /etc/modprobe.d/vfio-noiommu.conf && reboot"
    return [Finding("group", State.PROBLEM, what, advice)]


def _judge_group(present: Present, devices: Sequence[Present]) -> list[Finding]:
    in_the_way = [other for other in devices if _is_in_the_way(present, other)]
    settings, group = present.decision.settings, present.device.iommu_group
    staying = [other for other in in_the_way if other.device.is_bridge]
    if settings.group is OthersInGroup.TOGETHER:
        in_the_way = staying
    if not in_the_way:
        return []
    named = ", ".join(f"{other.address} ({other.device.driver})" for other in in_the_way)
    what = (
        f"{present.address}: no guest can use it, though {present.decision.reason} says vfio: its IOMMU "
        f"group {group} has {named} with a host driver"
    )
    state = State.WARNING if settings.group is OthersInGroup.IGNORE else State.PROBLEM
    advice = "write group: together in the rule, or move the card to another slot"
    if staying:
        advice = "; ".join(tell_unbinding(other.device) for other in staying)
    return [Finding("group", state, what, advice)]


def _is_in_the_way(present: Present, other: Present) -> bool:
    """Those that the policy gives to VFIO too are on their way; a bridge is not switched."""
    standing = find_standing(other.device, other.flavour)
    return (
        other.device.iommu_group == present.device.iommu_group
        and other is not present
        and standing is Standing.HOST_DRIVER
        and (other.device.is_bridge or other.decision.flavour != Flavour.VFIO)
    )
