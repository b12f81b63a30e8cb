"""explain: what an error code means, why it happens, what to do. Works from the table in the program."""

import argparse
import errno
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from ..model.codes import ERRNOS, Code, find_exit_statuses
from ..model.errors import FlavourError
from ..model.explanations import EXPLANATIONS
from .output import print_json
from .terminal import BOLD, find_width, lay_out, paint

# Columns of a terminal for the meaning, for the others to have theirs.
_LEAST_ROOM = 30


def explain(arguments: argparse.Namespace) -> int:
    """One code, or those that an exit status or errno stands for, or all."""
    asked = arguments.code
    if asked in EXPLANATIONS:
        code = Code(asked)
        if arguments.json:
            print_json(_render(code))
        else:
            _print_one(code, color=arguments.color)
        return 0
    codes = list(EXPLANATIONS) if asked is None else _find_codes(asked)
    if arguments.json:
        print_json({"codes": [_render(code) for code in codes]})
    else:
        _print_table(codes, color=arguments.color)
    return 0


def _find_codes(asked: str) -> list[Code]:
    """Of an exit status or an errno's name."""
    codes = [code for code in EXPLANATIONS if asked.upper() in (*_exit_names(code), *_errno_names(code))]
    if codes:
        return codes
    from difflib import get_close_matches

    near = get_close_matches(asked[:64].lower().replace("_", "-"), list(EXPLANATIONS), n=1, cutoff=0.5)
    question = f"did you mean {near[0]}? " if near else ""
    raise FlavourError(
        f"no error code is called {asked[:64]!r}",
        code=Code.INVALID_ARGUMENT,
        hint=f"{question}flavourctl explain lists them all",
    )


def _exit_names(code: Code) -> list[str]:
    return [str(status) for status in find_exit_statuses(code)]


def _errno_names(code: Code) -> list[str]:
    return [errno.errorcode[number] for number in ERRNOS[code]]


def _tell_exit(code: Code) -> str:
    return " ".join(_exit_names(code))


def _tell_errno(code: Code) -> str:
    """The usual one; that there are others needs saying only where one code is told in full."""
    return next(iter(_errno_names(code)), "")


def _render(code: Code) -> dict[str, Any]:
    explanation = EXPLANATIONS[code]
    return {
        "code": code,
        "errnos": _errno_names(code),
        "exit_statuses": list(find_exit_statuses(code)),
        "summary": explanation.summary,
        "causes": list(explanation.causes),
        "remedies": list(explanation.remedies),
    }


def _print_table(codes: Sequence[Code], *, color: bool) -> None:
    """A meaning is what one looks for, so on a terminal it is wrapped where it would be cut. What leaves it
    too little room is left out: it is told with each code."""
    columns = [
        ("CODE", *codes),
        ("EXIT", *map(_tell_exit, codes)),
        ("ERRNO", *(_tell_errno(code) or "-" for code in codes)),
    ]
    width = find_width(sys.stdout)
    if width is not None and _find_room(columns, width) < _LEAST_ROOM:
        del columns[1:]
    rows: list[tuple[str, ...]] = []
    meanings = ("MEANING", *(EXPLANATIONS[code].summary for code in codes))
    for meaning, *cells in zip(meanings, *columns, strict=True):
        lines = [meaning] if width is None else textwrap.wrap(meaning, max(_find_room(columns, width), 8))
        rows.append((*cells, lines[0]))
        rows += [(*("" for _ in cells), line) for line in lines[1:]]
    for index, line in enumerate(lay_out(rows, width)):
        print(paint(line, BOLD if index == 0 else "", color=color))


def _find_room(columns: Sequence[Sequence[str]], width: int) -> int:
    """What is left of a line beside these."""
    return width - sum(max(map(len, column)) + 2 for column in columns)


def _print_one(code: Code, *, color: bool) -> None:
    width = min(find_width(sys.stdout) or 100, 100)
    explanation = EXPLANATIONS[code]
    print(f"{paint(code, BOLD, color=color)}: {explanation.summary}")
    for title, lines in (("why it happens", explanation.causes), ("what to do", explanation.remedies)):
        print(f"\n{paint(title, BOLD, color=color)}")
        for line in lines:
            print(textwrap.fill(line, width, initial_indent="  - ", subsequent_indent="    "))
    print(f"\n{paint('for scripts', BOLD, color=color)}")
    print(f"  exit status {' or '.join(_exit_names(code))}", end="")
    errnos = _errno_names(code)
    print(f", errno {' or '.join(errnos)}" if errnos else "")
