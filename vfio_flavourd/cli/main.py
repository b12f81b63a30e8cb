"""flavourctl: the command line and what its exit status means."""

import argparse
import os
import sys
from collections.abc import Sequence

from ..model.codes import Code, find_exit_status
from ..model.errors import FlavourError
from ..model.printable import printable
from .output import print_json
from .parser import build_parser

_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    arguments.json = getattr(arguments, "json", False)
    arguments.color = (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not getattr(arguments, "no_color", False)
    )
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except FlavourError as error:
        return _complain(arguments, error)
    except KeyboardInterrupt:
        return _complain(arguments, _tell_interrupted(arguments))
    except BrokenPipeError:
        # Whoever read this has enough, e.g. `flavourctl list | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    return status


def _run(arguments: argparse.Namespace) -> int:
    # Each verb's imports are its own: what a verb does not need is not loaded.
    match arguments.verb:
        case None | "list":
            from .devices import list_devices

            return list_devices(arguments)
        case "show":
            from .devices import show_device

            return show_device(arguments)
        case "explain":
            from .explain import explain

            return explain(arguments)
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
        told = {"code": error.code, "errno": error.errno, "message": message, "hint": error.hint}
        print_json({"error": told})
    print(f"flavourctl: {printable(message)}", file=sys.stderr)
    print(f"  {printable(error.advice)}", file=sys.stderr)
    return find_exit_status(error.code, error.errno)


def _tell_interrupted(arguments: argparse.Namespace) -> FlavourError:
    hint = ""
    if arguments.verb in ("set", "reset"):
        hint = f"flavourctl show {arguments.device} says what became of it"
    return FlavourError("interrupted", code=Code.INTERRUPTED, hint=hint)


if __name__ == "__main__":
    sys.exit(main())
