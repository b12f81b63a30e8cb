"""Every exit status that flavourctl has, as a person would run into it, and what is said then."""

import shlex
from pathlib import Path

from .conftest import HANG_STARTED, NO_VFIO_PCI, RELEASE_HANG, Host
from .devices import ROLES
from .test_main_job import patient

GOOD, REFUSE, HANG, PAIR = ROLES["good"], ROLES["refuse"], ROLES["hang"], ROLES["pair0"]
NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"
DRAFT = "/run/draft.yaml"
DAEMON = "vfio-flavourd.socket vfio-flavourd-readonly.socket vfio-flavourd.service"

# A terminal's Ctrl-C while a module hangs in its init.
CTRL_C = """
import os, pty, subprocess, sys
pid, terminal = pty.fork()
if not pid:
    os.execvp("flavourctl", ["flavourctl", *sys.argv[2:]])
subprocess.run(["bash", "-c", sys.argv.pop(1)], check=True)
os.write(terminal, b"\\x03")
said = b""
try:
    while part := os.read(terminal, 4096):
        said += part
except OSError:  # EIO: its end
    pass
print(said.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def check(host: Host, status: int, said: str, *arguments: str, user: str = "", code: str = "") -> None:
    """What it is about, and what to do; nothing of a program's insides."""
    done = host.ctl(*arguments, user=user)
    assert done.rc == status, f"{arguments}: {done}"
    *steps, error, hint = done.stderr.splitlines()
    assert all(step.startswith("  ") for step in steps), done.stderr
    assert error.startswith("flavourctl: "), done.stderr
    assert said in error
    assert hint.startswith("  "), done.stderr
    assert code == "" or f"flavourctl explain {code}" in hint
    assert done.stdout == ""


def test_every_exit_status_is_reached_and_says_why(host: Host, tmp_path: Path) -> None:
    before = host.look()
    assert host.ctl("set", GOOD.bdf, "native").rc == 0

    check(host, 2, "no flavour is called 'vfoi'", "set", GOOD.bdf, "vfoi", code="no-such-flavour")
    check(host, 2, "'gpu' is not a PCI address", "set", "gpu", "vfio", code="not-an-address")
    check(host, 2, "no verb is called 'sett'", "sett", GOOD.bdf, "vfio")
    check(host, 2, "'--forec' is not expected here", "set", GOOD.bdf, "vfio", "--forec")
    check(host, 3, "0000:00:1e.0", "set", "00:1e.0", "vfio", code="no-such-device")
    check(host, 75, "it is a bridge", "set", "00:10.0", "vfio", code="is-a-bridge")
    check(host, 75, f"{PAIR.bdf}: no guest could use it", "set", PAIR.bdf, "vfio", code="group-not-viable")
    check(host, 77, "may switch devices", "set", GOOD.bdf, "vfio", user=NOBODY, code="not-permitted")

    # Both streams are full of other things here: the steps, and the outcome.
    assert host.ctl("set", REFUSE.bdf, "vfio", "--strict").rc == 4
    host.switch(REFUSE, "native")

    host.run(f"mkdir -p /run/modprobe.d; echo 'blacklist vfio_pci' > {NO_VFIO_PCI}; rmmod vfio_pci")
    rejected = f"vfio_pci is rejected: blacklisted by {NO_VFIO_PCI}"
    check(host, 1, rejected, "set", "00:0d.0", "vfio", code="no-candidate")
    host.run(f"rm {NO_VFIO_PCI}")

    (tmp_path / "draft.yaml").write_text("version: 1\nrulse: []\n")
    host.guest.push(tmp_path / "draft.yaml", DRAFT)
    invalid = host.ctl("check", DRAFT)
    assert (invalid.rc, f"{DRAFT}:2:1: 'rulse' is not a key" in invalid.stderr) == (78, True)

    (tmp_path / "ctrl_c.py").write_text(CTRL_C)
    host.guest.push(tmp_path / "ctrl_c.py", "/run/ctrl_c.py")
    command = shlex.join(["python3", "/run/ctrl_c.py", HANG_STARTED, "set", HANG.bdf, "vfio"])
    with patient(host, HANG.bdf):
        interrupted = host.run(command, check=False)
        host.run(RELEASE_HANG)
    assert interrupted.rc == 130, interrupted
    assert "flavourctl: interrupted" in interrupted.stdout
    assert f"flavourctl show {HANG.bdf}" in interrupted.stdout
    assert "Traceback" not in interrupted.stdout

    host.run(f"systemctl stop {DAEMON}")
    try:
        check(host, 69, "the daemon does not answer", "list", code="daemon-not-running")
        explained = host.ctl("explain", "daemon-not-running")
        assert (explained.rc, "systemctl start" in explained.stdout) == (0, True)
    finally:
        host.run(f"systemctl start {DAEMON}")
    assert host.look().changed(before) == set()


def test_what_cannot_be_printed_is_told_without_a_traceback(host: Host) -> None:
    full = host.run("flavourctl list > /dev/full", check=False)
    assert (full.rc, full.stderr) == (1, "flavourctl: writing the output failed: No space left on device\n")
    for verb in ("list --json", "--help", "explain"):
        assert host.run(f"flavourctl {verb} | true").stderr == ""
