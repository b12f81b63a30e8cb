"""Which device plays which role in the guest, at which address.

QEMU numbers a root port's bus in the order of the ports' own addresses, so adding a port below
0000:00:14.0 would move the buses after it; the rig's own tests notice.
"""

from dataclasses import dataclass

# An empty root port is one bus; what is plugged in appears at device 0 of that bus.
HOTPLUG_PORTS = {"hotplug1": "0000:02:00.0", "hotplug2": "0000:03:00.0"}

VFS = 64


@dataclass(frozen=True, slots=True)
class Role:
    name: str
    bdf: str
    id: str
    native: str | None
    """The driver that binds it at boot."""
    qemu: str | None
    """`-device` without bus and address; None for what the machine has anyway."""
    variants: tuple[str, ...] = ()
    """The drivers of the modules whose vfio_pci: aliases match, best first; vfio-pci comes after."""
    bus: str = "pcie.0"
    group_of: str = ""
    """The role whose IOMMU group it shares, if any."""
    isolated: bool = True
    """Whether it is in an IOMMU group at all."""

    @property
    def sysfs(self) -> str:
        return f"/sys/bus/pci/devices/{self.bdf}"


# The ID then is 1af4:1040 plus the virtio device type, whatever bus QEMU puts it on.
_MODERN = "disable-legacy=on"
_SRIOV = (
    f"subsys=subsys,sriov_max_vfs={VFS},sriov_vq_flexible={2 * VFS},sriov_vi_flexible={2 * VFS},"
    "max_ioqpairs=132,msix_qsize=133"
)

ROLES = {
    role.name: role
    for role in (
        # name                 address         ID           native driver, QEMU device, variants
        Role("host_bridge", "0000:00:00.0", "8086:29c0", None, None),
        Role("root_disk", "0000:00:02.0", "1af4:1042", "virtio-pci", f"virtio-blk-pci,drive=root,{_MODERN}"),
        Role("agent", "0000:00:03.0", "1af4:1043", "virtio-pci", f"virtio-serial-pci,{_MODERN}"),
        Role("good", "0000:00:04.0", "8086:10d3", "e1000e", "e1000e", ("vft-good-vfio-pci",)),
        Role("good_sibling", "0000:00:05.0", "8086:10d3", "e1000e", "e1000e", ("vft-good-vfio-pci",)),
        Role(
            "virtio",
            "0000:00:06.0",
            "1af4:1041",
            "virtio-pci",
            f"virtio-net-pci,{_MODERN},iommu_platform=on",
            ("virtio_vfio_pci",),
        ),
        Role("refuse", "0000:00:07.0", "10ec:8139", "8139cp", "rtl8139", ("vft-refuse-vfio-pci",)),
        Role(
            "second",
            "0000:00:08.0",
            "15ad:07b0",
            "vmxnet3",
            "vmxnet3",
            ("vft-refuse-vfio-pci", "vft-second"),
        ),
        Role("hang", "0000:00:09.0", "8086:100e", "e1000", "e1000", ("vft-hang-vfio-pci",)),
        Role("personality", "0000:00:0a.0", "1234:11e8", "vft-native", "edu"),
        Role("personality_sibling", "0000:00:0b.0", "1234:11e8", "vft-native", "edu"),
        Role("stuck", "0000:00:0c.0", "1b36:0005", "vft-stuck", "pci-testdev"),
        # No kernel has a driver for shared memory between guests.
        Role("driverless", "0000:00:0d.0", "1af4:1110", None, "ivshmem-plain,memdev=shared"),
        Role("nvme", "0000:00:0e.0", "1b36:0010", "nvme", "nvme,drive=nvme,serial=plain"),
        Role("bridge", "0000:00:10.0", "1b36:000c", "pcieport", "pcie-root-port,chassis=1,slot=1"),
        Role("hotplug1_port", "0000:00:11.0", "1b36:000c", "pcieport", "pcie-root-port,chassis=2,slot=2"),
        Role("hotplug2_port", "0000:00:12.0", "1b36:000c", "pcieport", "pcie-root-port,chassis=3,slot=3"),
        # A bridge to conventional PCI has no ACS: everything behind it is one group with it.
        Role("pair_bridge", "0000:00:14.0", "1b36:000e", None, "pcie-pci-bridge"),
        # A root bus of its own that the IOMMU leaves out: what is behind it is in no IOMMU group.
        Role("apart", "0000:00:15.0", "1b36:000b", None, "pxb-pcie,bus_nr=128,bypass_iommu=on"),
        Role("nvme_pf", "0000:01:00.0", "1b36:0010", "nvme", f"nvme,serial=pf,{_SRIOV}", bus="bridge"),
        Role(
            "pair0",
            "0000:04:01.0",
            "1022:2000",
            "pcnet32",
            "pcnet,multifunction=on",
            bus="pair_bridge",
            group_of="pair_bridge",
        ),
        Role(
            "pair1",
            "0000:04:01.1",
            "1022:2000",
            "pcnet32",
            "pcnet",
            bus="pair_bridge",
            group_of="pair_bridge",
        ),
        # In one group with those, whose best driver is vfio-pci.
        Role(
            "pair2",
            "0000:04:02.0",
            "8086:10d3",
            "e1000e",
            "e1000e",
            ("vft-good-vfio-pci",),
            bus="pair_bridge",
            group_of="pair_bridge",
        ),
        Role(
            "apart_port",
            "0000:80:00.0",
            "1b36:000c",
            "pcieport",
            "pcie-root-port,chassis=4,slot=4",
            bus="apart",
            isolated=False,
        ),
        Role(
            "unisolated",
            "0000:81:00.0",
            "8086:10d3",
            "e1000e",
            "e1000e",
            ("vft-good-vfio-pci",),
            bus="apart_port",
            isolated=False,
        ),
    )
}

# module -> its driver; a test that takes one for the other should fail.
VARIANT_MODULES = {
    "vft_good": "vft-good-vfio-pci",
    "vft_refuse": "vft-refuse-vfio-pci",
    "vft_second": "vft-second",
    "vft_hang": "vft-hang-vfio-pci",
}
# Only where the release says so: see image.RELEASES.
UPSTREAM_MODULES = ("virtio_vfio_pci", "nvgrace_gpu_vfio_pci", "mlx5_vfio_pci")


def variants(role: Role, *, upstream: bool) -> tuple[str, ...]:
    """The drivers that should be tried for a role, in order, in a guest with or without upstream's."""
    return tuple(driver for driver in role.variants if upstream or driver not in UPSTREAM_MODULES)


def qemu_devices() -> list[str]:
    """QEMU's arguments for all of them; a bus is made before what sits on it by the table's order."""
    arguments = [
        "-object", "memory-backend-ram,id=shared,size=1M,share=on",
        "-device", "nvme-subsys,id=subsys",
    ]  # fmt: skip
    for role in ROLES.values():
        if role.qemu is not None:
            slot = role.bdf.rpartition(":")[2]
            arguments += ["-device", f"{role.qemu},id={role.name},bus={role.bus},addr={slot}"]
    return arguments
