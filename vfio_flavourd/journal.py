"""The journal, readiness and socket activation; the only importer of systemd's Python bindings."""

import logging
import os
import socket

import systemd.daemon


def open_log() -> None:
    """Log to the journal with structured fields under systemd, else to standard error."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    # systemd.exec(5): set when standard error is a stream to the journal.
    if "JOURNAL_STREAM" in os.environ:
        from systemd.journal import JournalHandler

        root.addHandler(JournalHandler(SYSLOG_IDENTIFIER="vfio-flavourd"))
    else:
        logging.basicConfig(format="%(levelname)s %(message)s")


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
