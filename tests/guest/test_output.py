"""What flavourctl says of the guest's real devices, word for word: golden/<release>.txt.

`GOLDEN=write` writes it anew; look at the difference then.
"""

import os
import re
from pathlib import Path

from .conftest import Host, files, running
from .devices import ROLES
from .test_policy import RULES, forget_wishes

GOOD = ROLES["good"]
COMMANDS = (
    ("list",),
    ("list", "--columns", "device,ids,class,slot", "--noheadings"),
    ("set", GOOD.bdf, "vfio"),
    ("show", GOOD.bdf),
    ("set", GOOD.bdf, "native", "--dry-run"),
    ("reset", GOOD.bdf),
    ("show", GOOD.bdf),
    ("history", GOOD.bdf, "-n", "2"),
    ("resolve", GOOD.bdf),
    ("groups",),
    ("groups", "--dot"),
    ("check",),
    ("cat-config",),
    ("reload",),
    ("doctor",),
    ("import", "driverctl"),
    ("explain", "in-use"),
)
# As journalctl prints it.
LOG_LINE = re.compile(r"^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d .*\n", re.MULTILINE)


def test_it_says_what_is_written_down(host: Host) -> None:
    as_after_a_boot(host)
    said, logged = "", ""
    for command in COMMANDS:
        done = host.ctl(*command)
        marked = "".join(f"! {line}\n" for line in done.stderr.splitlines())
        text = f"{done.stdout}{marked}"
        logged += "".join(LOG_LINE.findall(text))
        said += normalise(f"$ flavourctl {' '.join(command)}\n{text}[exit status {done.rc}]\n\n")
    path = Path(__file__).parent / f"golden/{host.release}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(said, encoding="utf-8")
    assert said == path.read_text(encoding="utf-8")
    assert f"{GOOD.bdf}: e1000e -> vft-good-vfio-pci in " in logged


def test_monitor_tells_a_switch_as_it_happens(host: Host) -> None:
    file = files(GOOD) / "driver_flavour"
    # Until the monitor, which takes its time to start, has heard of a whole one.
    to_and_fro = f"while echo vfio > {file} && echo native > {file}; do :; done"
    with running(host.guest, "exec flavourctl monitor") as monitor, running(host.guest, to_and_fro):
        said = monitor.wait_for(f"{GOOD.bdf} to native by ", times=2)
    host.switch(GOOD, "native")
    said = normalise(re.sub(r"^\d\d:\d\d:\d\d", "19:00:00", said, flags=re.MULTILINE))
    assert f"19:00:00 {GOOD.bdf} unbind from vft-good-vfio-pci (1 ms)\n" in said
    by = "uid 0 pid 812 by file"
    assert f"19:00:00 {GOOD.bdf} to vfio by {by} done: vft_good: matches vendor, device\n" in said
    assert "\x1b" not in said


def test_a_terminal_of_80_columns_gets_colours_and_no_line_that_wraps(host: Host) -> None:
    # The guest's commands have no terminal: script(1) makes one.
    shown = host.run(
        "script --quiet --return --command 'stty cols 80; TERM=xterm flavourctl list' /dev/null", check=True
    ).stdout
    assert "\x1b[" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert len(lines) == len(host.look().devices) + 1
    assert max(map(len, lines)) <= 80


def as_after_a_boot(host: Host) -> None:
    """Other tests have left wishes, rules of a policy that is gone, and what a uevent has told udev."""
    host.run(f"rm -f {RULES}")
    forget_wishes(host)
    host.run("udevadm trigger --subsystem-match=pci --action=change; udevadm settle")


def normalise(text: str) -> str:
    """Without what differs from run to run."""
    text = LOG_LINE.sub("", text)
    text = re.sub(r"(?<=after) +(?=\d+ ms:)", " ", text)
    text = re.sub(r"\d+\.\d ms", "1.0 ms", text)
    text = re.sub(r"(?<![.\d])\d+ ms", "1 ms", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-25 19:00:00", text)
    text = re.sub(r"\bvfio\d+\b", "vfio0", text)
    # The history's columns are as wide as its numbers and durations are long.
    text = re.sub(
        r"^(?:ID|\d+) +(?:WHEN|2026-).*", lambda row: re.sub(" {2,}", "  ", row[0]), text, flags=re.MULTILINE
    )
    text = re.sub(r"^\d+(?=  2026-)", "1", text, flags=re.MULTILINE)
    # Debian's kernels come and go.
    text = re.sub(r"\b\d+\.\d+\.\d+(\+\w+)?(-\d+)?-amd64", "6.12.0-amd64", text)
    return re.sub(r"uid \d+ pid \d+", "uid 0 pid 812", text)
