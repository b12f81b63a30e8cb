"""What is wrong with policy files, and where."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ..model.errors import InvalidPolicyError
from ..model.printable import printable

# Whoever makes more has made one mistake many times, or is trying something.
_MOST_ERRORS = 50
_MOST_WARNINGS = 50
_WIDTH = 100
_LINE_END = re.compile("\r\n|\r|\n")


class Severity(StrEnum):
    """Of a problem; a warning changes nothing."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column count from 1; both are 0 where the file as a whole is meant."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """`source_line` is the line that `line` names, without its end."""

    file: str
    line: int
    column: int
    message: str
    source_line: str = ""
    hint: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        file = printable(self.file)
        where = f"{file}:{self.line}:{self.column}" if self.line else file
        warning = "warning: " if self.severity is Severity.WARNING else ""
        return f"{where}: {warning}{self.message}"

    def render(self) -> tuple[str, ...]:
        """For people: the problem, the line with a caret below the place, the hint."""
        lines = [str(self)]
        if self.source_line:
            lines += [f"  {part}" for part in _point_at(self.source_line, self.column)]
        if self.hint:
            lines.append(f"  {self.hint}")
        return tuple(lines)


class PolicyError(InvalidPolicyError):
    """The files are no valid policy. Its text and hint are those of the first problem."""

    def __init__(self, problems: tuple[Problem, ...], files: tuple[str, ...] = ()) -> None:
        first = next(problem for problem in problems if problem.severity is Severity.ERROR)
        more = sum(problem.severity is Severity.ERROR for problem in problems) - 1
        text = f"{first} (and {more} more)" if more else str(first)
        super().__init__(text, hint=first.hint)
        self.problems = problems
        self.files = files


class TooManyErrorsError(Exception):
    """It makes no sense to go on looking."""


class Report:
    """Collects problems, all of one load; knows the files' lines."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._errors = 0
        self._lines: dict[str, list[str]] = {}

    @property
    def has_errors(self) -> bool:
        return self._errors > 0

    def in_order(self) -> tuple[Problem, ...]:
        """As they stand in the files; the last one says so when the search was ended."""
        found = sorted(self._problems, key=lambda each: (each.file, each.line, each.column))
        if self._errors >= _MOST_ERRORS:
            found.append(Problem(found[-1].file, 0, 0, "there may be more: the check stopped here"))
        return tuple(found)

    def add_source(self, file: str, text: str) -> None:
        self._lines[file] = split_lines(text)

    def error(self, place: Place, message: str, hint: str = "") -> None:
        """Raises TooManyErrorsError."""
        self._errors += 1
        self._add(place, message, hint, Severity.ERROR)
        if self._errors >= _MOST_ERRORS:
            raise TooManyErrorsError

    def warn(self, place: Place, message: str, hint: str = "") -> None:
        """Beyond the fiftieth nobody reads them."""
        if len(self._problems) - self._errors < _MOST_WARNINGS:
            self._add(place, message, hint, Severity.WARNING)

    def _add(self, place: Place, message: str, hint: str, severity: Severity) -> None:
        lines = self._lines.get(place.file, [])
        if lines and place.line > len(lines):
            # For libyaml a text that just ends does so a line further.
            place = Place(place.file, len(lines), len(lines[-1]) + 1)
        source = lines[place.line - 1] if 0 < place.line <= len(lines) else ""
        # What they quote may be anything, also a control character that YAML's own escapes have made.
        message, hint = printable(message), printable(hint)
        self._problems.append(Problem(place.file, place.line, place.column, message, source, hint, severity))


def split_lines(text: str) -> list[str]:
    """Where YAML ends lines, as far as a policy can."""
    return _LINE_END.split(text)


def shown(text: str) -> str:
    """What was found, for a message of one line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def nearest(found: str, allowed: Iterable[str]) -> str:
    """A hint, or nothing when nothing is near."""
    from difflib import get_close_matches  # only who mistypes waits for it

    close = get_close_matches(found[:100].lower(), list(allowed), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _point_at(line: str, column: int) -> tuple[str, str]:
    start = max(0, column - 1 - _WIDTH // 2)
    cut = line[start : start + _WIDTH]
    # A control character, or one that turns the direction of writing, would put the caret elsewhere.
    visible = "".join(each if each.isprintable() else " " if each == "\t" else "?" for each in cut)
    before = visible[: max(0, column - 1 - start)]
    blanks = sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in before)
    return visible, " " * blanks + "^"
