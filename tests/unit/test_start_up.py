"""flavourctl starts quickly: no verb imports what it does not need. Times are not asserted."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a verb may need beyond the language's cheap parts, and who does.
HEAVY = {"asyncio", "asyncvarlink", "concurrent", "logging", "multiprocessing", "pyudev", "systemd", "xml"}
PARTS = {"dataclasses", "inspect", "pathlib", "shutil", "socket", "subprocess", "tempfile", "typing", "yaml"}
DEVICE = "0000:01:00.0"

RUN = """\
import json, socket, sys
sys.path.insert(0, sys.argv[1])
from vfio_flavourd.doors import blocking_client
if sys.argv[2] != "-":
    ours, theirs = socket.socketpair()
    theirs.sendall(sys.argv[2].encode() + bytes(1))
    blocking_client._open = lambda *_: ours
from vfio_flavourd.cli.main import main
try:
    main(sys.argv[3:])
except SystemExit:
    pass
print("imported:", *sys.modules)
"""


def imported(*argv: str, answer: str = "-") -> set[str]:
    """The top of each module that it took, as it is started by the package: without site. A client of the
    daemon's is given its answer."""
    command = [sys.executable, "-I", "-S", "-c", RUN, str(ROOT), answer, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.rpartition("imported: ")[2].split()}


def test_list_takes_next_to_nothing() -> None:
    answer = '{"parameters": {"devices": [], "policy_trouble": ""}}'
    assert imported("list", answer=answer) & (HEAVY | PARTS) == {"socket"}
    assert imported("list", "--json", answer=answer) & (HEAVY | PARTS) == {"socket"}


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["set", "--help"], ["frobnicate"]])
def test_help_asks_nobody(argv: list[str]) -> None:
    assert imported(*argv) & HEAVY == set()


@pytest.mark.parametrize(
    "argv",
    [
        ["show", DEVICE],
        ["set", DEVICE, "vfio"],
        ["set", DEVICE, "vfio", "--dry-run"],
        ["reset", DEVICE],
        ["monitor"],
        ["reload"],
    ],
)
def test_who_asks_the_daemon_reads_no_policy_and_needs_no_loop(argv: list[str]) -> None:
    answer = '{"error": "io.vfioflavour.Manager.Failed", "parameters": {}}'
    assert imported(*argv, answer=answer) & (HEAVY | {"yaml"}) == set()


def test_the_package_starts_it_so() -> None:
    launcher = (ROOT / "debian/launchers/flavourctl").read_text(encoding="ascii")
    assert launcher.startswith("#!/usr/bin/python3 -IS\n")
