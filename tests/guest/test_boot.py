"""From the first moment: the native driver never gets a device that the policy gives to VFIO."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .channel import Result
from .conftest import Host, Seen, State, write_command
from .devices import ROLES, Role
from .test_policy import DIRECTORY, RULES, TAKEN, forget_wishes, reload, rule, wait_for, write
from .vm import Guest

GOOD, SIBLING, NVME, SECOND = ROLES["good"], ROLES["good_sibling"], ROLES["nvme"], ROLES["second"]
STUCK = ROLES["stuck"]
GIVEN = (GOOD, NVME, SECOND)
GENERIC = Seen("vfio-pci", "vfio-pci", vfio=True)
POLICY = "version: 1\nrules:\n" + "".join(
    rule(role.name, f"address: {role.bdf}, vendor: {role.id[:4]}, device: {role.id[5:]}") for role in GIVEN
)
HANG = ROLES["hang"]
EDITED = POLICY + rule("more", f"address: {HANG.bdf}", more="    driver: vfio-pci\n")
EARLY = "vfio-flavour-early.service"


@dataclass(frozen=True, slots=True)
class Boot:
    """What a boot was like. Times are the guest's seconds since its kernel started."""

    state: State
    kernel_log: str
    seconds: float
    early_seconds: float
    compiled: bool
    multi_user: float
    on_vfio: dict[str, float]
    failed_units: str


def look_at_boot(host: Host) -> Boot:
    run = host.run
    said = run("systemd-analyze time").stdout
    seconds = sum(float(number) for number in re.findall(r"([\d.]+)s \((?:kernel|initrd|userspace)\)", said))
    seconds += 60 * sum(
        float(n) for n in re.findall(r"(\d+)min [\d.]+s \((?:kernel|initrd|userspace)\)", said)
    )
    times = dict(
        line.split("=", 1)
        for line in run(
            f"systemctl show -p InactiveExitTimestampMonotonic -p InactiveEnterTimestampMonotonic {EARLY};"
            f" systemctl show -p ExecMainStartTimestampMonotonic {EARLY};"
            " systemctl show -p ActiveEnterTimestampMonotonic multi-user.target"
        ).stdout.split()
    )
    # With its condition, which is all that is run where nothing has changed.
    early = int(times["InactiveEnterTimestampMonotonic"]) - int(times["InactiveExitTimestampMonotonic"])
    # udev's word on when it first saw the group's node, which VFIO makes when it gets the device.
    nodes = run(f"""
        for device in {" ".join(role.bdf for role in GIVEN)}; do
            group=/sys/class/vfio/$(basename $(readlink /sys/bus/pci/devices/$device/iommu_group))
            if [ -e $group ]; then
                echo $device $(udevadm info -q property --property=USEC_INITIALIZED --value $group)
            fi
        done
    """).stdout
    return Boot(
        state=host.look(),
        kernel_log=host.guest.kernel_log,
        seconds=seconds,
        early_seconds=early / 1e6,
        compiled=times["ExecMainStartTimestampMonotonic"] != "0",
        multi_user=int(times["ActiveEnterTimestampMonotonic"]) / 1e6,
        on_vfio={bdf: int(when) / 1e6 for bdf, when in (line.split() for line in nodes.splitlines())},
        failed_units=run("systemctl --failed --no-legend --plain").stdout,
    )


@dataclass(frozen=True, slots=True)
class Boots:
    without: Boot
    with_policy: Boot
    with_initramfs: Boot
    """And with a policy that was edited without a reload."""
    checks: tuple[Result, Result]
    """`flavourctl check` before that edit, and in the boot after it."""


@pytest.fixture(scope="module")
def boots(guest: Guest, at_first: State) -> Iterator[Boots]:
    host = Host(guest)
    without = look_at_boot(host)
    initrd, modules = guest.initrd, "/etc/initramfs-tools/modules"
    guest.run(f"cp {modules} /root/modules")
    try:
        forget_wishes(host)
        write(host, POLICY)
        reload(host)
        wait_for(host, GOOD.bdf, TAKEN)  # already now
        host.reboot()
        with_policy = look_at_boot(host)
        # The native drivers are in the initramfs, where udev loads them before the root file system is there.
        guest.run(f"printf 'e1000e\\nvmxnet3\\nnvme\\n' >> {modules}")
        guest.update_initramfs()
        reload(host)  # which sees that the device of the rule that comes is in nobody's use
        before_edit = host.ctl("check")
        write(host, EDITED)
        host.reboot()
        with_initramfs = look_at_boot(host)
        yield Boots(without, with_policy, with_initramfs, (before_edit, host.ctl("check")))
    finally:
        guest.run(
            f"flavourctl reset {GOOD.bdf}; rm -f {DIRECTORY}/*; cp /root/modules {modules}; flavourctl reload"
        )
        host.reboot(initrd=initrd)
    assert host.look().changed(at_first) == set()


def find_native_probe(boot: Boot, role: Role) -> list[str]:
    """What a native driver said of the device: each of these says something when it probes it."""
    return [line for line in boot.kernel_log.splitlines() if f"{role.native} " in line and role.bdf in line]


def find_time(boot: Boot, *words: str) -> float:
    """Seconds since the kernel started, of its first message with all these words."""
    (first, *_) = [line for line in boot.kernel_log.splitlines() if all(word in line for word in words)]
    return float(first.removeprefix("[").partition("]")[0])


def check_never_native(boot: Boot) -> None:
    assert boot.state.devices[GOOD.bdf] == TAKEN
    assert boot.state.devices[NVME.bdf] == GENERIC
    assert boot.state.devices[SECOND.bdf].vfio
    assert boot.state.devices[SIBLING.bdf] == Seen("e1000e")
    for role in GIVEN:
        assert find_native_probe(boot, role) == [], role.name
        assert boot.on_vfio[role.bdf] < boot.multi_user, role.name
    assert find_native_probe(boot, SIBLING)
    assert boot.failed_units == ""


def test_the_native_driver_never_bound_it_and_vfio_has_it_before_the_boot_is_over(boots: Boots) -> None:
    check_never_native(boots.with_policy)
    for role in GIVEN:
        assert find_native_probe(boots.without, role), role.name
        assert boots.without.state.devices[role.bdf] == Seen(role.native)
    assert boots.without.on_vfio == {}


def test_the_same_with_the_native_driver_in_the_initramfs(boots: Boots) -> None:
    boot = boots.with_initramfs
    check_never_native(boot)
    # What was left to it was bound there, and udev was there too: nobody else renames the interface.
    bound, renamed = (
        find_time(boot, f"e1000e {SIBLING.bdf}", "Network"),
        find_time(boot, SIBLING.bdf, "renamed"),
    )
    assert bound < renamed < find_time(boot, "EXT4-fs (vda)", "mounted filesystem")


def test_a_policy_that_has_not_changed_is_not_compiled_before_udev(boots: Boots) -> None:
    """What that costs is told, and not asserted: a guest's second is worth what the machine is doing."""
    print(
        f"boot without a policy {boots.without.seconds:.1f} s, with one {boots.with_policy.seconds:.1f} s;"
        f" before udev {boots.without.early_seconds:.2f} and {boots.with_policy.early_seconds:.2f} s"
    )
    assert boots.with_policy.early_seconds > 0, "the condition was not even looked at"
    assert not boots.with_policy.compiled


def test_a_policy_that_was_edited_without_a_reload_holds_at_the_next_boot(boots: Boots) -> None:
    boot = boots.with_initramfs
    assert boot.compiled
    assert boot.state.devices[HANG.bdf] == GENERIC
    assert find_native_probe(boot, HANG) == []
    assert find_native_probe(boots.without, HANG)


def test_an_initramfs_older_than_the_policy_is_told(boots: Boots) -> None:
    before_edit, after_it = boots.checks
    assert (before_edit.rc, after_it.rc) == (0, 0)
    assert "initramfs" not in before_edit.stderr
    assert "update-initramfs" in after_it.stderr


def test_a_wish_that_lasts_stands_above_the_policy_at_the_next_boot_too(
    boots: Boots, host_after_boot: Host
) -> None:
    """And the power is cut in the middle of another device's switch, between its drivers. Of that nothing
    outlasts the boot, neither in the device nor on disk: it has what it would have had without."""
    host = host_after_boot
    write(host, POLICY)
    host.run("echo > /root/synced; sync")  # of what follows the daemon itself makes last what is to
    host.ctl("set", NVME.bdf, "native")
    done = host.ctl("set", GOOD.bdf, "native", "--persist")
    assert done.rc == 0, done.stderr
    # The old driver's remove takes a minute, so that the switch can't be over before the power is cut.
    host.run("echo 60000 > /sys/module/vft_stuck/parameters/hold_ms")
    host.guest.start(write_command(STUCK, "vfio"))
    record = f"/run/vfio-flavourd/devices/{STUCK.bdf}.json"
    begun = f"""[ ! -e {STUCK.sysfs}/driver ] && grep -q -s '"switching": true' {record}"""
    host.run(f"until {begun}; do sleep 0.1; done; echo > /root/late")
    host.guest.reboot(power_cut=True)
    boot = look_at_boot(host)
    assert host.run("cd /root; ls synced late", check=False).stdout.split() == ["synced"], "no power cut"
    assert boot.state.devices[STUCK.bdf] == Seen("vft-stuck")
    assert f"{STUCK.bdf}.json" not in boot.state.records
    assert boot.state.devices[GOOD.bdf] == Seen("e1000e")
    # Wishes for the boot have ended with it.
    assert boot.state.devices[NVME.bdf] == GENERIC
    assert boot.state.devices[SECOND.bdf].vfio
    assert boot.failed_units == ""
    assert host.ctl("reset", GOOD.bdf).rc == 0
    assert host.look().devices[GOOD.bdf] == TAKEN


@pytest.fixture
def host_after_boot(guest: Guest) -> Host:
    """The policy has changed what the devices are, so nothing is compared."""
    return Host(guest)


def test_the_rules_are_made_from_the_policy_and_say_so(boots: Boots, host_after_boot: Host) -> None:
    rules = host_after_boot.guest.read(RULES)
    assert rules.startswith("#")
    assert GOOD.bdf in rules
    assert "PROGRAM" not in rules
