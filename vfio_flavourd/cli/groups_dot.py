"""IOMMU groups as a graph for Graphviz: a cluster for each group, a node for each device."""

from collections.abc import Iterator
from typing import Any

from ..model.printable import printable
from .glyphs import wrap
from .group_words import NO_DEVICES, NO_GROUP, find_kind, tell_driver, tell_standing, tell_state, tell_takes
from .palette import DARK_RED, GREEN, GREY, VERMILION, Look, find_looks

_HEAD = """\
graph iommu_groups {
  graph [compound=true, fontname="sans-serif", fontsize=12, labeljust=l, nodesep=0.15, ranksep=0.25];
  node [shape=box, fontname="sans-serif", fontsize=11, width=3.6, margin="0.1,0.05"];
  edge [style=invis];"""

# A cluster's border, as Graphviz names it.
_BORDERS = {
    "ready": f'color="{GREEN}", style=bold',
    "free": f'color="{GREEN}", style=solid',
    "host": f'color="{GREY}", style=solid',
    "mixed": f'color="{VERMILION}", style=dashed, penwidth=2',
    "bridges": f'color="{GREY}", style=dotted',
    "unprotected": f'color="{VERMILION}", style=dotted, penwidth=2',
}
_WIDTH = 290
_SIZE = 11


def render_dot(answer: dict[str, Any], title: str) -> str:
    groups, ungrouped = answer["groups"], answer["ungrouped"]
    members = [member for group in groups for member in group["members"]] + ungrouped
    looks = find_looks(map(find_kind, members))
    label = title if members else f"{title}: {NO_DEVICES}"
    lines = [_HEAD, f"  graph [label={_quote(label)}, labelloc=t];"]
    for group in groups:
        name = f"IOMMU group {group['group']}"
        label_lines = [f"{name}: {tell_state(group)}", *tell_takes(group)]
        lines += _cluster(f"cluster_{group['group']}", label_lines, _BORDERS[group["state"]])
        lines += [_node(member, group, looks) for member in group["members"]]
        lines.append("  }")
    if ungrouped:
        lines += _cluster("cluster_none", [NO_GROUP], _BORDERS["unprotected"])
        lines += [_node(member, None, looks) for member in ungrouped]
        lines.append("  }")
    lines += _columns([group["members"] for group in groups] + ([ungrouped] if ungrouped else []))
    return "\n".join([*lines, "}\n"])


def _cluster(name: str, label: list[str], border: str) -> list[str]:
    wrapped = [part for line in label for part in wrap(printable(line), _WIDTH, _SIZE)]
    return [f"  subgraph {name} {{", f"    graph [label={_quote(*wrapped)}, {border}];"]


def _node(member: dict[str, Any], group: dict[str, Any] | None, looks: dict[str, Look]) -> str:
    kind = find_kind(member)
    look = looks[kind]
    standing = tell_standing(member, group)
    text = [f"{member['device']}  {kind}  {tell_driver(member)}", member["name"]]
    if standing:
        text.append(f"({standing})")
    label = [part for line in text for part in wrap(printable(line), _WIDTH, _SIZE)]
    wrong = standing in ("in the way", "stuck")
    font = f', fontcolor="{DARK_RED}"' if wrong else ""
    return (
        f"    {_quote(member['device'])} [label={_quote(*label)}, color={_quote(look.color)}, "
        f'style="filled,{look.border}", fillcolor="#ffffff", penwidth={3 if wrong else 2}{font}];'
    )


def _columns(groups: list[list[dict[str, Any]]]) -> Iterator[str]:
    """Edges that aren't seen: Graphviz puts what is not connected side by side, and here it is to be below.

    The number of columns is the one that makes the picture about as wide as a screen.
    """
    devices = sum(len(members) + 1 for members in groups)
    columns = max(1, round((devices / 2.5) ** 0.5))
    height = devices / columns
    chain: list[str] = []
    filled = 0
    for members in groups:
        if filled and filled + len(members) / 2 > height:
            yield _edge(chain)
            chain, filled = [], 0
        chain += [_quote(member["device"]) for member in members]
        filled += len(members) + 1
    if chain:
        yield _edge(chain)


def _edge(chain: list[str]) -> str:
    return f"  {' -- '.join(chain)};"


def _quote(*lines: str) -> str:
    """Several lines are each flush left. A backslash is an escape of Graphviz's own in a label (`\\N`)."""
    escaped = [line.replace("\\", "\\\\").replace('"', '\\"') for line in map(printable, lines)]
    if len(escaped) > 1:
        escaped = [f"{line}\\l" for line in escaped]
    return '"' + "".join(escaped) + '"'
