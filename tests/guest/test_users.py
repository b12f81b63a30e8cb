"""The host is never hurt by default: what is in use is refused, with its user named, and untouched."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .conftest import Host, Seen, State
from .devices import ROLES, Role
from .test_main_job import stuck_remove

NVME, NVME_PF, GOOD, SIBLING = ROLES["nvme"], ROLES["nvme_pf"], ROLES["good"], ROLES["good_sibling"]
BUSY = 75


@dataclass(frozen=True, slots=True)
class Use:
    """How a host comes to use a device, and how that ends.

    `look` is run before and after a refusal and must say the same; `named` is in the words of the refusal.
    """

    role: Role
    begin: str
    look: str
    end: str
    named: tuple[str, ...]


# Which name the kernel gives to the drive is its own business.
# It comes a moment after the driver.
DISK = (
    f"until name=$(ls {NVME.sysfs}/nvme/*/ 2> /dev/null | grep -E '^nvme[0-9]+(c[0-9]+)?n[0-9]+$');"
    " do sleep 0.1; done; udevadm settle; disk=/dev/$(echo $name | sed 's/c[0-9]*//')"
)
NOT_STUCK = """grep -q '"stuck": ""'"""
CARD = "{name}=$(ls {sysfs}/net)"
CARRIER = 'until [ "$(cat /sys/class/net/$card/carrier)" = 1 ]; do sleep 0.1; done'
NIC = CARD.format(name="card", sysfs=GOOD.sysfs)

USES = {
    "a mounted file system": Use(
        NVME,
        f"{DISK}; mkfs.ext4 -q -F $disk; mkdir -p /mnt/data; mount $disk /mnt/data;"
        " echo dear > /mnt/data/file; sync",
        "cat /mnt/data/file; findmnt -n -o TARGET /mnt/data",
        "umount -l /mnt/data",
        ("/mnt/data on nvme",),
    ),
    "one that is mounted in another name space only": Use(
        NVME,
        f"{DISK}; mkfs.ext4 -q -F $disk; mkdir -p /mnt/data;"
        " systemd-run -q --unit=elsewhere -p PrivateMounts=yes"
        '   sh -c "mount $disk /mnt/data; touch /run/elsewhere-is-mounted; exec sleep infinity";'
        " until [ -e /run/elsewhere-is-mounted ]; do sleep 0.1; done",
        "systemctl is-active elsewhere",
        "rm /run/elsewhere-is-mounted; systemctl stop elsewhere",
        ("/mnt/data on nvme",),
    ),
    "swap": Use(
        NVME,
        f"{DISK}; wipefs -q -a $disk; mkswap -q $disk; swapon $disk",
        "cut -d ' ' -f 1 /proc/swaps",
        "swapoff -a",
        ("swap on nvme",),
    ),
    # What LVM and multipathd have the kernel make, made without them.
    "an LVM volume that is mounted": Use(
        NVME,
        f"{DISK}; wipefs -q -a $disk;"
        " echo 0 65536 linear $disk 0 | dmsetup create data-vault --uuid LVM-vft0; udevadm settle;"
        " mkfs.ext4 -q -F /dev/mapper/data-vault; mkdir -p /mnt/data; mount /dev/mapper/data-vault /mnt/data",
        "findmnt -n -o TARGET /mnt/data; dmsetup ls",
        "umount -l /mnt/data; dmsetup remove --force data-vault",
        ("/mnt/data on ", "data-vault", "nvme"),
    ),
    "a multipath device": Use(
        NVME,
        f"{DISK}; wipefs -q -a $disk; modprobe -a dm-multipath dm-round-robin;"
        " echo 0 65536 multipath 0 0 1 1 round-robin 0 1 1 $disk 1 | dmsetup create mpatha --uuid mpath-vft0;"
        " udevadm settle",
        "dmsetup ls",
        "dmsetup remove --force mpatha",
        ("multipath mpatha", "nvme"),
    ),
    "a RAID": Use(
        NVME,
        f"{DISK}; wipefs -q -a $disk;"
        " mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 $disk missing;"
        " udevadm settle",
        "ls /sys/block/md0/slaves",
        "mdadm --stop /dev/md0",
        ("md0", "nvme"),
    ),
    "a program that has the disk open": Use(
        NVME,
        f'{DISK}; systemd-run -q --unit=reader sh -c "exec sleep infinity < $disk"',
        "systemctl is-active reader",
        "systemctl stop reader",
        ("sleep (pid ", "nvme"),
    ),
    "the default route": Use(
        GOOD,
        f"{NIC}; ip address add 192.0.2.7/24 dev $card; ip link set $card up;"
        f" {CARRIER}; ip route add default via 192.0.2.1 dev $card onlink",
        "ip -4 route; ip -4 -br address",
        f"{NIC}; ip route del default; ip address flush dev $card; ip link set $card down",
        ("default route via ", "192.0.2.7/24 on "),
    ),
    "an address without a route": Use(
        GOOD,
        f"{NIC}; ip address add 192.0.2.7/32 dev $card noprefixroute; ip link set $card up; {CARRIER}",
        "ip -4 -br address",
        f"{NIC}; ip address flush dev $card; ip link set $card down",
        ("192.0.2.7/32 on ",),
    ),
    # /proc/net/route has the first way only.
    "one of two ways of the default route": Use(
        GOOD,
        "ip link add aside type dummy; ip address add 198.51.100.7/24 dev aside; ip link set aside up;"
        f" {NIC}; ip link set $card up; {CARRIER}; ip route add default"
        " nexthop via 198.51.100.1 dev aside nexthop via 192.0.2.1 dev $card onlink",
        "ip -4 route; ip -4 -br address",
        f"{NIC}; ip route del default; ip link del aside; ip link set $card down",
        ("default route via ",),
    ),
    "a bridge's port": Use(
        GOOD,
        f"{NIC}; ip link add br0 type bridge; ip link set $card master br0",
        "ip -br link show master br0",
        "ip link del br0",
        ("bridge br0",),
    ),
    "a bond's port": Use(
        GOOD,
        f"{NIC}; modprobe bonding max_bonds=0; ip link add bond7 type bond; ip link set $card down;"
        f" ip link set $card master bond7; {CARRIER}",
        "ip -br link show master bond7",
        "ip link del bond7",
        ("bond bond7",),
    ),
    "a team's port": Use(
        GOOD,
        f"{NIC}; ip link add team7 type team; ip link set $card down;"
        f" ip link set $card master team7; {CARRIER}",
        "ip -br link show master team7",
        "ip link del team7",
        ("port of team7",),
    ),
}


@contextlib.contextmanager
def used(host: Host, use: Use) -> Iterator[None]:
    try:
        host.run(use.begin)
        yield
    finally:
        host.run(use.end, check=False)
        host.run("udevadm settle")


def check_refused(
    host: Host,
    role: Role,
    *named: str,
    flavour: str = "vfio",
    force: bool = False,
    every_way: bool = True,
) -> None:
    """By every way to ask, with the same words."""
    more = ["--force"] if force else []
    refused = host.ctl("set", role.bdf, flavour, *more)
    assert refused.rc == BUSY, refused.stderr
    first, hint = refused.stderr.splitlines()
    assert first.startswith(f"flavourctl: {role.bdf}: ")
    assert hint.startswith("  ")
    told = [first]
    if every_way:
        planned = host.ctl("set", role.bdf, flavour, "--dry-run", *more)
        assert (planned.rc, planned.stdout) == (BUSY, "")
        told.append(planned.stderr)
    if every_way and not force:
        written = host.write(role, flavour)
        assert written.rc != 0
        assert "Device or resource busy" in written.stderr
        told.append(host.read(role, "last_error"))
    for words in told:
        for name in named:
            assert name in words


@pytest.mark.parametrize("name", USES)
def test_a_device_in_use_is_refused_and_named_and_goes_by_force(host: Host, name: str) -> None:
    use = USES[name]
    before = host.look()
    with used(host, use):
        seen, modules = host.run(use.look, check=False).stdout, host.look().modules
        check_refused(host, use.role, *use.named, every_way=name in ("swap", "the default route"))
        assert host.run(use.look, check=False).stdout == seen
        assert host.look().changed(before) == set()
        assert not {module for module in host.look().modules - modules if "vfio" in module}
        shown = host.ctl("show", use.role.bdf).stdout
        for name_of_user in use.named:
            assert name_of_user in shown

        journal = host.journal()
        forced = host.ctl("set", use.role.bdf, "vfio", "--force")
        assert forced.rc == 0, forced.stderr
        assert host.look().devices[use.role.bdf].vfio
        for name_of_user in use.named:
            assert name_of_user in forced.stdout
        journal.wait_for("taken by force from: ")
        (record,) = journal.records(PCI_ADDRESS=use.role.bdf, OUTCOME="done")
        assert record["FORCED"] == "yes"
    host.switch(use.role, "native")
    # A RAID comes up again by itself where its disk comes back.
    host.run(f"{DISK}; mdadm --stop --scan; wipefs -q -a $disk")
    assert host.look().changed(before) == set()


def test_a_file_on_a_mounted_disk_outlives_a_refusal_while_it_is_written(host: Host) -> None:
    use = USES["a mounted file system"]
    with used(host, use):
        written = host.guest.start("dd if=/dev/urandom of=/mnt/data/big bs=64k count=200 conv=fsync 2>&1")
        check_refused(host, NVME, "/mnt/data on nvme")
        assert written.wait().rc == 0
        host.run("cp /mnt/data/big /root/big; sync; echo 3 > /proc/sys/vm/drop_caches")
        assert host.run("cmp /mnt/data/big /root/big && cat /mnt/data/file").stdout == "dear\n"
        host.run("rm /root/big")


@pytest.mark.parametrize("force", [False, True])
def test_the_root_disk_is_never_taken(host: Host, force: bool) -> None:
    check_refused(host, ROLES["root_disk"], "/ on vda", force=force)


@pytest.mark.parametrize("force", [False, True])
def test_a_bridge_is_never_taken(host: Host, force: bool) -> None:
    check_refused(host, ROLES["pair_bridge"], "it is a bridge", force=force)


def test_a_pf_with_vfs_is_never_taken_and_keeps_them(host: Host) -> None:
    host.run(f"echo 0 > {NVME_PF.sysfs}/sriov_drivers_autoprobe; echo 4 > {NVME_PF.sysfs}/sriov_numvfs")
    before = host.look()
    check_refused(host, NVME_PF, "4 VFs enabled")
    check_refused(host, NVME_PF, "4 VFs enabled", force=True)
    assert host.look().changed(before) == set()
    assert host.guest.read(f"{NVME_PF.sysfs}/sriov_numvfs") == "4"
    host.run(f"echo 0 > {NVME_PF.sysfs}/sriov_numvfs; echo 1 > {NVME_PF.sysfs}/sriov_drivers_autoprobe")


def test_what_is_idle_is_used_by_nobody(host: Host) -> None:
    for role in (NVME, NVME_PF, GOOD, SIBLING, ROLES["virtio"], ROLES["driverless"], ROLES["stuck"]):
        assert host.show(role)["users"] == [], role.name


def test_an_interface_that_is_only_up_is_used_by_nobody(host: Host) -> None:
    host.run(f"{NIC}; ip link set $card up; sleep 2; ip -6 address show dev $card")
    try:
        assert host.show(GOOD)["users"] == []
    finally:
        host.run(f"{NIC}; ip link set $card down")


@contextlib.contextmanager
def held(host: Host, bdf: str) -> Iterator[int]:
    """Held as a virtual machine holds it, until the context ends; gives the holder's process."""
    holder = host.guest.hold(bdf)
    try:
        yield int(host.run("pgrep -f /usr/libexec/guest-vfio-holder | head -n 1").stdout)
    finally:
        holder.kill()
        holder.wait()


def test_a_guest_that_holds_a_device_is_named_with_its_process(host: Host) -> None:
    host.switch(GOOD, "vfio")
    with held(host, GOOD.bdf) as pid:
        before = host.look()
        check_refused(host, GOOD, f"(pid {pid}) holds /dev/vfio/", flavour="native")
        (user,) = host.show(GOOD)["users"]
        assert (user["use"], user["pid"]) == ("guest", pid)
        # The flavour it has is granted all the same, and touches nothing.
        assert host.write(GOOD, "vfio").rc == 0
        assert host.look().changed(before) == set()
    host.switch(GOOD, "native")


def measure(host: Host, count: int = 4) -> list[float]:
    """Seconds that the switches of a device take, there and back."""
    return [host.write(SIBLING, flavour).duration for _ in range(count) for flavour in ("vfio", "native")]


# Seconds from when a switch is seen under way until it is shown as stuck. One process asks all the time:
# starting flavourctl takes seconds here.
WATCH = """exec python3 -u -c '
import json, socket, time
call = dict(method="io.vfioflavour.Manager.Get", parameters=dict(device="{bdf}"))
daemon = socket.socket(socket.AF_UNIX)
daemon.connect("/run/vfio-flavourd/io.vfioflavour.Manager.ReadOnly")
begun = None
print("watching")
while True:
    daemon.sendall(json.dumps(call).encode() + bytes(1))
    answer = daemon.recv(65536)
    while answer[-1]:
        answer += daemon.recv(65536)
    phase = json.loads(answer[:-1])["parameters"]["device"].get("phase")
    if phase and begun is None:
        begun = time.monotonic()
    if phase == "stuck":
        print(time.monotonic() - begun)
        break
    time.sleep(0.1)
'"""


def wait_until_shown_as_stuck(host: Host, role: Role, *told: str) -> str:
    """A daemon that has just started looks who holds it while it serves already."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        shown = host.show(role)
        if shown["phase"] == "stuck" and all(words in shown["stuck"] for words in told):
            return str(shown["stuck"])
    raise AssertionError(f"it is not shown as stuck: {shown}")


def check_others_go_on_while_one_is_stuck(host: Host, role: Role, before: list[float], *told: str) -> None:
    """And the service stops in time, and tells the same when it is started again."""
    during = measure(host)
    # One that is held up would be until the other is let go of, which is after this.
    assert sorted(during)[len(during) // 2] < 5 * sorted(before)[len(before) // 2] + 2
    host.stop("vfio-flavourd", "vfio-flavour-fs")
    host.run("systemctl start vfio-flavourd vfio-flavour-fs")
    wait_until_shown_as_stuck(host, role, *told)
    # Whoever looks at it is not held up.
    assert host.run(f"flavourctl list; cat /run/vfio-flavour/{role.bdf}/*").rc == 0
    # The start's part is Python's under emulation; only the stop is promised a time.
    host.stop("vfio-flavourd")
    host.run("systemctl start vfio-flavourd vfio-flavour-fs")


def wait_for_native(host: Host, role: Role, driver: str) -> State:
    host.run(
        f'until [ "$(readlink {role.sysfs}/driver | xargs -r basename)" = {driver} ]; do sleep 0.1; done;'
        f' until flavourctl --json show {role.bdf} | grep -q \'"stuck": ""\'; do sleep 0.1; done',
        timeout=60,
    )
    return host.look()


def test_a_forced_native_waits_for_the_guest_and_then_comes_by_itself(host: Host) -> None:
    host.switch(GOOD, "vfio")
    usual = measure(host)
    with held(host, GOOD.bdf) as pid:
        watch = host.guest.start(WATCH.format(bdf=GOOD.bdf))
        watch.wait_for("watching")
        forced = host.guest.start(f"flavourctl set {GOOD.bdf} native --force")
        watch.wait(60)
        assert float(watch.stdout.split()[-1]) < 15
        stuck = wait_until_shown_as_stuck(host, GOOD)
        assert "unbind from vft-good-vfio-pci" in stuck
        assert f"(pid {pid})" in stuck
        check_others_go_on_while_one_is_stuck(host, GOOD, usual, f"(pid {pid})")
        assert forced.wait().rc != 0
    now = wait_for_native(host, GOOD, "e1000e")
    assert now.devices[GOOD.bdf] == Seen("e1000e")
    assert now.records == frozenset()


def test_a_native_driver_whose_remove_hangs_for_a_minute_holds_up_nobody_else(host: Host) -> None:
    role = ROLES["stuck"]
    usual = measure(host)
    with stuck_remove(host):
        begun = host.guest.start(f"flavourctl set {role.bdf} vfio")
        stuck = wait_until_shown_as_stuck(host, role)
        assert "unbind from vft-stuck" in stuck
        check_others_go_on_while_one_is_stuck(host, role, usual)
        assert begun.wait().rc != 0
    host.run(
        f"until [ -e {role.sysfs}/driver ] && flavourctl --json show {role.bdf} | {NOT_STUCK};"
        " do sleep 1; done; echo 0 > /sys/module/vft_stuck/parameters/release",
        timeout=120,
    )
    assert host.look().devices[role.bdf].driver in ("vfio-pci", "vft-stuck")
    host.switch(role, "native")


def test_only_root_may_force(host: Host) -> None:
    member = "setpriv --reuid=nobody --regid=nogroup --groups=vfio-flavour"
    assert host.ctl("set", GOOD.bdf, "vfio", "--force", user=member).rc == 77
    assert json.loads(host.ctl("--json", "show", GOOD.bdf).stdout)["device"]["flavour"] == "native"
