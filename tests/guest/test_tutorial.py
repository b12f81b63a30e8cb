"""docs/tutorial.md, followed to the letter: each command is run and what it prints is what the page says."""

import time
from pathlib import Path

from .conftest import Host
from .devices import ROLES
from .test_policy import RULES, forget_wishes
from .transcript import PROMPT, Exchange, clean, read_transcript

PAGE = Path(__file__).parents[2] / "docs/tutorial.md"
TYPED = "/run/typed"
RECORD = f"/run/vfio-flavourd/devices/{ROLES['nvme'].bdf}.json"
# A virtual machine in the virtual machine boots a kernel.
SLOWEST_COMMAND = 300
SOON = 20


def test_the_tutorial_does_what_it_says(host: Host, deb: Path) -> None:
    if host.release == "bookworm":  # where the guest has no room for QEMU
        assert host.run("command -v qemu-system-x86_64", check=False).rc == 1
        return
    before, initrd = host.look(), host.guest.initrd
    host.guest.push(deb, f"/root/{deb.name}")
    host.run(f"rm -f {RULES}")  # of an earlier test's policy: here there has been none
    forget_wishes(host)
    wrong = []
    try:
        for exchange in read_transcript(PAGE.read_text(encoding="utf-8")):
            output = follow(host, exchange)
            # A reload is over when the switches are under way; a reader types slower than they take.
            looks, until = exchange.command.startswith("cat /"), time.monotonic() + SOON
            while looks and not exchange.matches(output) and time.monotonic() < until:
                output = follow(host, exchange)
            if not exchange.matches(output):
                wrong.append(f"# {exchange.command}\n{clean(output)}")
    finally:
        host.guest.initrd = initrd
        # As after a boot: in this one the device was VFIO's at first, and that is on record.
        host.run(f"systemctl stop vfio-flavourd; rm -f {RECORD}")
        forget_wishes(host)
    assert not wrong, "\n".join(wrong)
    assert host.look().changed(before) == set()


def follow(host: Host, exchange: Exchange) -> str:
    if exchange.command == "reboot":
        host.reboot()
        return ""
    if exchange.command == "update-initramfs -u":
        host.guest.update_initramfs()
        return ""
    command = f"cd /root; exec 2>&1\n{exchange.command}"
    if not exchange.typed:
        return host.run(command, timeout=SLOWEST_COMMAND, check=False).stdout
    host.run(f"mkfifo {TYPED}")
    keyboard = host.guest.start(f"exec sleep infinity > {TYPED}")
    running = host.guest.start(f"exec < {TYPED}; {command}")
    for number, line in enumerate(exchange.typed, 1):
        running.wait_for(PROMPT, SLOWEST_COMMAND, times=number)
        host.run(f"echo '{line}' > {TYPED}")
    output = running.wait(SLOWEST_COMMAND).stdout
    keyboard.kill()
    host.run(f"rm {TYPED}")
    return output
