"""The service stops, whatever hangs then. Each one is a process of its own, that has no device to find."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The daemon but for its parts: of its end it has a thread that is in a call, and last words.
PROGRAM = """\
import asyncio, logging, os, sys, threading
root, held, called, how = sys.argv[1:]
sys.path.insert(0, root)
from systemd import journal as library
from vfio_flavourd import daemon, journal

class Journald(logging.Handler):
    def __init__(self, **named):
        super().__init__()

    def emit(self, record):
        print(record.getMessage(), flush=True)
        if how == "journald hangs":
            os.open(held, os.O_RDONLY)

class Daemon:
    async def run(self, sockets):
        if how != "journald hangs":
            task = asyncio.create_task(asyncio.to_thread(self.call))
            await asyncio.to_thread(begun.wait)
        logging.getLogger().info("the last words")
        if how == "no state":
            raise OSError(28, "No space left on device")

    def call(self):
        begun.set()
        os.open(held, os.O_RDONLY)
        open(called, "x").close()

begun = threading.Event()
library.JournalHandler = Journald
daemon.Daemon = Daemon
journal.activated_sockets = lambda: {"control": None}
if how == "a moment":
    daemon._LAST_WRITES = 1e6
print("it came back with", daemon.main([]))
"""


def start(directory: Path, how: str) -> "subprocess.Popen[str]":
    os.mkfifo(directory / "held")
    arguments = [str(ROOT), str(directory / "held"), str(directory / "called"), how]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JOURNAL_STREAM": "8:1"},
    )


@pytest.mark.parametrize(("how", "status"), [("a thread hangs", 0), ("no state", 1), ("journald hangs", 0)])
def test_the_end_waits_for_nothing_that_hangs_and_has_its_status_and_its_last_words(
    tmp_path: Path, how: str, status: int
) -> None:
    process = start(tmp_path, how)
    try:
        said, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, complaint) == (status, "")
    assert said.startswith("the last words\n")
    assert not (tmp_path / "called").exists()


def test_the_end_waits_for_what_a_thread_still_writes(tmp_path: Path) -> None:
    process = start(tmp_path, "a moment")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "the last words\n"
        os.close(os.open(tmp_path / "held", os.O_WRONLY))  # it goes on now
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / "called").exists()
