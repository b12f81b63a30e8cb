"""Everything at once, for as long as is wished: switches, hotplug, reloads, clients that come and go badly,
services that get killed. After each round nothing is left of it.

In the second half of the time the services are killed; in the first they live on, and must not grow.
`make soak` does two hours of it; `--soak-minutes` says how long. A round's load is on for `ROUND` seconds.
"""

import itertools
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import Host
from .devices import HOTPLUG_PORTS, ROLES
from .services import SERVICES, Held, look_at_services

GOOD, SIBLING, VIRTIO = ROLES["good"], ROLES["good_sibling"], ROLES["virtio"]
ROUND = 20

# For as long as the file is there. What is tried while a service is killed may fail; how often it did not is
# said at the end.
LOAD = """
run=/run/soak
good=/run/vfio-flavour/{good}/driver_flavour sibling=/run/vfio-flavour/{sibling}/use_vfio
by_file() {{ while [ -e $run ]; do
    {{ echo vfio > $good && echo native > $good && files=$((files + 1)); }} 2> /dev/null || sleep 0.2
done; echo files ${{files:-0}}; }}
by_number() {{ while [ -e $run ]; do
    {{ echo 1 > $sibling && echo 0 > $sibling && numbers=$((numbers + 1)); }} 2> /dev/null || sleep 0.2
done; echo numbers ${{numbers:-0}}; }}
by_ctl() {{ while [ -e $run ]; do
    {{ flavourctl set {virtio} vfio && flavourctl reset {virtio} && calls=$((calls + 1)); }} > /dev/null 2>&1
done; echo calls ${{calls:-0}}; }}
reloads() {{ while [ -e $run ]; do flavourctl reload 2> /dev/null && reloads=$((reloads + 1)); sleep 5
done; echo reloads ${{reloads:-0}}; }}
kills() {{ sleep 8; systemctl kill --kill-whom=main --signal KILL vfio-flavourd; sleep 6
    systemctl kill --signal KILL 'vfio-flavour-users@*'
    systemctl kill --signal KILL vfio-flavour-fs; }}
touch $run
by_file & by_number & by_ctl & reloads & {kills} &
python3 /run/bad_clients.py &
sleep {seconds}
rm $run
wait
"""

BAD_CLIENTS = """
import os, random, socket, time
READ_ONLY = "/run/vfio-flavourd/io.vfioflavour.Manager.ReadOnly"
CONTROL = READ_ONLY.removesuffix(".ReadOnly")
call = b'{"method": "io.vfioflavour.Manager.%s", "parameters": {%s}, "more": true}' + bytes(1)
frames = [
    b"", b"x" * 5000, b'{"method": "io.vfio', bytes(50), b"[]" + bytes(1), call % (b"Monitor", b""),
    call % (b"List", b""), call % (b"SetFlavour", b'"device": "DEVICE", "flavour": "vfio"'),
]
chance, clients = random.Random(4), []
while os.path.exists("/run/soak"):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(1)
    try:
        client.connect(chance.choice((CONTROL, READ_ONLY)))
        client.send(chance.choice(frames))
    except OSError:
        pass
    clients.append(client)
    if len(clients) > 20:
        clients.pop(chance.randrange(20)).close()
    time.sleep(0.25)
"""

SETTLE = """
    systemctl reset-failed vfio-flavourd vfio-flavour-fs 2> /dev/null
    systemctl start vfio-flavourd vfio-flavour-fs
    for device in {devices}; do flavourctl set $device native --timeout 60 > /dev/null || exit 1; done
    udevadm settle
"""

OTHERS = """
    pgrep -c -f /usr/libexec/vfio-flavourd/find-users
    systemctl list-units --failed --no-legend 'vfio-flavour*' | wc -l
    cat /sys/fs/cgroup/system.slice/*/cgroup.procs | wc -l
"""


@dataclass(frozen=True, slots=True)
class Left:
    """What there is after a round."""

    services: tuple[Held, ...]
    looking: int
    failed_units: int
    processes: int


@pytest.mark.timeout(4 * 3600)
def test_nothing_is_left_of_a_round_of_everything(
    host: Host, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    half = request.config.getoption("--soak-minutes") * 60 / 2
    script = tmp_path / "bad_clients.py"
    script.write_text(BAD_CLIENTS.replace("DEVICE", SIBLING.bdf), encoding="ascii")
    host.guest.push(script, "/run/bad_clients.py")
    before, journal = host.look(), host.journal()
    done: dict[str, int] = {}
    left: list[Left] = []
    lives = 0
    bdfs = {"good": GOOD.bdf, "sibling": SIBLING.bdf, "virtio": VIRTIO.bdf}
    began = time.monotonic()
    while not left or len(left) == lives or time.monotonic() - began < 2 * half:
        lives_on = not left or time.monotonic() - began < half
        lives += lives_on
        kills = "true" if lives_on else "kills"
        pending = host.guest.start(LOAD.format(**bdfs, seconds=ROUND, kills=kills))
        until = time.monotonic() + ROUND
        while time.monotonic() < until - 5:
            host.guest.device_add("e1000e", id="plugged", port="hotplug1")
            host.write(HOTPLUG_PORTS["hotplug1"], "vfio")
            host.guest.device_del("plugged")
        said = pending.wait(300).stdout
        for what, count in re.findall(r"^(\w+) (\d+)$", said, re.MULTILINE):
            done[what] = done.get(what, 0) + int(count)
        host.run(SETTLE.format(devices=f"{GOOD.bdf} {SIBLING.bdf} {VIRTIO.bdf}"), timeout=300)
        time.sleep(1)  # the log, and workers that are too many, go a moment after the last answer
        others = (int(line) for line in host.run(OTHERS, check=False).stdout.split())
        left.append(Left(look_at_services(host), *others))
        print(left[-1])
        assert host.look().changed(before) == set()
    print(done)
    # What has begun is carried to its end, however long that takes: in a round without a kill each gets
    # through at least once.
    assert min(done[what] for what in ("files", "numbers", "calls", "reloads")) > 0, done
    first, last = left[0], left[-1]
    # A process that is kept for the next question, and udev's workers, come and go.
    assert last.looking <= first.looking + 2
    assert last.processes <= first.processes + 10
    assert last.failed_units == 0
    for at, service in enumerate(SERVICES):
        held = [each.services[at] for each in left]
        assert held[-1].processes <= held[0].processes + 2, service
        assert held[-1].descriptors <= held[0].descriptors + 10, service
        marks = sorted({lives * quarter // 4 for quarter in range(4)} | {lives - 1})
        lived = [held[mark].memory for mark in marks]
        grown = [now - then for then, now in itertools.pairwise(lived)]
        # Python takes memory by the MiB, when more than ever is in work at a time; what is kept of each round
        # is seen in every quarter of an hour.
        assert min(grown, default=0) < (512 if len(grown) == 4 and lives >= 8 else 4096), lived
    told = [record["MESSAGE"] for record in journal.records()]
    assert [text for text in told if "Traceback" in text or "never retrieved" in text] == []
