"""list and show."""

import argparse
import asyncio
import sys
import time
from typing import Any

from ..doors.client import connect
from ..model.errors import FlavourError
from ..model.printable import printable
from .output import (
    BOLD,
    DIM,
    GREEN,
    OFF,
    RED,
    print_candidates,
    print_facts,
    print_json,
    print_table,
    text,
)


def list_devices(arguments: argparse.Namespace) -> int:
    answer = asyncio.run(_ask("List"))
    devices = answer["devices"]
    if arguments.json:
        print_json({"devices": devices, "policy_trouble": answer["policy_trouble"]})
        return 0
    rows = [
        (
            device["device"],
            device["flavour"] + (f" ({device['phase']})" if device.get("phase") else ""),
            device.get("driver") or "-",
            device["resolution"].get("winner") or "-",
            text(device.get("iommu_group")),
            _tell_rule(device),
            printable(device["name"] or device["ids"]),
        )
        for device in devices
    ]
    print_table(
        ("DEVICE", "FLAVOUR", "DRIVER", "BEST CANDIDATE", "GROUP", "RULE", "NAME"),
        rows,
        color=arguments.color,
    )
    _tell_trouble(answer)
    return 0


def _tell_rule(device: dict[str, Any]) -> str:
    if device.get("wish"):
        return f"by hand: {device['wish']}"
    return printable(device.get("rule") or "-")


def _tell_trouble(answer: dict[str, Any]) -> None:
    if answer["policy_trouble"]:
        print(
            f"flavourctl: the policy on disk is not in force: {printable(answer['policy_trouble'])}",
            file=sys.stderr,
        )


def show_device(arguments: argparse.Namespace) -> int:
    answer, plan = asyncio.run(_ask_about(arguments.device))
    device = answer["device"]
    if arguments.json:
        print_json({"device": device, "plan": plan, "policy_trouble": answer["policy_trouble"]})
        return 0
    bold, dim, red, green, off = (BOLD, DIM, RED, GREEN, OFF) if arguments.color else ("",) * 5
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
    rows.append(("group", text(device.get("iommu_group"), "none: no IOMMU for this device")))
    if device["recorded"]:
        rows.append(("before", device.get("previous_driver") or "no driver"))
    if device.get("personality"):
        rows.append(
            (
                "by itself",
                f"{device['driver']} becomes a VFIO driver by its attribute {device['personality']}",
            )
        )
    rows.append(("slot", device["slot"]))
    rows += [("serial", printable(serial)) for serial in device["serials"]]
    rows.append(("policy", _describe_policy(device)))
    rows += [("note", printable(remark)) for remark in device["remarks"]]
    rows += [("used by", printable(user["what"])) for user in device["users"]]
    print_facts(rows)
    print("candidates:")
    print_candidates(device["resolution"])
    if plan["refused"]:
        print(f"set {plan['flavour']} would be refused: {printable(plan['refused'])}")
    else:
        print(f"set {plan['flavour']} would:")
        for step in plan["steps"]:
            print(f"  {printable(step)}")
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
    _tell_trouble(answer)
    return 0


def _describe_policy(device: dict[str, Any]) -> str:
    said = printable(device["policy_reason"])
    if device.get("policy_flavour"):
        said = f"{device['policy_flavour']}, by {said}"
    if device.get("wish"):
        said = f"{device['wish']} by hand, until flavourctl reset {device['device']}; the policy: {said}"
    return said


async def _ask_about(device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What it is, and what would be done to give it the flavour that it has not: the policy's, or else the
    other one."""
    client = await connect(writes=False)
    try:
        answer = await client.call("Get", device=device, users=True)
        shown = answer["device"]
        flavour = shown.get("policy_flavour")
        if flavour in (None, shown["flavour"]):
            flavour = "vfio" if shown["flavour"] == "native" else "native"
        plan: dict[str, Any] = {"flavour": flavour, "steps": [], "refused": ""}
        try:
            plan |= await client.call("Plan", device=device, flavour=flavour)
        except FlavourError as error:
            plan["refused"] = str(error).removeprefix(f"{shown['device']}: ")
        return answer, plan
    finally:
        client.close()


async def _ask(method: str, **parameters: str | bool) -> dict[str, Any]:
    client = await connect(writes=False)
    try:
        return await client.call(method, **parameters)
    finally:
        client.close()
