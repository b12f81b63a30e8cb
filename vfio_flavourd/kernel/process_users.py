"""Which processes have a node of a device open.

Told by the names that the links in `/proc/<pid>/fd` read as. Anybody may call a file of his own by such a
name, so what has one is looked at: it must be a device, and no other one. Following the link can block on a
file system that hangs, so that is done only where it can't; where it can't be told, it counts as the node.

Listing another user's needs CAP_DAC_READ_SEARCH, reading and following them CAP_SYS_PTRACE.
"""

import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ..model.occupancy import Use, User
from .host_files import HostFiles

# More GPUs than a host has.
_NVIDIA_MINORS = 64

_VFIO_FILE = "anon_inode:[vfio-device]"

# Of the flags in /proc/<pid>/fdinfo/<number>, which are octal. Such a descriptor is a name for the file: the
# driver's open() was never called (open(2)). udev's workers take one on each node to set its owner and mode.
_IS_ONLY_A_NAME = os.O_PATH

# Their files tell from memory what they are. Another kind may wait for its server, or lie on one that does
# (overlay).
_TELLS_AT_ONCE = frozenset({"devtmpfs", "tmpfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})

# Seconds, of the thirty that an answer is waited for. Some 40,000 open files take 0.3; who opens millions, or
# thousands that are called like a node, is to keep nobody from an answer.
_PATIENCE = 10.0

# What memfd_create(2) makes, and the name of a DMA buffer: who makes one chooses what follows.
_HAS_NO_PATH = ("/memfd:", "/dmabuf:")

# Opens the nodes of every device for the time of an event, and lets go by itself.
_UDEV = frozenset({"systemd-udevd", "(udev-worker)", "udevd"})

# logind holds input and display devices for the seat's sessions, and keeps them in process 1's store. It
# follows their removal; whoever really reads or draws has a file of his own.
_LOGIND = frozenset({"systemd-logind", "elogind", "systemd"})
_LOGIND_HOLDS = ("input/", "dri/")


def find_open_files(
    files: HostFiles, nodes: Mapping[str, Use], vfio_paths: Collection[str] = ()
) -> Iterator[User]:
    """Who has one of `nodes` (their names in /dev), or a VFIO file of one of the devices `vfio_paths`."""
    if not nodes and not vfio_paths:
        return
    own = os.getpid()
    # Since Linux 6.2 (fs/proc/fd.c) a directory's size is the number of its files; before, it is always 0.
    is_counted = _read_size(f"{files.root}/proc/{own}/fd") > 0
    until = time.monotonic() + _PATIENCE
    left: list[int] = []
    for pid in files.list_processes():
        if time.monotonic() > until:
            left.append(pid)
            continue
        directory = f"{files.root}/proc/{pid}/fd"
        if pid == own or (is_counted and _read_size(directory) == 0):
            continue  # most processes are kernel threads, and have none
        named, vfio_files = _scan(directory, nodes)
        process = _Process(files, nodes, pid, until)
        held = {node for node, numbers in named.items() if any(map(process.has_open, numbers))}
        if held or vfio_files:
            yield from _name_users(files, nodes, vfio_paths, pid, held, vfio_files)
    if left:
        first = f"{files.read_name(left[0])} (pid {left[0]})"
        yield User(Use.OPEN, f"{len(left)} processes, from {first} on, could not be looked into in time")


def name_vfio_nodes(group: str, devices: Collection[str] = ()) -> dict[str, Use]:
    """By group (the second where there is no IOMMU), and a device's own with CONFIG_VFIO_DEVICE_CDEV."""
    nodes = [f"vfio/{group}", f"vfio/noiommu-{group}"] if group else []
    return dict.fromkeys([*nodes, *(f"vfio/devices/{device}" for device in devices)], Use.GUEST)


def name_nvidia_nodes(files: HostFiles, driver: str | None) -> dict[str, Use]:
    """The nodes of NVIDIA's own driver have no devices in sysfs. Which one is which GPU's tells only a file
    whose reader waits until the GPU has woken up (nv-procfs.c), so where there are several it isn't told."""
    if driver != "nvidia" or len(files.list("/proc/driver/nvidia/gpus")) != 1:
        return {}
    return {f"nvidia{minor}": Use.OPEN for minor in range(_NVIDIA_MINORS)}


def _name_users(
    files: HostFiles,
    nodes: Mapping[str, Use],
    vfio_paths: Collection[str],
    pid: int,
    held: Collection[str],
    vfio_files: Collection[str],
) -> Iterator[User]:
    name = files.read_name(pid)
    for node in sorted(held):
        if nodes[node] is Use.GUEST:
            yield User(Use.GUEST, f"{name} (pid {pid}) holds /dev/{node}", pid)
        elif not (_lets_go(name, node) and _is_root_s(files, pid)):
            yield User(nodes[node], f"{name} (pid {pid}) has /dev/{node} open", pid)
    if any(nodes[node] is Use.GUEST for node in held):
        return
    # Files of the kind all read alike; since 6.18 their fdinfo names the device.
    for number in vfio_files if vfio_paths else ():
        for line in files.read_lines(f"/proc/{pid}/fdinfo/{number}"):
            path = line.removeprefix("vfio-device-syspath:").strip()
            if path in vfio_paths:
                yield User(Use.GUEST, f"{name} (pid {pid}) holds VFIO device {path.rsplit('/', 1)[1]}", pid)


@dataclass(slots=True)
class _Process:
    """Of a process with descriptors that are named as one of the `nodes` is."""

    files: HostFiles
    nodes: Collection[str]
    pid: int
    until: float
    # By mount ID, what mountinfo says of it: the type, and whether devices can be opened there.
    mounts: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def has_open(self, number: str) -> bool:
        """Also where it can't be told, or not in time, unless that is because it was closed meanwhile."""
        if time.monotonic() > self.until:
            return True
        link = f"/proc/{self.pid}/fd/{number}"
        told = _parse_fdinfo(self.files.read(f"/proc/{self.pid}/fdinfo/{number}"))
        if "flags" not in told:
            return self.files.find_link(link) is not None
        if int(told["flags"], 8) & _IS_ONLY_A_NAME:
            return False
        mount_id = told.get("mnt_id", "")
        fs_type, has_devices = self._find_mount(mount_id)
        if fs_type not in _TELLS_AT_ONCE:
            return has_devices
        try:
            status = _stat(self.files.root + link, mount_id)
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError:
            return True
        return status is None or self._is_node(status)

    def _find_mount(self, mount_id: str) -> tuple[str, bool]:
        """The type is empty for one that the process doesn't see: it was unmounted lazily, or the file was
        handed over by a process of another name space."""
        if not self.mounts:
            for line in self.files.read_lines(f"/proc/{self.pid}/mountinfo"):
                left, _, right = line.partition(" - ")
                fields = left.split(" ")
                if len(fields) >= 6:
                    self.mounts[fields[0]] = right.partition(" ")[0], "nodev" not in fields[5].split(",")
        return self.mounts.get(mount_id, ("", True))

    def _is_node(self, status: os.stat_result) -> bool:
        """A device, and not one that is known to be called otherwise: any file can be bound to any name."""
        if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            return False
        kind = "char" if stat.S_ISCHR(status.st_mode) else "block"
        path = self.files.follow(f"/sys/dev/{kind}/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
        # NVIDIA's are not in sysfs; the `uevent` of a device on a bus isn't read (subtree.py).
        if path is None or "/class/" not in (self.files.follow(f"{path}/subsystem") or ""):
            return True
        name = self.files.read_properties(f"{path}/uevent").get("DEVNAME")
        return name is None or name in self.nodes


def _parse_fdinfo(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.split("\n"))}


def _stat(link: str, mount_id: str) -> os.stat_result | None:
    """Of what is open there, without opening it: no driver is asked. Raises OSError.

    None where the descriptor has become another one meanwhile, of a file system that may make us wait.
    """
    file = os.open(link, os.O_PATH | os.O_CLOEXEC)
    try:
        # Unbuffered, since who wants to hold us up has many.
        with open(f"/proc/self/fdinfo/{file}", "rb", buffering=0) as told:  # noqa: PTH123
            same = _parse_fdinfo(told.read(4096).decode("ascii", "replace")).get("mnt_id") == mount_id
        return os.fstat(file) if same else None
    finally:
        os.close(file)


def _lets_go(name: str, node: str) -> bool:
    return name in _UDEV or (name in _LOGIND and node.startswith(_LOGIND_HOLDS))


def _is_root_s(files: HostFiles, pid: int) -> bool:
    """By all its user numbers: anybody may call his process like one of root's."""
    for line in files.read_lines(f"/proc/{pid}/status"):
        if line.startswith("Uid:"):
            return set(line.split()[1:]) == {"0"}
    return False


def _read_size(path: str) -> int:
    """0 for what isn't there; where it may not be looked at, it is not known that it is empty."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a Path would double what each look costs
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError:
        return 1


def _scan(path: str, nodes: Collection[str]) -> tuple[dict[str, list[str]], list[str]]:
    """By node the numbers of a process's descriptors that name it, and the numbers of those that are VFIO's
    own files; as far as it and they last, and we may look.

    All the time that finding users takes is spent here: 40,000 files are nothing special. By the
    directory's descriptor a link costs a third less than by its path.
    """
    named: dict[str, list[str]] = {}
    vfio_files: list[str] = []
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return named, vfio_files
    try:
        for number in os.listdir(directory):  # noqa: PTH208 (a Path can't be a descriptor)
            try:
                target = os.readlink(number, dir_fd=directory)
            except OSError:
                continue
            if "/dev/" in target:
                # What comes before it is the way to the root directory that a process has of its own.
                node = target[target.rfind("/dev/") + 5 :].removesuffix(" (deleted)")
                if node in nodes and not target.startswith(_HAS_NO_PATH):
                    named.setdefault(node, []).append(number)
            elif target == _VFIO_FILE:
                vfio_files.append(number)
    except OSError:
        pass  # it ended meanwhile
    finally:
        os.close(directory)
    return named, vfio_files
