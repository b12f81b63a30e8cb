"""What is said of IOMMU groups, in text and in pictures."""

from typing import Any

from ..model.printable import printable

NO_GROUP = "in no IOMMU group: nothing isolates them"
NO_GROUP_TAKES = "turn the IOMMU on, in the firmware and on the kernel's command line (intel_iommu=on)"
NO_DEVICES = "no PCI devices on this host"

_STATES = {
    "ready": "viable: a guest can have it",
    "free": "viable: nobody has it",
    "host": "not viable: the host has it",
    "bridges": "only bridges, nothing to give away",
    "unprotected": "made up by VFIO (noiommu), isolates nothing",
}


def tell_state(group: dict[str, Any]) -> str:
    if group["state"] != "mixed" and not any(member["standing"] == "stuck" for member in group["members"]):
        return _STATES[group["state"]]
    in_the_way = [
        f"{member['device']} ({'stuck' if member['standing'] == 'stuck' else tell_driver(member)})"
        for member in group["members"]
        if member["device"] in group["in_the_way"]
    ]
    return f"not viable: {', '.join(in_the_way)} {'is' if len(in_the_way) == 1 else 'are'} in the way"


def find_kind(member: dict[str, Any]) -> str:
    """Its flavour, which a bridge has not."""
    return "bridge" if member["bridge"] else str(member["flavour"])


def tell_standing(member: dict[str, Any], group: dict[str, Any] | None) -> str:
    """What there is to say of a member; empty where that goes without saying."""
    if member["standing"] == "stuck":
        return "stuck"
    if group is None or group["state"] == "bridges":
        return ""
    if member["device"] in group["in_the_way"]:
        return "in the way" if member["bridge"] or group["state"] == "mixed" else ""
    return "does not count" if member["bridge"] else ""


def tell_driver(member: dict[str, Any]) -> str:
    return printable(member["driver"] or "no driver")


def tell_takes(group: dict[str, Any]) -> list[str]:
    """How a guest could have it."""
    if group["state"] == "unprotected":
        return [NO_GROUP_TAKES]
    return [f"for a guest: {command}" for command in group["takes"]]
