"""One guest a release for the whole session; booting one takes half a minute.

`host` is the guest with the project's package in it, seen through real sysfs.
"""

import contextlib
import json
import os
import shlex
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.outputs import validate_output
from vfio_flavourd import __version__

from .channel import COMMAND_TIMEOUT, Pending, Result
from .devices import ROLES, UPSTREAM_MODULES, VARIANT_MODULES, Role
from .errors import RigError
from .image import RELEASES, Image, build_image
from .vm import Guest

DEB = Path(__file__).parents[2] / f"dist/vfio-flavourd_{__version__}_all.deb"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("guest", "the test guest")
    group.addoption(
        "--guest-release",
        choices=sorted(RELEASES),
        default=os.environ.get("VFIO_FLAVOUR_GUEST_RELEASE"),
        help="only this Debian release in the guest (default: $VFIO_FLAVOUR_GUEST_RELEASE or each in turn)",
    )
    group.addoption(
        "--deb",
        type=Path,
        default=os.environ.get("VFIO_FLAVOUR_DEB"),
        help="the package, installed in the guest (default: $VFIO_FLAVOUR_DEB or that of `make deb`)",
    )
    group.addoption("--soak-minutes", type=float, default=1, help="how long test_soak.py goes on")
    group.addoption(
        "--thorough", action="store_true", help="50 kills and 1,000 switches in test_faults.py: half an hour"
    )
    group.addoption("--share", action="store_true", help="files of SHARED only on their one release")


# A boot, and under it perhaps a build of everything, is part of the first test's time.
SLOWEST_TEST = 3600

# With `--share`, as `make check` has them, each on one of the two and about as much on each, or only before a
# release. On both is what is marked `each_release`: it hangs most on kernel, systemd and Python.
SHARED = {
    "test_bench": None,
    "test_boot": "trixie",
    "test_doctor": "bookworm",
    "test_doors": "bookworm",
    "test_faults": "trixie",
    "test_groups": "bookworm",
    "test_main_job": "trixie",
    "test_messages": "bookworm",
    "test_output": "bookworm",
    "test_package": "bookworm",
    "test_policy": "trixie",
    "test_rig": None,
    "test_security": "trixie",
    "test_service": "trixie",
    "test_soak": "bookworm",
    "test_the_journal": "bookworm",
    "test_tutorial": None,
    "test_users": "bookworm",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--share"):
        elsewhere = [item for item in items if not _is_of(item)]
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if _is_of(item)]
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.guest)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(SLOWEST_TEST))


def _is_of(item: pytest.Item) -> bool:
    """Whether the release that it would run on is the one that it is for."""
    release = item.callspec.params["release"] if isinstance(item, pytest.Function) else None
    if item.get_closest_marker("before_release"):
        return False
    return item.get_closest_marker("each_release") is not None or SHARED[item.path.stem] == release


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "release" in metafunc.fixturenames:
        only = metafunc.config.getoption("--guest-release")
        # With this scope all tests of one release come before those of the next, one guest after the other.
        metafunc.parametrize("release", [only] if only else list(RELEASES), indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the services said before a failure belongs to it."""
    report = yield
    guest = item.funcargs.get("guest") if isinstance(item, pytest.Function) else None
    if report.failed and isinstance(guest, Guest):
        said = "journalctl -b -q --no-pager -n 60 -o short-monotonic -u 'vfio-flavour*'"
        with contextlib.suppress(RigError):  # it may be the guest itself that has failed
            report.sections.append(("journal", guest.run(said).stdout))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told at once, not in an hour, when the run may have been cut off."""
    if report.failed:
        sections = "".join(f"--- {title}:\n{text}\n" for title, text in report.sections)
        print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}\n{sections}", flush=True)


@pytest.fixture(scope="session")
def release(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def deb(pytestconfig: pytest.Config) -> Path | None:
    given = pytestconfig.getoption("--deb")
    if given:
        return Path(given)
    return DEB if DEB.exists() else None


@pytest.fixture(scope="session")
def image(release: str, deb: Path | None) -> Image:
    return build_image(RELEASES[release], deb)


@pytest.fixture(scope="session")
def guest(image: Image) -> Iterator[Guest]:
    with Guest(image) as guest:
        yield guest


UNITS = (
    "vfio-flavour-fs.service vfio-flavourd.service vfio-flavourd.socket vfio-flavourd-readonly.socket "
    "vfio-flavour-modprobe.socket vfio-flavour-users.socket"
)


@pytest.fixture(scope="module", autouse=True)
def _nobody_answers_the_rigs_own_uevents(
    request: pytest.FixtureRequest, guest: Guest, deb: Path | None
) -> Iterator[None]:
    """test_rig says what the guest does without the project, also where the package is installed."""
    if deb is None or request.path.stem != "test_rig":
        yield
        return
    # In /etc and synced: it must outlast a reboot and a power cut.
    masked = "/etc/udev/rules.d/90-vfio-flavourd.rules"
    guest.run(f"""
        ln -s /dev/null {masked}; udevadm control --reload
        systemctl mask --now {UNITS}
        sync
    """)
    yield
    guest.run(f"rm {masked}; udevadm control --reload; systemctl unmask {UNITS}; systemctl start {UNITS}")


# What each file of tests must leave no word of, whichever unit it is.
TROUBLE = "Traceback|Exception|never retrieved|Warning:"


def find_trouble(guest: Guest) -> str:
    """In the journal of this boot, and among the units."""
    said = f"journalctl -b -q --no-pager -o short-monotonic -u 'vfio-flavour*' -g '{TROUBLE}'"
    return guest.run(f"{said}; systemctl --failed --no-legend; true").stdout


# What was found so far, by the boot.
_troubles: dict[str, str] = {}


def check_for_trouble(guest: Guest) -> None:
    """None that was not there at the last look."""
    boot, found = guest.run("cat /proc/sys/kernel/random/boot_id").stdout, find_trouble(guest)
    before, _troubles[boot] = _troubles.get(boot, ""), found
    assert found == before


@pytest.fixture(scope="module", autouse=True)
def _nothing_went_wrong_that_nobody_expected(guest: Guest) -> Iterator[None]:
    """In the boot that it ends with; whoever makes another one in between looks before it (`Host.reboot`)."""
    yield
    check_for_trouble(guest)


FILES = Path("/run/vfio-flavour")
VFIO_MODULES = [
    *VARIANT_MODULES,
    *UPSTREAM_MODULES,
    *("vft_flavour", "vft_native_vfio", "vfio_pci", "vfio_iommu_type1", "vfio_pci_core"),
    *("vfio_virqfd", "vfio"),  # the former is a module of its own before 6.2
]
# What bash can do itself it does, here and below: each process takes its time under software emulation.
MODULES = "while read -r module rest; do echo module $module; done < /proc/modules"
UNLOAD = f"""
    loaded=""
    for module in {" ".join(VFIO_MODULES)}; do
        if [ -e /sys/module/$module/refcnt ]; then loaded="$loaded $module"; fi
    done
    ${{loaded:+rmmod $loaded}}
    {MODULES}
"""
LOOK = f"""
    shopt -s nullglob
    cd /sys/bus/pci/devices
    for device in *; do
        echo device $device
        if read -r override < $device/driver_override; then echo "override $device $override"; fi
        if cd -P $device/driver; then echo driver $device ${{PWD##*/}}; cd /sys/bus/pci/devices; fi
        for made in $device/vfio-dev/*; do echo vfio $device; done
    done 2> /dev/null
    for record in /run/vfio-flavourd/devices/*; do echo record ${{record##*/}}; done
    {MODULES}
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What sysfs says of a device."""

    driver: str | None
    override: str = "(null)"
    vfio: bool = False


@dataclass(frozen=True, slots=True)
class State:
    devices: dict[str, Seen]
    modules: frozenset[str]
    records: frozenset[str]

    @property
    def vfio_modules(self) -> set[str]:
        return {module for module in VFIO_MODULES if module in self.modules}

    def changed(self, before: "State") -> set[str]:
        """The devices that are not as they were before, those that came or went among them."""
        return {bdf for bdf, _ in set(self.devices.items()) ^ set(before.devices.items())}


def _parse_state(text: str) -> State:
    devices: defaultdict[str, Seen] = defaultdict(lambda: Seen(None))  # one may come in mid-look
    modules, records = set(), set()
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        bdf = rest[:12]
        match kind:
            case "device":
                devices[bdf] = Seen(None)
            case "override":
                devices[bdf] = replace(devices[bdf], override=rest[13:])
            case "driver":
                devices[bdf] = replace(devices[bdf], driver=rest[13:])
            case "vfio":
                devices[bdf] = replace(devices[bdf], vfio=True)
            case "module":
                modules.add(rest)
            case "record":
                records.add(rest)
    return State(dict(devices), frozenset(modules), frozenset(records))


class Journal:
    """The daemon's journal from where it was made."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._cursor = guest.run("journalctl -n 1 --show-cursor").stdout.rpartition("cursor: ")[2].strip()

    def wait_for(self, text: str, timeout: float = COMMAND_TIMEOUT) -> str:
        follow = f"exec journalctl -f -n all -o cat --after-cursor='{self._cursor}'"
        with running(self._guest, follow) as journal:
            return journal.wait_for(text, timeout)

    def records(self, **fields: str) -> list[dict[str, Any]]:
        """The daemon's own, with these fields."""
        fields["_SYSTEMD_UNIT"] = "vfio-flavourd.service"
        self._guest.run("journalctl --sync")
        # Not filtered by journalctl, which leaves out the first match after a cursor (systemd 252).
        said = self._guest.run(f"journalctl -o json --after-cursor='{self._cursor}'").stdout
        records = [json.loads(line) for line in said.splitlines()]
        return [record for record in records if fields.items() <= record.items()]


class Host:
    """A guest with the package in it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.run = guest.run

    @property
    def release(self) -> str:
        return self.guest.image.release.name

    @property
    def upstream(self) -> bool:
        """Whether upstream's variant drivers are there."""
        return bool(self.guest.image.release.upstream)

    def reboot(self, *, initrd: Path | None = None) -> None:
        """An orderly one. A journal ends with its boot: what went wrong in this one is looked for first."""
        try:
            check_for_trouble(self.guest)
        finally:
            self.guest.reboot(initrd=initrd)

    def look(self) -> State:
        return _parse_state(self.guest.run(LOOK, check=False).stdout)

    def journal(self) -> Journal:
        return Journal(self.guest)

    def write(self, role: Role | str, text: str, file: str = "driver_flavour") -> Result:
        return self.guest.run(write_command(role, text, file), check=False, timeout=120)

    def read(self, role: Role | str, file: str = "driver_flavour") -> str:
        return self.guest.read(str(files(role) / file))

    def ctl(self, *arguments: str, user: str = "") -> Result:
        """flavourctl, also as another user (setpriv's options)."""
        done = self.guest.run(f"{user} flavourctl {shlex.join(arguments)}", check=False, timeout=120)
        if "--json" in arguments and done.stdout:
            verb = next((each for each in arguments if not each.startswith("-")), "list")
            validate_output(verb, json.loads(done.stdout))
        return done

    def show(self, role: Role) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.ctl("--json", "show", role.bdf).stdout)["device"]
        return shown

    def switch(self, role: Role | str, flavour: str) -> None:
        """By the file, and it must work."""
        done = self.write(role, flavour)
        assert done.rc == 0, f"{done.stderr}{self.read(role, 'last_error')}"

    def stop(self, *units: str) -> None:
        """They must end in their TimeoutStopSec of 10 s, or systemd kills them and says so."""
        stopped = self.run(f"systemctl stop {' '.join(units)}; systemctl show -P Result {' '.join(units)}")
        assert stopped.stdout.split() == ["success"] * len(units)
        assert stopped.duration < 15


def files(role: Role | str) -> Path:
    return FILES / (role if isinstance(role, str) else role.bdf)


def write_command(role: Role | str, text: str, file: str = "driver_flavour") -> str:
    return f"echo '{text}' > {files(role)}/{file}"


@contextlib.contextmanager
def running(guest: Guest, command: str) -> Iterator[Pending]:
    """A command that is ended when it is no longer needed."""
    pending = guest.start(command)
    try:
        yield pending
    finally:
        pending.kill()
        pending.wait()


@pytest.fixture(scope="session")
def at_first(guest: Guest, deb: Path | None) -> State:
    if deb is None:
        pytest.fail(
            f"the package is needed: `make deb` builds '{DEB}', or name one with --deb", pytrace=False
        )
    return Host(guest).look()


HANG_STARTED = "until [ -e /sys/module/vft_hang/parameters/release ]; do sleep 0.1; done"

RELEASE_HANG = """
    if [ -e /sys/module/vft_hang/parameters/release ]; then
        echo 1 > /sys/module/vft_hang/parameters/release
        until [ "$(cat /sys/module/vft_hang/initstate)" = live ]; do sleep 0.1; done
    fi
"""
NO_VFIO_PCI = "/run/modprobe.d/no-vfio-pci.conf"
# What a test that failed may have left.
LET_GO = f"""
    {RELEASE_HANG}
    echo 0 > /sys/module/vft_stuck/parameters/hold_ms
    echo 1 > /sys/module/vft_stuck/parameters/release
    ip link del br0
    systemctl stop vfio-flavourd
    rm -rf {NO_VFIO_PCI} /run/vfio-flavourd/wishes.json /etc/vfio-flavourd/policy.d/* /etc/driverctl.d/*
    chmod 0755 /etc/vfio-flavourd/policy.d
    systemctl reset-failed
    systemctl start {UNITS}
    flavourctl reload
    while grep -q -s '"switching": true' /run/vfio-flavourd/devices/*.json; do sleep 0.1; done
    udevadm settle
    echo 0 > /sys/module/vft_stuck/parameters/release
    echo 0 > {ROLES["nvme_pf"].sysfs}/sriov_numvfs
    echo 1 > {ROLES["nvme_pf"].sysfs}/sriov_drivers_autoprobe
    echo 1 > /sys/bus/pci/drivers_autoprobe
    for device in {FILES}/*; do
        record=/run/vfio-flavourd/devices/${{device##*/}}.json
        if [ -e $record ] || grep -q -F '[vfio]' $device/driver_flavour; then
            echo native > $device/driver_flavour
        fi
    done
    udevadm settle
    mdadm --stop --scan
    wipefs -q -a /dev/nvme*n1
    for device in /sys/bus/pci/devices/*; do
        if [ "$(cat $device/driver_override)" != '(null)' ]; then echo > $device/driver_override; fi
    done
"""


def put_back(host: Host, at_first: State) -> None:
    guest = host.guest
    guest.kill_all()
    guest.run(LET_GO, check=False, timeout=300)
    guest.unplug_all()
    # Those without a driver, and those with one that the daemon has not given them.
    for bdf in host.look().changed(at_first) & at_first.devices.keys():
        unbind = f"echo {bdf} > /sys/bus/pci/devices/{bdf}/driver/unbind"
        guest.run(f"{unbind}; echo {bdf} > /sys/bus/pci/drivers_probe", check=False)
    # A device that was VFIO's when this boot began stays on record when it is native.
    records = "/run/vfio-flavourd/devices/*.json"
    guest.run(f"systemctl stop vfio-flavourd; rm -f {records}; systemctl start {UNITS}", check=False)


@pytest.fixture
def host(request: pytest.FixtureRequest, guest: Guest, at_first: State) -> Iterator[Host]:
    """No VFIO module is loaded when a test begins, and what it changed it puts back."""
    host, failed = Host(guest), request.session.testsfailed
    yield host
    now = host.look()
    wrong = now.changed(at_first)
    try:
        # Not everything that a test that failed has left is seen in the devices.
        if wrong or now.records or request.session.testsfailed > failed:
            put_back(host, at_first)
    finally:
        # Not earlier: a driver that is unloaded is unbound from its devices.
        unloaded = _parse_state(guest.run(UNLOAD, check=False).stdout)
    left = {bdf: now.devices.get(bdf) for bdf in wrong}
    assert (left, now.records, unloaded.vfio_modules) == ({}, frozenset(), set())
