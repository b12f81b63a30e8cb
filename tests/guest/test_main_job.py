"""The main job: a write on driver_flavour, on a real kernel, and everything that may come of it."""

import contextlib
import errno
import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .channel import Pending
from .conftest import HANG_STARTED, RELEASE_HANG, Host, Seen, files, running, write_command
from .devices import ROLES, Role
from .test_policy import policy, rule

GOOD, SIBLING, HANG = ROLES["good"], ROLES["good_sibling"], ROLES["hang"]
REFUSE = ROLES["refuse"]
PERSONALITY, STUCK, NVME_PF = ROLES["personality"], ROLES["stuck"], ROLES["nvme_pf"]

# The way to VFIO may take so long for a module that does not come, and so much more for the rest.
LOAD_TIMEOUT, REST = 10, 60


def taken(driver: str) -> Seen:
    return Seen(driver, driver, vfio=True)


@pytest.mark.each_release
def test_a_write_gives_the_device_to_its_variant_and_leaves_its_sibling_alone(host: Host) -> None:
    before = host.look()
    assert not {module for module in before.modules if "vfio" in module}
    assert host.read(GOOD) == "[native] vfio"

    assert host.write(GOOD, "vfio").rc == 0

    now = host.look()
    assert now.devices[GOOD.bdf] == taken("vft-good-vfio-pci")
    assert now.changed(before) == {GOOD.bdf}
    assert "vfio_pci" not in now.modules
    group = host.run(f"basename $(readlink {GOOD.sysfs}/iommu_group)").stdout.strip()
    assert host.run("ls /dev/vfio").stdout.split() == [group, "vfio"]
    assert host.run(f"test -c /dev/vfio/{group}").rc == 0
    assert host.read(GOOD) == "native [vfio]"
    assert host.read(GOOD, "use_vfio") == "1"
    assert host.read(GOOD, "last_error") == ""
    assert host.read(SIBLING) == "[native] vfio"
    assert host.read(SIBLING, "use_vfio") == "0"

    assert host.write(GOOD, "native").rc == 0

    assert host.look().changed(before) == set()
    assert host.read(GOOD) == "[native] vfio"


@pytest.mark.each_release
def test_use_vfio_says_the_same_in_ones_and_zeros(host: Host) -> None:
    assert host.write(GOOD, "1", "use_vfio").rc == 0
    assert host.look().devices[GOOD.bdf] == taken("vft-good-vfio-pci")
    assert host.write(GOOD, "0", "use_vfio").rc == 0
    assert host.look().devices[GOOD.bdf] == Seen("e1000e")


def test_the_flavour_that_a_device_has_is_granted_without_touching_it(host: Host) -> None:
    with running(host.guest, "exec stdbuf -oL udevadm monitor --kernel --subsystem-match=pci") as events:
        events.wait_for("KERNEL - the kernel uevent")
        assert host.write(GOOD, "native").rc == 0
        # Events come in order, so this one is the first if the write made none.
        host.run(f"echo change > {SIBLING.sysfs}/uevent")
        seen = events.wait_for("change ").partition("uevent\n")[2]
    assert GOOD.bdf not in seen
    assert not host.look().vfio_modules


@pytest.mark.each_release
@pytest.mark.parametrize(
    ("name", "driver", "why"),
    [
        ("virtio", "virtio_vfio_pci", ["virtio_vfio_pci: matches vendor, device"]),
        (
            "refuse",
            "vfio-pci",
            ["vfio_pci: the generic fallback", "vft_refuse refused: Invalid argument (EINVAL)"],
        ),
        (
            "second",
            "vft-second",
            ["vft_second: matches vendor, device", "vft_refuse refused: Invalid argument (EINVAL)"],
        ),
        ("driverless", "vfio-pci", ["vfio_pci: the generic fallback"]),
        ("nvme", "vfio-pci", ["vfio_pci: the generic fallback"]),
    ],
)
def test_the_best_driver_that_takes_the_device_gets_it_and_it_is_said_why(
    host: Host, name: str, driver: str, why: list[str]
) -> None:
    role = ROLES[name]
    if driver == "virtio_vfio_pci" and not host.upstream:
        driver, why = "vfio-pci", ["vfio_pci: the generic fallback"]
    before, journal = host.look(), host.journal()

    host.switch(role, "vfio")

    now = host.look()
    assert now.devices[role.bdf] == taken(driver)
    assert now.changed(before) == {role.bdf}
    shown = host.ctl("show", role.bdf).stdout
    journal.wait_for(f"-> {driver} in ")
    (record,) = journal.records(PCI_ADDRESS=role.bdf, OUTCOME="done")
    assert record["DRIVER"] == driver
    for reason in why:
        assert reason in shown
        assert reason in record["MESSAGE"]

    host.switch(role, "native")
    assert host.look().changed(before) == set()


def test_whatever_a_probe_fails_with_the_next_driver_has_the_device_and_the_errno_is_told(host: Host) -> None:
    before = host.look()
    host.run("modprobe vft_refuse")
    for number, told in (
        (errno.ENODEV, "No such device (ENODEV)"),
        (errno.EBUSY, "Device or resource busy (EBUSY)"),
        (517, "Resource temporarily unavailable (EAGAIN)"),  # EPROBE_DEFER
    ):
        host.run(f"echo {number} > /sys/module/vft_refuse/parameters/errno_value")
        done = host.ctl("--json", "set", REFUSE.bdf, "vfio")
        assert done.rc == 0, done.stderr
        outcome = json.loads(done.stdout)
        assert outcome["driver"] == "vfio-pci"
        assert f"vft_refuse refused: {told}" in outcome["reason"]
        assert host.look().devices[REFUSE.bdf] == taken("vfio-pci")
        host.switch(REFUSE, "native")
        assert host.look().changed(before) == set()


def test_a_module_that_hangs_gives_way_in_time_while_others_go_on(host: Host) -> None:
    before = host.look()
    done = host.write(HANG, "vfio")
    assert done.rc == 0
    assert LOAD_TIMEOUT <= done.duration < LOAD_TIMEOUT + REST
    now = host.look()
    assert now.devices[HANG.bdf] == taken("vfio-pci")
    assert now.changed(before) == {HANG.bdf}
    assert f"vft_hang: not loaded within {LOAD_TIMEOUT} s" in host.ctl("show", HANG.bdf).stdout

    # A variant that comes after the fallback finds the device taken.
    host.run(RELEASE_HANG)
    assert host.look().devices[HANG.bdf] == taken("vfio-pci")
    host.switch(HANG, "native")
    assert host.look().changed(before) == set()

    host.run("rmmod vft_hang")
    with hanging_for_long(host, HANG.bdf) as write:
        assert host.write(GOOD, "vfio").rc == 0
        assert host.look().devices[GOOD.bdf] == taken("vft-good-vfio-pci")
        assert host.write(GOOD, "native").rc == 0
        assert not write.done
        host.run(RELEASE_HANG)
        assert write.wait().rc == 0
        assert host.look().devices[HANG.bdf] == taken("vft-hang-vfio-pci")
        host.switch(HANG, "native")
    assert host.look().changed(before) == set()


@contextlib.contextmanager
def patient(host: Host, bdf: str) -> Iterator[None]:
    """With time for all kinds of things on a slow machine while the device is switched."""
    limits = "    load_timeout: 2m\n    bind_timeout: 2m\n"
    with policy(host, rule("slow", f"address: {bdf}", "native", limits)):
        yield


@contextlib.contextmanager
def hanging_for_long(host: Host, bdf: str) -> Iterator[Pending]:
    """A write of vfio whose module hangs."""
    with patient(host, bdf):
        write = host.guest.start(write_command(bdf, "vfio"))
        host.run(HANG_STARTED)
        yield write


def test_a_device_that_comes_into_use_while_a_module_loads_is_not_taken(host: Host) -> None:
    before = host.look()
    with hanging_for_long(host, HANG.bdf) as write:
        host.run(f"ip link add br7 type bridge; ip link set $(ls {HANG.sysfs}/net) master br7")
        try:
            host.run(RELEASE_HANG)
            done = write.wait()
            assert done.rc != 0
            assert "Device or resource busy" in done.stderr
            assert "bridge br7" in host.read(HANG, "last_error")
            assert host.look().changed(before) == set()
        finally:
            host.run("ip link del br7")


def test_a_file_can_be_read_while_a_write_to_it_waits(host: Host) -> None:
    with hanging_for_long(host, HANG.bdf) as write:
        assert host.read(HANG) == "[native] vfio"
        assert not write.done
        write.kill(signal.SIGKILL)
        write.wait()
        host.run(RELEASE_HANG)


def test_an_override_that_was_there_before_comes_back(host: Host) -> None:
    host.run(f"echo e1000e > {SIBLING.sysfs}/driver_override")
    before = host.look()
    assert before.devices[SIBLING.bdf] == Seen("e1000e", "e1000e")
    host.switch(SIBLING, "vfio")
    assert host.look().devices[SIBLING.bdf] == taken("vft-good-vfio-pci")
    host.switch(SIBLING, "native")
    assert host.look().changed(before) == set()
    host.run(f"echo > {SIBLING.sysfs}/driver_override")


def test_a_native_driver_that_was_unloaded_meanwhile_is_loaded_again(host: Host) -> None:
    role = ROLES["second"]
    host.switch(role, "vfio")
    host.run("rmmod vmxnet3")
    host.switch(role, "native")
    assert host.look().devices[role.bdf] == Seen("vmxnet3")


@pytest.mark.parametrize(
    ("role", "file", "text", "says", "last_error"),
    [
        (GOOD, "driver_flavour", "vfoi", "Invalid argument", "'vfoi'; allowed: native or vfio"),
        (GOOD, "use_vfio", "2", "Invalid argument", "allowed: 0 or 1"),
        (ROLES["bridge"], "driver_flavour", "vfio", "Device or resource busy", "it is a bridge"),
        (ROLES["pair_bridge"], "driver_flavour", "vfio", "Device or resource busy", "it is a bridge"),
    ],
)
def test_a_write_that_can_not_be_granted_says_why_and_touches_nothing(
    host: Host, role: Role, file: str, text: str, says: str, last_error: str
) -> None:
    before = host.look()
    refused = host.write(role, text, file)
    assert refused.rc == 1
    assert f"write error: {says}" in refused.stderr
    said = host.read(role, "last_error")
    assert last_error in said
    assert len(said.splitlines()) == 1
    now = host.look()
    assert (now.changed(before), now.vfio_modules) == (set(), set())


def test_last_error_is_empty_again_after_a_success(host: Host) -> None:
    host.write(GOOD, "vfoi")
    assert host.read(GOOD, "last_error")
    host.switch(GOOD, "native")
    assert host.read(GOOD, "last_error") == ""


def test_there_is_a_directory_for_each_device_and_no_other(host: Host) -> None:
    assert set(host.run("ls /run/vfio-flavour").stdout.split()) == set(host.look().devices)
    refused = host.write("0000:00:1e.0", "vfio")
    assert "No such file or directory" in refused.stderr
    assert "No such file or directory" in host.run("ls /run/vfio-flavour/00:04.0", check=False).stderr


@pytest.mark.each_release
def test_a_device_that_is_plugged_in_has_its_files_until_it_goes(host: Host) -> None:
    bdf = host.guest.device_add("e1000e", id="plugged")
    host.run(f"udevadm wait --timeout=60 --settle /sys/bus/pci/devices/{bdf}", timeout=90)
    assert host.read(bdf) == "[native] vfio"
    host.switch(bdf, "vfio")
    assert host.look().devices[bdf] == taken("vft-good-vfio-pci")
    host.guest.device_del("plugged")
    host.run("udevadm settle")
    assert not host.run(f"ls -d {files(bdf)}", check=False).stdout
    journal = host.journal()
    # Nothing is remembered of the old one: the new one at its address is native, and goes back to that.
    assert host.guest.device_add("e1000e", id="again") == bdf
    host.run(f"udevadm wait --timeout=60 --settle /sys/bus/pci/devices/{bdf}", timeout=90)
    assert host.read(bdf) == "[native] vfio"
    assert not host.look().records
    assert not journal.records(PRIORITY="3")
    host.guest.device_del("again")


def test_a_device_that_is_unplugged_in_the_middle_of_its_switch_is_no_such_device(host: Host) -> None:
    bdf = host.guest.device_add("e1000", id="plugged")
    host.run(f"udevadm wait --timeout=60 --settle /sys/bus/pci/devices/{bdf}", timeout=90)
    with hanging_for_long(host, bdf) as write:
        host.guest.device_del("plugged")
        assert not write.done
        host.run(RELEASE_HANG)
        done = write.wait()
        assert "write error: No such device" in done.stderr
        assert done.rc == 1
    now = host.look()
    assert bdf not in now.devices
    assert not now.records
    assert not host.run(f"ls -d {files(bdf)}", check=False).stdout


# A terminal's Ctrl-C, as a person would press it.
CTRL_C = """
import os, pty, subprocess, sys, time
command, started = sys.argv[1:]
pid, terminal = pty.fork()
if not pid:
    os.execlp("bash", "bash", "--norc", "-i")
os.write(terminal, (command + "\\n").encode())
subprocess.run(["bash", "-c", started], check=True)
pressed = time.monotonic()
os.write(terminal, b"\\x03")
os.write(terminal, b"echo it ended with $?\\n")
said = b""
while b"it ended with 1" not in said:
    said += os.read(terminal, 4096)
print(said.decode(), file=sys.stderr)
os.write(terminal, b"exit\\n")
os.waitpid(pid, 0)
"""


def test_ctrl_c_ends_a_write_that_waits(host: Host, tmp_path: Path) -> None:
    before = host.look()
    (tmp_path / "ctrl_c.py").write_text(CTRL_C)
    host.guest.push(tmp_path / "ctrl_c.py", "/run/ctrl_c.py")
    with patient(host, HANG.bdf):
        # It comes back, which it would not before the module does.
        host.run(shlex.join(["python3", "/run/ctrl_c.py", write_command(HANG, "vfio"), HANG_STARTED]))
        assert "interrupted" in host.read(HANG, "last_error")
        now = host.look()
        assert now.changed(before) == set()
        assert not now.records
        host.run(RELEASE_HANG)
    assert host.look().changed(before) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_write_that_waits_and_leaves_the_device_alone(
    host: Host, number: signal.Signals
) -> None:
    before = host.look()
    with patient(host, HANG.bdf):
        file = f"{files(HANG)}/driver_flavour"
        write = host.guest.start(f'exec python3 -c \'open("{file}", "w").write("vfio")\'')
        host.run(HANG_STARTED)
        write.kill(number)
        assert write.wait().rc == -number  # which it would not before the module does
        assert host.read(HANG) == "[native] vfio"
        assert host.look().changed(before) == set()
        host.run(RELEASE_HANG)


@pytest.mark.each_release
def test_a_driver_with_a_vfio_personality_is_asked_and_never_unbound(host: Host) -> None:
    before = host.look()
    link = f"stat -c %i {PERSONALITY.sysfs}/driver"
    inode = host.run(link).stdout
    with running(host.guest, "exec stdbuf -oL udevadm monitor --kernel") as events:
        events.wait_for("KERNEL - the kernel uevent")
        for vfio, native, file in (("vfio", "native", "driver_flavour"), ("1", "0", "use_vfio")):
            assert host.write(PERSONALITY, vfio, file).rc == 0
            now = host.look()
            assert now.devices[PERSONALITY.bdf] == Seen("vft-native", vfio=True)
            assert now.changed(before) == {PERSONALITY.bdf}
            assert host.guest.read(f"{PERSONALITY.sysfs}/enable_vfio") == "1"
            assert host.guest.read(f"{ROLES['personality_sibling'].sysfs}/enable_vfio") == "0"
            assert host.read(PERSONALITY) == "native [vfio]"

            assert host.write(PERSONALITY, native, file).rc == 0
            assert host.look().changed(before) == set()
            assert host.guest.read(f"{PERSONALITY.sysfs}/enable_vfio") == "0"
        host.run(f"echo change > {SIBLING.sysfs}/uevent")
        seen = events.wait_for("change ")
    actions = {line.split()[1] for line in seen.splitlines() if line.endswith("(pci)")}
    assert actions == {"change"}
    assert host.run(link).stdout == inode


@pytest.mark.parametrize("restart", [False, True], ids=["", "with a restart meanwhile"])
def test_a_driver_that_does_not_let_go_holds_up_nobody_else(host: Host, *, restart: bool) -> None:
    journal = host.journal()
    host.run("modprobe vfio-pci")  # the time is for the unbind alone
    with stuck_remove(host):
        given_up = host.ctl("set", STUCK.bdf, "vfio", "--timeout", "10")
        assert given_up.rc == 75
        assert "has not returned" in given_up.stderr
        assert "stuck" in host.ctl("show", STUCK.bdf).stdout
        assert host.show(STUCK)["phase"] == "stuck"
        # Whoever comes next is told at once, and not when the ten minutes are over.
        again = host.write(STUCK, "vfio")
        assert "write error: Device or resource busy" in again.stderr
        assert "stuck" in host.read(STUCK, "last_error")
        assert again.duration < 60

        other = host.write(GOOD, "vfio")
        assert (other.rc, other.duration < 60) == (0, True)
        assert host.read(GOOD) == "native [vfio]"
        assert host.write(GOOD, "native").rc == 0

        if restart:
            host.stop("vfio-flavourd")
            host.run("systemctl start vfio-flavourd")
            assert "stuck" in host.ctl("show", STUCK.bdf).stdout

    journal.wait_for("is over: it has vfio-pci")
    host.run("echo 0 > /sys/module/vft_stuck/parameters/release")
    assert host.look().devices[STUCK.bdf] == taken("vfio-pci")
    host.switch(STUCK, "native")
    assert host.look().devices[STUCK.bdf] == Seen("vft-stuck")


def test_more_writes_than_anyone_counts_hold_up_neither_the_files_nor_a_signal(host: Host) -> None:
    """Beyond what pyfuse3 serves at one time by itself: 99."""
    before = host.look()
    write = write_command(STUCK, "vfio")
    with patient(host, STUCK.bdf), stuck_remove(host):
        said = host.run(
            f"""for n in $(seq 120); do ({write}) 2> /dev/null & last=$!; done
            # By the number of the system call that each is in: write(2).
            calls=$(printf '/proc/%s/syscall ' $(jobs -p))
            until [ "$(grep -l '^1 ' $calls | wc -l)" -gt 100 ]; do sleep 0.2; done
            timeout 20 cat {files(GOOD)}/driver_flavour
            kill $last; while grep -q '^State:.[^Z]' /proc/$last/status; do sleep 0.2; done; echo ended
            kill $(jobs -p) 2> /dev/null; wait""",
            timeout=120,
        ).stdout
        assert said == "[native] vfio\nended\n"
        # What had begun goes on to its end.
        host.run("echo 1 > /sys/module/vft_stuck/parameters/release")
        host.run("while grep -q -s 'switching.: true' /run/vfio-flavourd/devices/*.json; do sleep 0.1; done")
        host.switch(STUCK, "native")
    host.run("echo 0 > /sys/module/vft_stuck/parameters/release")
    assert host.look().changed(before) == set()


@contextlib.contextmanager
def stuck_remove(host: Host) -> Iterator[None]:
    """Whoever unbinds the device that is called so is held in the kernel meanwhile."""
    parameters = "/sys/module/vft_stuck/parameters"
    host.run(f"echo 600000 > {parameters}/hold_ms; echo 0 > {parameters}/release")
    try:
        yield
    finally:
        host.run(f"echo 1 > {parameters}/release; echo 0 > {parameters}/hold_ms")


def test_eight_devices_switch_side_by_side(host: Host) -> None:
    names = ("good", "good_sibling", "virtio", "refuse", "second", "personality", "nvme", "driverless")
    before = host.look()
    roles = [ROLES[name] for name in names]
    for flavour in ("vfio", "native"):
        host.run(in_parallel([role.bdf for role in roles], flavour), timeout=120)
        now = host.look()
        switched = {role.bdf for role in roles} if flavour == "vfio" else set()
        assert now.changed(before) == switched
        assert {bdf for bdf, seen in now.devices.items() if seen.vfio} == switched


def in_parallel(bdfs: list[str], flavour: str) -> str:
    writes = "\n".join(f"{write_command(bdf, flavour)} & writes+=($!)" for bdf in bdfs)
    return f"writes=()\n{writes}\nrc=0\nfor write in ${{writes[@]}}; do wait $write || rc=1; done; exit $rc"


def test_sixteen_virtual_functions_switch_at_once_without_autoprobe(host: Host) -> None:
    host.run(f"echo 0 > {NVME_PF.sysfs}/sriov_drivers_autoprobe; echo 16 > {NVME_PF.sysfs}/sriov_numvfs")
    before = host.look()
    vfs = sorted(bdf for bdf in before.devices if bdf.startswith("0000:01:") and bdf != NVME_PF.bdf)
    assert len(vfs) == 16
    host.run(in_parallel(vfs, "vfio"), timeout=120)
    now = host.look()
    assert now.changed(before) == set(vfs)
    assert {now.devices[bdf] for bdf in vfs} == {taken("vfio-pci")}
    assert len(now.records) == 16
    host.run(in_parallel(vfs, "native"), timeout=120)
    assert host.look().changed(before) == set()
    host.run(f"echo 0 > {NVME_PF.sysfs}/sriov_numvfs; echo 1 > {NVME_PF.sysfs}/sriov_drivers_autoprobe")
    assert not set(host.run("ls /run/vfio-flavour").stdout.split()) & set(vfs)


def test_a_virtual_function_gets_its_driver_back_without_autoprobe(host: Host) -> None:
    bdf = "0000:01:00.1"
    device = f"/sys/bus/pci/devices/{bdf}"
    # An NVMe function without queues of its own has no native driver, so another stands in for it.
    host.run(f"""
        set -e
        echo 0 > {NVME_PF.sysfs}/sriov_drivers_autoprobe; echo 1 > {NVME_PF.sysfs}/sriov_numvfs
        modprobe pci-stub; echo pci-stub > {device}/driver_override
        echo {bdf} > /sys/bus/pci/drivers/pci-stub/bind; echo > {device}/driver_override
    """)
    before = host.look()
    assert before.devices[bdf] == Seen("pci-stub")
    host.switch(bdf, "vfio")
    assert host.look().devices[bdf] == taken("vfio-pci")
    host.switch(bdf, "native")
    assert host.look().changed(before) == set()
    host.run(f"""
        echo 0 > {NVME_PF.sysfs}/sriov_numvfs; echo 1 > {NVME_PF.sysfs}/sriov_drivers_autoprobe
        rmmod pci_stub
    """)
