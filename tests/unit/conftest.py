"""No unit test reaches the host's /sys, netlink or modprobe."""

import os
import subprocess
from pathlib import Path

import pytest
from fake_kernel import FakeKernel

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


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """With nothing in it."""
    return FakeKernel(tmp_path)


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not the point that a record is synced: of each switch it would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
