"""No unit test reaches the host's /sys, netlink or modprobe."""

import subprocess
from pathlib import Path

import pytest

from vfio_flavourd.kernel.sysfs import Sysfs


@pytest.fixture(autouse=True)
def _no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sysfs.__init__

    def only_with_a_root(self: Sysfs, root: str = "") -> None:
        assert root, "a unit test must not read the host's sysfs"
        made(self, root)

    monkeypatch.setattr(Sysfs, "__init__", only_with_a_root)
    started = subprocess.Popen.__init__

    def no_modprobe_here(self: object, args: object, *rest: object, **named: object) -> None:
        command = args if isinstance(args, (list, tuple)) else [args]
        name = Path(str(command[0])).name
        assert name != "modprobe" or "-C" in command or "-d" in command, "a unit test must not load modules"
        started(self, args, *rest, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess.Popen, "__init__", no_modprobe_here)
