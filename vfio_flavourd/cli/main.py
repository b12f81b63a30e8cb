"""flavourctl: the command line and what its exit status means."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence

from ..model.errors import FlavourError, InvalidPolicyError
from ..model.printable import printable
from .output import print_json
from .parser import build_parser
from .terminal import wants_color

_DONE, _FAILED, _NO_DEVICE, _NOT_RUNNING, _TRY_AGAIN, _NOT_PERMITTED = 0, 1, 3, 69, 75, 77
_INVALID_POLICY = 78

_EXIT = {
    errno.ENODEV: _NO_DEVICE,
    errno.EBUSY: _TRY_AGAIN,
    errno.EAGAIN: _TRY_AGAIN,
    errno.ETIMEDOUT: _TRY_AGAIN,
    errno.EACCES: _NOT_PERMITTED,
    errno.EINVAL: 2,
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    arguments.json = getattr(arguments, "json", False)
    arguments.color = wants_color(sys.stdout, refused=getattr(arguments, "no_color", False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every locale has each sign that is printed, or that a device's name has.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except FlavourError as error:
        return _complain(arguments, error)
    except KeyboardInterrupt as interrupt:
        print(f"flavourctl: interrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read this has enough, e.g. `flavourctl list | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    return status


def _run(arguments: argparse.Namespace) -> int:
    # Each verb's imports are its own: what a verb does not need is not loaded.
    match arguments.verb:
        case None | "list":
            from .listing import list_devices

            return list_devices(arguments)
        case "show":
            from .show import show_device

            return show_device(arguments)
        case "monitor":
            from .monitor import monitor

            return monitor(arguments)
        case "history":
            from .history import show_history

            return show_history(arguments)
        case "resolve":
            from .resolve import resolve

            return resolve(arguments)
        case "check" | "cat-config" | "reload":
            from . import policy

            verbs = {"check": policy.check, "cat-config": policy.cat_config, "reload": policy.reload}
            return verbs[arguments.verb](arguments)
        case _:
            from .switch import switch

            return switch(arguments)


def _complain(arguments: argparse.Namespace, error: FlavourError) -> int:
    message = str(error)
    if arguments.json:
        print_json({"error": {"errno": error.errno, "message": message, "hint": error.hint}})
    print(f"flavourctl: {printable(message)}", file=sys.stderr)
    if error.hint:
        print(f"  {printable(error.hint)}", file=sys.stderr)
    if isinstance(error, InvalidPolicyError):
        return _INVALID_POLICY
    from ..doors.protocol import NotRunningError

    return _NOT_RUNNING if isinstance(error, NotRunningError) else _EXIT.get(error.errno, _FAILED)


if __name__ == "__main__":
    sys.exit(main())
