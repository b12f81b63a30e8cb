"""The services: what a restart, a crash and time itself do to the devices, and what the journal keeps."""

import itertools
import json

import pytest

from .conftest import RELEASE_HANG, Host, Seen
from .devices import ROLES
from .test_main_job import hanging_for_long

GOOD, REFUSE, PERSONALITY = ROLES["good"], ROLES["refuse"], ROLES["personality"]
HANG = ROLES["hang"]

UNITS = ("vfio-flavourd.service", "vfio-flavour-fs.service")
PID = "systemctl show --property MainPID --value"

RESIDENT_LIMIT_KIB = 36 * 1024


@pytest.mark.parametrize(
    "how",
    ["systemctl restart vfio-flavourd", "systemctl kill --signal KILL vfio-flavourd"],
    ids=["restart", "kill -9"],
)
def test_a_restart_changes_no_device_and_forgets_nothing(host: Host, how: str) -> None:
    before = host.look()
    host.run(f"echo 8139cp > {REFUSE.sysfs}/driver_override")
    for role in (GOOD, REFUSE, PERSONALITY):
        host.switch(role, "vfio")
    switched, journal = host.look(), host.journal()
    assert switched.changed(before) == {GOOD.bdf, REFUSE.bdf, PERSONALITY.bdf}
    pid = host.run(f"{PID} vfio-flavourd").stdout

    host.run(how)
    journal.wait_for("Started vfio-flavourd")

    assert host.run(f"{PID} vfio-flavourd").stdout != pid
    now = host.look()
    assert now.changed(switched) == set()
    assert now.records == switched.records
    # The file system goes on, as the daemon's client.
    for role in (GOOD, REFUSE, PERSONALITY):
        assert host.read(role) == "native [vfio]"
        host.switch(role, "native")
    assert host.look().devices[REFUSE.bdf] == Seen("8139cp", "8139cp")
    host.run(f"echo > {REFUSE.sysfs}/driver_override")
    assert host.look().changed(before) == set()


def test_a_write_waits_for_a_daemon_that_is_being_started(host: Host) -> None:
    host.run("systemctl stop vfio-flavourd.service")
    host.switch(GOOD, "vfio")
    assert host.look().devices[GOOD.bdf] == Seen("vft-good-vfio-pci", "vft-good-vfio-pci", vfio=True)
    host.switch(GOOD, "native")


def test_the_file_system_comes_back_after_a_crash(host: Host) -> None:
    host.switch(GOOD, "vfio")
    switched, journal = host.look(), host.journal()
    host.run("systemctl kill --signal KILL vfio-flavour-fs")
    journal.wait_for("Started vfio-flavour-fs")
    assert host.read(GOOD) == "native [vfio]"
    assert host.look().changed(switched) == set()
    host.switch(GOOD, "native")


def test_an_idle_service_uses_no_cpu_and_little_memory(host: Host) -> None:
    look = """
        for unit in vfio-flavourd vfio-flavour-fs; do
            pid=$(systemctl show --property MainPID --value $unit)
            echo $unit $(sed 's/.*) //' /proc/$pid/stat | cut -d ' ' -f 12,13) \
                $(sed -n 's/VmRSS://p' /proc/$pid/status)
        done
    """
    said = host.run(f"udevadm settle; {look}" + f"sleep 5; {look}" * 3).stdout
    seen = [line.split() for line in said.splitlines()]
    assert len(seen) == 8
    for samples in (seen[::2], seen[1::2]):
        unit = samples[0][0]
        # In ticks of 10 ms: one ping of the watchdog may fall in between, and is slow under emulation. In one
        # of three spans nothing else happens on the machine.
        ticks = [int(user) + int(system) for _, user, system, *_ in samples]
        assert min(last - first for first, last in itertools.pairwise(ticks)) <= 2, (unit, ticks)
        assert int(samples[0][3]) < RESIDENT_LIMIT_KIB, unit


def test_a_stop_takes_the_files_away_and_a_start_brings_them_back(host: Host) -> None:
    host.stop("vfio-flavour-fs")
    assert host.run("ls -A /run/vfio-flavour 2> /dev/null", check=False).stdout == ""
    host.run("systemctl start vfio-flavour-fs")
    assert host.read(GOOD) == "[native] vfio"


def test_a_stop_of_the_file_system_ends_the_writes_that_wait(host: Host) -> None:
    before = host.look()
    with hanging_for_long(host, HANG.bdf) as write:
        try:
            host.stop("vfio-flavour-fs")
            assert "write error: Interrupted system call" in write.wait().stderr
        finally:
            host.run("systemctl start vfio-flavour-fs")
        host.run(RELEASE_HANG)
    assert host.look().changed(before) == set()


def test_who_asks_for_the_room_on_each_file_system_is_answered(host: Host) -> None:
    assert "/run/vfio-flavour" not in host.run("df").stdout  # it has none, as sysfs
    assert host.run("stat -f --format %b /run/vfio-flavour").stdout == "0\n"


def test_a_reload_leaves_the_services_running(host: Host) -> None:
    pid = host.run(f"{PID} vfio-flavourd").stdout
    host.run("systemctl reload vfio-flavourd")
    assert host.run(f"{PID} vfio-flavourd").stdout == pid
    # The signal has been sent; what it brings about takes a moment.
    host.run("until [ $(systemctl is-active vfio-flavourd) != reloading ]; do sleep 0.1; done")
    assert host.run(f"systemctl is-active {' '.join(UNITS)}").stdout.split() == ["active", "active"]


def test_the_journal_has_one_record_for_each_attempt(host: Host) -> None:
    journal = host.journal()
    host.switch(GOOD, "vfio")
    host.switch(GOOD, "native")
    host.write(ROLES["bridge"], "vfio")
    journal.wait_for("it is a bridge")
    attempts = journal.records(LOGGER="vfio_flavourd.engine.attempts")
    assert [(each["PCI_ADDRESS"], each["FLAVOUR"], each["OUTCOME"]) for each in attempts] == [
        (GOOD.bdf, "vfio", "done"),
        (GOOD.bdf, "native", "done"),
        (ROLES["bridge"].bdf, "vfio", "refused"),
    ]
    assert [each.get("DRIVER") for each in attempts[:2]] == ["vft-good-vfio-pci", "e1000e"]
    for each in attempts:
        assert int(each["DURATION_USEC"]) < 60e6
        assert each["REQUESTER"].startswith("uid 0 pid ")
    history = json.loads(host.ctl("--json", "history", "-n", "3").stdout)["attempts"]
    assert [str(each["id"]) for each in history] == [each["ATTEMPT"] for each in attempts]
