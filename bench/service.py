"""The daemon as a service: its start, its uevents, and what it costs while nothing happens."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from tests.guest.conftest import running
from tests.guest.devices import ROLES
from tests.guest.vm import Guest

from . import guest as rig
from .measure import Row, Scale, run_rounds

DAEMON, DOOR = "vfio-flavourd", "vfio-flavour-fs"
PYTHON, MONITOR = "python3 -c pass", "udevadm monitor"
LIST, DRIVERCTL, VIRSH = "flavourctl list", "driverctl list-devices", "virsh nodedev-list"
DEVICE = ROLES["good"]
READY_AIM, SYNC_LIMIT = 6.0, 1.0
RESIDENT = {DAEMON: 28.0, DOOR: 32.0}

# More than a socket's buffer of 208 KiB (net.core.rmem_default) holds: each takes more than 1 KiB of it.
OVERFLOW = 500

_FUNCTIONS = """
main() { systemctl show -P MainPID "$1"; }
# Nanoseconds of processor time.
spent() { cat /proc/"$1"/task/*/schedstat | { total=0; while read -r each _; do total=$((total + each)); done
    echo "$total"; }; }
# How often the threads of a service have gone to sleep, so been awake.
woken() {
    total=0
    for pid in $(cat /sys/fs/cgroup/system.slice/"$1".service/cgroup.procs); do
        for each in $(sed -n 's/^voluntary_ctxt_switches:\\t//p' /proc/"$pid"/task/*/status); do
            total=$((total + each))
        done
    done
    echo "$total"
}
# Uevents that the kernel has dropped because a process did not read them.
drops() {
    total=0
    for inode in $(ls -l /proc/"$1"/fd | sed -n 's/.*socket:\\[\\([0-9]*\\)\\].*/\\1/p'); do
        each=$(awk -v inode="$inode" '$NF == inode && $2 == 15 { print $(NF - 1) }' /proc/net/netlink)
        total=$((total + ${each:-0}))
    done
    echo "$total"
}
# So many "change" events, of all devices in turn.
storm() {
    files=(/sys/bus/pci/devices/*/uevent)
    for ((number = 0; number < $1; number++)); do
        echo change > "${files[number % ${#files[@]}]}"
    done
    udevadm settle --timeout=300
}
"""


def measure(guest: Guest, scale: Scale) -> list[Row]:
    return [_ready(guest, scale), _list(guest, scale), *_idle(guest, scale)]


def _ready(guest: Guest, scale: Scale) -> Row:
    """From the fork, so that the sandbox is in it, to READY=1."""

    def daemon() -> Mapping[str, float]:
        begin, ready = rig.run(
            guest,
            f"systemctl reset-failed {DAEMON}; systemctl restart {DAEMON};"
            f" systemctl show -P ExecMainStartTimestampMonotonic {DAEMON};"
            f" systemctl show -P ActiveEnterTimestampMonotonic {DAEMON}",
        )
        return {"": (int(ready) - int(begin)) / 1000}

    def python() -> Mapping[str, float]:
        return {"": int(rig.run(guest, "lap python3 -c pass")[0]) / 1000}

    samples = run_rounds({DAEMON: daemon, PYTHON: python}, scale.guest_rounds, warm_up=scale.warm_up)
    return Row("start to READY", "ms", DAEMON, samples[""], {PYTHON: READY_AIM})


def _list(guest: Guest, scale: Scale) -> Row:
    """All list the same devices here."""
    commands = {LIST: LIST, DRIVERCTL: DRIVERCTL, VIRSH: f"{VIRSH} --cap pci"}

    def side(command: str) -> Mapping[str, float]:
        return {"": int(rig.run(guest, f"lap {command}")[0]) / 1000}

    there = {name: command for name, command in commands.items() if rig.has(guest, command.split()[0])}
    if VIRSH in there:
        guest.run("systemctl start libvirtd")
    samples = run_rounds(
        {name: partial(side, each) for name, each in there.items()},
        scale.guest_rounds,
        warm_up=scale.warm_up,
    )
    if VIRSH in there:
        guest.run("systemctl stop libvirtd")
    return Row("list, the guest's devices", "ms", LIST, samples[""], {DRIVERCTL: 1.0})


def measure_storm(guest: Guest, scale: Scale) -> list[Row]:
    """Both follow the same events, as udev has passed them on."""
    events = scale.guest_events
    with running(guest, "exec udevadm monitor --udev --subsystem-match=pci > /run/bench-events"):
        guest.run("until grep -q UDEV /run/bench-events; do sleep 0.1; done")
        said = rig.run(
            guest,
            f"""{_FUNCTIONS}
            daemon=$(main {DAEMON}); other=$(pgrep -f '^udevadm monitor')
            dropped=$(drops "$daemon"); a=$(spent "$daemon"); b=$(spent "$other")
            storm {events}
            for _ in $(seq 600); do
                [ "$(grep -c '^UDEV.* change ' /run/bench-events)" -lt {events} ] || break
                sleep 0.1
            done
            echo $(( $(spent "$daemon") - a )); echo $(( $(spent "$other") - b ))
            echo $(( $(drops "$daemon") - dropped ))
            grep -c '^UDEV.* change ' /run/bench-events
            """,
        )
    ours, theirs, dropped, passed_on = map(int, said)
    assert passed_on == events, f"udev passed on {passed_on} of {events}"
    spent = {DAEMON: [ours / events / 1000], MONITOR: [theirs / events / 1000]}
    what = f"storm of {events:,} real uevents"
    return [
        Row(f"{what}, processor time for each", "µs", DAEMON, spent),
        Row(f"{what}, lost", "events", DAEMON, {DAEMON: [float(dropped)]}, limit=0.0),
    ]


def measure_overflow(guest: Guest, scale: Scale) -> list[Row]:
    """The daemon is held until its socket has overflowed; among what is lost is a wish. It is in sync when
    the device has what was wished for, so the switch is in the time."""

    def side() -> Mapping[str, float]:
        taken, dropped = rig.run(
            guest,
            f"""{_FUNCTIONS}
            modprobe vft_good
            daemon=$(main {DAEMON}); before=$(drops "$daemon")
            kill -STOP "$daemon"
            storm {OVERFLOW}
            echo "change $(cat /proc/sys/kernel/random/uuid) FLAVOUR=vfio" > {DEVICE.sysfs}/uevent
            udevadm settle
            catch_up() {{
                kill -CONT "$daemon"; SECONDS=0
                until [ -e {DEVICE.sysfs}/vfio-dev ] || ((SECONDS > 30)); do :; done
            }}
            lap catch_up
            if [ ! -e {DEVICE.sysfs}/vfio-dev ]; then journalctl -u {DAEMON} -n 20 >&2; exit 1; fi
            echo $(( $(drops "$daemon") - before ))
            echo native > /run/vfio-flavour/{DEVICE.bdf}/driver_flavour
            udevadm settle
            """,
        )
        assert int(dropped) > 0
        return {"": int(taken) / 1e6}

    with _no_watchdog(guest):
        samples = run_rounds({DAEMON: side}, scale.slow_rounds, warm_up=False)
    rig.unload(guest)
    return [Row("events lost to in sync, with a switch", "s", DAEMON, samples[""], limit=SYNC_LIMIT)]


@contextmanager
def _no_watchdog(guest: Guest) -> Iterator[None]:
    """Else systemd ends a daemon that is held."""
    guest.run("systemctl service-watchdogs no")
    try:
        yield
    finally:
        guest.run("systemctl service-watchdogs yes")


def _idle(guest: Guest, scale: Scale) -> list[Row]:
    said = rig.run(
        guest,
        f"""{_FUNCTIONS}
        udevadm settle; sleep 2
        a=$(woken {DAEMON}); b=$(woken {DOOR})
        sleep {scale.idle:g}
        echo $(( $(woken {DAEMON}) - a )) $(( $(woken {DOOR}) - b ))
        for unit in {DAEMON} {DOOR}; do
            sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(main $unit)/status
        done
        sed -n 's/^WatchdogSec=\\([0-9]*\\)s$/\\1/p' /usr/lib/systemd/system/{DAEMON}.service
        """,
    )
    wake_ups = dict(zip(RESIDENT, map(float, said[0].split()), strict=True))
    resident = dict(zip(RESIDENT, (int(each) / 1024 for each in said[1:3]), strict=True))
    # It pings twice in that time, and one ping more may fall into the beginning.
    pings = {DAEMON: float(int(scale.idle / (int(said[3]) / 2)) + 1), DOOR: 0.0}
    return [
        *(
            Row(f"wake-ups in {scale.idle:g} s", "", unit, {unit: [wake_ups[unit]]}, limit=pings[unit])
            for unit in RESIDENT
        ),
        *(Row("resident", "MiB", unit, {unit: [resident[unit]]}, limit=RESIDENT[unit]) for unit in RESIDENT),
    ]
