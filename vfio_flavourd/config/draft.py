"""A drafted policy as a file, and as data."""

from typing import Any

from ..model.draft import Draft, DraftRule
from ..model.printable import printable
from .render import render_scalar


def render_draft(draft: Draft, rebuild: str = "") -> str:
    """It says itself what is to be done with it; `rebuild` is the command that makes an initramfs."""
    lines = [f"# Made by `flavourctl import {draft.source}`. What to do next:"]
    lines += [f"# {number}. {printable(step)}" for number, step in enumerate(list_steps(draft, rebuild), 1)]
    lines += [
        "#",
        "# Without its driver: line a rule gives each device the best driver that there is for it.",
    ]
    if draft.remarks:
        lines += ["#", "# Not taken over, or worth knowing:"]
        lines += [f"# - {printable(remark)}" for remark in draft.remarks]
    lines.append("version: 1")
    if draft.flavours:
        lines.append("flavours:")
    for flavour in draft.flavours:
        prefix = flavour.alias_prefix or "none"
        lines += [
            f"  {flavour.name}:",
            f"    alias_prefix: {render_scalar(prefix)}",
            f"    fallback: {render_scalar(flavour.fallback)}",
        ]
    lines.append("rules:")
    for rule in draft.rules:
        lines += [f"  # {printable(rule.origin)}", f"  - name: {render_scalar(rule.name)}", "    match:"]
        lines += [f"      {key}: {render_scalar(value)}" for key, value in rule.match]
        lines += [f"    flavour: {render_scalar(rule.flavour)}", f"    driver: {render_scalar(rule.driver)}"]
    return "\n".join(lines) + "\n"


def render_draft_data(draft: Draft, rebuild: str = "") -> dict[str, Any]:
    """The same for JSON; values are texts, as a policy has them."""
    return {
        "source": draft.source,
        "policy": {
            "version": 1,
            "flavours": {
                kind.name: {"alias_prefix": kind.alias_prefix or "none", "fallback": kind.fallback}
                for kind in draft.flavours
            },
            "rules": [_rule_data(rule) for rule in draft.rules],
        },
        "remarks": list(draft.remarks),
        "next": list(list_steps(draft, rebuild)),
    }


def list_steps(draft: Draft, rebuild: str) -> tuple[str, ...]:
    file = f"/etc/vfio-flavourd/policy.d/50-{draft.source}.yaml"
    steps = (f"write it to {file}", "flavourctl check", *draft.undo, "flavourctl reload", rebuild)
    return tuple(filter(None, steps))


def _rule_data(rule: DraftRule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "match": dict(rule.match),
        "flavour": rule.flavour,
        "driver": rule.driver,
        "origin": rule.origin,
    }
