"""What is written down for udev about the nodes of devices that VFIO has: 91-vfio-flavourd-nodes.rules.

A file for each node, named after what udev knows it by: a group's node by its number, a device's own node
(`/dev/vfio/devices/vfio0`) by the device's address.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .address import PciAddress
from .policy import NodeAccess

# As far as udev reads them, which substitutes `$` and `%`.
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """`files` are their contents by name; `notes` say which group's node nobody gets."""

    files: dict[str, str]
    notes: tuple[str, ...]


def render_node_files(
    devices: Iterable[tuple[PciAddress, int | None, NodeAccess | None]],
) -> NodeFiles:
    """For each device that VFIO has, or is about to have: its address, IOMMU group and what its rule says.

    A group's node opens all of its devices, so it is given only where they are all given to the same.
    """
    files: dict[str, str] = {}
    groups: dict[int, set[NodeAccess | None]] = {}
    for address, group, access in devices:
        if access is not None:
            files[str(address)] = _render(access)
        if group is not None:
            groups.setdefault(group, set()).add(access)
    notes = []
    for group, wanted in sorted(groups.items(), key=lambda item: item[0]):
        if len(wanted) > 1:
            notes.append(
                f"IOMMU group {group}: the policy's rules disagree on who may open its devices, "
                f"so /dev/vfio/{group} stays root's"
            )
            continue
        (access,) = wanted
        if access is not None:
            files[str(group)] = _render(access)
    return NodeFiles(files, tuple(notes))


def _render(access: NodeAccess) -> str:
    return "".join(f"{line}\n" for line in ("VFIO_FLAVOUR_NODE=1", *_lines(access)))


def _lines(access: NodeAccess) -> Iterator[str]:
    for name, account in (("OWNER", access.owner), ("GROUP", access.group)):
        if account is not None and _ACCOUNT.fullmatch(account):
            yield f".VFIO_FLAVOUR_{name}={account}"
    if access.mode is not None:
        yield f".VFIO_FLAVOUR_MODE={access.mode & 0o666:04o}"
