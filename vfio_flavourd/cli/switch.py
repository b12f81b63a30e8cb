"""set and reset."""

import argparse
import asyncio
import sys
from typing import Any

from ..doors.client import connect
from ..model.address import parse_address
from ..model.codes import Code, find_exit_status
from ..model.flavour import parse_flavour
from ..model.printable import printable
from .output import print_json


def switch(arguments: argparse.Namespace) -> int:
    # Refused here already, so that a typo needs no daemon.
    device = str(parse_address(arguments.device))
    if arguments.verb == "set" and arguments.dry_run:
        return asyncio.run(_plan(arguments, device))
    outcome = asyncio.run(_switch(arguments, device))
    if outcome is None:
        print(f"{device}: under way; flavourctl show {device} says what becomes of it", file=sys.stderr)
        if arguments.json:
            print_json({"device": device, "taken_up": True})
        return 0
    if arguments.json:
        print_json(outcome)
    else:
        print(_tell(outcome))
    fell_back = outcome["fallback"] and getattr(arguments, "strict", False)
    return find_exit_status(Code.FELL_BACK, 0) if fell_back else 0


async def _switch(arguments: argparse.Namespace, device: str) -> dict[str, Any] | None:
    """The outcome; None with --no-wait."""
    client = await connect(writes=True)
    parameters: dict[str, Any] = {
        "device": device,
        "timeout": arguments.timeout,
        "force": arguments.force or None,
        "group": arguments.group,
    }
    method = "Reset"
    if arguments.verb == "set":
        method = "SetFlavour"
        parameters |= {"flavour": arguments.flavour, "drivers": arguments.driver}
        parameters["persist"] = arguments.persist or None
    try:
        if arguments.no_wait:
            if "flavour" in parameters:  # nobody would hear of a typo
                parse_flavour(arguments.flavour, (await client.call("Get", device=device))["flavours"])
            await client.send(method, **parameters)
            return None
        outcome: dict[str, Any] = {}
        async for reply in client.follow(method, **parameters):
            if step := reply.get("step"):
                trouble = f": {printable(step['error'])}" if step["error"] else ""
                print(f"  {step['what']} ({step['duration'] * 1000:.0f} ms){trouble}", file=sys.stderr)
            outcome = reply.get("outcome") or outcome
        return outcome
    finally:
        client.close()


async def _plan(arguments: argparse.Namespace, device: str) -> int:
    client = await connect(writes=False)
    try:
        answer = await client.call(
            "Plan",
            device=device,
            flavour=arguments.flavour,
            drivers=arguments.driver,
            force=arguments.force or None,
            group=arguments.group,
        )
    finally:
        client.close()
    if arguments.json:
        print_json({"device": device, "flavour": arguments.flavour, "steps": answer["steps"]})
    else:
        print("\n".join(answer["steps"]) or f"{device}: nothing to do, it is {arguments.flavour} already")
    return 0


def _tell(outcome: dict[str, Any]) -> str:
    device = outcome["device"]
    if not outcome["changed"]:
        return (
            f"{device}: {outcome['flavour']} by {outcome.get('driver') or 'no driver'}: {outcome['reason']}"
        )
    line = f"{device}: {_tell_drivers(outcome)} in {outcome['duration'] * 1000:.0f} ms"
    if node := outcome.get("group_node"):
        line += f", {node}"
    lines = [line, f"  {printable(outcome['reason'])}"]
    lines += [f"  taken by force from: {printable(user['what'])}" for user in outcome["forced"]]
    for other in outcome["others"]:
        lines.append(f"  with it {other['device']}: {_tell_drivers(other)}: {printable(other['reason'])}")
    return "\n".join(lines)


def _tell_drivers(outcome: dict[str, Any]) -> str:
    return f"{outcome.get('previous_driver') or 'no driver'} -> {outcome.get('driver') or 'no driver'}"
