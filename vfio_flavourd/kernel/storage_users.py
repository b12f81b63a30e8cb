"""Who uses a device's disks: mounts, swaps, and whatever is made of them."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..model.occupancy import Use, User
from .host_files import HostFiles
from .mounts import Mount, read_mounts, tell_unread, unescape
from .volumes import Volume

# Where the running system, and this daemon, have what they can't do without.
_ESSENTIAL = (
    "/etc",
    "/run",
    "/usr/bin",
    "/usr/lib/modules",
    "/lib/modules",
    "/var/lib/vfio-flavourd",
    sys.prefix,
    str(Path(__file__).parent),
)

# A journal, a log or real-time data on a disk of its own (ext4, xfs, reiserfs). In other options may be any
# text.
_NAMES_A_DISK = frozenset({"journal_path", "logdev", "rtdev", "jdev"})

# File systems whose source is any text that who mounts them likes, anyone in a user name space of his own.
_SOURCE_IS_A_REMARK = frozenset(
    {"tmpfs", "ramfs", "overlay", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "binder"}
    | {"binfmt_misc", "fuse"}
)


def find_storage_users(files: HostFiles, volumes: Sequence[Volume], until: float) -> Iterator[User]:
    """`until` is when to stop reading mounts (`read_mounts`)."""
    if not volumes:
        return
    unread: list[int] = []
    busy: set[str] = set()
    for volume, user in (*_find_mounts(files, volumes, until, unread), *_find_swaps(files, volumes)):
        _mark(busy, volume)
        yield user
    yield from tell_unread(files, Use.MOUNT, unread)
    for volume in reversed(volumes):  # what is on top first
        if volume.path in busy:
            continue
        fs_type = _find_file_system(files, volume)
        if fs_type:
            _mark(busy, volume)
            yield User(Use.MOUNT, f"{fs_type} on {volume.label}, mounted where it can't be seen")
        elif volume.holder and volume.below is not None:
            _mark(busy, volume)
            what = f"{volume.name} ({volume.kind})" if volume.kind else volume.name
            yield User(Use.HOLDER, f"{what} is made of {volume.below.label}")


def judge_mount(mount: Mount) -> Use:
    """The root file system, and any other on the way to something essential, can't be done without."""
    if mount.pid != 1:
        return Use.MOUNT
    point = mount.point.rstrip("/") + "/"
    return Use.ROOT if any(f"{path}/".startswith(point) for path in _ESSENTIAL) else Use.MOUNT


def name_view(files: HostFiles, mount: Mount) -> str:
    """Whose mount it is, where it isn't the host's."""
    return "" if mount.pid == 1 else f", seen by {files.read_name(mount.pid)} (pid {mount.pid})"


def _mark(busy: set[str], volume: Volume | None) -> None:
    while volume is not None:
        # With a partition, the disk that it is on.
        busy.update((volume.path, volume.path.rpartition("/")[0]))
        volume = volume.below


@dataclass(slots=True)
class _Index:
    """Volumes by what the kernel's tables call them."""

    numbers: dict[str, Volume] = field(default_factory=dict)
    sources: dict[str, Volume] = field(default_factory=dict)
    others: dict[tuple[str, str], Volume] = field(default_factory=dict)

    def find(self, mount: Mount) -> Volume | None:
        if mount.number in self.numbers:
            return self.numbers[mount.number]
        options = (option.partition("=") for option in mount.options)
        parts = [value for name, _, value in options if name in _NAMES_A_DISK]
        # btrfs and bcachefs have a number of no device; the latter names all its disks. FUSE may have any
        # after a dot; where its server has a disk, it has that open. A fuseblk has its disk's number.
        if mount.number.startswith("0:") and mount.fs_type.partition(".")[0] not in _SOURCE_IS_A_REMARK:
            parts += mount.source.split(":")
        for part in parts:
            if part in self.sources:
                return self.sources[part]
        dataset = mount.source.partition("/")[0] if mount.fs_type == "zfs" else mount.source
        return self.others.get((mount.fs_type, dataset)) or self.others.get((mount.fs_type, ""))


def _index(files: HostFiles, volumes: Iterable[Volume]) -> _Index:
    index = _Index()
    for volume in volumes:
        if volume.number:
            index.numbers[volume.number] = volume
            index.sources.update(dict.fromkeys(volume.sources, volume))
        for source in volume.sources if volume.fs_type else ():
            index.others[volume.fs_type, source] = volume
    by_name = {volume.name: volume for volume in volumes if volume.number}
    # A btrfs of several disks is mounted from any one of them.
    for uuid in files.list("/sys/fs/btrfs"):
        names = files.list(f"/sys/fs/btrfs/{uuid}/devices")
        ours = next((by_name[name] for name in names if name in by_name), None)
        if ours is None:
            continue
        for name in names:
            mapped = files.read_value(f"/sys/class/block/{name}/dm/name")
            for source in (f"/dev/{name}", f"/dev/mapper/{mapped}"):
                index.sources.setdefault(source, ours)
    return index


def _find_mounts(
    files: HostFiles, volumes: Sequence[Volume], until: float, unread: list[int]
) -> Iterator[tuple[Volume, User]]:
    index = _index(files, volumes)
    views: dict[str, int] = {}
    seen = set()
    for mount in read_mounts(files, until, unread):
        volume = index.find(mount)
        # What one name space has mounted, others have as well, by more or less the same name.
        if volume is None or views.setdefault(volume.label, mount.pid) != mount.pid:
            continue
        if (volume.label, mount.point) in seen:
            continue
        seen.add((volume.label, mount.point))
        text = f"{mount.point} on {volume.label}{name_view(files, mount)}"
        yield volume, User(judge_mount(mount), text, None if mount.pid == 1 else mount.pid)


def _find_swaps(files: HostFiles, volumes: Iterable[Volume]) -> Iterator[tuple[Volume, User]]:
    """A swap file is on a mount, and so already found."""
    sources = {source: volume for volume in volumes for source in volume.sources if volume.number}
    for line in files.read_lines("/proc/swaps"):
        volume = sources.get(unescape(re.split(r"[ \t]", line, maxsplit=1)[0]))
        if volume is not None:
            yield volume, User(Use.SWAP, f"swap on {volume.label}")


def _find_file_system(files: HostFiles, volume: Volume) -> str:
    """The type of a file system that is alive, though no mount of it was found: it was unmounted lazily
    and files are still open, or its name space can't be read. ext4, xfs, f2fs and others show themselves by
    the disk's name, btrfs by its disks."""
    if not volume.number:
        return ""
    for fs_type in files.list("/sys/fs"):
        if files.exists(f"/sys/fs/{fs_type}/{volume.name}"):
            return fs_type
    for uuid in files.list("/sys/fs/btrfs"):
        if files.exists(f"/sys/fs/btrfs/{uuid}/devices/{volume.name}"):
            return "btrfs"
    return ""
