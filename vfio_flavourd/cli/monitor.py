"""monitor: what is being switched, as it happens."""

import argparse
import errno
import os
import select
import sys
import time
from typing import Any, Never

from ..doors import blocking_client
from ..model.codes import Code
from ..model.errors import FlavourError
from ..model.printable import printable
from .output import print_json_line, tell_step
from .terminal import BOLD, DIM, GREEN, RED, paint


def monitor(arguments: argparse.Namespace) -> int:
    """Ctrl-C is how it ends, or the daemon's end."""
    try:
        with blocking_client.connect(writes=False) as daemon:
            _follow(daemon, arguments)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # the terminal has written ^C
        return 0


def _follow(daemon: blocking_client.Connection, arguments: argparse.Namespace) -> Never:
    """Raises FlavourError when the daemon goes."""
    try:
        for event in daemon.follow("Monitor", tick=_see_whether_anyone_reads):
            if arguments.json:
                print_json_line(event)
            else:
                print(_tell(event, color=arguments.color), flush=True)
    except FlavourError as error:
        if error.code != Code.DAEMON_WENT_AWAY:
            raise
    raise FlavourError(
        "the daemon has gone",
        code=Code.DAEMON_WENT_AWAY,
        hint="flavourctl list shows what the devices are now, journalctl -u vfio-flavourd why it went",
    )


def _see_whether_anyone_reads() -> None:
    """`flavourctl monitor | grep -m 1 …` is over when grep is, not when the next thing happens. Raises
    BrokenPipeError."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # what is asked for by no name is told all the same: POLLERR
    if any(told & select.POLLERR for _, told in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _tell(event: dict[str, Any], *, color: bool) -> str:
    when = paint(time.strftime("%H:%M:%S"), DIM, color=color)
    return f"{when} {paint(event['device'], BOLD, color=color)} {_tell_what(event, color=color)}"


def _tell_what(event: dict[str, Any], *, color: bool) -> str:
    if step := event["step"]:
        return tell_step(step, color=color)
    attempt = event["attempt"]
    said = printable(attempt["error"].removeprefix(f"{event['device']}: ") or attempt["reason"])
    outcome = paint(attempt["outcome"], RED if attempt["error"] else GREEN, color=color)
    by = printable(attempt["requester"])
    return f"to {attempt['flavour']}{f' by {by}' if by else ''} {outcome}: {said}"
