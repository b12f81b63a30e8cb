"""list and show."""

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

from ..doors.client import connect
from .main import print_json

_BOLD, _DIM, _RED, _GREEN, _OFF = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"


def list_devices(arguments: argparse.Namespace) -> int:
    devices = asyncio.run(_ask("List"))["devices"]
    if arguments.json:
        print_json({"devices": devices})
        return 0
    rows = [
        (
            device["device"],
            device["flavour"] + (f" ({device['phase']})" if device.get("phase") else ""),
            device.get("driver") or "-",
            device["resolution"].get("winner") or "-",
            _text(device.get("iommu_group")),
            printable(device["name"] or device["ids"]),
        )
        for device in devices
    ]
    _print_table(
        ("DEVICE", "FLAVOUR", "DRIVER", "BEST CANDIDATE", "GROUP", "NAME"), rows, color=arguments.color
    )
    return 0


def show_device(arguments: argparse.Namespace) -> int:
    device = asyncio.run(_ask("Get", device=arguments.device))["device"]
    if arguments.json:
        print_json({"device": device})
        return 0
    bold, dim, red, green, off = (_BOLD, _DIM, _RED, _GREEN, _OFF) if arguments.color else ("",) * 5
    print(f"{bold}{device['device']}{off} {printable(device['name'])} [{device['ids']}]")
    colour = green if device["flavour"] == "vfio" else ""
    line = f"{colour}{device['flavour']}{off}, driver {device.get('driver') or 'none'}"
    if device.get("stuck"):
        line += f", {red}stuck{off}: {printable(device['stuck'])}"
    elif device.get("phase"):
        line += f", {device['phase']}"
    rows = [("flavour", line)]
    if device.get("vfio_device"):
        rows.append(("node", f"{device.get('group_node') or 'no IOMMU group'} ({device['vfio_device']})"))
    rows.append(("group", _text(device.get("iommu_group"), "none: no IOMMU for this device")))
    if device["recorded"]:
        rows.append(("before", device.get("previous_driver") or "no driver"))
    if device.get("personality"):
        rows.append(
            (
                "by itself",
                f"{device['driver']} becomes a VFIO driver by its attribute {device['personality']}",
            )
        )
    print_facts(rows)
    print("candidates:")
    print_candidates(device["resolution"])
    if last := device.get("last"):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last["when"]))
        result = (
            f"{red}failed{off}: {printable(last['error'])}"
            if last["error"]
            else f"done: {printable(last['reason'])}"
        )
        print(f"last attempt: to {last['flavour']} at {when} by {printable(last['requester'])}: {result}")
        for step in last["steps"]:
            trouble = f" {red}{printable(step['error'])}{off}" if step["error"] else ""
            print(
                f"  {dim}{step['started'] * 1000:8.1f} ms{off} {step['what']} "
                f"{dim}{step['duration'] * 1000:.1f} ms{off}{trouble}"
            )
    return 0


def print_candidates(resolution: dict[str, Any]) -> None:
    for number, candidate in enumerate(resolution["candidates"], start=1):
        mark = "->" if candidate["accepted"] and candidate["module"] == resolution.get("winner") else "  "
        print(f"  {mark} {number}. {candidate['module']}: {printable(candidate['reason'])}")
    for warning in resolution["warnings"]:
        print(f"  warning: {printable(warning)}")


def print_facts(rows: Sequence[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"  {name + ':':<11}{value}")


def printable(text: str) -> str:
    """What comes from outside must not move a terminal's cursor."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _text(value: object, absent: str = "-") -> str:
    return absent if value is None else str(value)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, color: bool) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    bold, green, off = (_BOLD, _GREEN, _OFF) if color else ("",) * 3
    for row in [header, *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        paint = bold if row is header else green if row[1].startswith("vfio") else ""
        print(f"{paint}{line}{off if paint else ''}")


async def _ask(method: str, **parameters: str) -> dict[str, Any]:
    client = await connect(writes=False)
    try:
        return await client.call(method, **parameters)
    finally:
        client.close()
