"""Kinds of values in a policy: each checks nodes, and describes itself as JSON Schema."""

import re
from collections.abc import Callable
from collections.abc import Mapping as Map
from dataclasses import dataclass
from typing import Any, Protocol

from .nodes import Mapping, Node, Scalar, Sequence
from .problems import Place, Report, nearest, shown

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """Something that was found good.

    `value` is what the kind makes of it: of a scalar the converted value (`text` is then what was written),
    of a list a tuple of Values, of a table a dict of them by key.
    """

    value: Any
    place: Place
    text: str = ""

    @property
    def plain(self) -> Any:  # noqa: ANN401 - as untyped as `value`; `build` gives it its type
        """The same without places."""
        match self.value:
            case tuple():
                return tuple(each.plain for each in self.value)
            case dict():
                return {key: each.plain for key, each in self.value.items()}
            case _:
                return self.value


class Kind(Protocol):
    """`check` returns what is good of a node, None when nothing is, and reports all that isn't; `name` is
    what the value is there for."""

    def check(self, node: Node, name: str, report: Report) -> Value | None: ...

    def schema(self) -> Schema: ...


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar. `allowed` ends the sentence "this is not …"; `convert` may raise ValueError, saying why.

    `types` are what else YAML may take it for: an editor's validator sees 0x15b3 as a number.
    """

    allowed: str
    pattern: str
    convert: Callable[[str], Any] = str
    types: tuple[str, ...] = ("string", "number", "boolean")

    def check(self, node: Node, name: str, report: Report) -> Value | None:
        if not isinstance(node, Scalar):
            report.error(node.place, f"{name}: found a {noun(node)}, expected {self.allowed}")
            return None
        if not node.text:
            report.error(node.place, f"{name}: found nothing, expected {self.allowed}")
            return None
        if re.fullmatch(self.pattern, node.text) is None:
            report.error(node.place, f"{name}: {shown(node.text)} is not {self.allowed}")
            return None
        try:
            return Value(self.convert(node.text), node.place, node.text)
        except ValueError as error:
            report.error(node.place, f"{name}: {shown(node.text)} {error}")
            return None

    def schema(self) -> Schema:
        return {"type": list(self.types), "pattern": f"^(?:{self.pattern})$"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: Map[str, Any]

    def check(self, node: Node, name: str, report: Report) -> Value | None:
        allowed = f"one of {', '.join(self.words)}"
        if not isinstance(node, Scalar):
            report.error(node.place, f"{name}: found a {noun(node)}, expected {allowed}")
            return None
        if node.text not in self.words:
            message = f"{name}: {shown(node.text)} is not {allowed}"
            report.error(node.place, message, nearest(node.text, self.words))
            return None
        return Value(self.words[node.text], node.place, node.text)

    def schema(self) -> Schema:
        return {"enum": [*self.words, *(int(word) for word in self.words if word.isdecimal())]}


@dataclass(frozen=True, slots=True)
class OneOrMore:
    """A value, or a list of such values."""

    item: Text

    def check(self, node: Node, name: str, report: Report) -> Value | None:
        nodes = node.items if isinstance(node, Sequence) else (node,)
        if not nodes:
            report.error(node.place, f"{name}: found an empty list, expected {self.item.allowed}")
            return None
        values = [self.item.check(each, name, report) for each in nodes]
        return Value(tuple(value for value in values if value is not None), node.place)

    def schema(self) -> Schema:
        item = self.item.schema()
        return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list, also an empty one."""

    item: Kind

    def check(self, node: Node, name: str, report: Report) -> Value | None:
        if not isinstance(node, Sequence):
            hint = "put a '- ' before each of its entries" if isinstance(node, Mapping) else ""
            report.error(node.place, f"{name}: found {found_in(node)}, expected a list", hint)
            return None
        values = [self.item.check(each, name, report) for each in node.items]
        return Value(tuple(value for value in values if value is not None), node.place)

    def schema(self) -> Schema:
        return {"type": "array", "items": self.item.schema()}


def noun(node: Node) -> str:
    """What it is, for a message."""
    return "list" if isinstance(node, Sequence) else "mapping"


def found_in(node: Node) -> str:
    """What stands there, for a message."""
    if isinstance(node, Scalar):
        return shown(node.text) if node.text else "nothing"
    return f"a {noun(node)}"
