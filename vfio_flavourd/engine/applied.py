"""What the policy was applied to in this boot: a file that a daemon which starts again goes by."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# What is wanted of a device where nothing is.
NOTHING = "-"

# What reading a file that is spoilt may raise.
SPOILT = (OSError, ValueError, TypeError, AttributeError, RecursionError)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Applied:
    """What the policy wanted of a device when it was last looked at: `-` for nothing. `done` is false while
    it could not be had. `serials` are what the device told then, `rule` is the one that decided."""

    inode: int
    wanted: str
    done: bool
    serials: tuple[str, ...] = ()
    rule: str = ""


def read_applied(path: Path) -> dict[str, Applied]:
    """By address; none where there is no file. Raises one of SPOILT."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return {
        address: Applied(
            _check(inode, int),
            _check(wanted, str),
            _check(done, bool),
            tuple([_check(serial, str) for serial in _check(serials, list)]),
            _check(rule, str),
        )
        for address, (inode, wanted, done, serials, rule) in data.items()
    }


def write_applied(path: Path, applied: dict[str, Applied]) -> None:
    """Raises OSError."""
    data = {
        address: [each.inode, each.wanted, each.done, each.serials, each.rule]
        for address, each in applied.items()
    }
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(data), encoding="ascii")
    aside.replace(path)


def _check(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not of {kind.__name__}")
    return value
