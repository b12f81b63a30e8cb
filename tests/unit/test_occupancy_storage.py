"""Who uses a device's disks, by every way that a file system or a swap can come to be on one."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_host import CONTAINER, DD, DEVICE, OTHER, QEMU, FakeHost

from vfio_flavourd.kernel.host_files import HostFiles
from vfio_flavourd.kernel.mounts import parse_mount, read_mounts
from vfio_flavourd.model.occupancy import UNFORCEABLE, Use, User


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def part(host: FakeHost) -> str:
    """The second partition of an NVMe disk."""
    disk = host.add_disk("nvme0n1", "259:0")
    host.add_partition(disk, "nvme0n1p1", "259:1")
    return host.add_partition(disk, "nvme0n1p2", "259:2")


def test_an_idle_disk_has_no_users(host: FakeHost, part: str) -> None:
    host.mount("8:1", "/")
    host.mount("0:21", "/proc", "proc", "proc")
    host.swap_on("/dev/sda2")
    host.path("/sys/fs/ext4/sda1").mkdir(parents=True)
    host.path("/sys/fs/ext4/features").mkdir(parents=True)
    assert host.users() == ()


# mounts


def test_a_mounted_partition_is_named_with_its_mount_point(host: FakeHost, part: str) -> None:
    host.mount("259:2", "/mnt/data", source="/dev/nvme0n1p2")
    assert host.users() == (User(Use.MOUNT, "/mnt/data on nvme0n1p2"),)


@pytest.mark.parametrize(
    "parent",
    [f"{DEVICE}/virtio1/block", f"{DEVICE}/host0/target0:0:0/0:0:0:0/block", f"{DEVICE}/usb2/2-1/block"],
)
def test_a_disk_is_found_wherever_its_driver_puts_it(host: FakeHost, parent: str) -> None:
    host.add_disk("sdb", "8:16", parent)
    host.mount("8:16", "/mnt")
    assert host.told() == ["mount: /mnt on sdb"]


def test_a_mount_of_another_devices_disk_is_not_this_ones(host: FakeHost, part: str) -> None:
    host.add_disk("nvme1n1", "259:5", f"{OTHER}/nvme/nvme1")
    host.mount("259:5", "/mnt")
    assert host.users() == ()


@pytest.mark.parametrize("point", ["/", "/usr", "/var", "/run", "/etc", "/usr/lib/modules", "/var/lib"])
def test_what_the_running_system_cannot_do_without_is_worse_than_a_mount(
    host: FakeHost, part: str, point: str
) -> None:
    host.mount("259:2", point)
    assert host.users() == (User(Use.ROOT, f"{point} on nvme0n1p2"),)


@pytest.mark.parametrize("point", ["/boot", "/home", "/var/lib/libvirt", "/usrlocal", "/mnt/usr"])
def test_any_other_mount_is_a_mount(host: FakeHost, part: str, point: str) -> None:
    host.mount("259:2", point)
    assert [user.use for user in host.users()] == [Use.MOUNT]


def test_a_mount_is_told_as_the_host_sees_it(host: FakeHost, part: str) -> None:
    host.mount("259:2", "/srv")
    host.add_process(CONTAINER, "nginx", name_space="mnt:[4026532500]")
    host.mount("259:2", "/usr/share/nginx", pid=CONTAINER)
    assert host.told() == ["mount: /srv on nvme0n1p2"]


def test_a_mount_that_only_another_name_space_has_is_told_with_who_sees_it(host: FakeHost, part: str) -> None:
    for pid in (CONTAINER, CONTAINER + 1):
        host.add_process(pid, "postgres", name_space="mnt:[4026532500]")
        host.mount("259:2", "/", pid=pid)
    host.add_process(DD, "bash", name_space="mnt:[4026532501]")
    assert host.users() == (
        User(Use.MOUNT, f"/ on nvme0n1p2, seen by postgres (pid {CONTAINER})", CONTAINER),
    )


def test_a_mount_outside_of_a_processs_own_root_is_seen_by_another_one(host: FakeHost, part: str) -> None:
    host.add_process(CONTAINER, "named", name_space="mnt:[4026532500]", root="/srv/jail")
    host.add_process(CONTAINER + 1, "sh", name_space="mnt:[4026532500]")
    host.mount("259:2", "/mnt", pid=CONTAINER + 1)
    assert [user.pid for user in host.users()] == [CONTAINER + 1]


def test_a_name_space_that_cannot_be_told_apart_is_known_by_its_first_mount(
    host: FakeHost, part: str
) -> None:
    host.add_process(CONTAINER, "postgres", name_space=None)
    host.mount("259:2", "/data", pid=CONTAINER)
    assert host.told() == [f"mount: /data on nvme0n1p2, seen by postgres (pid {CONTAINER})"]


def test_processes_that_end_meanwhile_hide_no_name_space(host: FakeHost, part: str) -> None:
    host.path(f"/proc/{DD}").mkdir()
    host.add_process(CONTAINER, "sh", name_space="mnt:[4026532500]")
    host.path(f"/proc/{CONTAINER}/mountinfo").unlink()
    host.add_process(CONTAINER + 1, "sh", name_space="mnt:[4026532500]")
    host.mount("259:2", "/mnt", pid=CONTAINER + 1)
    assert [user.pid for user in host.users()] == [CONTAINER + 1]


def test_who_mounts_more_than_can_be_read_is_a_user_and_keeps_nobody_from_an_answer(
    host: FakeHost, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that --force can take it from; and what the host itself has mounted is known all the same."""
    host.mount("259:1", "/")
    host.mount("259:2", "/srv")
    for pid in (CONTAINER, CONTAINER + 1):
        host.add_process(pid, "many", name_space="mnt:[4026532500]", root=f"/{pid}")
        host.mount("259:2", "/mnt", pid=pid)
    monkeypatch.setattr("vfio_flavourd.kernel.occupancy._MOUNTS_PATIENCE", -1.0)
    unread = f"mounts of 2 processes, from many (pid {CONTAINER}) on, could not be looked into in time"
    assert host.users() == (
        User(Use.ROOT, "/ on nvme0n1p1"),
        User(Use.MOUNT, "/srv on nvme0n1p2"),
        User(Use.MOUNT, unread),
    )
    assert Use.MOUNT not in UNFORCEABLE


def test_a_name_space_that_has_more_than_can_be_read_is_left_in_the_middle(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by a second whenever it is looked at."""
    monkeypatch.setattr(
        "vfio_flavourd.kernel.mounts.time", SimpleNamespace(monotonic=itertools.count().__next__)
    )
    for number in range(20):
        host.mount("8:1", f"/host/{number}")
    for pid in (CONTAINER, CONTAINER + 1):
        host.add_process(pid, "many", name_space=f"mnt:[{pid}]")
        for number in range(20):
            host.mount("8:1", f"/{pid}/{number}", pid=pid)
    unread: list[int] = []
    points = [mount.point for mount in read_mounts(HostFiles(str(host.root)), 10, unread)]
    assert points[:20] == [f"/host/{number}" for number in range(20)]
    assert points[20:] == [f"/{CONTAINER}/{number}" for number in range(10)]
    assert unread == [CONTAINER, CONTAINER + 1]


@pytest.mark.parametrize(
    "line", ["", "25 1 259:2 / /mnt rw", "25 1 259:2 - ext4", "- - -", "\0", "25 1 - ext4 /dev rw"]
)
def test_a_line_that_makes_no_sense_is_no_mount(line: str) -> None:
    assert parse_mount(line, 1) is None


def test_a_mount_has_any_number_of_optional_fields() -> None:
    for fields in ("", "shared:1 ", "shared:1 master:2 propagate_from:3 unbindable "):
        mount = parse_mount(rf"25 1 259:2 / /a\040b rw {fields}- ext4 /dev/x\011y rw,discard", 1)
        assert mount is not None
        assert (mount.number, mount.point, mount.fs_type) == ("259:2", "/a b", "ext4")
        assert (mount.source, mount.options) == ("/dev/x\ty", ("rw", "discard"))


def test_a_file_system_unmounted_lazily_is_still_in_use(host: FakeHost, part: str) -> None:
    host.path("/sys/fs/ext4/nvme0n1p2").mkdir(parents=True)
    assert host.told() == ["mount: ext4 on nvme0n1p2, mounted where it can't be seen"]


def test_a_file_system_that_is_seen_mounted_is_told_by_that_only(host: FakeHost, part: str) -> None:
    host.path("/sys/fs/xfs/nvme0n1p2").mkdir(parents=True)
    host.mount("259:2", "/mnt", "xfs")
    assert host.told() == ["mount: /mnt on nvme0n1p2"]


def test_a_btrfs_whose_number_is_no_devices_is_found_by_its_source(host: FakeHost, part: str) -> None:
    host.mount("0:35", "/home", "btrfs", "/dev/nvme0n1p2")
    assert host.told() == ["mount: /home on nvme0n1p2"]


def test_a_btrfs_of_several_disks_is_found_by_any_of_them(host: FakeHost, part: str) -> None:
    other = host.add_mapped("dm-7", "253:7", "luks-sdb", "CRYPT-LUKS2-1-luks-sdb")
    for path in (part, other):
        host.link(f"/sys/fs/btrfs/1c2d/devices/{path.rsplit('/', 1)[1]}", path)
    host.mount("0:35", "/pool", "btrfs", "/dev/mapper/luks-sdb")
    assert host.told() == ["mount: /pool on nvme0n1p2"]


def test_a_btrfs_that_is_alive_unseen_is_in_use(host: FakeHost, part: str) -> None:
    host.link("/sys/fs/btrfs/1c2d/devices/nvme0n1p2", part)
    assert host.told() == ["mount: btrfs on nvme0n1p2, mounted where it can't be seen"]


def test_a_btrfs_of_other_disks_is_not_this_ones(host: FakeHost, part: str) -> None:
    host.link("/sys/fs/btrfs/1c2d/devices/sdb", OTHER)
    host.mount("0:35", "/pool", "btrfs", "/dev/sdb")
    assert host.users() == ()


def test_a_bcachefs_names_all_its_disks(host: FakeHost, part: str) -> None:
    host.mount("0:36", "/pool", "bcachefs", "/dev/sdb:/dev/nvme0n1p2")
    assert host.told() == ["mount: /pool on nvme0n1p2"]


@pytest.mark.parametrize(
    ("fs_type", "option"),
    [("xfs", "logdev"), ("xfs", "rtdev"), ("ext4", "journal_path"), ("reiserfs", "jdev")],
)
def test_a_log_on_a_disk_of_its_own_is_in_use(host: FakeHost, part: str, fs_type: str, option: str) -> None:
    host.mount("8:1", "/srv", fs_type, "/dev/sda1", f"rw,{option}=/dev/nvme0n1p2")
    assert host.told() == ["mount: /srv on nvme0n1p2"]


@pytest.mark.parametrize(
    "fs_type",
    ["tmpfs", "overlay", "fuse", "fuse.sshfs", "proc", "ramfs", "sysfs", "devpts", "mqueue", "binfmt_misc"],
)
def test_a_source_that_anybody_may_make_up_is_not_believed(host: FakeHost, part: str, fs_type: str) -> None:
    host.mount("0:40", "/tmp/x", fs_type, "/dev/nvme0n1p2", "rw,user_id=1000")
    assert host.users() == ()


def test_a_directory_that_is_called_like_a_disk_is_none(host: FakeHost, part: str) -> None:
    host.add_process(CONTAINER, "bash", name_space="mnt:[4026532500]")
    options = "rw,lowerdir=/dev/nvme0n1p2,upperdir=/dev/nvme0n1p1,workdir=/tmp/w"
    host.mount("0:78", "/mnt", "overlay", "overlay", options, pid=CONTAINER)
    assert host.users() == ()


def test_a_file_system_in_user_space_that_the_kernel_gave_the_disk_is_a_mount(
    host: FakeHost, part: str
) -> None:
    host.mount("259:2", "/windows", "fuseblk", "/dev/nvme0n1p2")
    assert host.told() == ["mount: /windows on nvme0n1p2"]


def test_the_server_of_one_that_the_kernel_knows_no_disk_of_has_it_open(host: FakeHost, part: str) -> None:
    host.mount("0:77", "/mnt", "fuse.fuse2fs", "/dev/nvme0n1p2")
    host.add_process(DD, "fuse2fs", ["/dev/nvme0n1p2"])
    assert host.told() == [f"open: fuse2fs (pid {DD}) has /dev/nvme0n1p2 open"]


def test_a_source_by_one_of_udevs_links_is_the_same_disk(host: FakeHost, part: str) -> None:
    host.probe("259:2", "S:disk/by-uuid/1c2d", "E:ID_FS_TYPE=btrfs")
    host.mount("0:35", "/home", "btrfs", "/dev/disk/by-uuid/1c2d")
    assert host.told() == ["mount: /home on nvme0n1p2"]


# swap


@pytest.mark.parametrize("source", ["/dev/nvme0n1p2", "/dev/mapper/vg-swap", "/dev/vg/swap", "/dev/dm-0"])
def test_swap_is_found_on_a_partition_and_above(host: FakeHost, part: str, source: str) -> None:
    if source != "/dev/nvme0n1p2":
        host.add_mapped("dm-0", "253:0", "vg-swap", "LVM-1", part)
    host.swap_on(source)
    by_way = "" if source == "/dev/nvme0n1p2" else "vg-swap (dm-0) on "
    assert host.users() == (User(Use.SWAP, f"swap on {by_way}nvme0n1p2"),)


def test_a_swap_file_counts_by_the_mount_that_it_is_on(host: FakeHost, part: str) -> None:
    host.mount("259:2", "/srv")
    host.swap_on(r"/srv/swap\040file", "file")
    assert host.told() == ["mount: /srv on nvme0n1p2"]


# holders


@pytest.mark.parametrize(
    ("uuid", "kind"),
    [("LVM-abc", "LVM"), ("CRYPT-LUKS2-abc", "crypt"), ("mpath-3600", "multipath"), ("", "device mapper")],
)
def test_a_holder_without_a_mount_is_a_use(host: FakeHost, part: str, uuid: str, kind: str) -> None:
    host.add_mapped("dm-0", "253:0", "vg-lv", uuid, part)
    assert host.users() == (User(Use.HOLDER, f"dm-0 ({kind} vg-lv) is made of nvme0n1p2"),)


def test_an_md_array_is_a_holder(host: FakeHost, part: str) -> None:
    host.add_holder("md0", "9:0", part)
    assert host.told() == ["holder: md0 is made of nvme0n1p2"]


def test_a_mount_is_found_through_all_its_holders(host: FakeHost, part: str) -> None:
    crypt = host.add_mapped("dm-0", "253:0", "luks", "CRYPT-LUKS2-1", part)
    host.add_mapped("dm-1", "253:1", "my--vg-lv", "LVM-1", crypt)
    host.mount("253:1", "/mnt/data")
    assert host.told() == ["mount: /mnt/data on my--vg-lv (dm-1) on luks (dm-0) on nvme0n1p2"]


def test_the_root_is_found_through_a_holder(host: FakeHost, part: str) -> None:
    host.add_mapped("dm-0", "253:0", "vg-root", "LVM-1", part)
    host.mount("253:0", "/")
    assert [user.use for user in host.users()] == [Use.ROOT]


def test_only_the_holders_on_top_are_told_and_none_below_a_mount(host: FakeHost, part: str) -> None:
    crypt = host.add_mapped("dm-0", "253:0", "luks", "CRYPT-LUKS2-1", part)
    host.add_mapped("dm-1", "253:1", "vg-a", "LVM-1a", crypt)
    host.add_mapped("dm-2", "253:2", "vg-b", "LVM-1b", crypt)
    host.mount("253:1", "/a")
    assert host.told() == [
        "mount: /a on vg-a (dm-1) on luks (dm-0) on nvme0n1p2",
        "holder: dm-2 (LVM vg-b) is made of luks (dm-0) on nvme0n1p2",
    ]


def test_a_partition_of_an_array_is_found(host: FakeHost, part: str) -> None:
    array = host.add_holder("md0", "9:0", part)
    host.add_partition(array, "md0p1", "259:9")
    host.mount("259:9", "/mnt")
    assert host.told() == ["mount: /mnt on md0p1 on nvme0n1p2"]


def test_an_array_of_two_of_a_disks_partitions_is_told_once(host: FakeHost, part: str) -> None:
    first = part.replace("nvme0n1p2", "nvme0n1p1")
    host.add_holder("md0", "9:0", first, part)
    assert host.told() == ["holder: md0 is made of nvme0n1p1"]


def test_a_loop_of_holders_comes_to_an_end(host: FakeHost, part: str) -> None:
    first = host.add_holder("md0", "9:0", part)
    second = host.add_holder("md1", "9:1", first)
    host.link(f"{second}/holders/md0", first)
    assert host.told() == ["holder: md1 is made of md0 on nvme0n1p2"]


def test_a_holders_node_that_a_guest_has_open_is_a_use(host: FakeHost, part: str) -> None:
    host.add_mapped("dm-0", "253:0", "vg-guest", "LVM-1", part)
    host.add_process(QEMU, "qemu-system-x86", ["/dev/dm-0"])
    assert host.told() == [
        "holder: dm-0 (LVM vg-guest) is made of nvme0n1p2",
        f"open: qemu-system-x86 (pid {QEMU}) has /dev/dm-0 open",
    ]


def test_a_loop_device_on_a_disk_is_a_holder(host: FakeHost, part: str) -> None:
    for name, number, backing in (("loop0", "7:0", "/dev/nvme0n1p2"), ("loop1", "7:1", "/srv/image")):
        path = host.add_disk(name, number, "/sys/devices/virtual/block")
        host.write(f"{path}/loop/backing_file", f"{backing}\n")
    assert host.told() == ["holder: loop0 is made of nvme0n1p2"]


def test_a_cache_is_used_by_what_it_caches(host: FakeHost, part: str) -> None:
    backing = host.add_disk("sdb", "8:16", f"{OTHER}/ata1/block")
    cached = host.add_holder("bcache0", "252:0", backing)
    host.link(f"{part}/bcache/set", "/sys/fs/bcache/1c2d")
    host.link("/sys/fs/bcache/1c2d/bdev0", f"{backing}/bcache")
    host.link(f"{backing}/bcache/dev", cached)
    assert host.told() == ["holder: bcache0 is made of bcache set 1c2d on nvme0n1p2"]
    host.mount("252:0", "/mnt")
    assert host.told() == ["mount: /mnt on bcache0 on bcache set 1c2d on nvme0n1p2"]


def test_a_cache_without_anything_to_cache_is_in_use_by_its_set(host: FakeHost, part: str) -> None:
    host.link(f"{part}/bcache/set", "/sys/fs/bcache/1c2d")
    host.path("/sys/fs/bcache/1c2d").mkdir(parents=True)
    assert host.told() == ["holder: bcache set 1c2d is made of nvme0n1p2"]


# NVMe multipath


def add_head(host: FakeHost, wwid: str = "eui.0025", controller: str = "nvme0") -> str:
    """A namespace with a head, as nvme-core makes them when subsystems may have several controllers."""
    subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    head = host.add_disk("nvme0n1", "259:0", subsystem)
    host.write(f"{head}/wwid", "eui.0025\n")
    host.add_directory(f"{subsystem}/ng0n1", class_="nvme-generic", dev="241:0", uevent="DEVNAME=ng0n1")
    host.link("/sys/class/nvme-subsystem/nvme-subsys0", subsystem)
    host.link(f"{subsystem}/{controller}", f"{DEVICE}/nvme/{controller}")
    hidden = host.add_directory(f"{DEVICE}/nvme/nvme0/nvme0c0n1", class_="block", hidden="1", wwid=wwid)
    host.add_directory(f"{hidden}/holders")
    return head


def test_a_namespace_under_a_multipath_head_is_used_by_what_uses_the_head(host: FakeHost) -> None:
    part = host.add_partition(add_head(host), "nvme0n1p1", "259:1")
    assert host.users() == ()
    host.add_mapped("dm-0", "253:0", "vg-lv", "LVM-1", part)
    host.mount("253:0", "/mnt")
    host.add_process(DD, "nvme", ["/dev/ng0n1"])
    assert host.told() == [
        "mount: /mnt on vg-lv (dm-0) on nvme0n1p1",
        f"open: nvme (pid {DD}) has /dev/ng0n1 open",
    ]


@pytest.mark.parametrize(("wwid", "controller"), [("eui.9999", "nvme0"), ("eui.0025", "nvme1")])
def test_the_head_of_another_namespace_or_controller_is_not_this_ones(
    host: FakeHost, wwid: str, controller: str
) -> None:
    add_head(host, wwid, controller)
    host.mount("259:0", "/mnt")
    assert host.users() == ()


# pools and shares


def test_a_zpool_holds_its_disk(host: FakeHost, part: str) -> None:
    host.probe("259:2", "E:ID_FS_TYPE=zfs_member", "E:ID_FS_LABEL=tank", "E:ID_FS_LABEL_ENC=tank")
    assert host.users() == ()  # it isn't imported
    host.write("/proc/spl/kstat/zfs/tank/state", "ONLINE\n")
    assert host.told() == ["holder: zpool tank is made of nvme0n1p2"]


def test_the_data_sets_of_a_zpool_are_mounts_of_its_disk(host: FakeHost, part: str) -> None:
    host.probe("259:2", "E:ID_FS_TYPE=zfs_member", "E:ID_FS_LABEL=tank", "E:ID_FS_LABEL_ENC=tank")
    host.write("/proc/spl/kstat/zfs/tank/state", "ONLINE\n")
    host.mount("0:50", "/", "zfs", "tank/ROOT/debian")
    host.mount("0:51", "/srv", "zfs", "tank")
    host.mount("0:52", "/other", "zfs", "tanker/srv")
    assert host.told() == ["root: / on zpool tank on nvme0n1p2", "mount: /srv on zpool tank on nvme0n1p2"]


def test_a_cache_of_no_named_zpool_is_held_by_any_that_is_imported(host: FakeHost, part: str) -> None:
    host.probe("259:2", "E:ID_FS_TYPE=zfs_member")
    host.write("/proc/spl/kstat/zfs/arcstats", "")
    assert host.users() == ()
    host.write("/proc/spl/kstat/zfs/tank/state", "ONLINE\n")
    assert host.told() == ["holder: a zpool is made of nvme0n1p2"]


def test_a_zpool_whose_name_has_a_space_holds_its_disk(host: FakeHost, part: str) -> None:
    host.probe("259:2", "E:ID_FS_TYPE=zfs_member", "E:ID_FS_LABEL=my_tank", "E:ID_FS_LABEL_ENC=my\\x20tank")
    host.write("/proc/spl/kstat/zfs/my tank/state", "ONLINE\n")
    assert host.told() == ["holder: zpool my tank is made of nvme0n1p2"]
    host.mount("0:50", "/", "zfs", "my\\040tank/ROOT/debian")
    assert host.told() == ["root: / on zpool my tank on nvme0n1p2"]


def test_a_zpool_that_was_imported_by_a_new_name_holds_its_disk(host: FakeHost, part: str) -> None:
    """udev's database has the old name until it probes the disk again."""
    host.probe("259:2", "E:ID_FS_TYPE=zfs_member", "E:ID_FS_LABEL=tank", "E:ID_FS_LABEL_ENC=tank")
    host.write("/proc/spl/kstat/zfs/new/state", "ONLINE\n")
    assert host.told() == ["holder: a zpool is made of nvme0n1p2"]


# what the kernel serves to other hosts

TARGET = "/sys/kernel/config/target/core/iblock_0/backup"
SUBSYSTEM = "/sys/kernel/config/nvmet/subsystems/nqn.2014-08.org.example:one"


@pytest.mark.parametrize("name", ["/dev/nvme0n1p2", "/dev/disk/by-id/nvme-one-part2", "/dev/mine"])
def test_a_disk_that_lio_serves_is_in_use(host: FakeHost, part: str, name: str) -> None:
    host.probe("259:2", "S:disk/by-id/nvme-one-part2")
    host.link("/dev/mine", "/dev/disk/by-partlabel/two")  # udev doesn't know of these
    host.link("/dev/disk/by-partlabel/two", "/dev/nvme0n1p2")
    host.write(f"{TARGET}/udev_path", f"{name}\n")
    host.write(f"{TARGET}/enable", "0\n")
    assert host.users() == ()
    host.write(f"{TARGET}/enable", "1\n")
    assert host.told() == ["holder: SCSI target iblock_0/backup is made of nvme0n1p2"]


def test_a_disk_that_lio_serves_is_known_by_its_number_too(host: FakeHost, part: str) -> None:
    """Its link may lead to another disk by now."""
    info = "Status: ACTIVATED  Max Queue Depth: 128  SectorSize: 512  HwMaxSectors: 1024\n"
    device = "        iBlock device: nvme0n1p2  UDEV PATH: /dev/old  readonly: 0\n"
    host.write(f"{TARGET}/info", f"{info}{device}        Major: 259 Minor: 2  CLAIMED: IBLOCK\n")
    host.write(f"{TARGET}/udev_path", "/dev/old\n")
    host.write(f"{TARGET}/enable", "1\n")
    assert host.told() == ["holder: SCSI target iblock_0/backup is made of nvme0n1p2"]


def test_what_lio_serves_is_found_through_all_its_holders(host: FakeHost, part: str) -> None:
    host.add_mapped("dm-0", "253:0", "vg-lv", "LVM-1", part)
    host.write(f"{TARGET}/udev_path", "/dev/vg/lv\n")
    host.write(f"{TARGET}/enable", "1\n")
    assert host.told() == ["holder: SCSI target iblock_0/backup is made of vg-lv (dm-0) on nvme0n1p2"]


def test_a_namespace_that_is_served_is_in_use(host: FakeHost, part: str) -> None:
    host.write(f"{SUBSYSTEM}/namespaces/1/device_path", "/dev/nvme0n1\n")
    host.write(f"{SUBSYSTEM}/namespaces/1/enable", "0\n")
    host.write(f"{SUBSYSTEM}/namespaces/2/device_path", "/dev/nvme1n1\n")
    host.write(f"{SUBSYSTEM}/namespaces/2/enable", "1\n")
    assert host.users() == ()
    host.write(f"{SUBSYSTEM}/namespaces/1/enable", "1\n")
    assert host.told() == ["holder: NVMe target nqn.2014-08.org.example:one namespace 1 is made of nvme0n1"]


def test_a_controller_that_is_served_as_it_is_is_in_use(host: FakeHost) -> None:
    host.add_directory(f"{DEVICE}/nvme/nvme0", class_="nvme", dev="240:0", uevent="DEVNAME=nvme0")
    host.write(f"{SUBSYSTEM}/passthru/device_path", "/dev/nvme0\n")
    host.write(f"{SUBSYSTEM}/passthru/enable", "0\n")
    assert host.users() == ()
    host.write(f"{SUBSYSTEM}/passthru/enable", "1\n")
    assert host.told() == ["holder: NVMe target nqn.2014-08.org.example:one passthru is made of nvme0"]


def test_a_file_that_is_served_is_no_disk_and_is_not_looked_at(host: FakeHost, part: str) -> None:
    """It may lie on a server that doesn't answer."""
    host.link("/srv/image", "/dev/nvme0n1p2")
    host.write("/sys/kernel/config/target/core/fileio_0/file/udev_path", "/srv/image\n")
    host.write("/sys/kernel/config/target/core/fileio_0/file/enable", "1\n")
    assert host.users() == ()


def test_links_that_lead_in_a_circle_are_no_disk(host: FakeHost, part: str) -> None:
    host.link("/dev/one", "/dev/two")
    host.link("/dev/two", "/dev/one")
    host.write(f"{TARGET}/udev_path", "/dev/one\n")
    host.write(f"{TARGET}/enable", "1\n")
    assert host.users() == ()


def test_what_a_hypervisor_shares_is_mounted_by_its_tag(host: FakeHost) -> None:
    host.add_directory(f"{DEVICE}/virtio1", bus="virtio", mount_tag="shared")
    host.mount("0:60", "/other", "9p", "another")
    assert host.users() == ()
    host.mount("0:61", "/shared", "9p", "shared", "rw,trans=virtio")
    assert host.told() == ["mount: /shared on shared"]


def test_virtiofs_is_in_use_by_any_mount_of_the_kind(host: FakeHost) -> None:
    path = host.add_directory(f"{DEVICE}/virtio1", bus="virtio")
    host.link(f"{path}/driver", "/sys/bus/virtio/drivers/virtiofs")
    host.mount("0:60", "/", "virtiofs", "rootfs")
    assert host.told() == ["root: / on virtiofs"]
