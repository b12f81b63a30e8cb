"""The rig itself: what later tests take for granted about the guest, its devices and its drivers.

Nothing here needs the project's package.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

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
    group: str
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
    return Device(":".join(ids), found.get("driver"), found["iommu_group"], found["driver_override"])


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
    guest.run(f"""
        if [ -e {role.sysfs}/driver ]; then echo {role.bdf} > {role.sysfs}/driver/unbind; fi
        echo > {role.sysfs}/driver_override
        echo {role.bdf} > /sys/bus/pci/drivers_probe
        udevadm settle
    """)
    unload(guest, *modules)


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
    for role in ROLES.values():
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
    guest.run(f"while [ -e {role.sysfs}/driver ]; do sleep 0.1; done", timeout=10)
    assert not unbind.done
    guest.run(f"echo 1 > {parameters}/release")
    assert unbind.wait().rc == 0
    guest.run(f"echo 0 > {parameters}/release; echo 0 > {parameters}/hold_ms")
    guest.run(f"echo {role.bdf} > /sys/bus/pci/drivers/vft-stuck/bind")


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


@pytest.mark.parametrize("port", HOTPLUG_PORTS)
def test_a_device_can_be_plugged_in_and_out(guest: Guest, port: str) -> None:
    bdf = guest.device_add("e1000e", id="plugged", port=port)
    guest.run(f"udevadm wait --timeout=60 --settle /sys/bus/pci/devices/{bdf}", timeout=90)
    assert look(guest).devices[bdf].driver == "e1000e"
    guest.device_del("plugged")
    assert bdf not in look(guest).devices
