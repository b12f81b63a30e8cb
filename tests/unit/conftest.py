"""No unit test reaches the host's /sys, netlink or modprobe."""

import argparse
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeKernel
from hypothesis import settings

from tests.outputs import validate_output
from vfio_flavourd.cli import main as cli
from vfio_flavourd.cli import output
from vfio_flavourd.kernel.sysfs import Sysfs

# What is started in the background ignores these, and so would each program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples each time, so that what passes once passes again; `make fuzz` has others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("same")


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


@pytest.fixture(autouse=True)
def _what_is_printed_as_json_is_as_the_schema_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all verbs, whoever runs one."""
    verbs: list[str] = []
    run, render = cli._run, output.render_json

    def remember_the_verb(arguments: argparse.Namespace) -> int:
        verbs.append(arguments.verb or "list")
        return run(arguments)

    def validate(data: dict[str, Any], *, indent: int | None) -> str:
        text = render(data, indent=indent)
        validate_output(verbs[-1], json.loads(text))
        return text

    monkeypatch.setattr(cli, "_run", remember_the_verb)
    monkeypatch.setattr(output, "render_json", validate)


# Of $FAKE_JOURNAL, if it is there, what has the device's address in it.
JOURNALCTL = """\
#!/bin/sh
for argument; do
    case $argument in PCI_ADDRESS=*) device=${argument#*=} ;; esac
done
[ ! -e "$FAKE_JOURNAL" ] || exec grep -F "$device" "$FAKE_JOURNAL"
"""


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for those whose answer is this host's."""
    directory = tmp_path_factory.mktemp("bin")
    journalctl = directory / "journalctl"
    journalctl.write_text(JOURNALCTL, encoding="ascii")
    journalctl.chmod(0o755)
    return directory


@pytest.fixture(autouse=True)
def journal(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What journalctl says, if it is written."""
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    path = tmp_path / "journal"
    monkeypatch.setenv("FAKE_JOURNAL", str(path))
    return path


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """With nothing in it."""
    return FakeKernel(tmp_path)


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not the point that a record is synced: of each switch it would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
