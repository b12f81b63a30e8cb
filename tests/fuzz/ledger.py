"""A record of the ledger: a whole one, or an error that has it set aside.

The data is the file, or after a NUL what is other than in a good one: in turn, a byte that says where and one
that says what.
"""

import json
import math
from typing import Any

from vfio_flavourd.engine.ledger import _parse, _render
from vfio_flavourd.model.errors import FlavourError

from .names import HERE

# What Ledger.load() sets a record aside for.
_SET_ASIDE = (ValueError, KeyError, TypeError, RecursionError, FlavourError)

_GOOD = (HERE / "corpus/ledger/whole").read_bytes()
_BINDING = {"driver": "igb", "override": None}
_PERSONALITY = {"driver": "", "attribute": "enable_vfio", "on": "1", "off": "0", "ready": "vfio-dev"}
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**64, 1.5, math.inf, math.nan),
    *("", "vfio", "e1000e", "../x", "a b", "x" * 65, "\n", "\ud800", "01:00.0", "0000:01:00.0"),
    *([], [None], ["x"], ["01:00.0"], [[]], {}, {"x": 1}, _BINDING, _PERSONALITY),
)


def one(data: bytes) -> None:
    if data.startswith(b"\0"):
        data = _change(data[1:])
    try:
        record = _parse(json.loads(data))
    except _SET_ASIDE:
        return
    again = _parse(json.loads(json.dumps(_render(record))))
    assert again == record
    for numbers in (record.identity, record.worker):
        assert numbers is None or all(type(getattr(numbers, name)) is int for name in numbers.__slots__)
    assert all(each is None or isinstance(each, str) for each in record.written)
    assert record.personality is None or ".." not in record.personality.attribute.split("/")
    assert f"{record.flavour}{record.origin_flavour}".isprintable()


def _change(changes: bytes) -> bytes:
    record: dict[str, Any] = json.loads(_GOOD)
    for where, what in zip(changes[::2], changes[1::2], strict=False):
        places = [(record, key) for key in record]
        places += [(each, key) for each in record.values() if isinstance(each, dict) for key in each]
        if not places:
            break
        inside, key = places[where % len(places)]
        if what == 255:
            del inside[key]
        else:
            inside[key] = json.loads(json.dumps(_VALUES[what % len(_VALUES)]))
    return json.dumps(record).encode()
