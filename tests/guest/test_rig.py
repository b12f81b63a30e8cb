"""The rig itself: what later tests take for granted about the guest, its devices and its drivers.

Nothing here needs the project's package.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .channel import Pending
from .devices import HOTPLUG_PORTS, ROLES, UPSTREAM_MODULES, VARIANT_MODULES, VFS, Role, variants
from .vm import Guest

# Few processes, because each takes its time under software emulation.
SNAPSHOT = """
cd /sys/bus/pci/devices
grep -H . */vendor */device */driver_override
find */driver */iommu_group -maxdepth 0 -printf '%p:%l\\n'
cut -d ' ' -f 1 /proc/modules | grep -E 'vfio|vft'
"""


@dataclass(frozen=True, slots=True)
class Device:
    id: str
    driver: str | None
    group: str | None
    override: str


@dataclass(frozen=True, slots=True)
class State:
    devices: dict[str, Device]
    vfio_modules: frozenset[str]


def look(guest: Guest) -> State:
    attributes: dict[str, dict[str, str]] = {}
    modules = set()
    for line in guest.run(SNAPSHOT, check=False).stdout.splitlines():
        path, slash, attribute = line.partition("/")
        if slash:
            name, _, value = attribute.partition(":")
            attributes.setdefault(path, {})[name] = value.rpartition("/")[2]
        elif "vfio" in line or line in VARIANT_MODULES:
            modules.add(line)
    return State({bdf: _device(found) for bdf, found in attributes.items()}, frozenset(modules))


def _device(found: dict[str, str]) -> Device:
    ids = (found[name].removeprefix("0x") for name in ("vendor", "device"))
    return Device(":".join(ids), found.get("driver"), found.get("iommu_group"), found["driver_override"])


@pytest.fixture(scope="module")
def at_first(guest: Guest) -> State:
    return look(guest)


@pytest.fixture(scope="module")
def devices(at_first: State) -> dict[str, Device]:
    return at_first.devices


@pytest.fixture(autouse=True)
def _everything_is_put_back(guest: Guest, at_first: State) -> Iterator[None]:
    yield
    now = look(guest)
    assert now.vfio_modules == at_first.vfio_modules
    # As sets of pairs, whose difference is short.
    assert set(now.devices.items()) == set(at_first.devices.items())


def bind(guest: Guest, role: Role, driver: str) -> None:
    guest.run(f"""
        set -e
        echo {driver} > {role.sysfs}/driver_override
        if [ -e {role.sysfs}/driver ]; then echo {role.bdf} > {role.sysfs}/driver/unbind; fi
        echo {role.bdf} > /sys/bus/pci/drivers/{driver}/bind
    """)


def unload(guest: Guest, *modules: str) -> None:
    """With the VFIO modules they pulled in, and no others.

    `modprobe -r` removes what is no longer used too, vft_native below vft_native_vfio for one.
    vfio_virqfd is a module of its own before 6.2.
    """
    guest.run(f"""
        for module in {" ".join(modules)} vfio_iommu_type1 vfio_pci_core vfio_virqfd vfio; do
            if [ -e /sys/module/$module ]; then rmmod $module; fi
        done
    """)


def back_to_native(guest: Guest, role: Role, *modules: str) -> None:
    give_back(guest, role)
    unload(guest, *modules)


def give_back(guest: Guest, role: Role) -> None:
    guest.run(f"""
        if [ -e {role.sysfs}/driver ]; then echo {role.bdf} > {role.sysfs}/driver/unbind; fi
        echo > {role.sysfs}/driver_override
        echo {role.bdf} > /sys/bus/pci/drivers_probe
        udevadm settle
    """)


def test_it_boots_without_a_failed_unit(guest: Guest) -> None:
    failed = guest.run("systemctl --failed --no-legend").stdout
    assert (guest.state, failed) == ("running", "")


def test_no_vfio_module_is_loaded_by_the_boot(guest: Guest) -> None:
    assert not {name for name in guest.modules_at_boot if "vfio" in name}
    assert not guest.modules_at_boot & VARIANT_MODULES.keys()


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_a_role_is_where_the_table_says(devices: dict[str, Device], role: Role) -> None:
    seen = devices[role.bdf]
    assert (seen.id, seen.driver, seen.override) == (role.id, role.native, "(null)")


def test_a_role_has_an_iommu_group_of_its_own_unless_the_table_says_otherwise(
    devices: dict[str, Device],
) -> None:
    assert {role.bdf for role in ROLES.values() if not role.isolated} == {
        bdf for bdf, seen in devices.items() if seen.group is None
    }
    for role in ROLES.values():
        if not role.isolated:
            continue
        owner = ROLES[role.group_of] if role.group_of else role
        others = {other.bdf for other in ROLES.values() if (other.group_of or other.name) == owner.name}
        group = devices[role.bdf].group
        assert {bdf for bdf, seen in devices.items() if seen.group == group} == others


@pytest.mark.parametrize(
    "role", [role for role in ROLES.values() if role.variants], ids=lambda role: role.name
)
def test_a_flavoured_modalias_matches_its_variants_and_vfio_pci(guest: Guest, role: Role) -> None:
    modalias = guest.read(f"{role.sysfs}/modalias").replace("pci:", "vfio_pci:", 1)
    found = set(guest.run(f"modprobe -R '{modalias}'").stdout.split())
    names = {driver: module for module, driver in VARIANT_MODULES.items()}
    expected = variants(role, upstream=bool(guest.image.release.upstream))
    assert found == {names.get(driver, driver) for driver in expected} | {"vfio_pci"}


def test_upstreams_variants_are_there_just_where_they_can_be_built(guest: Guest) -> None:
    aliases = guest.run("grep '^alias vfio_pci:' /lib/modules/*/modules.alias").stdout
    found = {line.split()[2] for line in aliases.splitlines()}
    upstream = set(UPSTREAM_MODULES) if guest.image.release.upstream else set()
    assert found == VARIANT_MODULES.keys() | upstream | {"vfio_pci"}


@pytest.mark.parametrize(
    ("name", "module", "driver"),
    [
        ("good", "vft_good", "vft-good-vfio-pci"),
        ("second", "vft_second", "vft-second"),
        ("driverless", "vfio_pci", "vfio-pci"),
        ("refuse", "vfio_pci", "vfio-pci"),
    ],
)
def test_raw_sysfs_writes_give_a_device_to_vfio(guest: Guest, name: str, module: str, driver: str) -> None:
    role = ROLES[name]
    guest.run(f"modprobe {module}")
    bind(guest, role, driver)
    device = look(guest).devices[role.bdf]
    assert device.driver == driver
    assert guest.run(f"ls {role.sysfs}/vfio-dev").stdout.startswith("vfio")
    guest.run(f"test -c /dev/vfio/{device.group}")
    back_to_native(guest, role, module)


def test_upstreams_virtio_variant_takes_virtio_net(guest: Guest) -> None:
    role = ROLES["virtio"]
    if not guest.image.release.upstream:
        assert guest.run("modprobe virtio_vfio_pci", check=False).rc != 0
        return
    guest.run("modprobe virtio_vfio_pci")
    bind(guest, role, "virtio_vfio_pci")
    assert look(guest).devices[role.bdf].driver == "virtio_vfio_pci"
    back_to_native(guest, role, "virtio_vfio_pci")


@pytest.mark.parametrize("name", ["refuse", "second"])
@pytest.mark.parametrize(
    ("errno", "says"),
    [(22, "Invalid argument"), (19, "No such device"), (16, "Device or resource busy")],
)
def test_the_refusing_driver_fails_with_the_errno_it_was_given(
    guest: Guest, name: str, errno: int, says: str
) -> None:
    role = ROLES[name]
    guest.run(f"modprobe vft_refuse errno_value={errno}")
    result = guest.run(
        f"""
        echo vft-refuse-vfio-pci > {role.sysfs}/driver_override
        echo {role.bdf} > {role.sysfs}/driver/unbind
        echo {role.bdf} > /sys/bus/pci/drivers/vft-refuse-vfio-pci/bind
        """,
        check=False,
    )
    assert says in result.stderr
    back_to_native(guest, role, "vft_refuse")


def test_a_hanging_init_survives_sigkill_until_it_is_released(guest: Guest) -> None:
    load = guest.start("echo started; exec modprobe vft_hang")
    load.wait_for("started")
    # A module's uevent comes when its init is over: nothing to wait for but the file.
    guest.run("until [ -e /sys/module/vft_hang/parameters/release ]; do sleep 0.1; done")
    assert guest.read("/sys/module/vft_hang/initstate") == "coming"
    load.kill(signal.SIGKILL)
    assert guest.run("ps -C modprobe -o stat=").stdout.startswith("D")
    guest.run("echo 1 > /sys/module/vft_hang/parameters/release")
    load.wait()
    assert guest.read("/sys/module/vft_hang/initstate") == "live"
    guest.run("test -e /sys/module/vft_hang/drivers/pci:vft-hang-vfio-pci")
    unload(guest, "vft_hang")


def test_a_stuck_remove_blocks_unbind_until_it_is_released(guest: Guest) -> None:
    role = ROLES["stuck"]
    parameters = "/sys/module/vft_stuck/parameters"
    guest.run(f"echo 600000 > {parameters}/hold_ms")
    unbind = guest.start(f"echo started; echo {role.bdf} > /sys/bus/pci/drivers/vft-stuck/unbind")
    unbind.wait_for("started")
    # Likewise here: the link goes first, the uevent comes after the driver's remove.
    guest.run(f"while [ -e {role.sysfs}/driver ]; do sleep 0.1; done")
    assert not unbind.done
    guest.run(f"echo 1 > {parameters}/release")
    assert unbind.wait().rc == 0
    guest.run(f"echo 0 > {parameters}/release; echo 0 > {parameters}/hold_ms")
    guest.run(f"echo {role.bdf} > /sys/bus/pci/drivers/vft-stuck/bind")


def test_a_stuck_remove_ends_by_itself_when_its_time_is_over(guest: Guest) -> None:
    """Seen with 60000 too, which took 60.1 s."""
    role = ROLES["stuck"]
    hold = "/sys/module/vft_stuck/parameters/hold_ms"
    guest.run(f"echo 3000 > {hold}")
    unbind = guest.start(f"echo {role.bdf} > /sys/bus/pci/drivers/vft-stuck/unbind")
    assert unbind.wait().duration >= 3
    guest.run(f"echo 0 > {hold}; echo {role.bdf} > /sys/bus/pci/drivers/vft-stuck/bind")


OPEN_AND_ASK = """
import fcntl, os, sys
VFIO_SET_IOMMU, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD = 15206, 15208, 15210
device, group = sys.argv[1:]
container = os.open("/dev/vfio/vfio", os.O_RDWR)
group = os.open("/dev/vfio/" + group, os.O_RDWR)
fcntl.ioctl(group, GROUP_SET_CONTAINER, container.to_bytes(4, "little"))
fcntl.ioctl(container, VFIO_SET_IOMMU, 1)
fcntl.ioctl(group, GROUP_GET_DEVICE_FD, bytearray(os.path.basename(device).encode() + bytes(1)))
try:
    with open(device + "/enable_vfio", "w") as attribute:
        attribute.write("0")
except OSError as error:
    print(error.strerror)
"""


def test_a_personality_comes_and_goes_without_an_unbind(guest: Guest) -> None:
    role = ROLES["personality"]
    attribute = f"{role.sysfs}/enable_vfio"
    assert guest.read(attribute) == "0"
    guest.run(f"echo 1 > {attribute}")
    assert guest.read(attribute) == "1"
    device = look(guest).devices[role.bdf]
    assert device.driver == "vft-native"
    assert guest.run(f"ls {role.sysfs}/vfio-dev").stdout.startswith("vfio")
    assert guest.read(f"{ROLES['personality_sibling'].sysfs}/enable_vfio") == "0"

    ask = f"python3 -c '{OPEN_AND_ASK}' {role.sysfs} {device.group}"
    assert guest.run(ask).stdout == "Device or resource busy\n"

    guest.run(f"echo 0 > {attribute}")
    assert guest.read(attribute) == "0"
    assert guest.run(f"ls {role.sysfs}/vfio-dev", check=False).rc != 0
    unload(guest, "vft_native_vfio")


@pytest.mark.parametrize(("override", "shown"), [(0, "pci:v"), (1, "vfio_pci:v")])
def test_the_uevent_of_a_flavoured_kernel_reaches_udev(guest: Guest, override: int, shown: str) -> None:
    role = ROLES["good"]
    guest.run(f"modprobe vft_flavour override_modalias={override}")
    monitor = guest.start("stdbuf -oL udevadm monitor --udev --property --subsystem-match=pci")
    monitor.wait_for("UDEV - the event")
    guest.run(f"echo '{role.bdf} vfio' > /sys/module/vft_flavour/parameters/send")
    event = monitor.wait_for("ID_PATH_TAG").splitlines()
    monitor.kill(signal.SIGTERM)
    monitor.wait()
    assert "DRIVER_FLAVOUR=vfio" in event
    # Two variables of one name are on the wire; whoever reads through udev gets the last.
    (modalias,) = (line for line in event if line.startswith("MODALIAS="))
    assert modalias.startswith(f"MODALIAS={shown}")
    guest.run("modprobe -r vft_flavour")


def test_an_nvme_controller_gives_virtual_functions(guest: Guest) -> None:
    pf = ROLES["nvme_pf"].sysfs
    guest.run(f"echo 0 > {pf}/sriov_drivers_autoprobe; echo {VFS} > {pf}/sriov_numvfs")
    vfs = {
        bdf: seen
        for bdf, seen in look(guest).devices.items()
        if bdf.startswith("0000:01:") and bdf != ROLES["nvme_pf"].bdf
    }
    assert len(vfs) == VFS
    assert len({seen.group for seen in vfs.values()}) == VFS
    assert {seen.driver for seen in vfs.values()} == {None}
    guest.run(f"echo 0 > {pf}/sriov_numvfs; echo 1 > {pf}/sriov_drivers_autoprobe")


def test_64_virtual_functions_whose_native_driver_fails_end_without_one(guest: Guest) -> None:
    """QEMU gives them no queues: nvme probes each in vain, 6.1 in the background after the write."""
    pf = ROLES["nvme_pf"].sysfs
    bus = "/sys/bus/pci/devices/0000:01"
    guest.run(f"echo {VFS} > {pf}/sriov_numvfs", timeout=120)
    guest.run(
        f"until [ $(ls -d {bus}:*/driver | wc -l) = 1 ]; do sleep 0.5; done; udevadm settle", timeout=120
    )
    failures = guest.run("dmesg | grep -c 'nvme.*Device not ready; aborting initialisation'").stdout
    assert int(failures) >= VFS
    # Which VFIO does not mind.
    guest.run(f"""
        set -e
        modprobe vfio-pci
        for device in {bus}:0[0-9].[0-7]; do
            if [ $device = {pf} ]; then continue; fi
            echo vfio-pci > $device/driver_override
            echo ${{device##*/}} > /sys/bus/pci/drivers/vfio-pci/bind
        done
    """)
    assert guest.run(f"ls -d {bus}:*/vfio-dev | wc -l").stdout.strip() == str(VFS)
    guest.run(f"echo 0 > {pf}/sriov_numvfs", timeout=120)
    unload(guest, "vfio_pci")


@pytest.mark.parametrize("port", HOTPLUG_PORTS)
def test_a_device_can_be_plugged_in_and_out(guest: Guest, port: str) -> None:
    bdf = guest.device_add("e1000e", id="plugged", port=port)
    guest.run(f"udevadm wait --timeout=60 --settle /sys/bus/pci/devices/{bdf}", timeout=90)
    assert look(guest).devices[bdf].driver == "e1000e"
    guest.device_del("plugged")
    assert bdf not in look(guest).devices


def plug(guest: Guest, kind: str) -> Role:
    """In hotplug1, once udev is done with it."""
    properties = {"serial": "plugged"} if kind == "nvme" else {}
    bdf = guest.device_add(kind, id="plugged", port="hotplug1", **properties)
    guest.run(f"udevadm wait --timeout=60 --settle /sys/bus/pci/devices/{bdf}", timeout=90)
    return Role("plugged", bdf, "", None, None)


def test_another_kind_of_device_can_take_the_address_and_inherits_nothing(guest: Guest) -> None:
    inodes = set()
    for kind, expected in (
        ("e1000e", ("8086:10d3", "e1000e", "(null)")),
        ("nvme", ("1b36:0010", "nvme", "(null)")),
        ("rtl8139", ("10ec:8139", "8139cp", "(null)")),
    ):
        role = plug(guest, kind)
        device = look(guest).devices[role.bdf]
        assert (device.id, device.driver, device.override) == expected
        guest.run(f"echo left-over > {role.sysfs}/driver_override")
        inodes.add(guest.run(f"stat -L -c %i {role.sysfs}").stdout)
        guest.device_del("plugged")
    assert len(inodes) == 3


def test_a_file_comes_back_as_it_was_sent(guest: Guest, tmp_path: Path) -> None:
    sent, received = tmp_path / "sent", tmp_path / "received"
    sent.write_bytes(os.urandom(300_001))
    guest.push(sent, "/run/file")
    guest.pull("/run/file", received)
    assert received.read_bytes() == sent.read_bytes()
    guest.run("rm /run/file")


def test_a_disk_has_room_for_a_file_system_swap_a_mapper_and_an_array(guest: Guest) -> None:
    said = guest.run(f"""
        set -e
        disk=/dev/$(basename {ROLES["nvme"].sysfs}/nvme/nvme*/nvme*n1)
        printf 'label: gpt\nsize=20M\nsize=20M\nsize=20M\n' | sfdisk -q $disk
        udevadm settle
        mkfs.ext4 -q ${{disk}}p1
        mount ${{disk}}p1 /mnt
        findmnt -n -o FSTYPE /mnt
        umount /mnt
        mkswap -q ${{disk}}p2
        swapon ${{disk}}p2
        grep -c ${{disk}}p2 /proc/swaps
        swapoff ${{disk}}p2
        dmsetup create mapped --table "0 20480 linear ${{disk}}p3 0"
        ls /sys/class/block/${{disk#/dev/}}p3/holders
        dmsetup remove mapped
        mdadm -q --create /dev/md0 --run --level=1 --force --raid-devices=1 --metadata=1.2 ${{disk}}p3
        ls /sys/class/block/${{disk#/dev/}}p3/holders
        mdadm -q --stop /dev/md0
        wipefs -q -a ${{disk}}p3 $disk > /dev/null
        udevadm settle
    """).stdout
    assert said.split() == ["ext4", "1", "dm-0", "md0"]


def interface(guest: Guest, role: Role) -> str:
    return guest.run(f"ls {role.sysfs}/net").stdout.strip()


def test_a_card_with_nothing_behind_it_has_a_carrier_and_takes_the_default_route(guest: Guest) -> None:
    name = interface(guest, ROLES["good"])
    said = guest.run(f"""
        set -e
        ip address add 192.0.2.1/24 dev {name}
        ip link set {name} up
        until [ $(cat /sys/class/net/{name}/carrier) = 1 ]; do sleep 0.1; done
        ip route add default via 192.0.2.254 dev {name}
        cat /sys/class/net/{name}/operstate
        ip route show default
        ip address flush dev {name}
        ip link set {name} down
        ip route show default
    """).stdout
    assert said.splitlines() == ["up", f"default via 192.0.2.254 dev {name} "]


@pytest.mark.parametrize("kind", ["bridge", "bond", "team"])
def test_a_card_can_be_the_port_of_another_interface(guest: Guest, kind: str) -> None:
    name = interface(guest, ROLES["good"])
    master = guest.run(f"""
        set -e
        ip link add above type {kind}
        ip link set {name} master above
        basename $(readlink /sys/class/net/{name}/master)
        ip link del above
    """).stdout
    assert master.strip() == "above"
    # Being a port has brought it up.
    guest.run(f"ip link set {name} down")


def test_a_card_can_carry_a_vlan(guest: Guest) -> None:
    name = interface(guest, ROLES["good"])
    above = f"ip link add link {name} name above type vlan id 5; ls -d /sys/class/net/{name}/upper_above"
    guest.run(f"set -e; {above}; ip link del above")


PAIR = tuple(ROLES[name] for name in ("pair0", "pair1", "pair2"))


def test_each_member_of_a_group_can_have_its_own_driver_and_the_group_opens_when_all_have_one(
    guest: Guest,
) -> None:
    guest.run("modprobe vfio_pci; modprobe vft_good")
    ask = f"timeout 60 /usr/libexec/guest-vfio-holder {PAIR[0].bdf}"
    for role, driver in zip(PAIR, ("vfio-pci", "vfio-pci", "vft-good-vfio-pci"), strict=True):
        if role is not PAIR[0]:
            assert "Operation not permitted" in guest.run(ask, check=False).stderr
        bind(guest, role, driver)
    holder = guest.hold(*(role.bdf for role in PAIR))
    # One member can leave, but no native driver gets it while the others are in use.
    role = PAIR[2]
    guest.run(f"echo > {role.sysfs}/driver_override")
    holder.kill()
    holder.wait()
    holder = guest.hold(PAIR[0].bdf)
    guest.run(f"echo {role.bdf} > {role.sysfs}/driver/unbind")
    by_probe = guest.run(f"echo {role.bdf} > /sys/bus/pci/drivers_probe", check=False)
    by_bind = guest.run(f"echo {role.bdf} > /sys/bus/pci/drivers/e1000e/bind", check=False)
    assert "Invalid argument" in by_probe.stderr
    assert "Device or resource busy" in by_bind.stderr
    holder.kill()
    holder.wait()
    for role in PAIR:
        give_back(guest, role)
    unload(guest, "vft_good", "vfio_pci")


# Of the device whose driver is being unbound, these wait for its lock on 6.1 and not on 6.12.
LOCKED = {"driver_override", "uevent"}


def start_with_pid(guest: Guest, command: str) -> tuple[Pending, int]:
    pending = guest.start(f"echo $$; {command}")
    return pending, int(pending.wait_for("\n").split()[0])


def is_blocked(guest: Guest, pid: int) -> bool:
    """Whether a process is stuck in one of sysfs's files, as soon as it is that or has ended."""
    stuck = "_(show|store|override)$"
    done = guest.run(
        f"""
        while [ -e /proc/{pid} ]; do
            if grep -qE '{stuck}' /proc/{pid}/wchan; then exit 1; fi
            sleep 0.1
        done
        """,
        check=False,
    )
    return done.rc != 0


def blocked_files(guest: Guest, role: Role) -> set[str]:
    blocked = set()
    for file in ("vendor", "modalias", "resource", "config", "power/control", *LOCKED):
        _, pid = start_with_pid(guest, f"exec cat {role.sysfs}/{file}")
        if is_blocked(guest, pid):
            blocked.add(file)
    return blocked


def process_state(guest: Guest, pid: int) -> str:
    return guest.run(f"ps -o stat= -p {pid}").stdout[:1]


def old(guest: Guest) -> bool:
    return guest.image.release.name == "bookworm"


def test_an_unbind_waits_for_the_process_that_holds_the_device_and_returns_with_its_end(
    guest: Guest,
) -> None:
    role = ROLES["good"]
    guest.run("modprobe vft_good")
    bind(guest, role, "vft-good-vfio-pci")
    holder = guest.hold(role.bdf)
    unbind, pid = start_with_pid(guest, f"echo {role.bdf} > /sys/bus/pci/drivers/vft-good-vfio-pci/unbind")
    guest.run(f"while [ -e {role.sysfs}/driver ]; do sleep 0.1; done")
    guest.run("until dmesg | tail | grep 'No device request channel registered'; do sleep 0.1; done")
    assert blocked_files(guest, role) == (LOCKED if old(guest) else set())
    # 6.12 takes the VFIO device away before it waits, 6.1 afterwards.
    assert (guest.run(f"ls {role.sysfs}/vfio-dev", check=False).rc == 0) is old(guest)
    assert guest.run("ls /dev/vfio").stdout.split() == [look_group(guest, role), "vfio"]
    # journald wants to know more of the device that the kernel's message is about.
    journald = int(guest.run("systemctl show -P MainPID systemd-journald").stdout)
    assert (process_state(guest, journald) == "D") is old(guest)
    # A kill changes nothing but the process's state.
    assert process_state(guest, pid) == "S"
    unbind.kill(signal.SIGKILL)
    guest.run(f"until [ $(ps -o stat= -p {pid} | cut -c 1) = D ]; do sleep 0.1; done")
    assert not unbind.done
    holder.kill(signal.SIGTERM)
    holder.wait()
    assert unbind.wait().rc == -signal.SIGKILL
    assert not guest.run(f"ls {role.sysfs}/driver", check=False).stdout
    back_to_native(guest, role, "vft_good")


def look_group(guest: Guest, role: Role) -> str:
    return guest.run(f"basename $(readlink {role.sysfs}/iommu_group)").stdout.strip()


def test_a_killed_process_lets_its_device_go_at_once(guest: Guest) -> None:
    role = ROLES["good"]
    guest.run("modprobe vft_good")
    bind(guest, role, "vft-good-vfio-pci")
    holder = guest.hold(role.bdf)
    holder.kill(signal.SIGKILL)
    holder.wait()
    guest.run(f"echo {role.bdf} > {role.sysfs}/driver/unbind")
    back_to_native(guest, role, "vft_good")


def test_a_device_that_is_held_is_unplugged_when_it_is_let_go_and_holds_up_others_until_then(
    guest: Guest,
) -> None:
    guest.run("modprobe vft_good")
    role = plug(guest, "e1000e")
    bind(guest, role, "vft-good-vfio-pci")
    holder = guest.hold(role.bdf)
    guest.device_del("plugged", wait=False)
    guest.run(f"while [ -e {role.sysfs}/driver ]; do sleep 0.1; done")
    guest.run(f"test -e {role.sysfs}/config")
    # The kernel adds and removes PCI devices one at a time; binding is another matter.
    other = ROLES["nvme_pf"].sysfs
    numvfs, pid = start_with_pid(guest, f"echo 1 > {other}/sriov_numvfs")
    assert is_blocked(guest, pid)
    bind(guest, ROLES["good_sibling"], "vft-good-vfio-pci")
    holder.kill()
    holder.wait()
    guest.wait_device_deleted("plugged")
    assert numvfs.wait().rc == 0
    assert role.bdf not in look(guest).devices
    guest.run(f"echo 0 > {other}/sriov_numvfs")
    back_to_native(guest, ROLES["good_sibling"], "vft_good")
