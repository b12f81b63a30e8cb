"""What the services hold, to be compared with what they held before."""

from dataclasses import dataclass

from .conftest import Host

SERVICES = ("vfio-flavourd", "vfio-flavour-fs")

_LOOK = f"""
    for unit in {" ".join(SERVICES)}; do
        pid=$(systemctl show --property=MainPID --value $unit)
        sed -n 's/^RssAnon:[[:space:]]*\\([0-9]*\\) kB/\\1/p' /proc/$pid/status
        ls /proc/$pid/fd | wc -l
        cat /sys/fs/cgroup/system.slice/$unit.service/cgroup.procs | wc -l
    done
    ls /run/vfio-flavourd/devices | wc -l
"""


@dataclass(frozen=True, slots=True)
class Held:
    """By one service; memory in KiB, without the pages of files, which come and go."""

    memory: int
    descriptors: int
    processes: int


def look_at_services(host: Host) -> tuple[Held, ...]:
    """In the order of SERVICES. No device has a record."""
    *numbers, records = (int(line) for line in host.run(_LOOK).stdout.split())
    assert records == 0
    return tuple(Held(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))
