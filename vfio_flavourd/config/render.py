"""The merged policy as text and as data, with where each thing was said."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .build import Merged
from .definitions import FILE
from .kinds import Value
from .tables import Table

# What every reader of YAML takes for this very text.
_PLAIN = re.compile("0x[0-9a-f]{1,8}|[A-Za-z][A-Za-z0-9_-]*")
_NOT_PLAIN = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def render_yaml(merged: Merged) -> str:
    """A policy file that says the same as all of them together; what they leave open is there as well."""
    lines = ["version: 1", "defaults:"]
    for key, default, origin in effective_defaults(merged):
        text = _inline(merged.defaults[key]) if key in merged.defaults else render_scalar(default)
        lines.append(f"  {key}: {text}  # {_one_line(origin)}")
    if merged.flavours:
        lines.append("flavours:")
    for name, flavour in merged.flavours.items():
        lines.append(f"  {render_scalar(name)}:  # {_one_line(str(flavour.place))}")
        lines += _mapping(flavour.value, "    ")
    if merged.metrics is not None:
        lines.append(f"metrics:  # {_one_line(str(merged.metrics.place))}")
        lines += _mapping(merged.metrics.value, "  ")
    for section in ("personalities", "rules"):
        values: list[Value] = getattr(merged, section)
        lines += [f"{section}:"] if values else []
        for value in values:
            first, *rest = _mapping(value.value, "    ")
            lines += [f"  - {first.strip()}  # {_one_line(str(value.place))}", *rest]
    return "\n".join(lines) + "\n"


def render_data(merged: Merged) -> dict[str, Any]:
    """The same for JSON; values are texts, as written."""
    return {
        "defaults": {
            key: {
                "value": _data(merged.defaults[key]) if key in merged.defaults else default,
                "origin": origin,
            }
            for key, default, origin in effective_defaults(merged)
        },
        "flavours": {name: _with_origin(value) for name, value in merged.flavours.items()},
        **({} if merged.metrics is None else {"metrics": _with_origin(merged.metrics)}),
        "personalities": [_with_origin(value) for value in merged.personalities],
        "rules": [_with_origin(value) for value in merged.rules],
    }


def effective_defaults(merged: Merged) -> Iterator[tuple[str, str, str]]:
    """Each key that has a value, the built-in one, and where the one in force comes from."""
    table = next(key.kind for key in FILE.keys if key.name == "defaults")
    assert isinstance(table, Table)
    for key in table.keys:
        if key.name in merged.defaults:
            yield key.name, key.default, str(merged.defaults[key.name].place)
        elif key.default:
            yield key.name, key.default, "built in"


def _mapping(values: Mapping[str, Value], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value.value, dict):
            lines += [f"{indent}{render_scalar(key)}:", *_mapping(value.value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{render_scalar(key)}: {_inline(value)}")
    return lines


def _inline(value: Value) -> str:
    if not isinstance(value.value, tuple):
        return render_scalar(value.text)
    texts = [render_scalar(each.text) for each in value.value]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def render_scalar(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_PLAIN:
        return text
    # A JSON string is one of YAML's, as long as nothing in it needs two escapes.
    return json.dumps(text, ensure_ascii=False)


def _data(value: Value) -> Any:  # noqa: ANN401 - JSON
    match value.value:
        case dict():
            return {key: _data(each) for key, each in value.value.items()}
        case tuple():
            return [_data(each) for each in value.value]
        case _:
            return value.text


def _with_origin(value: Value) -> dict[str, Any]:
    return {**_data(value), "origin": str(value.place)}


def _one_line(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)
