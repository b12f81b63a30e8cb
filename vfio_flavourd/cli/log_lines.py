"""The last lines of the journal about one device."""

import os
import subprocess

_MOST = 10

# Seconds. A journal on a slow disk is no reason to wait for what stands below everything else.
_PATIENCE = 2


def read_log_lines(device: str, *, expected: bool) -> list[str]:
    """The daemon's and the kernel's, of this boot and as journalctl prints them. None where there is no
    journal, or this user may not read it; that is said where lines are `expected`."""
    command = ["journalctl", "--quiet", "--no-pager", "--boot", f"--lines={_MOST}", "--output=short"]
    # The kernel's own name of a device in its messages: systemd.journal-fields(7).
    command += [f"PCI_ADDRESS={device}", "+", f"_KERNEL_DEVICE=+pci:{device}"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.decode(errors="replace").splitlines()
    if not lines and expected and os.geteuid() != 0:
        return ["The log is for root and the members of systemd-journal and adm."]
    return lines[-_MOST:]
