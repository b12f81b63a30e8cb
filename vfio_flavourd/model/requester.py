"""Who asked for something."""

import re
from dataclasses import dataclass

# In /proc/PID/cgroup (cgroups(7)): the slices, and the first thing below them, which systemd has named.
_UNIT = re.compile(
    r"^0::(?:/[^/\n]+\.slice)*/([\w:.\\@-]+\.(?:service|scope))(?=/| \(deleted\)$|$)", re.MULTILINE | re.ASCII
)

_REQUESTER = re.compile(r"uid (\d+) pid (\d+)(?: by file)?")


@dataclass(frozen=True, slots=True)
class Requester:
    """A process on the other side of a socket; or, `by_file`, a thread that wrote to a file."""

    uid: int
    pid: int
    by_file: bool = False

    def __str__(self) -> str:
        return f"uid {self.uid} pid {self.pid}{' by file' if self.by_file else ''}"


def find_requester(text: str) -> Requester | None:
    """None for the policy, a uevent, and whoever else is no process."""
    found = _REQUESTER.fullmatch(text)
    return None if found is None else Requester(int(found[1]), int(found[2]), text.endswith("by file"))


def name_requester(text: str) -> dict[str, str]:
    """For `extra=` of a log call. Of OBJECT_PID journald makes more fields, the process's unit among them
    (systemd.journal-fields(7)), so it is there for a process only."""
    requester = find_requester(text)
    fields = {"REQUESTER": text, "REQUESTER_UID": "" if requester is None else str(requester.uid)}
    return fields if requester is None else {**fields, "OBJECT_PID": str(requester.pid)}


def parse_unit(cgroup: str) -> str:
    """A process's unit by its `cgroup` file; empty where it is in none."""
    found = _UNIT.search(cgroup)
    return "" if found is None else found[1]
