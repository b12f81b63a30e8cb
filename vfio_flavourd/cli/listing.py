"""list: a line for each device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..doors import blocking_client
from ..model.codes import Code
from ..model.errors import FlavourError
from ..model.printable import printable
from .output import print_json, tell_policy_trouble
from .terminal import BOLD, GREEN, RED, YELLOW, find_width, lay_out, paint

# `typing` takes longer to import than this module; only mypy needs it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Device = dict[str, Any]


def _or_dash(value: object) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def _tell_flavour(device: Device) -> str:
    return f"{device['flavour']} ({device['phase']})" if device["phase"] else str(device["flavour"])


def _tell_rule(device: Device) -> str:
    return f"by hand: {printable(device['wish'])}" if device["wish"] else _or_dash(device["rule"])


# In the order in which they are told to be allowed.
COLUMNS: dict[str, Callable[[Device], str]] = {
    "device": lambda device: str(device["device"]),
    "flavour": _tell_flavour,
    "driver": lambda device: _or_dash(device["driver"]),
    "candidate": lambda device: _or_dash(device["resolution"]["winner"]),
    "group": lambda device: _or_dash(device["iommu_group"]),
    "rule": _tell_rule,
    "name": lambda device: printable(device["name"] or device["ids"]),
    "ids": lambda device: str(device["ids"]),
    "class": lambda device: str(device["class_code"]),
    "node": lambda device: _or_dash(device["group_node"]),
    "before": lambda device: _or_dash(device["previous_driver"]),
    "policy": lambda device: _or_dash(device["policy_flavour"]),
    "slot": lambda device: _or_dash(device["slot"]),
}
_DEFAULT = ("device", "flavour", "driver", "candidate", "group", "rule", "name")


def list_devices(arguments: argparse.Namespace) -> int:
    names = _DEFAULT if arguments.columns is None else _parse_columns(arguments.columns)
    with blocking_client.connect(writes=False) as daemon:
        answer = daemon.call("List")
    devices = answer["devices"]
    if arguments.json:
        print_json({"devices": devices, "policy_trouble": answer["policy_trouble"]})
        return 0
    rows = [[COLUMNS[name](device) for name in names] for device in devices]
    header = [] if arguments.noheadings else [[name.upper() for name in names]]
    lines = lay_out([*header, *rows], find_width(sys.stdout))
    codes = [BOLD] * len(header) + [_choose_color(device) for device in devices]
    for line, code in zip(lines, codes, strict=True):
        print(paint(line, code, color=arguments.color))
    tell_policy_trouble(answer)
    return 0


def _parse_columns(text: str) -> tuple[str, ...]:
    """Raises FlavourError (INVALID_ARGUMENT) that names what is allowed."""
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if name not in COLUMNS:
            from difflib import get_close_matches

            near = get_close_matches(name[:64], COLUMNS, n=1)
            raise FlavourError(
                f"no column is called {name[:64]!r}",
                code=Code.INVALID_ARGUMENT,
                hint=f"allowed: {', '.join(COLUMNS)}" + (f"; did you mean {near[0]}?" if near else ""),
            )
    return names


def _choose_color(device: Device) -> str:
    if device["stuck"]:
        return RED
    if device["phase"]:
        return YELLOW
    return "" if device["flavour"] == "native" else GREEN
