"""The JSON Schema of what `flavourctl --json` prints; `python3 -m vfio_flavourd.cli.schema` prints it."""

import dataclasses
import enum
import inspect
import json
import sys
import types
import typing
from typing import Any

from .outputs import FAILURE, OUTPUTS

Schema = dict[str, Any]

_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def make_schema(*, closed: bool = False) -> Schema:
    """Draft 7. `definitions` has one for each verb, as `list` or `set`, which holds for its errors too.

    Others may be added to the fields there are; `closed` refuses them, which is how the tests find a
    field that was forgotten here.
    """
    maker = _Maker(closed=closed)
    failure = maker.printed(FAILURE)
    verbs = {
        verb: {"anyOf": [*map(maker.printed, outputs), failure]} for verb, outputs in sorted(OUTPUTS.items())
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "flavourctl --json",
        "description": "What each verb prints is at #/definitions/VERB: see flavourctl(8).",
        "anyOf": [{"$ref": f"#/definitions/{verb}"} for verb in verbs],
        "definitions": verbs | dict(sorted(maker.definitions.items())),
    }


def render_schema() -> str:
    return json.dumps(make_schema(), indent=2) + "\n"


class _Maker:
    """Makes a definition of each class it comes by."""

    def __init__(self, *, closed: bool) -> None:
        self.definitions: dict[str, Schema] = {}
        self._closed = closed

    def printed(self, output: type) -> Schema:
        """As it is printed: an object with its version."""
        name = f"Printed{output.__name__}"
        schema = self._object(output)
        schema["properties"] = {"version": {"const": 1}, **schema["properties"]}
        schema["required"] = ["version", *schema["required"]]
        self.definitions[name] = schema
        return {"$ref": f"#/definitions/{name}"}

    def _object(self, kind: type) -> Schema:
        fields = typing.get_type_hints(kind)
        required = sorted(getattr(kind, "__required_keys__", fields), key=list(fields).index)
        schema: Schema = {
            "type": "object",
            "description": " ".join((inspect.getdoc(kind) or "").split()),
            "properties": {name: self._value(each) for name, each in fields.items()},
            "required": required,
        }
        if dataclasses.is_dataclass(kind) and schema["description"].startswith(f"{kind.__name__}("):
            del schema["description"]  # dataclasses writes one itself
        if self._closed:
            schema["additionalProperties"] = False
        return schema

    def _value(self, kind: Any) -> Schema:  # noqa: ANN401 - any annotation
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return {"anyOf": [self._value(part) for part in parts]}
        if origin is list:
            return {"type": "array", "items": self._value(parts[0])}
        if origin is dict:
            return {"type": "object"}
        if origin is typing.Literal:
            return {"enum": list(parts)}
        if issubclass(kind, enum.Enum):
            return {"enum": [each.value for each in kind]}
        if kind.__name__ not in self.definitions:
            self.definitions[kind.__name__] = {}  # it may have itself in it
            self.definitions[kind.__name__] = self._object(kind)
        return {"$ref": f"#/definitions/{kind.__name__}"}


if __name__ == "__main__":
    sys.stdout.write(render_schema())
