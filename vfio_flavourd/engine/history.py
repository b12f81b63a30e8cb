"""The attempts of this boot, in memory and in a file that outlives a restart of the daemon.

One JSON object a line. It is there to be looked at: what can't be written or read of it keeps no device from
being switched and no daemon from starting.
"""

import errno
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..model.address import parse_address
from ..model.errors import FlavourError
from ..model.flavour import Attempt, Ending, Flavour, StepAction, StepReport
from ..model.message_ids import MessageId, log_fields
from ..model.transition import Phase

_log = logging.getLogger(__name__)

# Attempts that are kept.
MOST = 256

# Lines in the file from which on it is cut back to those that are kept.
_LONG = 2 * MOST

# Bytes of the file that are looked at; an attempt takes about 1500.
_BIG = 8 << 20


class History:
    """The last attempts, oldest first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._attempts: deque[Attempt] = deque(maxlen=MOST)
        self._lines = 0
        self._last_id = 0
        self._is_in_trouble = False

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._attempts)

    def __len__(self) -> int:
        return len(self._attempts)

    def __getitem__(self, index: int) -> Attempt:
        return self._attempts[index]

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def add(self, attempt: Attempt) -> None:
        """In memory; `write` puts it on disk."""
        self._attempts.append(attempt)

    def load(self) -> None:
        """Take up what an earlier daemon of this boot left; a line that can't be read is dropped."""
        dropped = 0
        try:
            lines = self._read_lines()
        except OSError as error:
            _log.warning("the history in %r can't be read (%s), ignoring", str(self._path), error.strerror)
            return
        for line in lines:
            try:
                attempt = _parse(json.loads(line))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError, FlavourError):
                dropped += 1
                continue
            self._last_id = max(self._last_id, attempt.id)
            self._attempts.append(attempt)
        self._lines = len(lines)
        if dropped:
            _log.warning(
                "%d of %d lines in %r can't be read, dropping them", dropped, len(lines), str(self._path)
            )
            self._rewrite()

    def write(self, attempts: Sequence[Attempt]) -> None:
        """Append to the file. Where that fails, it is said once, until it works again."""
        data = _render_lines(attempts)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                if os.write(descriptor, data) != len(data):
                    os.ftruncate(descriptor, size)  # half a line would spoil the next one
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
        except OSError as error:
            self._complain(error)
            return
        self._is_in_trouble = False
        self._lines += len(attempts)
        if self._lines > _LONG:
            self._rewrite()

    def _read_lines(self) -> list[bytes]:
        """The last ones, where it is larger than it ever should be."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _BIG))
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def _rewrite(self) -> None:
        """Only what is kept. Where that fails the file stays as it is, and the next write tries again."""
        aside = self._path.with_suffix(".new")
        try:
            aside.write_bytes(_render_lines(self._attempts))
            aside.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                aside.unlink()
            self._complain(error)
        else:
            self._lines = len(self._attempts)

    def _complain(self, error: OSError) -> None:
        if not self._is_in_trouble:
            _log.warning(
                "the history can't be kept in %r for a restart of the daemon (%s), ignoring",
                str(self._path),
                error.strerror,
                extra=log_fields(MessageId.NOT_KEPT),
            )
        self._is_in_trouble = True


def _render_lines(attempts: Iterable[Attempt]) -> bytes:
    return b"".join(json.dumps(_render(attempt)).encode("ascii") + b"\n" for attempt in attempts)


def _render(attempt: Attempt) -> dict[str, Any]:
    # Not dataclasses.asdict: its deep copies would be a good part of a switch's time.
    data = {name: getattr(attempt, name) for name in Attempt.__slots__}
    data["address"] = str(attempt.address)
    data["steps"] = [{name: getattr(step, name) for name in StepReport.__slots__} for step in attempt.steps]
    return data


def _parse(data: dict[str, Any]) -> Attempt:
    return Attempt(
        id=_parse_id(data["id"]),
        address=parse_address(data["address"]),
        flavour=Flavour(_parse_text(data["flavour"])),
        requester=_parse_text(data["requester"]),
        unit=_parse_text(data.get("unit", "")),  # an older daemon's has none
        when=_parse_seconds(data["when"]),
        duration=_parse_seconds(data["duration"]),
        ending=Ending(data["ending"]),
        driver=_parse_optional(data["driver"]),
        previous_driver=_parse_optional(data["previous_driver"]),
        fallback=bool(data["fallback"]),
        forced=tuple(_parse_text(user) for user in data["forced"]),
        rule=_parse_text(data["rule"]),
        reason=_parse_text(data["reason"]),
        error=_parse_text(data["error"]),
        hint=_parse_text(data["hint"]),
        code=_parse_text(data["code"]),
        steps=tuple(_parse_step(step) for step in data["steps"]),
    )


def _parse_step(data: dict[str, Any]) -> StepReport:
    return StepReport(
        phase=Phase(data["phase"]),
        action=StepAction(data["action"]),
        what=_parse_text(data["what"]),
        started=_parse_seconds(data["started"]),
        duration=_parse_seconds(data["duration"]),
        error=_parse_text(data["error"]),
        candidate=_parse_text(data["candidate"]),
    )


def _parse_id(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no number of an attempt")
    return value


def _parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _parse_optional(value: object) -> str | None:
    return None if value is None else _parse_text(value)


def _parse_seconds(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no time")
    return float(value)
