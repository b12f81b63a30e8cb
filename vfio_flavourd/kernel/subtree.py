"""What a device's driver has made of it: the devices below its directory in sysfs.

Everything there goes with an unbind. That holds for PCI functions as well: below a device that isn't a
bridge, which is never asked about, there are some only if its driver makes a PCI domain of its own (Intel
VMD), and then that ends with the driver.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from .host_files import HostFiles

# Groups of attributes and links, some of them large: no device is below them.
_NO_DEVICES = frozenset({"power", "msi_irqs", "statistics"})


@dataclass(slots=True)
class Subtree:
    """Paths as the kernel names them. `nodes` are what character devices are called in /dev.

    `vfio_devices` are pairs of an IOMMU group (empty where there is none) and a VFIO device in it;
    `shares` pairs of a file system type and the source it mounts from (empty where that can't be told).
    """

    virtual_functions: int = 0
    disks: list[str] = field(default_factory=list)
    interfaces: list[str] = field(default_factory=list)
    hidden_interfaces: bool = False
    nodes: list[str] = field(default_factory=list)
    vfio_devices: list[tuple[str, str]] = field(default_factory=list)
    shares: list[tuple[str, str]] = field(default_factory=list)


def read_subtree(files: HostFiles, top: str) -> Subtree:
    found = Subtree()
    pending = [top]
    while pending:
        path = pending.pop()
        names, directories = _list(files, path)
        if path == top:
            # Not by `sriov_numvfs`, whose reader waits for the device's lock (drivers/pci/iov.c, since 5.6).
            found.virtual_functions = sum(name.startswith("virtfn") for name in names)
        pending += [f"{path}/{name}" for name in reversed(_look_at(files, found, path, names, directories))]
    return found


def _look_at(
    files: HostFiles, found: Subtree, path: str, names: set[str], directories: list[str]
) -> list[str]:
    """Notes what `path` is, and returns in which of its directories to go on."""
    name = path[path.rfind("/") + 1 :]
    subsystem = files.follow(f"{path}/subsystem") if "subsystem" in names else None
    match subsystem and subsystem.rsplit("/", 1)[1]:
        case "block":
            # Its partitions are found with what is made of it.
            found.disks.append(path)
            return []
        case "net":
            found.interfaces.append(path)
            return []
        case None if name == "vfio-dev":
            group = files.find_link(f"{path[: -len('/vfio-dev')]}/iommu_group") or ""
            found.vfio_devices += [(group, child) for child in directories]
            return []
        case None if name == "net" and not names:
            # The directory for a device's interfaces is there as long as one is, but shows only those of
            # our network name space (lib/kobject.c, fs/kernfs/dir.c; seen on 6.18).
            found.hidden_interfaces = True
        case "virtio" if files.find_link(f"{path}/driver") == "virtiofs":
            found.shares.append(("virtiofs", ""))
        case _ if subsystem is not None and "dev" in names:
            found.nodes.append(_read_node(files, path, subsystem, name))
    if "mount_tag" in names:
        found.shares.append(("9p", files.read_value(f"{path}/mount_tag")))
    return [child for child in directories if child not in _NO_DEVICES]


def _read_node(files: HostFiles, path: str, subsystem: str, name: str) -> str:
    """As devtmpfs names it. `uevent` is read for devices of a class only: one on a bus has a driver, and
    its `uevent` then waits for whatever that does."""
    if "/class/" in subsystem:
        return files.read_properties(f"{path}/uevent").get("DEVNAME", name.replace("!", "/"))
    bus, number = files.read_value(f"{path}/busnum"), files.read_value(f"{path}/devnum")
    if bus.isdecimal() and number.isdecimal():
        # As usb_devnode() does (drivers/usb/core/usb.c).
        return f"bus/usb/{int(bus):03}/{int(number):03}"
    return name.replace("!", "/")


def _list(files: HostFiles, path: str) -> tuple[set[str], list[str]]:
    names, directories = set(), []
    for entry in _scan(files.root + path):
        names.add(entry.name)
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
    return names, sorted(directories)


def _scan(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except OSError:
        return
