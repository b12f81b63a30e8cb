"""flavourctl: the command line and what its exit status means."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from ..model.codes import Code, find_exit_status
from ..model.errors import FlavourError
from ..model.printable import printable
from .output import print_json, print_json_line
from .parser import build_parser
from .terminal import wants_color

_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    _prepare_output()
    try:
        try:
            status = _run(_parse(argv))
        finally:  # --help ends by an exception
            sys.stdout.flush()
    except OSError as error:
        return _stop_printing(error)
    return status


def _prepare_output() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # as after `>&-`; a socket would have its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every locale has each sign that is printed, or that a device's name has.
        sys.stdout.reconfigure(errors="backslashreplace")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = build_parser().parse_args(argv)
    arguments.json = getattr(arguments, "json", False)
    arguments.color = wants_color(sys.stdout, refused=getattr(arguments, "no_color", False))
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    try:
        return _carry_out(arguments)
    except FlavourError as error:
        return _complain(arguments, error)
    except KeyboardInterrupt as interrupt:
        return _tell_interrupted(arguments, str(interrupt))


# By verb its module here and its function. What a verb does not need is not loaded.
_VERBS = {
    "list": ("listing", "list_devices"),
    "show": ("show", "show_device"),
    "monitor": ("monitor", "monitor"),
    "history": ("history", "show_history"),
    "groups": ("groups", "show_groups"),
    "plot": ("plot", "plot"),
    "resolve": ("resolve", "resolve"),
    "set": ("switch", "switch"),
    "reset": ("switch", "switch"),
    "check": ("policy", "check"),
    "cat-config": ("policy", "cat_config"),
    "reload": ("reload", "reload"),
    "doctor": ("doctor", "doctor"),
    "import": ("importing", "import_policy"),
    "explain": ("explain", "explain"),
}


def _carry_out(arguments: argparse.Namespace) -> int:
    module, function = _VERBS[arguments.verb or "list"]
    run: Callable[[argparse.Namespace], int] = getattr(import_module(f".{module}", __package__), function)
    return run(arguments)


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
    hint = ""
    if arguments.verb in ("set", "reset"):
        hint = f"flavourctl show {arguments.device} says what became of it"
    error = FlavourError(f"interrupted{f': {told}' if told else ''}", code=Code.INTERRUPTED, hint=hint)
    return _complain(arguments, error)


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
