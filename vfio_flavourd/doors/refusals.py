"""What somebody is refused is on record: with who it was, and so that nobody can fill the log with it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..model.address import PciAddress
from ..model.message_ids import MessageId, log_fields
from ..model.requester import Requester, name_requester

_log = logging.getLogger(__name__)

# Seconds in which one thing that one user is refused is logged once, and then how often it was refused
# besides: nobody can fill the log, and nothing harmless hides what comes after it.
_PAUSE = 10.0

# Users that are told apart within that time; it takes as many to go beyond it, and who comes then is counted
# with the others.
_MOST_USERS = 1000

# Things that are told apart of one user, and of all; what more one is refused is counted as one thing of his.
_MOST_OF_ONE = 20
_MOST = 1000


@dataclass(slots=True)
class _Repeated:
    """`asks` and `fields` are of the last time, `unit` is of the first."""

    asks: Requester
    unit: str
    times: int
    fields: dict[str, str]
    end: asyncio.TimerHandle


# By the user, what he was refused, the error's code, and for which device.
_Key = tuple[int, str, str, PciAddress | None]

_MORE = "do such things"
_OTHERS: _Key = (-1, _MORE, "", None)


class Refusals:
    """`find_unit` gives the unit of one who asks: he may be gone when journald looks for it."""

    def __init__(self, find_unit: Callable[[str], str]) -> None:
        self._find_unit = find_unit
        self._repeated: dict[_Key, _Repeated] = {}
        self._things: Counter[int] = Counter()  # by uid

    def name(self, asks: Requester) -> dict[str, str]:
        """For `extra=` of a log call."""
        return {**name_requester(str(asks)), "REQUESTER_UNIT": self._find_unit(str(asks))}

    def tell(
        self,
        asks: Requester,
        what: str,
        message: MessageId,
        code: str,
        address: PciAddress | None = None,
        why: str = "",
    ) -> None:
        """`what` he was refused is the same each time, `why` may be another."""
        key = self._find_key((asks.uid, what, code, address))
        fields = {**log_fields(message, address), "ERROR_CODE": code}
        if (repeated := self._repeated.get(key)) is not None:
            repeated.times += 1
            repeated.asks, repeated.fields = asks, fields
            return
        end = asyncio.get_running_loop().call_later(_PAUSE, self._end, key)
        fields |= self.name(asks)
        self._repeated[key] = _Repeated(asks, fields["REQUESTER_UNIT"], 0, fields, end)
        self._things[key[0]] += 1
        where = "" if address is None else f"{address}: "
        because = f": {why}" if why else ""
        _log.warning("%srefused to let %s %s%s", where, asks, what, because, extra=fields)

    def close(self) -> None:
        """What is not told yet is told now."""
        for key in list(self._repeated):
            self._end(key)

    def _find_key(self, key: _Key) -> _Key:
        """Each user has at least one of his own: whatever one does, another's refusals are told as his."""
        uid = key[0]
        if key in self._repeated:
            return key
        if uid not in self._things and len(self._things) >= _MOST_USERS:
            return _OTHERS
        if self._things[uid] >= _MOST_OF_ONE or len(self._repeated) >= _MOST:
            return (uid, _MORE, "", None)
        return key

    def _end(self, key: _Key) -> None:
        repeated = self._repeated.pop(key)
        repeated.end.cancel()
        self._things[key[0]] -= 1
        if not self._things[key[0]]:
            del self._things[key[0]]
        if not repeated.times:
            return
        uid, what, _, address = key
        number = "" if key == _OTHERS else str(uid)
        who = f"uid {number}" if number else "other users"
        fields = {**repeated.fields, **self.name(repeated.asks), "REQUESTER": who, "REQUESTER_UID": number}
        fields["REQUESTER_UNIT"] = fields["REQUESTER_UNIT"] or repeated.unit  # he may be gone by now
        _log.warning(
            "%srefused to let %s %s: %s more within %d s, not logged one by one",
            "" if address is None else f"{address}: ",
            who,
            what,
            "once" if repeated.times == 1 else f"{repeated.times} times",
            _PAUSE,
            extra=fields | log_fields(MessageId.REFUSALS_LEFT_OUT),
        )
