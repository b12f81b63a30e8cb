"""What the policy was applied to in this boot: a file that a daemon which starts again goes by."""

import asyncio
import json
import logging
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..model.address import parse_address
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour
from ..model.message_ids import MessageId, log_fields
from ..model.policy import Decision
from .agenda import CALM
from .host import Host

_log = logging.getLogger(__name__)

# What is wanted of a device where nothing is.
NOTHING = "-"

# What reading a file that is spoilt may raise.
SPOILT = (OSError, ValueError, TypeError, AttributeError, RecursionError, FlavourError)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Applied:
    """What the policy wanted of a device when it was last looked at: `-` for nothing. `done` is false while
    it could not be had. `serials` are what the device told then, `rule` is the one that decided. `driver` is
    what the device came to have, be it that those which are named did not take it; empty where it is not
    known. One that `is_left` is driverctl's, and was not made what is wanted."""

    inode: int
    wanted: str
    done: bool
    serials: tuple[str, ...] = ()
    rule: str = ""
    driver: str = ""
    is_left: bool = False

    def __str__(self) -> str:
        """It as it was had."""
        is_named = self.wanted != self.flavour
        return f"{self.flavour} ({self.driver})" if is_named and self.driver else self.wanted

    @property
    def flavour(self) -> str:
        return self.wanted.partition(" ")[0]


class AppliedFile:
    """By address, in memory; from `load` on also on disk: a moment after a change, after `close` at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.devices: dict[str, Applied] = {}
        self._is_loaded = False
        self._is_closed = False
        self._unsaved: asyncio.TimerHandle | None = None

    def load(self) -> None:
        """No file: none. Raises one of SPOILT."""
        self._is_loaded = True
        try:
            data = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return
        self.devices = {str(parse_address(address)): _parse(entry) for address, entry in data.items()}

    def save_soon(self) -> None:
        if self._is_closed:
            self._save()
        elif self._unsaved is None and self._is_loaded:
            self._unsaved = asyncio.get_running_loop().call_later(CALM, self._save)

    def close(self) -> None:
        self._is_closed = True
        self._save()

    def _save(self) -> None:
        if self._unsaved is not None:
            self._unsaved.cancel()
            self._unsaved = None
        if not self._is_loaded:
            return
        data = {
            address: [
                each.inode,
                each.wanted,
                each.done,
                each.serials,
                each.rule,
                each.driver,
                each.is_left,
            ]
            for address, each in self.devices.items()
        }
        aside = self.path.with_suffix(".new")
        try:
            aside.write_text(json.dumps(data), encoding="ascii")
            aside.replace(self.path)
        except OSError as error:
            _log.warning(
                "what was applied can't be saved (%s), ignoring",
                error.strerror,
                extra=log_fields(MessageId.NOT_KEPT),
            )


def _parse(entry: list[object]) -> Applied:
    inode, wanted, done, serials, rule, driver, is_left = (*entry, "", False)[
        :7
    ]  # an earlier daemon kept five
    return Applied(
        _check(inode, int),
        _check(wanted, str),
        _check(done, bool),
        tuple([_check(serial, str) for serial in _check(serials, list)]),
        _check(rule, str),
        _check(driver, str),
        _check(is_left, bool),
    )


def describe(decision: Decision) -> str:
    """What the policy wants of a device, as it is kept and compared."""
    return NOTHING if decision.flavour is None else " ".join((decision.flavour, *decision.drivers))


def find_same(applied: Applied | None, rules: Container[str]) -> tuple[str, ...]:
    """What a device may be wanted to be, by a policy with these rules that is read again, without a look.
    One that was left to driverctl is: that may have let go of it."""
    if applied is None or not applied.done or applied.is_left:
        return ()
    # Nothing wanted is no difference while the rule is still there: one that goes by the driver matches no
    # more when it was applied.
    return (NOTHING, applied.wanted) if applied.rule in rules else (applied.wanted,)


def is_so(host: Host, device: Device, wanted: str, had: str = "") -> bool:
    """Whether a device has the flavour and, where the policy names drivers, one of them, or the one that it
    `had` come to when they did not take it."""
    flavour, *drivers = wanted.split(" ")
    if host.find_flavour(device) != flavour:
        return False
    names = {name.replace("-", "_") for name in (device.driver, device.driver_module) if name}
    return (
        not drivers
        or device.driver == had
        or flavour == Flavour.NATIVE
        or device.personality is not None  # such a driver is never changed
        or bool(names & {name.replace("-", "_") for name in drivers})
    )


def was_taken(host: Host, before: Device, flavour: Flavour) -> bool:
    """Whether a driver has come to it meanwhile that is neither the one it had nor of the flavour: the
    switch itself binds no such driver."""
    try:
        now = host.read_device(before.address)
    except FlavourError:
        return False
    return now.driver not in (None, before.driver) and host.find_flavour(now) != flavour


def _check(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not of {kind.__name__}")
    return value
