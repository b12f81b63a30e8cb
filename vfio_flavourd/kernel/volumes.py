"""What is made of a device's disks: partitions, and whatever holds those, to the top.

`holders/` links lead from a disk or a partition to what has claimed it: device mapper (LVM, dm-crypt,
multipath), md, bcache and others (block/holder.c). An NVMe namespace that is shared between controllers has
a hidden disk below the PCI device and its head elsewhere. zpools, a bcache set, loop devices and what the
kernel serves to other hosts leave no such link.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from .exports import Export, read_exports
from .host_files import HostFiles
from .subtree import Subtree

# What made a device mapper device, by the prefix of its UUID.
_MAPPED_BY = {"LVM-": "LVM", "CRYPT-": "crypt", "mpath-": "multipath"}


@dataclass(frozen=True, slots=True)
class Volume:
    """A disk, a partition, or a `holder` of such; `label` says what it is by way of all that is below.

    `number` is its major:minor, empty for what is no block device; `sources` is what a mount or a swap
    may call it; `fs_type` is set for what only that kind of file system is mounted from.
    """

    name: str
    path: str
    label: str
    number: str = ""
    sources: tuple[str, ...] = ()
    fs_type: str = ""
    kind: str = ""
    holder: bool = False
    below: "Volume | None" = None


def find_volumes(files: HostFiles, subtree: Subtree) -> tuple[Volume, ...]:
    """All of them, each after what it is made of."""
    shares = [
        Volume(source or fs_type, "", source or fs_type, sources=(source,), fs_type=fs_type)
        for fs_type, source in subtree.shares
    ]
    exports = read_exports(files) if subtree.disks or subtree.nodes else ()
    disks = _Search(files, exports).find(subtree.disks) if subtree.disks else ()
    return (*disks, *_find_served_nodes(exports, subtree.nodes), *shares)


@dataclass(slots=True)
class _Search:
    files: HostFiles
    exports: tuple[Export, ...]
    found: dict[str, Volume] = field(default_factory=dict)
    loops: list[tuple[str, str]] = field(default_factory=list)

    def find(self, disks: list[str]) -> Iterator[Volume]:
        for name in self.files.list("/sys/block"):
            if name.startswith("loop"):
                self.loops.append((self.files.read_value(f"/sys/block/{name}/loop/backing_file"), name))
        heads = [head for disk in disks for head in _find_heads(self.files, disk)]
        for path in (*disks, *heads):
            self._add(path, None)
        return iter(self.found.values())

    def _add(self, path: str, below: Volume | None) -> None:
        # A holder of several disks is met once for each of them.
        number = self.files.read_value(f"{path}/dev")
        if path in self.found or not number:
            return
        volume = _read_volume(self.files, path, number, below)
        self.found[path] = volume
        for name in self.files.list(path):
            if self.files.exists(f"{path}/{name}/partition"):
                self._add(f"{path}/{name}", below)
        for holder in self._find_holders(volume):
            self._add(holder, volume)
        self._add_cache(volume)
        self._add_pool(volume)
        for export in self.exports:
            if export.number == number or not set(volume.sources).isdisjoint(export.names):
                self.found.setdefault(export.path, _serve(export, volume))

    def _find_holders(self, volume: Volume) -> Iterator[str]:
        links = [f"{volume.path}/holders/{name}" for name in self.files.list(f"{volume.path}/holders")]
        links += [f"/sys/block/{name}" for backing, name in self.loops if backing in volume.sources]
        for link in links:
            path = self.files.follow(link)
            if path is not None:
                yield path

    def _add_cache(self, volume: Volume) -> None:
        """A cache of bcache has no link to what it caches, but its set has (drivers/md/bcache/super.c)."""
        path = self.files.follow(f"{volume.path}/bcache/set")
        if path is None or path in self.found:
            return
        name = f"bcache set {path.rsplit('/', 1)[1]}"
        made = Volume(name, path, f"{name} on {volume.label}", holder=True, below=volume)
        self.found[path] = made
        for name in self.files.list(path):
            backing = self.files.follow(f"{path}/{name}") if name.startswith("bdev") else None
            cached = self.files.follow(f"{backing}/dev") if backing else None
            if cached is not None:
                self._add(cached, made)

    def _add_pool(self, volume: Volume) -> None:
        """ZFS opens its disks without a trace in sysfs. What udev has probed says which pool a disk belongs
        to, and an imported pool has its statistics (module/zfs/spa_stats.c)."""
        database = self.files.read(f"/run/udev/data/b{volume.number}")
        if "E:ID_FS_TYPE=zfs_member\n" not in database:
            return
        pools = "/proc/spl/kstat/zfs"
        imported = [name for name in self.files.list(pools) if self.files.exists(f"{pools}/{name}/state")]
        # In ID_FS_LABEL a space is an underscore.
        label = re.search(r"^E:ID_FS_LABEL_ENC=(.+)$", database, re.MULTILINE)
        pool = _decode(label[1]) if label else ""
        if pool not in imported:
            # A cache or a spare has no pool's name on it, and of a pool that was imported by a new name udev
            # may still know the old one.
            pool = ""
        path = f"{pools}/{pool}"
        if imported and path not in self.found:
            title = f"zpool {pool}" if pool else "a zpool"
            self.found[path] = Volume(
                title,
                path,
                f"{title} on {volume.label}",
                sources=(pool,) if pool else (),
                fs_type="zfs",
                holder=True,
                below=volume,
            )


def _decode(text: str) -> str:
    """What blkid_encode_string(3) has made safe; a pool's name is ASCII."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)


def _serve(export: Export, volume: Volume) -> Volume:
    label = f"{export.name} on {volume.label}"
    return Volume(export.name, export.path, label, holder=True, below=volume)


def _find_served_nodes(exports: Iterable[Export], nodes: Collection[str]) -> Iterator[Volume]:
    """An NVMe controller can be served as it is, by its character device."""
    for export in exports:
        for name in export.names:
            node = name.removeprefix("/dev/")
            if node in nodes:
                yield _serve(export, Volume(node, name, node))


def _read_volume(files: HostFiles, path: str, number: str, below: Volume | None) -> Volume:
    name = path[path.rfind("/") + 1 :].replace("!", "/")
    mapped = files.read_value(f"{path}/dm/name")
    sources = [name]
    # The character device of an NVMe namespace stands beside it.
    generic = name.replace("nvme", "ng", 1)
    if generic != name and files.exists(f"{path[: -len(name)]}{generic}/dev"):
        sources.append(generic)
    if mapped:
        # LVM doubles the hyphens within its names.
        group = re.fullmatch(r"((?:[^-]|--)+)-((?:[^-]|--)+)", mapped)
        sources += [f"mapper/{mapped}"]
        sources += [f"{group[1]}/{group[2]}".replace("--", "-")] if group else []
    database = files.read(f"/run/udev/data/b{number}")
    sources += [line[2:] for line in database.split("\n") if line.startswith("S:")]
    uuid = files.read_value(f"{path}/dm/uuid")
    kind = next((kind for prefix, kind in _MAPPED_BY.items() if uuid.startswith(prefix)), "device mapper")
    title = f"{mapped} ({name})" if mapped else name
    return Volume(
        name=name,
        path=path,
        label=f"{title} on {below.label}" if below else title,
        number=number,
        sources=tuple(f"/dev/{source}" for source in sources),
        kind=f"{kind} {mapped}" if mapped else "",
        holder=below is not None and not files.exists(f"{path}/partition"),
        below=below,
    )


def _find_heads(files: HostFiles, disk: str) -> Iterator[str]:
    """The multipath heads of an NVMe namespace whose hidden disk this is (drivers/nvme/host/multipath.c)."""
    if files.read_value(f"{disk}/hidden") != "1":
        return
    controller = disk.split("/")[-2]
    namespace = files.read_value(f"{disk}/wwid")
    for subsystem in files.list("/sys/class/nvme-subsystem"):
        path = files.follow(f"/sys/class/nvme-subsystem/{subsystem}")
        if path is None or not files.exists(f"{path}/{controller}"):
            continue
        for name in files.list(path):
            head = f"{path}/{name}"
            if files.exists(f"{head}/holders") and files.read_value(f"{head}/wwid") == namespace:
                yield head
