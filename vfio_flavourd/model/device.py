"""Snapshots of devices: what was read from the kernel at one moment."""

from dataclasses import dataclass

from .address import PciAddress

# Base class 06h of the PCI code and ID assignment: host, ISA, PCI-to-PCI and other bridges.
BRIDGE_CLASS = 0x06


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a device itself.

    The same address can be another device after a hotplug; the inode of the sysfs directory is new
    each time the kernel adds a device, the IDs tell what it is.
    """

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    revision: int
    inode: int


@dataclass(frozen=True, slots=True)
class Personality:
    """A driver that becomes a VFIO driver by an attribute of its own, and is never unbound.

    `attribute` is a path below the device's directory; writing `on` makes it a VFIO device, `off` takes
    that back. `ready` is the path below the device's directory whose presence (with at least one entry,
    if a directory) tells that it is one. `driver` is the PCI driver's name; empty for any.
    """

    driver: str
    attribute: str
    on: str = "1"
    off: str = "0"
    ready: str = "vfio-dev"


# The shape that the original proposal gave it.
ENABLE_VFIO = Personality(driver="", attribute="enable_vfio")


@dataclass(frozen=True, slots=True)
class Device:
    """One PCI function.

    `path` is its directory as the kernel names it (with `/sys`), `personality` the way its bound driver
    becomes a VFIO driver itself, `vfio_device` the name of its child in `vfio-dev/`. With `is_noiommu` its
    group is one that VFIO made up, and isolates nothing.
    """

    address: PciAddress
    path: str
    identity: Identity
    modalias: str
    class_code: int
    driver: str | None
    driver_module: str | None
    iommu_group: int | None
    vfio_device: str | None
    personality: Personality | None
    is_noiommu: bool = False

    @property
    def group_node(self) -> str | None:
        """The node by which a VFIO device's group is opened."""
        if self.iommu_group is None or self.vfio_device is None:
            return None
        return f"/dev/vfio/{'noiommu-' if self.is_noiommu else ''}{self.iommu_group}"

    @property
    def is_bridge(self) -> bool:
        return self.class_code >> 16 == BRIDGE_CLASS


@dataclass(frozen=True, slots=True)
class Binding:
    """Which driver a device has, and which one its `driver_override` asks for; None is no such."""

    driver: str | None
    override: str | None
