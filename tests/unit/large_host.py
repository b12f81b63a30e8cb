"""A host with 300 devices, the same each time: what flavourctl says of it is written down in golden/."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fake_kernel import FakeDevice, FakeDriver, FakeKernel
from policies import write

from vfio_flavourd.model.device import Device
from vfio_flavourd.model.occupancy import Use, User

POLICY = """\
version: 1
rules:
  - name: GPUs go to guests
    match: { class: 03, vendor: 0x10de }
    flavour: vfio
    group: together
  - name: virtual functions of the fabric
    match: { vendor: 0x15b3, device: 0x101e }
    flavour: vfio
"""


@dataclass(frozen=True)
class Kind:
    """`variant` is the module that has an alias for it."""

    ids: str
    class_code: int
    driver: str
    name: str
    variant: str = ""


PORT = Kind("8086:a330", 0x060400, "pcieport", "Intel Corporation PCI Express Root Port #9")
GPU = Kind("10de:2230", 0x030000, "nouveau", "NVIDIA Corporation GA102GL [RTX A6000]")
AUDIO = Kind("10de:1aef", 0x040300, "snd_hda_intel", "NVIDIA Corporation GA102 High Definition Audio")
PF = Kind(
    "15b3:101d", 0x020000, "mlx5_core", "Mellanox Technologies MT2892 Family [ConnectX-6 Dx]", "mlx5_vfio_pci"
)
VF = Kind(
    "15b3:101e",
    0x020000,
    "mlx5_core",
    "Mellanox Technologies ConnectX Family mlx5Gen Virtual Function",
    "mlx5_vfio_pci",
)
DISK = Kind(
    "144d:a80a", 0x010802, "nvme", "Samsung Electronics Co Ltd NVMe SSD Controller PM9A1/PM9A3/980PRO"
)
NIC = Kind("8086:10d3", 0x020000, "e1000e", "Intel Corporation 82574L Gigabit Network Connection")
UNKNOWN = Kind("1af4:1110", 0x050000, "", "")
KINDS = (PORT, GPU, AUDIO, PF, VF, DISK, NIC, UNKNOWN)


def place_devices() -> Iterator[tuple[str, Kind, int | None]]:
    """Address, kind and IOMMU group."""
    for number in range(20):
        yield f"0000:00:{number:02x}.0", PORT, number
    for number in range(8):
        yield f"0000:{0x10 + number:02x}:00.0", GPU, 100 + number
        yield f"0000:{0x10 + number:02x}:00.1", AUDIO, 100 + number
    for number in range(2):
        yield f"0000:{0x20 + number:02x}:00.0", PF, 200 + number
    for number in range(200):
        yield (
            f"0000:{0x20 + number // 100:02x}:{1 + number % 100 // 8:02x}.{number % 100 % 8}",
            VF,
            300 + number,
        )
    for number in range(24):
        yield f"10000:{0x81 + number:02x}:00.0", DISK, 600 + number
    for number in range(30):
        yield f"0000:{0x40 + number:02x}:00.0", NIC, 700 + number
    for number in range(8):
        yield f"0000:70:{number:02x}.0", UNKNOWN, None


def make_alias(kind: Kind) -> str:
    vendor, device = kind.ids.upper().split(":")
    return f"alias vfio_pci:v0000{vendor}d0000{device}sv*sd*bc*sc*i* {kind.variant}"


class LargeHost:
    def __init__(self, root: Path) -> None:
        self.kernel = FakeKernel(root)
        self.devices: dict[str, FakeDevice] = {}
        for address, kind, group in place_devices():
            vendor, device = (int(part, 16) for part in kind.ids.split(":"))
            self.devices[address] = self.kernel.add_device(address, vendor, device, kind.class_code, group)
        for name in sorted({kind.driver for kind in KINDS} - {""}):
            ids = frozenset(
                (int(kind.ids[:4], 16), int(kind.ids[5:], 16)) for kind in KINDS if kind.driver == name
            )
            self.kernel.add_module(FakeDriver(name, name, ids))
            self.kernel.load(name)
        for name in sorted({kind.variant for kind in KINDS} - {""}):
            variant = FakeDriver(name.replace("_", "-"), name, vfio=True)
            self.kernel.add_module(variant)
        self.kernel.write_index([make_alias(kind) for kind in KINDS if kind.variant])
        self.kernel.users["10000:81:00.0"] = (User(Use.MOUNT, "/srv/data on nvme0n1p1"),)
        write(root, POLICY)
        self._put("proc/cmdline", "root=/dev/nvme24n1p2 ro intel_iommu=on vfio-pci.ids=10de:2230\n")
        self._put("proc/self/mountinfo", "36 25 0:31 / /run/vfio-flavour rw - fuse vfio-flavour rw\n")
        self._put("etc/driverctl.d/pci-0000:42:00.0", "vfio-pci\n")

    def _put(self, name: str, text: str) -> None:
        path = self.kernel.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")

    @staticmethod
    def find_name(device: Device) -> str:
        ids = f"{device.identity.vendor:04x}:{device.identity.device:04x}"
        return next((kind.name for kind in KINDS if kind.ids == ids), "")
