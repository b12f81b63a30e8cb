"""Processes, named so that a number used again is not taken for the same one."""

from dataclasses import dataclass

from ..model.errors import FlavourError
from .sysfs import Sysfs


@dataclass(frozen=True, slots=True)
class Worker:
    """A process and when it started (clock ticks since boot), which together name it for good."""

    pid: int
    started: int


def read_worker(sysfs: Sysfs, pid: int) -> Worker:
    """Raises FlavourError (ENODEV) when there is no such process."""
    # The second field, the program's name, may hold anything, so count from its closing bracket:
    # starttime is field 22 of proc(5)'s stat.
    text = sysfs.read(f"/proc/{pid}/stat")
    return Worker(pid, int(text[text.rindex(")") + 2 :].split()[19]))


def is_alive(sysfs: Sysfs, worker: Worker) -> bool:
    try:
        return read_worker(sysfs, worker.pid) == worker
    except FlavourError:
        return False
