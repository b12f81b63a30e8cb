"""The policy: whether it is in force, now and at the next boot, and whether it can be followed."""

from collections.abc import Sequence

from ..device import HARMLESS_DRIVERS
from ..flavour import Flavour
from ..policy import NoIommu, OthersInGroup
from .facts import Applied, Daemon, Platform, Present
from .finding import Finding, State, name_some


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


def judge_groups(platform: Platform, devices: Sequence[Present]) -> list[Finding]:
    """Whether a guest could use what the policy gives to VFIO."""
    findings = []
    for present in devices:
        if present.decision.flavour != Flavour.VFIO or present.device.is_bridge:
            continue
        settings, reason = present.decision.settings, present.decision.reason
        group = present.device.iommu_group
        if group is None:
            if platform.groups and settings.noiommu is NoIommu.REFUSE:
                what = f"{present.address}: VFIO can't isolate it, which {reason} gives to it: no IOMMU group"
                findings.append(Finding("group", State.PROBLEM, what, "leave it out of the rule"))
            continue
        in_the_way = [other for other in devices if _is_in_the_way(present, other)]
        if not in_the_way or settings.group is OthersInGroup.TOGETHER:
            continue
        named = ", ".join(f"{other.address} ({other.device.driver})" for other in in_the_way)
        state = State.PROBLEM if settings.group is OthersInGroup.REFUSE else State.WARNING
        what = (
            f"{present.address}: no guest can use it, though {reason} says vfio: its IOMMU group {group} has "
            f"{named} with a host driver"
        )
        advice = "write group: together in the rule, or move the card to another slot"
        findings.append(Finding("group", state, what, advice))
    return findings


def _is_in_the_way(present: Present, other: Present) -> bool:
    """Bridges don't count, nor do devices without a driver (iommu_group_claim_dma_owner()), nor those that
    the policy gives to VFIO too."""
    return (
        other.device.iommu_group == present.device.iommu_group
        and other is not present
        and not other.device.is_bridge
        and other.device.driver is not None
        and other.device.driver not in HARMLESS_DRIVERS
        and Flavour.VFIO not in (other.flavour, other.decision.flavour)
    )
