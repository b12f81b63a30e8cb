"""A command line that can't be understood: one line says what is wrong with it, a second one what to do."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping

from ..model.codes import ERRNOS, Code, find_exit_status
from ..model.errors import FlavourError
from ..model.printable import printable
from .terminal import find_width

# `typing` takes longer to import than this module; only mypy needs it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_STATUS = find_exit_status(Code.INVALID_ARGUMENT, ERRNOS[Code.INVALID_ARGUMENT][0])

# As argparse words them.
_MISSING = "the following arguments are required: "
_UNEXPECTED = "unrecognized arguments: "


class Parser(argparse.ArgumentParser):
    """argparse itself prints the usage before an error, and all that is allowed in it, over many lines. For
    each argument that is added it makes a formatter, which imports shutil to find the terminal's width. It
    takes the beginning of an option for the whole, and `--f` is no way to ask for `--force`."""

    def __init__(self, **more: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(allow_abbrev=False, **more)

    def _get_formatter(self) -> argparse.HelpFormatter:
        return self.formatter_class(prog=self.prog, width=(find_width(sys.stdout) or 82) - 2)  # type: ignore[call-arg]

    def error(self, message: str) -> NoReturn:
        if message.startswith(_MISSING):
            names = message.removeprefix(_MISSING).split(", ")
            self._refuse(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing")
        if message.startswith(_UNEXPECTED):
            found = message.removeprefix(_UNEXPECTED)
            options = self._find_options()
            of_another = f"{found} is another verb's option;" if found in options else ""
            self._refuse(f"{found[:64]!r} is not expected here", of_another or _ask(found, options))
        self._refuse(message.removeprefix("argument "))

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401 - argparse's own type
        if action.choices is None or value in action.choices:
            return
        allowed, found = [str(choice) for choice in action.choices], str(value)[:64]
        if not isinstance(action.choices, Mapping):
            hint = _ask(found, allowed) or f"allowed: {', '.join(allowed)};"
            name = "/".join(action.option_strings) or action.metavar
            self._refuse(f"{name} can't be {found!r}", hint)
        shows = f"flavourctl show {found} shows that device;" if _is_address(found) else ""
        self._refuse(f"no verb is called {found!r}", shows or _ask(found, allowed))

    def _find_options(self) -> list[str]:
        """Those of all verbs: which one it was is not known any more."""
        parsers: list[argparse.ArgumentParser] = [self]
        for action in self._actions:
            if isinstance(action.choices, Mapping):
                parsers += action.choices.values()
        return [
            option for parser in parsers for option in re.findall("--[a-z][a-z-]+", parser.format_usage())
        ]

    def _refuse(self, message: str, hint: str = "") -> NoReturn:
        """`hint` ends in a question mark or a semicolon."""
        print(f"flavourctl: {printable(message)}", file=sys.stderr)
        print(f"  {printable(f'{hint} {self.prog} --help says more'.lstrip())}", file=sys.stderr)
        sys.exit(_STATUS)


def _ask(found: str, allowed: list[str]) -> str:
    from difflib import get_close_matches  # only who mistypes waits for it

    near = get_close_matches(found, allowed, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _is_address(text: str) -> bool:
    from ..model.address import parse_address

    try:
        parse_address(text)
    except FlavourError:
        return False
    return True
