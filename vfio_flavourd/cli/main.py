"""flavourctl: the command line and what its exit status means."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence

from ..model.codes import Code, find_exit_status
from ..model.errors import FlavourError
from ..model.printable import printable
from .output import print_json, print_json_line
from .parser import build_parser
from .terminal import wants_color

_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    try:
        status = _run(_parse(argv))
        sys.stdout.flush()
    except OSError as error:
        return _stop_printing(error)
    return status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    arguments.json = getattr(arguments, "json", False)
    arguments.color = wants_color(sys.stdout, refused=getattr(arguments, "no_color", False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every locale has each sign that is printed, or that a device's name has.
        sys.stdout.reconfigure(errors="backslashreplace")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    try:
        return _carry_out(arguments)
    except FlavourError as error:
        return _complain(arguments, error)
    except KeyboardInterrupt as interrupt:
        return _tell_interrupted(arguments, str(interrupt))


def _carry_out(arguments: argparse.Namespace) -> int:
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
        case "groups":
            from .groups import show_groups

            return show_groups(arguments)
        case "plot":
            from .plot import plot

            return plot(arguments)
        case "explain":
            from .explain import explain

            return explain(arguments)
        case "resolve":
            from .resolve import resolve

            return resolve(arguments)
        case "doctor":
            from .doctor import doctor

            return doctor(arguments)
        case "import":
            from .importing import import_policy

            return import_policy(arguments)
        case "check" | "cat-config":
            from . import policy

            return policy.check(arguments) if arguments.verb == "check" else policy.cat_config(arguments)
        case "reload":
            from .reload import reload

            return reload(arguments)
        case _:
            from .switch import switch

            return switch(arguments)


def _complain(arguments: argparse.Namespace, error: FlavourError) -> int:
    message = str(error)
    if arguments.json:
        told = {"code": error.code, "errno": error.errno, "message": message, "hint": error.hint}
        # One of monitor's lines is one object.
        printed = print_json_line if arguments.verb == "monitor" else print_json
        printed({"error": told})
    print(f"flavourctl: {printable(message)}", file=sys.stderr)
    print(f"  {printable(error.advice)}", file=sys.stderr)
    return find_exit_status(error.code, error.errno)


def _tell_interrupted(arguments: argparse.Namespace, told: str) -> int:
    print(f"flavourctl: interrupted{f': {told}' if told else ''}", file=sys.stderr)
    if arguments.verb in ("set", "reset"):
        print(f"  flavourctl show {printable(arguments.device)} says what became of it", file=sys.stderr)
    return find_exit_status(Code.INTERRUPTED, errno.EINTR)


def _stop_printing(error: OSError) -> int:
    """Nothing more can be written to standard output. Raises what has another cause."""
    if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
        raise error
    if error.errno != errno.EPIPE:  # else whoever read this has enough, e.g. `flavourctl list | head`
        print(f"flavourctl: writing the output failed: {error.strerror}", file=sys.stderr)
    # What is still buffered would be tried again at the end, with a traceback.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _FAILED


if __name__ == "__main__":
    sys.exit(main())
