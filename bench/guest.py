"""What the benches in the guest share.

User space is 10 to 30 times slower in an emulated guest than natively, the kernel's own work less so: only
ratios within one boot mean anything. Times are taken by bash in the guest, which starts no process for it.
"""

from tests.guest.conftest import UNLOAD
from tests.guest.vm import Guest

# The longest that one script may take.
PATIENCE = 300.0

# `lap COMMAND…` prints its microseconds; udev is at rest when it begins.
LAP = """
set -e
lap() {
    udevadm settle
    local begin=$EPOCHREALTIME
    "$@" > /dev/null 2>&1
    local end=$EPOCHREALTIME
    echo $(( ${end/./} - ${begin/./} ))
}
"""


def run(guest: Guest, script: str) -> list[str]:
    """Its lines."""
    return guest.run(LAP + script, timeout=PATIENCE).stdout.splitlines()


def has(guest: Guest, program: str) -> bool:
    return guest.run(f"command -v {program}", check=False).rc == 0


def unload(guest: Guest) -> None:
    """All VFIO modules, as far as they are not in use."""
    guest.run(UNLOAD, check=False)
