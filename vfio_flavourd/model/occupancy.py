"""Who uses a device."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Use(StrEnum):
    """How a device is used."""

    ROOT = "root"  # the root file system, or what the running system can't do without
    MOUNT = "mount"
    SWAP = "swap"
    # dm, md, bcache, multipath, LVM, a zpool: another block device or pool is made of it. Or the kernel
    # serves it to other hosts (LIO, NVMe target).
    HOLDER = "holder"
    OPEN = "open"  # a process has a node of it open
    ROUTE = "route"
    ADDRESS = "address"
    PORT = "port"  # of a bond, bridge or team, below a VLAN or PPPoE, or in another network name space
    NETWORK_STORAGE = "network storage"
    DISPLAY = "display"
    VFS = "vfs"
    BRIDGE = "bridge"
    GUEST = "guest"  # a process holds its VFIO group or device


# Not even `force` helps: the kernel would refuse, or nothing on this host would go on.
UNFORCEABLE = frozenset({Use.ROOT, Use.VFS, Use.BRIDGE})


@dataclass(frozen=True, slots=True)
class User:
    """One use of a device. `what` is for people: `/mnt/data on nvme0n1p2`, `default route via eth0`,
    `qemu-system-x86 (pid 812) holds /dev/vfio/14`. `pid` is the process that holds it, where one does."""

    use: Use
    what: str
    pid: int | None = None


class Subject(Protocol):
    """What has to be known of a device to find out who uses it; a `Device` is one."""

    @property
    def path(self) -> str: ...

    @property
    def class_code(self) -> int: ...

    @property
    def driver(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Described:
    """A subject that another process has described: its directory in sysfs, its class and its driver."""

    path: str
    class_code: int
    driver: str | None
