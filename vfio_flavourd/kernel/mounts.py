"""The mounts of every mount name space on the host.

`/proc/<pid>/mountinfo` needs no privilege and shows a name space as its process sees it. Which name space
that is tells the link `ns/mnt`, which needs CAP_SYS_PTRACE.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..model.occupancy import Use, User
from .host_files import HostFiles

# Spaces, tabs and backslashes (fs/proc_namespace.c, mangle()). A line feed stays \012: texts are one line.
_ESCAPED = re.compile(r"\\(011|040|043|134)")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `number` is the file system's major:minor; `pid` a process that sees it,
    1 for the host's own view."""

    number: str
    point: str
    fs_type: str
    source: str
    options: tuple[str, ...]
    pid: int


def read_mounts(files: HostFiles, until: float, unread: list[int]) -> Iterator[Mount]:
    """The host's own first, and always. A name space is read for each root directory that a process in it
    has, since what is outside of that isn't shown.

    Anybody may have 100,000 mounts (fs.mount-max) in a name space of his own, and many root directories
    there. So what isn't read by `until` (time.monotonic()) is left, its processes are added to `unread`.
    """
    seen = set()
    for pid in files.list_processes():
        if _is_too_late(pid, until):
            unread.append(pid)
            continue
        view = _find_view(files, pid)
        if view is None or view in seen:
            continue
        # A process that is gone meanwhile shows nothing, but others may be in the same name space.
        for line in files.read_lines(f"/proc/{pid}/mountinfo"):
            if _is_too_late(pid, until):
                unread.append(pid)
                break
            seen.add(view)
            mount = parse_mount(line, pid)
            if mount is not None:
                yield mount


def tell_unread(files: HostFiles, use: Use, unread: Sequence[int]) -> Iterator[User]:
    """What `read_mounts` has left, as one use that may be."""
    if unread:
        first = f"{files.read_name(unread[0])} (pid {unread[0]})"
        what = f"mounts of {len(unread)} processes, from {first} on, could not be looked into in time"
        yield User(use, what)


def parse_mount(line: str, pid: int) -> Mount | None:
    """None for a line that makes no sense (proc(5): ids, number, root, point, options, optional fields)."""
    left, separator, right = line.partition(" - ")
    fields, rest = left.split(" "), right.split(" ")
    if not separator or len(fields) < 6 or len(rest) < 3:
        return None
    return Mount(fields[2], unescape(fields[4]), rest[0], unescape(rest[1]), tuple(rest[2].split(",")), pid)


def unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def _is_too_late(pid: int, until: float) -> bool:
    return pid != 1 and time.monotonic() > until


def _find_view(files: HostFiles, pid: int) -> tuple[str, str] | None:
    """What tells apart the views that processes have of mounts; None when the process is gone."""
    process = f"{files.root}/proc/{pid}"
    # readlink doesn't go where these lead, so a hung file system is no matter.
    with suppress(OSError):
        return os.readlink(f"{process}/ns/mnt"), os.readlink(f"{process}/root")  # noqa: PTH115 (for thousands)
    # Not permitted. The first line's mount ID is a number that no other name space has; a short read
    # makes the kernel format no more than that line (fs/seq_file.c).
    with suppress(OSError), Path(f"{process}/mountinfo").open("rb", buffering=0) as file:
        first = file.read(32).split(b" ", 1)[0].decode("ascii", "replace")
        return (first, "") if first else None
    return None
