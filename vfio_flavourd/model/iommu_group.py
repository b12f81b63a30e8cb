"""IOMMU groups: VFIO gives a group away as a whole, or not at all.

The kernel's rule is iommu_group_claim_dma_owner() in drivers/iommu/iommu.c: nobody can have a group while a
member has a host driver that does DMA of its own. What kind of device it is does not matter: a bridge with a
driver other than pcieport makes its group unusable (seen on 6.12).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from .device import Device
from .flavour import Flavour

# Drivers that do no DMA of their own (driver_managed_dma, 5.19); pcieport has the PCIe bridges.
_HARMLESS = frozenset({"pci-stub", "pcieport"})


class Standing(StrEnum):
    """What a member means for its group."""

    VFIO = "vfio"
    HARMLESS = "harmless"  # no driver, or one that does no DMA
    HOST_DRIVER = "host driver"
    STUCK = "stuck"  # its driver has not let go of it, though the link to it is gone


_IN_THE_WAY = frozenset({Standing.HOST_DRIVER, Standing.STUCK})


class GroupState(StrEnum):
    """What a group is good for as it is now."""

    READY = "ready"  # a guest can have it
    FREE = "free"  # nobody has it: what a guest is to have has to go to VFIO
    HOST = "host"  # the host's
    MIXED = "mixed"  # no guest can have what is on VFIO
    BRIDGES = "bridges"  # there is nothing in it to give away
    UNPROTECTED = "unprotected"  # VFIO made it up (noiommu): it isolates nothing


def find_standing(device: Device, flavour: Flavour, *, is_stuck: bool = False) -> Standing:
    if is_stuck:
        return Standing.STUCK
    if flavour == Flavour.VFIO:
        return Standing.VFIO
    if device.driver is None or device.driver in _HARMLESS:
        return Standing.HARMLESS
    return Standing.HOST_DRIVER


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A device; `is_stuck` while a write that takes its driver away has not come back."""

    device: Device
    flavour: Flavour
    is_stuck: bool = False

    @property
    def standing(self) -> Standing:
        return find_standing(self.device, self.flavour, is_stuck=self.is_stuck)


@dataclass(frozen=True, slots=True)
class IommuGroup:
    """`members` are all of its devices, by address."""

    number: int
    members: tuple[GroupMember, ...]

    @property
    def in_the_way(self) -> tuple[GroupMember, ...]:
        return tuple(member for member in self.members if member.standing in _IN_THE_WAY)

    @property
    def is_viable(self) -> bool:
        """Whether the kernel would let a guest have it."""
        return not self.in_the_way

    @property
    def state(self) -> GroupState:
        if any(member.device.is_noiommu for member in self.members):
            return GroupState.UNPROTECTED
        if all(member.device.is_bridge for member in self.members):
            return GroupState.BRIDGES
        on_vfio = any(member.standing is Standing.VFIO for member in self.members)
        if self.is_viable:
            return GroupState.READY if on_vfio else GroupState.FREE
        return GroupState.MIXED if on_vfio else GroupState.HOST

    @property
    def takes(self) -> tuple[str, ...]:
        """The commands by which a guest could have it; none where it can, or never will."""
        if self.state in (GroupState.READY, GroupState.BRIDGES, GroupState.UNPROTECTED):
            return ()
        stuck = tuple(member for member in self.members if member.standing is Standing.STUCK)
        if stuck:
            return tuple(f"flavourctl show {member.device.address}" for member in stuck)
        bridges = [member for member in self.in_the_way if member.device.is_bridge]
        commands = [tell_unbinding(member.device) for member in bridges]
        endpoints = [member for member in self.in_the_way if not member.device.is_bridge]
        if not endpoints and self.state in (GroupState.FREE, GroupState.HOST):
            endpoints = [next(member for member in self.members if not member.device.is_bridge)]
        if endpoints:
            together = " --group together" if len(endpoints) > 1 else ""
            commands.append(f"flavourctl set {endpoints[0].device.address} vfio{together}")
        return tuple(commands)


def tell_unbinding(device: Device) -> str:
    """What takes its driver from a bridge, which is not switched."""
    return f"echo {device.address} > /sys/bus/pci/drivers/{device.driver}/unbind"


def find_groups(members: Iterable[GroupMember]) -> tuple[IommuGroup, ...]:
    """By number; members without a group are in none."""
    by_number: dict[int, list[GroupMember]] = {}
    for member in members:
        if member.device.iommu_group is not None:
            by_number.setdefault(member.device.iommu_group, []).append(member)
    return tuple(IommuGroup(number, tuple(by_number[number])) for number in sorted(by_number))
