"""The process that looks who uses a device, for `looker.py`.

What processes have open is seen in /proc/<pid>/fd, which is closed to root itself without CAP_SYS_PTRACE and
CAP_DAC_READ_SEARCH. Its unit has the two, and nothing to write to (vfio-flavour-users@.service).

A question is a line of JSON, `["device", path, class, driver]` or `["group", number]`; so is the answer: the
users, each as `[use, what, pid]`.
"""

import json
import os
import sys
from typing import TextIO

from ..model.occupancy import Described
from .occupancy import Occupancy


def answer(occupancy: Occupancy, questions: TextIO, answers: TextIO) -> None:
    """Until there are no more questions."""
    for line in questions:
        match json.loads(line):
            case ["device", str(path), int(class_code), str() | None as driver]:
                users = occupancy.find_users(Described(path, class_code, driver))
            case ["group", int(number)]:
                users = occupancy.find_group_holders(number)
            case _:
                raise ValueError(f"no question: {line[:200]!r}")
        json.dump([[user.use, user.what, user.pid] for user in users], answers)
        answers.write("\n")
        answers.flush()


def main() -> int:
    """Standard input and output are the daemon's connection."""
    try:
        answer(Occupancy(), sys.stdin, sys.stdout)
    except ConnectionError:
        # Nobody waits any more. What is left unsent would be tried once more at the end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
    return 0
