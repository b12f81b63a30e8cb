"""Who uses a device: functions, displays, open nodes, guests; and what is never touched to find out."""

import os
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_host import DD, DEVICE, OTHER, QEMU, FakeHost

from vfio_flavourd.kernel import process_users
from vfio_flavourd.kernel.host_files import HostFiles
from vfio_flavourd.kernel.process_users import find_open_files
from vfio_flavourd.model.occupancy import Use, User

DISPLAY = 0x030000


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def add_card(host: FakeHost, path: str = DEVICE, number: int = 0) -> None:
    host.add_directory(
        f"{path}/drm/card{number}", class_="drm", dev=f"226:{number}", uevent=f"DEVNAME=dri/card{number}"
    )


def test_a_device_with_nothing_below_it_has_no_users(host: FakeHost) -> None:
    assert host.users() == ()


def test_a_device_that_is_gone_has_no_users(host: FakeHost) -> None:
    host.path(DEVICE).rename(host.root / "gone")
    assert host.users() == ()


def test_a_device_without_a_driver_has_no_users(host: FakeHost) -> None:
    add_card(host)
    host.write(f"{DEVICE}/boot_vga", "0\n")
    host.add_process(DD, "Xorg", ["/dev/dri/card0"])
    assert host.users(driver=None, class_code=DISPLAY) == ()


@pytest.mark.parametrize("driver", ["pcieport", None])
def test_a_bridge_is_used_by_what_is_behind_it(host: FakeHost, driver: str | None) -> None:
    assert [user.use for user in host.users(driver, class_code=0x060400)] == [Use.BRIDGE]


@pytest.mark.timeout(10)
def test_what_may_block_its_reader_is_never_opened(host: FakeHost) -> None:
    """As a FIFO, which blocks as well: an open node, and the attributes that wait for a device's lock."""
    usb = host.add_directory(f"{DEVICE}/usb1/1-1", bus="usb", dev="189:1", busnum="1", devnum="2")
    for path in (f"{DEVICE}/driver_override", f"{DEVICE}/uevent", f"{DEVICE}/sriov_numvfs", f"{usb}/uevent"):
        os.mkfifo(host.path(path))
    os.mkfifo(host.root / "hangs")
    host.add_process(QEMU, "qemu-system-x86", [str(host.root / "hangs"), "/dev/bus/usb/001/002"])
    assert host.told() == [f"open: qemu-system-x86 (pid {QEMU}) has /dev/bus/usb/001/002 open"]


def test_proc_is_not_looked_at_where_nothing_could_be_found(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> tuple[int, ...]:
        raise AssertionError("looked at the processes of a device that has nothing")

    monkeypatch.setattr("vfio_flavourd.kernel.host_files.HostFiles.list_processes", fail)
    assert host.users() == ()


def test_a_tree_that_is_not_as_the_kernel_makes_it_gives_no_users(host: FakeHost) -> None:
    """Files where links belong, links that lead to themselves, directories that are gone."""
    disk = host.add_disk("nvme0n1", "259:0")
    host.path(f"{disk}/holders").rmdir()
    host.path(f"{disk}/holders").symlink_to("holders")
    host.write(f"{DEVICE}/drm/card0/subsystem", "no link\n")
    path = host.add_directory(f"{DEVICE}/virtio1", bus="virtio", driver="no link")
    host.path(f"{path}/subsystem").unlink()
    host.link(f"{path}/subsystem", "/sys/bus/virtio")
    eth0 = host.add_interface("eth0", 2)
    host.write(f"{eth0}/master", "no link\n")
    host.path("/sys/fs").symlink_to("fs")
    assert host.users() == ()


# functions


@pytest.mark.parametrize("driver", ["mlx5_core", None])
def test_a_pf_is_used_by_its_vfs_even_without_a_driver(host: FakeHost, driver: str | None) -> None:
    for number in range(4):
        host.link(f"{DEVICE}/virtfn{number}", OTHER)
    assert host.users(driver) == (User(Use.VFS, "4 VFs enabled"),)


def test_one_vf_is_told_as_one(host: FakeHost) -> None:
    host.link(f"{DEVICE}/virtfn0", OTHER)
    assert host.told() == ["vfs: 1 VF enabled"]


def test_what_another_function_has_is_not_this_ones(host: FakeHost) -> None:
    add_card(host, OTHER)
    host.add_process(DD, "Xorg", ["/dev/dri/card0"])
    assert host.users() == ()


def test_pci_functions_that_a_driver_has_made_are_its_own(host: FakeHost) -> None:
    """VMD: the disks behind it are PCI functions of a domain that ends with its driver."""
    child = host.add_directory(f"{DEVICE}/pci10000:e0/10000:e0:06.0/10000:e1:00.0", bus="pci")
    host.add_disk("nvme0n1", "259:0", f"{child}/nvme/nvme0")
    host.mount("259:0", "/mnt/data")
    assert host.told() == ["mount: /mnt/data on nvme0n1"]


# displays


@pytest.mark.parametrize("driver", ["i915", None])
def test_the_boot_display_is_in_use_by_that(host: FakeHost, driver: str | None) -> None:
    """Without a driver the console is on the frame buffer that the firmware has left (efifb, simpledrm)."""
    host.write(f"{DEVICE}/boot_vga", "1\n")
    assert host.users(driver, DISPLAY) == (User(Use.DISPLAY, "the boot display"),)


def test_the_display_of_the_console_is_the_boot_display(host: FakeHost) -> None:
    host.write(f"{DEVICE}/boot_vga", "0\n")
    host.add_directory(f"{DEVICE}/graphics/fb0", class_="graphics", dev="29:0", uevent="DEVNAME=fb0")
    assert host.users("i915", DISPLAY) == (User(Use.DISPLAY, "the boot display"),)


def test_another_display_is_free(host: FakeHost) -> None:
    host.write(f"{DEVICE}/boot_vga", "0\n")
    host.add_directory(f"{DEVICE}/graphics/fb1", class_="graphics", dev="29:1", uevent="DEVNAME=fb1")
    add_card(host, number=1)
    assert host.users("i915", DISPLAY) == ()


def test_the_boot_display_that_vfio_has_already_is_free(host: FakeHost) -> None:
    host.write(f"{DEVICE}/boot_vga", "1\n")
    host.add_directory(f"{DEVICE}/vfio-dev/vfio0")
    assert host.users("vfio-pci", DISPLAY) == ()


# open nodes


def test_a_process_that_has_a_node_open_is_named(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.add_process(DD, "dd", ["/dev/null", "/dev/nvme0n1"])
    assert host.users() == (User(Use.OPEN, f"dd (pid {DD}) has /dev/nvme0n1 open", DD),)


@pytest.mark.parametrize(
    ("directory", "class_", "node"),
    [
        ("drm/renderD128", "drm", "dri/renderD128"),
        ("sound/card1/pcmC1D0p", "sound", "snd/pcmC1D0p"),
        ("usb1/1-1/1-1:1.0/input/input5/event5", "input", "input/event5"),
        ("tty/ttyS4", "tty", "ttyS4"),
        ("watchdog/watchdog0", "watchdog", "watchdog0"),
        ("infiniband_verbs/uverbs0", "infiniband_verbs", "infiniband/uverbs0"),
        ("nvme/nvme0", "nvme", "nvme0"),
        ("nvme/nvme0/ng0n1", "nvme-generic", "ng0n1"),
        ("uio/uio0", "uio", "uio0"),
        ("ptp/ptp0", "ptp", "ptp0"),
    ],
)
def test_every_kind_of_node_counts(host: FakeHost, directory: str, class_: str, node: str) -> None:
    host.add_directory(f"{DEVICE}/{directory}", class_=class_, dev="240:7", uevent=f"DEVNAME={node}")
    assert host.users() == ()
    host.add_process(DD, "reader", [f"/dev/{node}"])
    assert host.told() == [f"open: reader (pid {DD}) has /dev/{node} open"]


def test_a_node_without_a_name_of_its_own_is_called_as_its_device(host: FakeHost) -> None:
    host.add_directory(f"{DEVICE}/misc/thing!0", class_="misc", dev="10:7", uevent="MAJOR=10")
    host.add_directory(f"{DEVICE}/odd/odd0", bus="odd", dev="240:7")
    host.add_process(DD, "reader", ["/dev/thing/0", "/dev/odd0"])
    assert [user.what.split()[4] for user in host.users()] == ["/dev/odd0", "/dev/thing/0"]


@pytest.mark.parametrize("link", ["/dev/ttyS4 (deleted)", "/srv/jail/dev/ttyS4"])
def test_a_node_that_was_removed_or_is_in_a_jail_is_the_same_node(host: FakeHost, link: str) -> None:
    host.add_directory(f"{DEVICE}/tty/ttyS4", class_="tty", dev="4:68", uevent="DEVNAME=ttyS4")
    host.add_process(DD, "agetty", [link])
    assert host.told() == [f"open: agetty (pid {DD}) has /dev/ttyS4 open"]


@pytest.mark.parametrize("link", ["/dev/ttyS40", "/dev/ttyS", "ttyS4", "socket:[812]", "/srv/ttyS4"])
def test_another_file_is_not_the_node(host: FakeHost, link: str) -> None:
    host.add_directory(f"{DEVICE}/tty/ttyS4", class_="tty", dev="4:68", uevent="DEVNAME=ttyS4")
    host.add_process(DD, "agetty", [link])
    assert host.users() == ()


def test_our_own_process_is_no_user(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.add_process(os.getpid(), "vfio-flavourd", ["/dev/nvme0n1"])
    assert host.users() == ()


def test_a_worker_of_udevd_lets_go_by_itself(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.add_process(DD, "(udev-worker)", ["/dev/nvme0n1"])
    assert host.users() == ()


@pytest.mark.parametrize("name", ["udevd", "(udev-worker)", "systemd-udevd"])
def test_who_only_calls_himself_like_udevd_is_a_user(host: FakeHost, name: str) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.add_process(DD, name, ["/dev/nvme0n1"], uid=1000)
    assert [user.pid for user in host.users()] == [DD]


@pytest.mark.parametrize(
    "uids",
    ["1000\t0\t0\t0", "0\t1000\t0\t0", "0\t0\t1000\t0", "0\t0\t0\t1000"],
    ids=["own", "effective", "saved", "fs"],
)
def test_a_setuid_program_that_is_called_like_udevd_is_a_user(host: FakeHost, uids: str) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.add_process(DD, "systemd-udevd", ["/dev/nvme0n1"])
    host.write(f"/proc/{DD}/status", f"Name:\tsystemd-udevd\nUid:\t{uids}\nGid:\t0\t0\t0\t0\n")
    assert [user.pid for user in host.users()] == [DD]


def test_logind_and_its_store_are_no_users_of_displays_and_inputs(host: FakeHost) -> None:
    add_card(host)
    host.add_process(DD, "systemd-logind", ["/dev/dri/card0"])
    host.path("/proc/1/fd/9").symlink_to("/dev/dri/card0")
    assert host.users() == ()
    host.add_process(QEMU, "gnome-shell", ["/dev/dri/card0"])
    assert [user.pid for user in host.users()] == [QEMU]


def test_a_watchdog_that_process_1_feeds_is_in_use(host: FakeHost) -> None:
    host.add_directory(
        f"{DEVICE}/watchdog/watchdog0", class_="watchdog", dev="246:0", uevent="DEVNAME=watchdog0"
    )
    host.path("/proc/1/fd/9").symlink_to("/dev/watchdog0")
    assert host.users() == (User(Use.OPEN, "systemd (pid 1) has /dev/watchdog0 open", 1),)


def test_processes_that_end_meanwhile_are_passed_over(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    for number in range(3):
        host.path(f"/proc/{DD + number}").mkdir()
    host.write(f"/proc/{DD + 1}/fd", "can't be listed")
    host.write(f"/proc/{DD + 2}/fd/3", "is no link")
    host.add_process(QEMU, "dd", ["/dev/nvme0n1"])
    host.path(f"/proc/{QEMU}/comm").unlink()
    assert host.told() == [f"open: a process (pid {QEMU}) has /dev/nvme0n1 open"]


def test_who_opens_more_than_can_be_looked_at_is_a_user_and_keeps_nobody_from_an_answer(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that --force can take it from."""
    add_card(host)
    host.add_process(DD, "dd", ["/dev/dri/card0"])
    host.add_process(QEMU, "many", ["/dev/dri/card0"])
    monkeypatch.setattr("vfio_flavourd.kernel.process_users._PATIENCE", -1.0)
    (user,) = host.users()
    assert user.use is Use.OPEN
    assert user.what == "3 processes, from systemd (pid 1) on, could not be looked into in time"


def test_the_only_gpu_of_nvidias_driver_has_the_nodes_that_sysfs_does_not_know(host: FakeHost) -> None:
    host.path("/proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    host.add_process(DD, "python3", ["/dev/nvidiactl", "/dev/nvidia0"])
    assert host.users("nvidia", 0x030200) == (
        User(Use.OPEN, f"python3 (pid {DD}) has /dev/nvidia0 open", DD),
    )
    host.path("/proc/driver/nvidia/gpus/0000:02:00.0").mkdir()
    assert host.users("nvidia", 0x030200) == ()


# what is only called like a node


def find_mount_id(path: str) -> int:
    """Of the real mount that a real file is on: what is open is looked at through the link to it."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    [mount_id] = [int(line.split()[1]) for line in lines if line.startswith("mnt_id:")]
    return mount_id


def add_full(host: FakeHost, fs_type: str = "devtmpfs") -> None:
    """A node of the device's that is there on any real host, and somebody who has it open."""
    host.add_directory(f"{DEVICE}/misc/full", class_="misc", dev="1:7", uevent="DEVNAME=full")
    host.add_process(DD, "dd", {3: "/dev/full"})
    host.describe_file(DD, 3, find_mount_id("/dev/full"), fs_type)


FULL = (User(Use.OPEN, f"dd (pid {DD}) has /dev/full open", DD),)


@pytest.mark.parametrize("fs_type", ["tmpfs", "ext4", "btrfs", "xfs"])
def test_a_file_of_somebodys_own_that_is_called_like_a_node_is_none(host: FakeHost, fs_type: str) -> None:
    add_vfio(host)
    host.add_disk("nvme0n1", "259:0")
    for number, node in enumerate(("vfio/14", "vfio/devices/vfio3", "nvme0n1")):
        host.write(f"/home/dev/{node}", "")
        file = str(host.path(f"/home/dev/{node}"))
        if number == 0:
            host.add_process(DD, "sleep")
        host.path(f"/proc/{DD}/fd/{number}").symlink_to(file)
        host.describe_file(DD, number, find_mount_id(file), fs_type)
    assert host.users() == ()
    assert host.occupancy().find_group_holders(14) == ()
    host.path(f"/proc/{DD}/fd/9").symlink_to("/dev/nvme0n1")  # and one of which nothing more can be told
    assert [user.pid for user in host.users()] == [DD]


def test_who_has_more_that_is_called_like_a_node_than_can_be_looked_at_is_a_user(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process alone keeps nobody from an answer either."""
    host.add_disk("nvme0n1", "259:0")
    host.write("/home/dev/nvme0n1", "")
    file = str(host.path("/home/dev/nvme0n1"))
    host.add_process(DD, "many", [file])
    host.describe_file(DD, 0, find_mount_id(file), "ext4")
    assert host.users() == ()  # in time it is seen to be none
    clock, scan = SimpleNamespace(monotonic=lambda: 0.0), process_users._scan

    def scan_for_long(path: str, nodes: Collection[str]) -> tuple[dict[str, list[str]], list[str]]:
        found = scan(path, nodes)
        if path.endswith(f"/{DD}/fd"):
            clock.monotonic = lambda: process_users._PATIENCE + 1
        return found

    monkeypatch.setattr(process_users, "_scan", scan_for_long)
    monkeypatch.setattr(process_users, "time", clock)
    assert host.users() == (User(Use.OPEN, f"many (pid {DD}) has /dev/nvme0n1 open", DD),)


@pytest.mark.parametrize("fs_type", ["devtmpfs", "tmpfs", "ext4"])
def test_a_node_counts_on_whatever_file_system_it_was_made(host: FakeHost, fs_type: str) -> None:
    add_full(host, fs_type)
    assert host.users() == FULL


@pytest.mark.parametrize(("name", "expected"), [("nvme0n1", 1), ("nvme1n1", 0)])
def test_a_disks_node_is_told_by_its_number(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, name: str, expected: int
) -> None:
    """Which disks the real host has isn't known, so one is made up."""
    status = os.stat_result((stat.S_IFBLK | 0o660, *[0] * 9), {"st_rdev": os.makedev(259, 0)})
    monkeypatch.setattr("vfio_flavourd.kernel.process_users._stat", lambda link, mount_id: status)
    host.add_disk("nvme0n1", "259:5")
    other = host.add_directory("/sys/devices/other", class_="block", uevent=f"DEVNAME={name}")
    host.link("/sys/dev/block/259:0", other)
    host.add_process(DD, "dd", ["/dev/nvme0n1"])
    host.describe_file(DD, 0, 24, "devtmpfs")
    assert len(host.users()) == expected


@pytest.mark.parametrize("flags", ["rw,relatime", "rw,nosuid,nodev"])
def test_a_node_that_was_opened_before_its_mount_forbade_it_counts(host: FakeHost, flags: str) -> None:
    add_full(host, "")
    host.describe_file(DD, 3, find_mount_id("/dev/full"), "tmpfs", flags)
    assert host.users() == FULL


def test_another_device_that_was_bound_to_the_name_is_not_the_node(host: FakeHost) -> None:
    add_full(host)
    path = host.add_directory("/sys/devices/virtual/mem/zero", class_="mem", uevent="DEVNAME=zero")
    host.link("/sys/dev/char/1:7", path)
    assert host.users() == ()


@pytest.mark.parametrize(
    ("bus", "class_", "uevent"),
    [("", "misc", "DEVNAME=full"), ("", "misc", ""), ("usb", "", "DEVNAME=other")],
)
def test_a_device_that_is_not_known_to_be_another_one_is_the_node(
    host: FakeHost, bus: str, class_: str, uevent: str
) -> None:
    """The `uevent` of a device on a bus waits for it, and isn't read."""
    add_full(host)
    path = host.add_directory("/sys/devices/virtual/some", bus=bus, class_=class_, uevent=uevent)
    host.link("/sys/dev/char/1:7", path)
    assert host.users() == FULL


@pytest.mark.parametrize("fs_type", ["fuse", "fuse.sshfs", "nfs4", "9p", "overlay", "new_fs", ""])
def test_what_may_wait_for_a_server_is_not_asked_and_counts(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, fs_type: str
) -> None:
    """The last one is on no mount that its process sees."""

    def fail(link: str, mount_id: str) -> None:
        raise AssertionError(f"followed {link}")

    monkeypatch.setattr("vfio_flavourd.kernel.process_users._stat", fail)
    add_full(host, fs_type)
    assert host.users() == FULL


@pytest.mark.parametrize("fs_type", ["fuse.sshfs", "nfs4", "overlay"])
def test_no_device_can_be_open_where_the_mount_forbids_it(host: FakeHost, fs_type: str) -> None:
    """As everything is that fusermount mounts."""
    add_full(host, "")
    host.describe_file(DD, 3, find_mount_id("/dev/full"), fs_type, "rw,nosuid,nodev,relatime")
    assert host.users() == ()


def test_a_file_that_takes_the_place_of_one_that_was_seen_is_not_asked_and_counts(host: FakeHost) -> None:
    """It may be on a file system that waits, unlike the one that was there."""
    host.write("/home/dev/full", "")
    add_full(host)
    host.path(f"/proc/{DD}/fd/3").unlink()
    host.path(f"/proc/{DD}/fd/3").symlink_to(host.path("/home/dev/full"))
    host.describe_file(DD, 3, 5_000_000, "tmpfs")
    assert [user.pid for user in host.users()] == [DD]


def test_a_file_that_is_closed_meanwhile_is_no_use(host: FakeHost) -> None:
    add_full(host)
    host.path(f"/proc/{DD}/fd/3").unlink()
    host.path(f"/proc/{DD}/fd/3").symlink_to(host.path("/gone/dev/full"))
    assert host.users() == ()


def test_the_kernel_names_memory_by_what_it_is() -> None:
    with os.fdopen(os.memfd_create("x/dev/vfio/14"), "wb") as file:
        link = Path(f"/proc/self/fd/{file.fileno()}").readlink()
    assert str(link) == "/memfd:x/dev/vfio/14 (deleted)"


@pytest.mark.parametrize("link", ["/memfd:x/dev/vfio/14 (deleted)", "/dmabuf:/dev/vfio/14"])
def test_what_has_no_path_is_no_node_whatever_its_name(host: FakeHost, link: str) -> None:
    add_vfio(host)
    host.add_process(DD, "sleep", [link])
    assert host.users() == ()
    assert host.occupancy().find_group_holders(14) == ()


def test_in_the_real_proc_a_node_is_told_from_a_file_that_is_called_like_it(tmp_path: Path) -> None:
    (tmp_path / "proc").symlink_to("/proc")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        forged = Path(directory, "dev/full")
        forged.parent.mkdir()
        forged.touch()
        script = "exec 7> /dev/full 8< $0; exec sleep 60", "exec 8< $0; exec sleep 60"
        children = [subprocess.Popen(["/bin/sh", "-c", line, str(forged)]) for line in script]
        try:
            for child in children:
                while not Path(f"/proc/{child.pid}/fd/8").is_symlink():
                    time.sleep(0.01)
            users = list(find_open_files(HostFiles(str(tmp_path)), {"full": Use.OPEN}))
        finally:
            for child in children:
                child.kill()
                child.wait()
    assert [user.pid for user in users] == [children[0].pid]


# guests


def add_vfio(host: FakeHost, path: str = DEVICE, device: str = "vfio3", group: str = "14") -> None:
    host.add_directory(f"{path}/vfio-dev/{device}")
    host.link(f"{path}/iommu_group", f"/sys/kernel/iommu_groups/{group}")
    host.link(f"/sys/kernel/iommu_groups/{group}/devices/{path.rsplit('/', 1)[1]}", path)


@pytest.mark.parametrize("node", ["vfio/14", "vfio/noiommu-14", "vfio/devices/vfio3"])
def test_a_guest_is_named_by_its_process(host: FakeHost, node: str) -> None:
    add_vfio(host)
    host.add_process(QEMU, "qemu-system-x86", ["/dev/vfio/vfio", f"/dev/{node}", "anon_inode:[vfio-device]"])
    expected = (User(Use.GUEST, f"qemu-system-x86 (pid {QEMU}) holds /dev/{node}", QEMU),)
    assert host.users("vfio-pci") == expected
    assert host.occupancy().find_group_holders(14) == expected


def test_a_guest_of_another_group_is_none_of_this_ones(host: FakeHost) -> None:
    add_vfio(host)
    files = ["/dev/vfio/vfio", "/dev/vfio/1", "/dev/vfio/141", "/dev/vfio/devices/vfio31"]
    host.add_process(QEMU, "qemu-system-x86", [*files, "anon_inode:[vfio-device]"])
    assert host.users("vfio-pci") == ()
    assert host.occupancy().find_group_holders(14) == ()


def test_a_descriptor_that_only_names_a_node_holds_nothing(host: FakeHost) -> None:
    add_vfio(host)
    host.add_disk("nvme0n1", "259:0")
    nodes = {4: "/dev/vfio/14", 5: "/dev/nvme0n1"}
    host.add_process(DD, "(udev-worker)", nodes)
    host.add_process(QEMU, "qemu-system-x86", nodes)
    for number in nodes:
        host.write(f"/proc/{DD}/fdinfo/{number}", "pos:\t0\nflags:\t012000000\nmnt_id:\t25\n")
        host.write(f"/proc/{QEMU}/fdinfo/{number}", "pos:\t0\nflags:\t02100002\nmnt_id:\t25\n")
    assert {user.pid for user in host.users()} == {QEMU}
    assert {user.pid for user in host.occupancy().find_group_holders(14)} == {QEMU}


def test_the_kernel_tells_a_descriptor_that_only_names_a_file(tmp_path: Path) -> None:
    """What the fake above has is what is seen in the real /proc: O_PATH is 010000000 there, O_RDWR 02."""
    node = tmp_path / "node"
    node.touch()
    for flag, expected in ((os.O_PATH, os.O_PATH), (os.O_RDWR, 0)):
        descriptor = os.open(node, flag | os.O_CLOEXEC)
        try:
            lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
        finally:
            os.close(descriptor)
        [flags] = [line.split()[1] for line in lines if line.startswith("flags:")]
        assert int(flags, 8) & 0o10000000 == expected


def test_who_holds_a_node_is_found_in_the_real_proc_whether_the_kernel_counts_files_or_not(
    tmp_path: Path,
) -> None:
    """It does since 6.2. /dev/full is held by nobody else."""
    (tmp_path / "proc").symlink_to("/proc")
    with subprocess.Popen(["/bin/sh", "-c", "exec 7> /dev/full; exec sleep 60"]) as child:
        try:
            while not Path(f"/proc/{child.pid}/fd/7").is_symlink():
                time.sleep(0.01)
            users = list(find_open_files(HostFiles(str(tmp_path)), {"full": Use.OPEN}))
        finally:
            child.kill()
    assert [user.pid for user in users] == [child.pid]


def test_a_guest_that_has_only_the_devices_file_is_told_by_newer_kernels(host: FakeHost) -> None:
    add_vfio(host)
    host.add_process(QEMU, "crosvm", {7: "anon_inode:[vfio-device]", 8: "anon_inode:[vfio-device]"})
    host.write(f"/proc/{QEMU}/fdinfo/7", f"pos:\t0\nvfio-device-syspath: {OTHER}\n")
    host.write(f"/proc/{QEMU}/fdinfo/8", f"pos:\t0\nvfio-device-syspath: {DEVICE}\n")
    expected = (User(Use.GUEST, f"crosvm (pid {QEMU}) holds VFIO device 0000:01:00.0", QEMU),)
    assert host.users("vfio-pci") == expected
    assert host.occupancy().find_group_holders(14) == expected


def test_a_group_is_held_whichever_member_is_used(host: FakeHost) -> None:
    add_vfio(host)
    add_vfio(host, OTHER, "vfio4")
    host.add_process(QEMU, "cloud-hyperviso", ["/dev/vfio/devices/vfio4"])
    assert host.users("vfio-pci") == ()
    assert [user.pid for user in host.occupancy().find_group_holders(14)] == [QEMU]


def test_a_group_that_nobody_holds_or_that_is_not_there_has_no_holders(host: FakeHost) -> None:
    add_vfio(host)
    assert host.occupancy().find_group_holders(14) == ()
    assert host.occupancy().find_group_holders(99) == ()


def test_a_native_device_is_not_the_guests_of_its_groups_number(host: FakeHost) -> None:
    host.link(f"{DEVICE}/iommu_group", "/sys/kernel/iommu_groups/14")
    host.add_process(QEMU, "qemu-system-x86", ["/dev/vfio/14"])
    assert host.users("e1000e") == ()


def test_a_mediated_device_is_in_use_by_its_guest(host: FakeHost) -> None:
    mediated = f"{DEVICE}/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    host.add_directory(mediated, bus="mdev")
    add_vfio(host, mediated, "vfio5", "30")
    assert host.users("i915") == ()
    host.add_process(QEMU, "qemu-system-x86", ["/dev/vfio/30"])
    assert host.users("i915") == (User(Use.GUEST, f"qemu-system-x86 (pid {QEMU}) holds /dev/vfio/30", QEMU),)


# telling


def test_the_worst_is_told_first(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.add_interface("eth0", 2)
    host.add_route("eth0", "00000000", "00000000", "010200C0", 3)
    host.swap_on("/dev/nvme0n1")
    host.link(f"{DEVICE}/virtfn0", OTHER)
    host.mount("259:0", "/mnt/data")
    host.mount("259:0", "/")
    host.add_process(DD, "dd", ["/dev/nvme0n1"])
    assert [user.use for user in host.users()] == [
        Use.ROOT,
        Use.VFS,
        Use.MOUNT,
        Use.SWAP,
        Use.OPEN,
        Use.ROUTE,
    ]


def test_many_of_a_kind_are_counted_and_no_kind_is_left_out(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    add_vfio(host)
    for number in range(30):
        host.mount("259:0", f"/mnt/{number:02}")
    host.add_process(QEMU, "qemu-system-x86", ["/dev/vfio/14"])
    users = host.users()
    assert len(users) == 11
    assert users[8:10] == (User(Use.MOUNT, "/mnt/08 on nvme0n1"), User(Use.MOUNT, "and 21 more"))
    assert users[10].use is Use.GUEST


def test_a_user_is_told_once(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.add_process(DD, "dd", {3: "/dev/nvme0n1", 4: "/dev/nvme0n1"})
    host.mount("259:0", "/mnt")
    host.mount("259:0", "/mnt")
    assert len(host.users()) == 2


def test_a_text_is_one_line_of_bounded_length(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.mount("259:0", r"/mnt/a\012b\040c\134" + "x" * 1000)
    host.add_process(DD, "d\nd", ["/dev/nvme0n1"])
    mount, process = host.users()
    assert mount.what.startswith("/mnt/a\\012b c\\xxx")
    assert len(mount.what) == 200
    assert process.what == f"d d (pid {DD}) has /dev/nvme0n1 open"


def test_several_threads_may_ask_at_once(host: FakeHost) -> None:
    host.add_disk("nvme0n1", "259:0")
    host.mount("259:0", "/mnt")
    occupancy, device = host.occupancy(), host.device()
    found: list[tuple[User, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(occupancy.find_users(device))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {(User(Use.MOUNT, "/mnt on nvme0n1"),)}
    assert len(found) == 8
