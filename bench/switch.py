"""How long a switch takes, against the bare kernel work and driverctl, in one boot of the guest.

    python3 -m bench.switch [--release trixie] [--rounds 10] --deb dist/vfio-flavourd_<version>_all.deb

User space is 10 to 30 times slower in an emulated guest than natively, so only the ratios mean anything;
they are taken round by round, with the raw writes of the same round, and then their median, minimum and
maximum.
"""

# ruff: noqa: INP001, T201 - it reports by printing

import argparse
import statistics
from pathlib import Path

from tests.guest.devices import ROLES
from tests.guest.image import DEFAULT_RELEASE, RELEASES, build_image
from tests.guest.vm import Guest

# The raw way is what an administrator's script would do: bash's own echo, no process started. Every way
# has its modules loaded, and udev at rest, when it begins.
_SCRIPT = r"""
set -e
device=$1 native=$2 variant=$3 rounds=$4
sysfs=/sys/bus/pci/devices/$device drivers=/sys/bus/pci/drivers
flavour=/run/vfio-flavour/$device/driver_flavour
modprobe vft_good
modprobe vfio-pci
lap() {
    udevadm settle
    local begin=$EPOCHREALTIME
    "$2"
    local end=$EPOCHREALTIME
    echo "$1 $(( ${end/./} - ${begin/./} ))"
}
raw_vfio() { echo "$variant" > $sysfs/driver_override; echo "$device" > $drivers/$native/unbind
    echo "$device" > "$drivers/$variant/bind"; }
raw_native() { echo "$native" > $sysfs/driver_override; echo "$device" > "$drivers/$variant/unbind"
    echo "$device" > "$drivers/$native/bind"; echo > $sysfs/driver_override; }
file_vfio() { echo vfio > "$flavour"; }
file_native() { echo native > "$flavour"; }
ctl_vfio() { flavourctl set "$device" vfio > /dev/null 2>&1; }
ctl_native() { flavourctl set "$device" native > /dev/null 2>&1; }
driverctl_vfio() { driverctl --nosave set-override "$device" vfio-pci; }
driverctl_native() { driverctl --nosave unset-override "$device"; }
for round in $(seq 0 "$rounds"); do
    for way in raw file ctl driverctl; do
        lap "$round $way vfio" ${way}_vfio
        lap "$round $way native" ${way}_native
    done
done
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a switch takes, against the bare kernel work.")
    parser.add_argument("--release", choices=sorted(RELEASES), default=DEFAULT_RELEASE)
    parser.add_argument("--deb", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    role = ROLES["good"]
    with Guest(build_image(RELEASES[options.release], options.deb)) as guest:
        guest.run("cat > /root/bench.sh <<'EOF'\n" + _SCRIPT + "\nEOF")
        arguments = f"{role.bdf} {role.native} {role.variants[0]} {options.rounds}"
        said = guest.run(f"bash /root/bench.sh {arguments}", timeout=1800).stdout
        memory = guest.run(
            "for unit in vfio-flavourd vfio-flavour-fs; do pid=$(systemctl show -P MainPID $unit); "
            'echo "$unit $(grep VmRSS /proc/$pid/status)"; done'
        ).stdout
    laps: dict[tuple[str, str], dict[int, float]] = {}
    for line in said.splitlines():
        number, way, direction, micros = line.split()
        if int(number) > 0:  # the first round warms up
            laps.setdefault((way, direction), {})[int(number)] = int(micros) / 1000
    print(f"Debian {options.release}, {options.rounds} rounds; ms of guest time, ratios to the raw writes")
    for (way, direction), times in laps.items():
        ratios = [times[number] / laps["raw", direction][number] for number in times]
        print(
            f"{way:10} to {direction:7} {statistics.median(times.values()):8.1f} ms"
            f" ({min(times.values()):.1f}..{max(times.values()):.1f})"
            f"   x {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        )
    print(memory, end="")


if __name__ == "__main__":
    main()
