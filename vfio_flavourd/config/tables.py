"""Mappings in a policy, with known keys or with names."""

from collections.abc import Mapping as Map
from dataclasses import dataclass, field

from .kinds import Kind, Schema, Text, Value, found_in
from .nodes import Mapping, Node, Scalar
from .problems import Report, nearest, shown


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table. `default` is what holds without it, as it would be written; `doc` is for people."""

    name: str
    kind: Kind
    doc: str
    required: bool = False
    default: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping with known keys. `needs` says which key makes no sense without which other one."""

    what: str
    keys: tuple[Key, ...]
    needs: Map[str, str] = field(default_factory=dict)
    when_empty: str = ""

    def check(self, node: Node, name: str, report: Report) -> Value | None:
        if not isinstance(node, Mapping):
            report.error(node.place, f"{name}: found {found_in(node)}, expected a mapping", self._hint())
            return None
        kinds = {key.name: key.kind for key in self.keys}
        found: dict[str, Value] = {}
        seen: dict[str, Scalar] = {}
        for key, value in node.pairs:
            if key.text in seen:
                first = seen[key.text].place.line
                report.error(key.place, f"the key {shown(key.text)} is given twice, first in line {first}")
            elif key.text not in kinds:
                message = f"{shown(key.text)} is not a key of {self.what}, which has {', '.join(kinds)}"
                report.error(key.place, message, nearest(key.text, kinds))
            else:
                seen[key.text] = key
                checked = kinds[key.text].check(value, key.text, report)
                if checked is not None:
                    found[key.text] = checked
        self._check_presence(node, seen, report)
        return Value(found, node.place)

    def _check_presence(self, node: Mapping, seen: Map[str, Scalar], report: Report) -> None:
        if not node.pairs:
            report.error(node.place, f"{self.what} is empty", self.when_empty or self._hint())
            return
        for key in self.keys:
            if key.required and key.name not in seen:
                report.error(node.place, f"{self.what} lacks the key {key.name!r}")
        for name, other in self.needs.items():
            if name in seen and other not in seen:
                hint = f"each vendor has its own IDs: give {other!r} as well"
                report.error(seen[name].place, f"{name!r} means nothing without {other!r}", hint)

    def _hint(self) -> str:
        return f"its keys are {', '.join(key.name for key in self.keys)}"

    def schema(self) -> Schema:
        properties: Schema = {}
        for key in self.keys:
            properties[key.name] = {"description": key.doc, **key.kind.schema()}
            if key.default:
                properties[key.name]["default"] = key.default
        schema: Schema = {"type": "object", "additionalProperties": False, "minProperties": 1}
        if required := [key.name for key in self.keys if key.required]:
            schema["required"] = required
        if self.needs:
            schema["dependencies"] = {name: [other] for name, other in self.needs.items()}
        return {**schema, "properties": properties}


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping whose keys are names of the writer's choice."""

    name: Text
    value: Table

    def check(self, node: Node, name: str, report: Report) -> Value | None:
        if not isinstance(node, Mapping):
            message = f"{name}: found {found_in(node)}, expected a mapping of names"
            report.error(node.place, message)
            return None
        found: dict[str, Value] = {}
        seen: set[str] = set()
        for key, value in node.pairs:
            if key.text in seen:
                report.error(key.place, f"{name}: {shown(key.text)} is given twice")
                continue
            seen.add(key.text)
            known = self.name.check(key, name, report) is not None
            checked = self.value.check(value, key.text if known else shown(key.text), report)
            if checked is not None:
                found[key.text] = Value(checked.value, key.place)
        return Value(found, node.place)

    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": self.name.schema()["pattern"]},
            "additionalProperties": self.value.schema(),
        }
