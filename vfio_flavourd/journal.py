"""The journal, readiness and socket activation; the only importer of systemd's Python bindings."""

import logging
import os
import socket
import time
from logging.handlers import QueueHandler, QueueListener
from queue import Queue
from typing import NoReturn

import systemd.daemon

# Records that wait for the journal at the most.
_MOST_WAITING = 10_000

# Seconds for which the end waits for the journal.
_LAST_WORDS = 1.0


def open_log(identifier: str = "vfio-flavourd") -> None:
    """Log to the journal with structured fields under systemd, else to standard error."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    # systemd.exec(5): set when standard error is a stream to the journal.
    if "JOURNAL_STREAM" in os.environ:
        from systemd.journal import JournalHandler

        # journald itself can hang (6.1: it reads the `uevent` of the device that a kernel message names, and
        # waits for whoever holds that device). Then records wait here, and nobody else does.
        waiting: Queue[logging.LogRecord] = Queue(_MOST_WAITING)
        QueueListener(waiting, JournalHandler(SYSLOG_IDENTIFIER=identifier)).start()
        root.addHandler(_NeverWaiting(waiting))
    else:
        logging.basicConfig(format="%(levelname)s %(message)s")


def leave(status: int) -> NoReturn:
    """The process ends when the log is out. Python's own end would wait for each thread of a pool, and for a
    handler that journald does not answer."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(status)


class _NeverWaiting(QueueHandler):
    """A record that has no place any more is lost."""

    def __init__(self, waiting: "Queue[logging.LogRecord]") -> None:
        super().__init__(waiting)
        self._waiting = waiting

    def flush(self) -> None:
        """At the end, as far as the journal takes it."""
        deadline = time.monotonic() + _LAST_WORDS
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Saying so would be one more."""


def notify(state: str) -> None:
    """Tell the service manager, e.g. `READY=1`. Does nothing outside of a unit."""
    systemd.daemon.notify(state)


def watchdog_interval() -> float | None:
    """Seconds between two pings: half of what the unit allows; None without a watchdog."""
    usec = os.environ.get("WATCHDOG_USEC")
    pid = os.environ.get("WATCHDOG_PID")
    if not usec or (pid and int(pid) != os.getpid()):
        return None
    return int(usec) / 2e6


def activated_sockets() -> dict[str, socket.socket]:
    """The sockets that were passed in, by the FileDescriptorName= of their units."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return {
        name: socket.socket(fileno=descriptor)
        for name, descriptor in zip(names, systemd.daemon.listen_fds(), strict=False)
    }
