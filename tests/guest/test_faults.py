"""Never forget, never hang: kills, devices that go away, and hundreds of switches."""

import itertools
import json
import random
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from vfio_flavourd.engine.history import MOST

from .conftest import UNITS, Host, Seen, files, write_command
from .devices import HOTPLUG_PORTS, ROLES
from .services import Held, look_at_services
from .test_users import held

GOOD, SIBLING, VIRTIO = ROLES["good"], ROLES["good_sibling"], ROLES["virtio"]
HOTPLUGGED = HOTPLUG_PORTS["hotplug1"]
DEVICES_A_KILL = (GOOD, SIBLING, VIRTIO)
# With `--thorough`, and without.
KILLS = {True: 50, False: 4}
SWITCHES = {True: 1000, False: 96}


@contextmanager
def not_restarted(host: Host) -> Iterator[None]:
    """systemd leaves the daemon where it died."""
    drop_in = "/run/systemd/system/vfio-flavourd.service.d"
    host.run(
        f"mkdir -p {drop_in}; printf '[Service]\\nRestart=no\\n' > {drop_in}/kill.conf;"
        " systemctl daemon-reload"
    )
    try:
        yield
    finally:
        host.run(f"rm -r {drop_in}; systemctl daemon-reload")


def write_to_all(flavours: Iterable[str]) -> str:
    """Commands in the background, one for each of DEVICES_A_KILL."""
    writes = (write_command(role, flavour) for role, flavour in zip(DEVICES_A_KILL, flavours, strict=True))
    return " ".join(f"({write}) 2> /dev/null &" for write in writes)


def test_killed_time_and_again_no_device_is_left_in_between(host: Host, pytestconfig: pytest.Config) -> None:
    """The daemon alone, or its workers with it: every second time as soon as one of three switches has begun
    to write, else at a random moment of them."""
    kills = KILLS[pytestconfig.getoption("--thorough")]
    before = host.look()
    all_vfio, all_native = (write_to_all([each] * len(DEVICES_A_KILL)) for each in ("vfio", "native"))
    # What a daemon that has just been started takes for them, with the modules loaded as they are from now
    # on: a kill may come before, in and after each, however fast the machine is.
    host.run(f"{all_vfio} wait; {all_native} wait; systemctl restart vfio-flavourd", timeout=120)
    began = time.monotonic()
    host.run(f"{all_vfio} wait")
    latest = 1.5 * (time.monotonic() - began)
    assert host.look().changed(before) == {role.bdf for role in DEVICES_A_KILL}
    chance = random.Random(20210421)
    flavours_of = " ".join(str(files(role) / "driver_flavour") for role in DEVICES_A_KILL)
    states, under_way = set(), 0
    has_vfio = dict.fromkeys(DEVICES_A_KILL, True)
    with not_restarted(host):
        for number in range(kills):
            whom = chance.choice(("$main", "$(cat $all)"))
            pause = latest * (number + chance.random()) / kills
            flavours = ["native" if has_vfio[role] else "vfio" for role in DEVICES_A_KILL]
            moment = UNTIL_BEGUN if number % 2 else f"sleep {pause:.3f}"
            # Counted at once: the next daemon closes them, and any client that connects anew starts one.
            left_open = host.run(
                f"main=$(systemctl show -P MainPID vfio-flavourd) all={CGROUP}/cgroup.procs;"
                f" {write_to_all(flavours)} {moment}; kill -KILL {whom}; {COUNT_OPEN};"
                " wait; systemctl reset-failed vfio-flavourd 2> /dev/null; systemctl start vfio-flavourd;"
                f" {UNTIL_SETTLED}",
                check=False,
                timeout=300,
            )
            under_way += int(left_open.stdout)
            now = host.look()
            told = host.run(f"cat {flavours_of}").stdout.splitlines()
            for role, flavour in zip(DEVICES_A_KILL, told, strict=True):
                seen = now.devices[role.bdf]
                native = seen == before.devices[role.bdf]
                vfio = seen.vfio and seen.override == seen.driver
                assert native or vfio, f"kill {number} ({whom} after {pause:.3f} s): {role.name} has {seen}"
                assert flavour == ("native [vfio]" if vfio else "[native] vfio"), (
                    f"kill {number}: {role.name}"
                )
                states.add((role, vfio))
                has_vfio[role] = vfio
            assert now.changed(before) <= {role.bdf for role in DEVICES_A_KILL}
            assert {record.removesuffix(".json") for record in now.records} == now.changed(before)
    print(f"{kills} kills within {latest:.1f} s, {under_way} switches under way at one")
    assert under_way > 0, f"no kill came in the middle of a switch in {latest:.1f} s"
    assert len(states) > len(DEVICES_A_KILL), f"no switch got through in {latest:.1f} s"
    for role in DEVICES_A_KILL:
        host.switch(role, "native")
    assert host.look().changed(before) == set()


# How many switches are under way: after a kill, how many it came in the middle of.
COUNT_OPEN = """grep -l -s '"switching": true' /run/vfio-flavourd/devices/*.json | wc -l"""

# One of them at least; where all are refused none ever has. It looks without a process of its own, which
# under software emulation takes longer than a switch is under way.
UNTIL_BEGUN = """
    begun() {
        for record in /run/vfio-flavourd/devices/*.json; do
            read -r -d '' text < $record; if [[ $text == *'"switching": true'* ]]; then return 0; fi
        done 2> /dev/null
        return 1
    }
    until=$((SECONDS + 60)); until begun || [ $SECONDS -gt $until ]; do :; done"""

CGROUP = "/sys/fs/cgroup/system.slice/vfio-flavourd.service"

# Every record is closed: neither a switch nor what recovery makes of it is under way. A record that goes away
# meanwhile makes grep fail, whatever it has found.
UNTIL_SETTLED = (
    "cd /run/vfio-flavourd/devices;"
    """ while [ -n "$(grep -l -s '"switching": true' *.json)" ]; do sleep 0.1; done"""
)


# With attempts that cost little, each refused for want of such a device.
FILL_HISTORY = f"""python3 - <<'EOF'
import json, socket
daemon = socket.socket(socket.AF_UNIX)
daemon.connect("/run/vfio-flavourd/io.vfioflavour.Manager")
asked = dict(device="0000:ff:1f.7", flavour="vfio")
call = json.dumps(dict(method="io.vfioflavour.Manager.SetFlavour", parameters=asked)).encode() + bytes(1)
for _ in range({MOST}):
    daemon.sendall(call)
    while not daemon.recv(65536).endswith(bytes(1)):
        pass
EOF"""


@pytest.mark.before_release
def test_hundreds_of_switches_leave_nothing_behind(host: Host, pytestconfig: pytest.Config) -> None:
    before = host.look()

    def switch(count: int) -> tuple[Held, ...]:
        loop = (
            "for i in $(seq {count}); do echo vfio > {of}/driver_flavour && echo native > {of}/driver_flavour"
            " || {{ cat {of}/last_error >&2; exit 1; }}; done"
        )
        both = " & ".join(loop.format(count=count // 4, of=files(role)) for role in (GOOD, VIRTIO))
        host.run(f"{both}; status=$?; wait $! && exit $status", timeout=1800)
        time.sleep(1)  # the log, and a worker that is one too many, go a moment after the last answer
        return look_at_services(host)

    host.run(FILL_HISTORY)
    assert len(json.loads(host.ctl("--json", "history", "-n", str(2 * MOST)).stdout)["attempts"]) == MOST
    # By the first sample what is kept for good is there too.
    quarter = SWITCHES[pytestconfig.getoption("--thorough")] // 4
    samples = [switch(64), *(switch(quarter) for _ in range(4))]
    for service in zip(*samples, strict=True):
        print(*service)
        first, last = service[0], service[-1]
        # A connection between the two, and a worker for the next switch, may just be there or not.
        assert last.descriptors <= first.descriptors + 2
        assert last.processes <= first.processes + 1
        # Python takes memory by the MiB, when more than ever before is in work at a time, and some pages of
        # it now and then; what is kept of each switch, an attempt of 1.5 KiB, is seen in every quarter.
        grown = [now.memory - then.memory for then, now in itertools.pairwise(service)]
        assert min(grown) < quarter, grown
    assert host.look().changed(before) == set()


def test_a_device_that_is_unplugged_while_a_guest_holds_it_is_gone_when_that_ends(host: Host) -> None:
    before = host.look()
    bdf = host.guest.device_add("e1000e", id="plugged", port="hotplug1")
    host.run(f"until [ -e /sys/bus/pci/devices/{bdf}/driver ]; do sleep 0.1; done; udevadm settle")
    host.switch(bdf, "vfio")
    with held(host, bdf):
        # What the kernel says when the driver begins to wait; a test before may have had it say so already.
        waits = f"dmesg | grep '{bdf}: No device request channel registered' | tail -n 1"
        said = host.run(waits).stdout.strip()
        host.guest.device_del("plugged", wait=False)
        host.run(f'until now=$({waits}); [ "$now" != {shlex.quote(said)} ]; do sleep 0.1; done')
        # It is on its way out: nothing that looks at it hangs, and others are served.
        assert host.run(f"flavourctl list; cat /run/vfio-flavour/{bdf}/*", timeout=30, check=False).stdout
        host.switch(SIBLING, "vfio")
        host.switch(SIBLING, "native")
    host.guest.wait_device_deleted("plugged")
    host.run(f"while [ -e /sys/bus/pci/devices/{bdf} ]; do sleep 0.1; done; udevadm settle")
    assert host.ctl("show", bdf).rc == 3
    now = host.look()
    assert now.changed(before) == set()
    assert now.records == frozenset()


def test_another_device_at_the_same_address_is_another_device(host: Host) -> None:
    """What is on record of the first one is not done to the second."""
    before = host.look()
    bdf = host.guest.device_add("e1000e", id="plugged", port="hotplug1")
    host.run(f"until [ -e /sys/bus/pci/devices/{bdf}/driver ]; do sleep 0.1; done; udevadm settle")
    host.switch(bdf, "vfio")
    assert host.look().records == {f"{bdf}.json"}
    # The daemon doesn't see it go.
    host.run("systemctl stop vfio-flavourd")
    host.guest.device_del("plugged")
    assert host.guest.device_add("vmxnet3", id="another", port="hotplug1") == bdf
    host.run(f"until [ -e /sys/bus/pci/devices/{bdf}/driver ]; do sleep 0.1; done; udevadm settle")
    host.run(f"systemctl start {UNITS}")
    now = host.look()
    assert now.devices[bdf] == Seen("vmxnet3")
    assert now.records == frozenset()
    assert host.read(bdf) == "[native] vfio"
    assert host.ctl("reset", bdf).rc == 0
    assert host.look().devices[bdf] == Seen("vmxnet3")
    host.guest.device_del("another")
    host.run(f"while [ -e /sys/bus/pci/devices/{bdf} ]; do sleep 0.1; done; udevadm settle")
    assert host.look().changed(before) == set()
