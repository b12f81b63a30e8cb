"""Replies of the control API as bytes."""

import json
from collections.abc import Mapping

from asyncvarlink import AnnotatedResult

from ..model.codes import Code
from ..model.errors import FlavourError
from .interface import render_error

# A reply's dataclasses, by their fields. mypy has seen to their types; going by the interface's for each
# reply again would be a good part of a switch's time.
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=vars).encode


def encode_result(result: AnnotatedResult) -> bytes:
    reply: dict[str, object] = {"continues": True} if result.continues else {}
    if result.parameters:
        reply["parameters"] = result.parameters
    return encode(reply)


def encode(reply: Mapping[str, object]) -> bytes:
    return _encode(reply).encode() + b"\0"


# For one who is let in no further. It is there before he has asked, and answers his next call.
NO_PLACE = encode(
    render_error(
        FlavourError(
            "no connection is free: too many of this user, or of all users, are in use",
            code=Code.TOO_MANY_REQUESTS,
            hint="try again when some of their calls are done",
        )
    )
    .toreply()
    .tojson()
)
