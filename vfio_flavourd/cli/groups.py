"""groups: the IOMMU groups as a tree, for Graphviz, or as a picture."""

import argparse
import os
import sys
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
from .terminal import BOLD, GREEN, RED, find_width, measure, pad, paint, shorten


def show_groups(arguments: argparse.Namespace) -> int:
    if arguments.form == "svg" and not arguments.json:
        from .picture import refuse_terminal

        refuse_terminal("redirect it: flavourctl groups --svg > groups.svg")
    with blocking_client.connect(writes=False) as daemon:
        answer = daemon.call("Groups")
    host = os.uname()
    title = f"IOMMU groups of {host.nodename}"
    if arguments.json:
        print_json(answer)
    elif arguments.form == "svg":
        from .groups_svg import render_groups
        from .picture import write_picture

        write_picture(render_groups(answer, title, f"Linux {host.release}: {_count(answer)}"))
    elif arguments.form == "dot":
        from .groups_dot import render_dot

        print(render_dot(answer, title), end="")
    else:
        print("\n".join(render_tree(answer, width=find_width(sys.stdout), color=arguments.color)))
    return 0


def _count(answer: dict[str, Any]) -> str:
    groups = answer["groups"]
    devices = sum(len(group["members"]) for group in groups) + len(answer["ungrouped"])
    return f"{len(groups)} group{'s' * (len(groups) != 1)}, {devices} device{'s' * (devices != 1)}"


def render_tree(answer: dict[str, Any], *, width: int | None = None, color: bool = False) -> list[str]:
    """Where a line is wider than `width`, the device's name gives way; what is to be typed never does."""
    blocks = [
        (f"IOMMU group {group['group']}: {tell_state(group)}", group, group["members"], tell_takes(group))
        for group in answer["groups"]
    ]
    if answer["ungrouped"]:
        blocks.append((NO_GROUP, None, answer["ungrouped"], [NO_GROUP_TAKES]))
    if not blocks:
        return [NO_DEVICES]
    rows = [[_make_cells(member, group) for member in members] for _, group, members, _ in blocks]
    columns = zip(*(row[:-1] for block in rows for row in block), strict=True)
    widths = [max(map(measure, column)) for column in columns]
    lines = []
    for (title, group, _, takes), block in zip(blocks, rows, strict=True):
        lines.append(paint(title, BOLD, _choose_color(group), color=color))
        for number, row in enumerate(block, 1):
            branch = "└─" if number == len(block) else "├─"
            line = "  ".join((*map(pad, row[:-1], widths), row[-1]))
            line = f"{branch} {line}"
            lines.append((line if width is None else shorten(line, width)).rstrip())
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


def _choose_color(group: dict[str, Any] | None) -> str:
    if group is None or group["state"] in ("mixed", "unprotected"):
        return RED
    return GREEN if group["state"] == "ready" else ""
