"""groups: the IOMMU groups as a tree, for Graphviz, or as a picture."""

import argparse
import os
from typing import Any

from ..doors import blocking_client
from ..model.printable import printable
from .group_words import (
    NO_DEVICES,
    NO_GROUP,
    NO_GROUP_TAKES,
    find_kind,
    tell_driver,
    tell_standing,
    tell_state,
    tell_takes,
)
from .output import print_json
from .picture import refuse_terminal, write_picture
from .terminal import BOLD, GREEN, OFF, RED


def show_groups(arguments: argparse.Namespace) -> int:
    if arguments.form == "svg" and not arguments.json:
        refuse_terminal("redirect it: flavourctl groups --svg > groups.svg")
    with blocking_client.connect(writes=False) as daemon:
        answer = daemon.call("Groups")
    host = os.uname()
    title = f"IOMMU groups of {host.nodename}"
    if arguments.json:
        print_json(answer)
    elif arguments.form == "svg":
        from .groups_svg import render_groups

        write_picture(render_groups(answer, title, f"Linux {host.release}: {_count(answer)}"))
    elif arguments.form == "dot":
        from .groups_dot import render_dot

        print(render_dot(answer, title), end="")
    else:
        print("\n".join(render_tree(answer, color=arguments.color)))
    return 0


def _count(answer: dict[str, Any]) -> str:
    groups = answer["groups"]
    devices = sum(len(group["members"]) for group in groups) + len(answer["ungrouped"])
    return f"{len(groups)} group{'s' * (len(groups) != 1)}, {devices} device{'s' * (devices != 1)}"


def render_tree(answer: dict[str, Any], *, color: bool) -> list[str]:
    blocks = [
        (f"IOMMU group {group['group']}: {tell_state(group)}", group, group["members"], tell_takes(group))
        for group in answer["groups"]
    ]
    if answer["ungrouped"]:
        blocks.append((NO_GROUP, None, answer["ungrouped"], [NO_GROUP_TAKES]))
    if not blocks:
        return [NO_DEVICES]
    rows = [[_make_cells(member, group) for member in members] for _, group, members, _ in blocks]
    every = [row for block in rows for row in block]
    widths = [max(len(row[column]) for row in every) for column in range(4)]
    lines = []
    for (title, group, _, takes), block in zip(blocks, rows, strict=True):
        paint = _find_paint(group) if color else ""
        lines.append(f"{BOLD}{paint}{title}{OFF}" if color else title)
        for number, row in enumerate(block, 1):
            branch = "└─" if number == len(block) else "├─"
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            lines.append(f"{branch} {cells}  {row[4]}".rstrip())
        lines += [f"   {line}" for line in takes]
    return lines


def _make_cells(member: dict[str, Any], group: dict[str, Any] | None) -> tuple[str, ...]:
    return (
        member["device"],
        find_kind(member),
        tell_driver(member),
        tell_standing(member, group),
        printable(member["name"]),
    )


def _find_paint(group: dict[str, Any] | None) -> str:
    if group is None or group["state"] in ("mixed", "unprotected"):
        return RED
    return GREEN if group["state"] == "ready" else ""
