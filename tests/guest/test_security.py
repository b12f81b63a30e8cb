"""Nobody gets in: what the services may do themselves, who may do what, and what comes of trying."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import Host, Seen, running, write_command
from .devices import ROLES
from .test_doors import CONTROL, GOOD, MEMBER, NOBODY, ON_VFIO, OTHER_MEMBER, READ_ONLY

EXPOSURES = {
    "vfio-flavourd.service": 1.4,
    "vfio-flavour-fs.service": 3.2,
    "vfio-flavour-users@1.service": 2.1,
    "vfio-flavour-modprobe@1.service": 3.4,
    "vfio-flavour-early.service": 2.0,
}
# Numbers from include/uapi/linux/capability.h: CAP_DAC_READ_SEARCH 2, CAP_SYS_PTRACE 19, CAP_SYS_ADMIN 21.
CAPABILITIES = {
    "vfio-flavourd.service": 0,
    "vfio-flavour-users@*.service": 1 << 2 | 1 << 19,
    "vfio-flavour-fs.service": 1 << 21,
}
HANG = ROLES["hang"]


# what the services may do


@pytest.mark.parametrize("unit", CAPABILITIES)
def test_every_process_of_a_unit_has_just_the_capabilities_that_it_needs(host: Host, unit: str) -> None:
    host.ctl("show", GOOD.bdf)  # somebody has looked for users, so there is one who looks
    said = host.run(f"""
        for group in $(systemctl show -P ControlGroup '{unit}'); do
            for process in $(cat /sys/fs/cgroup$group/cgroup.procs); do
                grep -H '^Cap' /proc/$process/status
            done
        done
    """).stdout
    found = dict(re.findall(r"(\d+/status:Cap(?:Prm|Eff|Bnd|Amb|Inh)):\s+(\w+)", said))
    assert len(found) >= 5
    for name, value in found.items():
        expected = CAPABILITIES[unit] if name.endswith(("Prm", "Eff", "Bnd")) else 0
        assert int(value, 16) == expected, name


@pytest.mark.parametrize("unit", EXPOSURES)
def test_systemd_finds_a_unit_as_little_exposed_as_is_promised(host: Host, unit: str) -> None:
    said = host.run(f"LC_ALL=C systemd-analyze security --no-pager '{unit}'", timeout=120).stdout
    [exposure] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert float(exposure) <= EXPOSURES[unit], said


# why a module can't be loaded


@contextmanager
def configured(host: Host, line: str) -> Iterator[None]:
    conf = "/etc/modprobe.d/vft-test.conf"
    host.run(f"echo '{line}' > {conf}")
    try:
        yield
    finally:
        host.run(f"rm {conf}")


def why(host: Host, driver: str) -> str:
    """What is said of that driver, which can't be had, when another one has taken the device, or none."""
    before = host.look()
    done = host.ctl("--json", "set", GOOD.bdf, "vfio", "--driver", driver)
    said: str
    if done.rc == 0:
        outcome = json.loads(done.stdout)
        assert outcome["driver"] == "vfio-pci"
        said = outcome["reason"]
        host.switch(GOOD, "native")
    else:
        said = done.stderr.splitlines()[0]
    assert host.look().changed(before) == set()
    assert driver in said
    return said


def test_a_module_that_there_is_none_of(host: Host) -> None:
    assert "module file missing" in why(host, "none_such")


def test_a_module_whose_signature_is_wrong(host: Host) -> None:
    """mod_check_sig() in kernel/module_signature.c: one that is longer than its file."""
    host.run(
        r"""
        module=/lib/modules/$(uname -r)/updates/vft_badly_signed.ko
        mkdir -p ${module%/*}
        cp $(modinfo -n vft_good) $module
        printf '\0\0\2\0\0\0\0\0\377\377\377\377~Module signature appended~\n' >> $module
        depmod
    """,
        timeout=300,
    )
    try:
        assert "signature refused" in why(host, "vft_badly_signed")
    finally:
        host.run("rm /lib/modules/$(uname -r)/updates/vft_badly_signed.ko; depmod", timeout=300)


def test_a_module_whose_init_fails(host: Host) -> None:
    with configured(host, "options vft_good bogus_is_only_remarked=1"):
        host.switch(GOOD, "vfio")  # an option that is not known fails nothing
        host.switch(GOOD, "native")
        host.run("rmmod vft_good")
    with configured(host, "options vft_hang release=maybe"):
        told = why(host, "vft_hang")
        assert "its init failed, or a parameter or symbol does not fit: could not insert 'vft_hang'" in told


def test_a_module_that_an_install_command_keeps_away(host: Host) -> None:
    with configured(host, "install vft_second /bin/false"):
        assert "modprobe.d" in why(host, "vft_second")


def test_a_module_that_is_blacklisted_gives_way_and_is_said_to_be(host: Host) -> None:
    with configured(host, "blacklist vft_good"):
        done = json.loads(host.ctl("--json", "set", GOOD.bdf, "vfio").stdout)
        assert done["driver"] == "vfio-pci"
        resolved = host.ctl("resolve", GOOD.bdf).stdout
        assert re.search(r"vft_good.*blacklist", resolved)
        host.switch(GOOD, "native")


def test_where_modules_can_not_be_had_nothing_is_touched_and_it_is_said_why(host: Host) -> None:
    host.run("mv /run/vfio-flavourd/modprobe /run/vfio-flavourd/away")
    try:
        done = host.ctl("set", GOOD.bdf, "vfio")
        assert done.rc == 1
        assert "modprobe can't be started: /run/vfio-flavourd/modprobe" in done.stderr
        assert host.look().devices[GOOD.bdf] == Seen("e1000e")
    finally:
        host.run("mv /run/vfio-flavourd/away /run/vfio-flavourd/modprobe")


def test_where_nobody_can_look_who_uses_a_device_it_is_not_taken_even_by_force(host: Host) -> None:
    before = host.look()
    host.run("mv /run/vfio-flavourd/users /run/vfio-flavourd/away; systemctl stop 'vfio-flavour-users@*'")
    try:
        done = host.ctl("set", GOOD.bdf, "vfio", "--force")
        assert (done.rc, "who uses the device can't be told" in done.stderr) == (1, True)
        assert "systemctl start vfio-flavour-users.socket" in done.stderr
        shown = host.ctl("show", GOOD.bdf)
        assert shown.rc == 0
        assert "can't be told" in shown.stdout
    finally:
        host.run("mv /run/vfio-flavourd/away /run/vfio-flavourd/users")
    assert host.look().changed(before) == set()
    host.switch(GOOD, "vfio")
    host.switch(GOOD, "native")


def test_where_the_kernel_takes_no_more_modules_it_is_said_which_lock_it_is(host: Host) -> None:
    """Neither can be taken back before the next boot."""
    host.run("echo integrity > /sys/kernel/security/lockdown")
    try:
        assert "the kernel is locked down (integrity)" in why(host, "vft_good")
        host.run("echo 1 > /proc/sys/kernel/modules_disabled")
        assert "kernel.modules_disabled" in why(host, "vft_good")
    finally:
        host.reboot()


# who may do what


def test_a_member_of_the_group_may_switch_but_neither_force_nor_make_it_last_nor_reload(host: Host) -> None:
    assert host.ctl("set", GOOD.bdf, "vfio", user=MEMBER).rc == 0
    assert host.look().devices[GOOD.bdf] == ON_VFIO
    assert host.ctl("reset", GOOD.bdf, user=MEMBER).rc == 0
    for arguments in (
        ["set", GOOD.bdf, "vfio", "--force"],
        ["set", GOOD.bdf, "vfio", "--persist"],
        ["reset", GOOD.bdf, "--force"],
        ["reload"],
    ):
        done = host.ctl(*arguments, user=MEMBER)
        assert (done.rc, "only root may" in done.stderr) == (77, True), arguments


def test_what_root_made_to_last_is_not_undone_by_a_member_of_the_group(host: Host) -> None:
    assert host.ctl("set", GOOD.bdf, "vfio", "--persist").rc == 0
    try:
        done = host.ctl("reset", GOOD.bdf, user=MEMBER)
        assert (done.rc, "only root may" in done.stderr) == (77, True)
        assert host.look().devices[GOOD.bdf] == ON_VFIO
    finally:
        assert host.ctl("reset", GOOD.bdf).rc == 0


def test_the_daemons_own_ways_are_root_s_alone(host: Host) -> None:
    code = """
import socket, sys
with socket.socket(socket.AF_UNIX) as door:
    try:
        door.connect(sys.argv[1])
        print("in")
    except OSError as error:
        print(error.strerror)
"""
    for path in ("/run/vfio-flavourd/modprobe", "/run/vfio-flavourd/users"):
        for user in (NOBODY, MEMBER):
            said = host.run(f"{user} python3 -c {shlex.quote(code)} {path}").stdout
            assert said == "Permission denied\n", (path, user)


def test_a_refusal_is_on_record_with_who_it_was(host: Host) -> None:
    journal = host.journal()
    runs = "systemd-run --wait --collect --quiet --unit vft-tries"  # collected: no failed unit is left
    asks = f"{runs} {OTHER_MEMBER} flavourctl set {GOOD.bdf} vfio --force"
    assert host.guest.run(asks, check=False, timeout=120).rc == 77
    journal.wait_for("refused to let")
    [record] = journal.records(ERROR_CODE="not-permitted")
    assert record["REQUESTER_UNIT"] == "vft-tries.service"
    assert record["REQUESTER_UID"] == "65533"
    assert record["PRIORITY"] == "4"
    assert "force" in record["MESSAGE"]


def test_a_word_that_use_vfio_can_not_have_is_on_record_with_who_wrote_it(host: Host) -> None:
    journal = host.journal()
    written = f"{OTHER_MEMBER} bash -c {shlex.quote(write_command(GOOD, '2', 'use_vfio'))}"
    assert host.guest.run(written, check=False).rc == 1
    journal.wait_for("'use_vfio=2'")
    [record] = journal.records(ERROR_CODE="no-such-flavour")
    assert (record["REQUESTER_UID"], record["PRIORITY"]) == ("65533", "4")
    assert record["OBJECT_PID"].isdecimal()


def test_an_attempt_is_on_record_with_the_user_the_process_and_the_unit(host: Host) -> None:
    journal = host.journal()
    host.run(f"systemd-run --wait --quiet --unit vft-asks flavourctl set {GOOD.bdf} vfio", timeout=120)
    host.run(f'{MEMBER} bash -c "{write_command(GOOD, "native")}"')
    journal.wait_for("vft-good-vfio-pci -> e1000e")
    first, second = journal.records(PCI_ADDRESS=GOOD.bdf, OUTCOME="done")
    assert (first["REQUESTER_UID"], first["REQUESTER_UNIT"]) == ("0", "vft-asks.service")
    assert first["OBJECT_PID"].isdecimal()
    # Who wrote to the file, not the file system's own process.
    assert second["REQUESTER_UID"] == "65534"


def test_one_who_does_not_wait_is_on_record_with_the_unit_he_was_in(host: Host) -> None:
    journal = host.journal()
    asked = f"flavourctl set {GOOD.bdf} vfio --no-wait"
    host.run(f"systemd-run --wait --quiet --unit vft-goes {asked}", timeout=120)
    host.switch(GOOD, "native")  # in the turn after that one
    journal.wait_for("vft-good-vfio-pci -> e1000e")
    first, _ = journal.records(PCI_ADDRESS=GOOD.bdf, OUTCOME="done")
    assert (first["FLAVOUR"], first["REQUESTER_UNIT"]) == ("vfio", "vft-goes.service")


# what an unprivileged user may try


FLOOD = """
import os, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
os.setgid(65534), os.setuid(65534)
calls = b'{"method": "io.vfioflavour.Manager.List"}\\0' * 90
doors, gone = [], 0
for number in range(1000):
    door = socket.socket(socket.AF_UNIX)
    door.settimeout(5)
    try:
        door.connect(sys.argv[1])
        door.send([b"", b'{"method": "io.vfiofl', b"x" * 3000, bytes(100), calls][number % 5])
    except OSError:
        gone += 1
    doors.append(door)
print("ready", flush=True)
time.sleep(1000)
"""


def test_a_thousand_connections_with_half_frames_and_many_calls_of_one_user_hold_up_no_other(
    host: Host, tmp_path: Path
) -> None:
    script = tmp_path / "flood.py"
    script.write_text(FLOOD, encoding="ascii")
    host.guest.push(script, "/run/flood.py")
    pid = host.run("systemctl show -P MainPID vfio-flavourd").stdout
    with running(host.guest, f"exec python3 /run/flood.py {READ_ONLY}") as flood:
        flood.wait_for("ready", 120)
        assert host.ctl("list").rc == 0
        assert host.ctl("set", GOOD.bdf, "vfio").rc == 0
        assert host.ctl("set", GOOD.bdf, "native", user=MEMBER).rc == 0
        descriptors = int(host.run(f"ls /proc/{pid.strip()}/fd | wc -l").stdout)
        assert descriptors < 300
    assert host.run("systemctl show -P MainPID vfio-flavourd").stdout == pid


FORGE = """
import os, socket, struct, sys
# struct udev_monitor_netlink_header of systemd's src/libsystemd/sd-device/device-monitor.c.
properties = b"".join(
    each + bytes(1)
    for each in (
        b"ACTION=change", b"DEVPATH=" + sys.argv[1].encode(), b"SUBSYSTEM=pci",
        b"PCI_SLOT_NAME=" + sys.argv[2].encode(), b"DRIVER_FLAVOUR=vfio", b"SEQNUM=99999999",
    )
)
sizes = struct.pack(">I", 0xFEEDCAFE) + struct.pack("=III", 40, 40, len(properties))
message = b"libudev" + bytes(1) + sizes + bytes(16) + properties
os.setgid(65534), os.setuid(65534)
for port in sys.argv[3:]:
    for group in (0, 2):
        door = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
        try:
            door.sendto(message, (int(port) if group == 0 else 0, group))
            print("sent to", "a process" if group == 0 else "the group")
        except OSError as error:
            print(error.strerror)
"""


def test_a_user_can_not_forge_an_event(host: Host, tmp_path: Path) -> None:
    """Neither to all nor to one process: only root may send (NL_CFG_F_NONROOT_SEND is not set)."""
    script = tmp_path / "forge.py"
    script.write_text(FORGE, encoding="ascii")
    host.guest.push(script, "/run/forge.py")
    before = host.look()
    pid = host.run("systemctl show -P MainPID vfio-flavourd").stdout.strip()
    # /proc/net/netlink: sk, protocol (15 is that of uevents), port.
    ports = host.run(
        f"for fd in $(ls -l /proc/{pid}/fd | sed -n 's/.*socket:.\\([0-9]*\\).*/\\1/p'); do"
        " awk -v inode=$fd '$2 == 15 && $10 == inode { print $3 }' /proc/net/netlink; done"
    ).stdout.split()
    assert ports
    path = host.run(f"realpath {GOOD.sysfs}").stdout.strip().removeprefix("/sys")
    said = host.run(f"python3 /run/forge.py {path} {GOOD.bdf} {' '.join(ports)}").stdout
    assert set(said.splitlines()) == {"Operation not permitted"}
    # One that is real comes after it.
    host.run(f"echo change > {ROLES['virtio'].sysfs}/uevent; udevadm settle")
    assert host.ctl("list").rc == 0
    assert host.look().changed(before) == set()
    assert host.run("systemctl show -P MainPID vfio-flavourd").stdout.strip() == pid


def test_a_user_can_not_pretend_to_use_a_device_by_a_file_of_its_nodes_name(host: Host) -> None:
    host.switch(GOOD, "vfio")
    host.run(f"""
        group=$(basename $(readlink {GOOD.sysfs}/iommu_group))
        {NOBODY} mkdir -p /tmp/x/dev/vfio
        {NOBODY} touch /tmp/x/dev/vfio/$group
        systemd-run -q --unit=pretender -p User=nobody sh -c "exec sleep infinity < /tmp/x/dev/vfio/$group"
        until readlink /proc/$(systemctl show -P MainPID pretender)/fd/0 | grep -q /tmp/x; do sleep 0.1; done
    """)
    try:
        assert host.show(GOOD)["users"] == []
        host.switch(GOOD, "native")
    finally:
        host.run("systemctl stop pretender; rm -r /tmp/x")


def test_the_sockets_are_as_they_are_documented(host: Host) -> None:
    said = host.run(f"stat -c '%a %U %G %n' {CONTROL} {READ_ONLY} /run/vfio-flavourd/modprobe").stdout
    assert [line.split()[:3] for line in said.splitlines()] == [
        ["660", "root", "vfio-flavour"],
        ["666", "root", "root"],
        ["600", "root", "root"],
    ]
