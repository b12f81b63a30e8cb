"""A host's /sys, /proc and /run, shaped as the kernel and udevd shape them, for who looks for users.

Shapes taken from 6.18 (virtio-blk, virtio-net, loop, bridge, macvlan) and from the kernel's sources.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from vfio_flavourd.kernel.occupancy import Occupancy
from vfio_flavourd.kernel.routes import Address, Route
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.device import Device, Identity
from vfio_flavourd.model.occupancy import User

DEVICE = "/sys/devices/pci0000:00/0000:00:1d.0/0000:01:00.0"
OTHER = "/sys/devices/pci0000:00/0000:00:1d.0/0000:01:00.1"

# Beyond the largest number that a kernel gives, so that none is the test's own.
QEMU, DD, CONTAINER = 5_000_812, 5_000_813, 5_000_900


class FakeHost:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.routes: dict[str, Route] = {}
        for path in (DEVICE, OTHER):
            self.add_directory(path, bus="pci")
            for name in ("power", "msi_irqs"):
                self.add_directory(f"{path}/{name}")
        self.add_process(1, "systemd")
        self.write("/proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")

    # asking

    def device(self, driver: str | None = "native", class_code: int = 0x010802, path: str = DEVICE) -> Device:
        return Device(
            address=parse_address(path.rsplit("/", 1)[1]),
            path=path,
            identity=Identity(0, 0, 0, 0, 0, 0),
            modalias="",
            class_code=class_code,
            driver=driver,
            driver_module=driver,
            iommu_group=None,
            vfio_device=None,
            personality=None,
        )

    def occupancy(self) -> Occupancy:
        return Occupancy(str(self.root), self.find_route)

    def find_route(self, address: Address) -> Route | None:
        return self.routes.get(str(address))

    def users(self, driver: str | None = "native", class_code: int = 0x010802) -> tuple[User, ...]:
        return self.occupancy().find_users(self.device(driver, class_code))

    def told(self) -> list[str]:
        """The users as `use: what`."""
        return [f"{user.use}: {user.what}" for user in self.users()]

    # files

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def write(self, path: str, text: str) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(text, encoding="utf-8")

    def link(self, path: str, target: str) -> None:
        """Relative, as those of sysfs are."""
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).symlink_to(os.path.relpath(target, str(Path(path).parent)))

    def add_directory(self, path: str, bus: str = "", class_: str = "", **attributes: str) -> str:
        """With `bus` or `class_` a device."""
        self.path(path).mkdir(parents=True, exist_ok=True)
        subsystem = f"/sys/bus/{bus}" if bus else f"/sys/class/{class_}" if class_ else ""
        if subsystem:
            self.link(f"{path}/subsystem", subsystem)
        for name, value in attributes.items():
            self.write(f"{path}/{name}", f"{value}\n")
        return path

    # disks

    def add_disk(self, name: str, number: str, parent: str = f"{DEVICE}/nvme/nvme0") -> str:
        path = self._add_block(f"{parent}/{name}", number)
        self.link(f"/sys/block/{name}", path)
        return path

    def add_partition(self, disk: str, name: str, number: str) -> str:
        path = self._add_block(f"{disk}/{name}", number)
        self.write(f"{path}/partition", "1\n")
        return path

    def _add_block(self, path: str, number: str) -> str:
        name = path.rsplit("/", 1)[1]
        self.add_directory(path, class_="block", dev=number, uevent=f"DEVNAME={name}")
        for child in ("holders", "slaves", "queue", "power"):
            self.add_directory(f"{path}/{child}")
        self.link(f"/sys/class/block/{name}", path)
        return path

    def add_holder(self, name: str, number: str, *below: str) -> str:
        path = self.add_disk(name, number, "/sys/devices/virtual/block")
        for held in below:
            self.link(f"{held}/holders/{name}", path)
            self.link(f"{path}/slaves/{held.rsplit('/', 1)[1]}", held)
        return path

    def add_mapped(self, name: str, number: str, mapped: str, uuid: str, *below: str) -> str:
        path = self.add_holder(name, number, *below)
        self.write(f"{path}/dm/name", f"{mapped}\n")
        self.write(f"{path}/dm/uuid", f"{uuid}\n")
        return path

    # processes

    def add_process(
        self,
        pid: int,
        name: str,
        files: Mapping[int, str] | Iterable[str] = (),
        name_space: str | None = "mnt:[4026531841]",
        root: str = "/",
        uid: int = 0,
    ) -> None:
        """`name_space` None is one that can't be told for lack of permission."""
        base = f"/proc/{pid}"
        self.write(f"{base}/comm", f"{name}\n")
        self.write(f"{base}/status", f"Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        self.path(f"{base}/fd").mkdir()
        named = files if isinstance(files, Mapping) else dict(enumerate(files))
        for number, target in named.items():
            self.path(f"{base}/fd/{number}").symlink_to(target)
        if name_space is not None:
            self.path(f"{base}/ns").mkdir()
            self.path(f"{base}/ns/mnt").symlink_to(name_space)
            self.path(f"{base}/root").symlink_to(root)
        self.write(f"{base}/mountinfo", "")

    def describe_file(
        self, pid: int, number: int, mount_id: int, fs_type: str = "", flags: str = "rw,relatime"
    ) -> None:
        """An open file of the process, and the mount that it is on, where the process sees that one."""
        self.write(
            f"/proc/{pid}/fdinfo/{number}", f"pos:\t0\nflags:\t0100000\nmnt_id:\t{mount_id}\nino:\t3\n"
        )
        if fs_type:
            line = f"{mount_id} 27 0:6 / /some {flags} shared:2 - {fs_type} none rw,mode=755\n"
            with self.path(f"/proc/{pid}/mountinfo").open("a", encoding="utf-8") as file:
                file.write(line)

    def mount(
        self,
        number: str,
        point: str,
        fs_type: str = "ext4",
        source: str = "none",
        options: str = "rw",
        pid: int = 1,
    ) -> None:
        """As a line of the process's mountinfo; text that needs it is to come escaped."""
        path = self.path(f"/proc/{pid}/mountinfo")
        lines = path.read_text(encoding="utf-8").count("\n")
        line = (
            f"{pid * 100 + lines} 1 {number} / {point} rw,relatime shared:1 - {fs_type} {source} {options}\n"
        )
        with path.open("a", encoding="utf-8") as file:
            file.write(line)

    def swap_on(self, source: str, kind: str = "partition") -> None:
        with self.path("/proc/swaps").open("a", encoding="utf-8") as file:
            file.write(f"{source:<40}{kind}\t1048572\t\t0\t\t-2\n")

    def probe(self, number: str, *lines: str) -> None:
        """What udevd has found out of a block device."""
        self.write(f"/run/udev/data/b{number}", "".join(f"{line}\n" for line in lines))

    # networks

    def add_interface(
        self, name: str, index: int, parent: str = f"{DEVICE}/net", kind: str = "", *lower: str
    ) -> str:
        devtype = f"DEVTYPE={kind}\n" if kind else ""
        uevent = f"{devtype}INTERFACE={name}\nIFINDEX={index}"
        path = self.add_directory(f"{parent}/{name}", class_="net", ifindex=str(index), uevent=uevent)
        self.link(f"/sys/class/net/{name}", path)
        for held in lower:
            self.link(f"{held}/upper_{name}", path)
            self.link(f"{path}/lower_{held.rsplit('/', 1)[1]}", held)
        return path

    def add_virtual(self, name: str, index: int, kind: str, *lower: str) -> str:
        return self.add_interface(name, index, "/sys/devices/virtual/net", kind, *lower)

    def enslave(self, port: str, master: str) -> None:
        self.link(f"{port}/master", master)

    def add_route(
        self, name: str, destination: str, mask: str, gateway: str = "00000000", flags: int = 1
    ) -> None:
        """In the kernel's hexadecimal, a little-endian host's."""
        path = self.path("/proc/net/route")
        if not path.exists():
            self.write("/proc/net/route", "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n")
        with path.open("a", encoding="ascii") as file:
            file.write(f"{name}\t{destination}\t{gateway}\t{flags:04X}\t0\t0\t0\t{mask}\t0\t0\t0\n")

    def add_address(self, address: str, index: int) -> None:
        path = self.path("/proc/net/fib_trie")
        if not path.exists():
            self.write("/proc/net/fib_trie", "Local:\n  +-- 0.0.0.0/0 3 0 5\n")
        with path.open("a", encoding="ascii") as file:
            file.write(f"     |-- {address}\n        /32 host LOCAL\n")
        self.routes[address] = Route((index,), is_local=True)
