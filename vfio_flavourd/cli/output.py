"""How things are printed: for people, and as JSON."""

from __future__ import annotations

import json
import sys

from ..model.printable import printable
from .terminal import RED, paint

# `typing` takes longer to import than this module; only mypy needs it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Interrupted(KeyboardInterrupt):
    """By Ctrl-C; the text says what goes on all the same."""


def print_json(data: dict[str, Any]) -> None:
    """One object. What a verb prints has its definition in outputs.py."""
    print(render_json(data, indent=2))


def print_json_line(data: dict[str, Any]) -> None:
    """One of many objects, each seen as it comes."""
    print(render_json(data, indent=None), flush=True)


def render_json(data: dict[str, Any], *, indent: int | None) -> str:
    return json.dumps({"version": 1, **data}, indent=indent)


def tell_step(step: dict[str, Any], *, color: bool) -> str:
    trouble = f": {paint(printable(step['error']), RED, color=color)}" if step["error"] else ""
    return f"{printable(step['what'])} ({step['duration'] * 1000:.0f} ms){trouble}"


def tell_candidates(resolution: dict[str, Any]) -> list[str]:
    lines = []
    for number, candidate in enumerate(resolution["candidates"], start=1):
        mark = "->" if candidate["accepted"] and candidate["module"] == resolution.get("winner") else "  "
        lines.append(f"{mark} {number}. {candidate['module']}: {printable(candidate['reason'])}")
    return lines + [f"warning: {printable(warning)}" for warning in resolution["warnings"]]


def tell_policy_trouble(answer: dict[str, Any]) -> None:
    if answer["policy_trouble"]:
        print(
            f"flavourctl: the policy on disk is not in force: {printable(answer['policy_trouble'])}",
            file=sys.stderr,
        )
