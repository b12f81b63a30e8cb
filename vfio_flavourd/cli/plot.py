"""plot: a timeline of one or more switches, as a picture."""

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

from ..doors import blocking_client
from ..model.address import parse_address
from ..model.codes import Code
from ..model.errors import FlavourError
from .output import print_json
from .picture import refuse_terminal, write_picture
from .plot_svg import render_plot
from .timescale import tell_duration


def plot(arguments: argparse.Namespace) -> int:
    if arguments.output is None and not arguments.json:
        refuse_terminal("redirect it (> plot.svg), or name a file with -o")
    attempts, names = _ask(arguments.attempts)
    if arguments.json:
        print_json({"attempts": attempts})
        return 0
    host = os.uname()
    drawn = [attempt | _tell_head(attempt, names[attempt["device"]]) for attempt in attempts]
    picture = render_plot(drawn, _tell_title(attempts), f"on {host.nodename}, Linux {host.release}")
    write_picture(picture, arguments.output)
    return 0


def _ask(wanted: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The attempts, and the names of their devices."""
    with blocking_client.connect(writes=False) as daemon:
        history = daemon.call("History")["attempts"]
        attempts = [find_attempt(history, text) for text in wanted]
        return attempts, {attempt["device"]: _find_name(daemon, attempt) for attempt in attempts}


def find_attempt(history: Sequence[dict[str, Any]], text: str) -> dict[str, Any]:
    """The one with this number, or the last one on this device. Raises FlavourError."""
    if text.isascii() and text.isdecimal():
        found = [attempt for attempt in history if str(attempt["id"]) == text.lstrip("0")]
        what = f"no switch {text[:20]} is remembered"
    else:
        device = str(parse_address(text))
        found = [attempt for attempt in history if attempt["device"] == device]
        what = f"{device}: no switch is remembered"
    if not found:
        raise FlavourError(
            what, code=Code.NOTHING_FOUND, hint="flavourctl history lists those that are remembered"
        )
    return found[-1]


def _find_name(daemon: blocking_client.Connection, attempt: dict[str, Any]) -> str:
    """Empty where the device is gone by now."""
    try:
        return str(daemon.call("Get", device=attempt["device"])["device"]["name"])
    except FlavourError:
        return ""


def _tell_title(attempts: Sequence[dict[str, Any]]) -> str:
    if len(attempts) > 1:
        return f"{len(attempts)} switches"
    (attempt,) = attempts
    return f"{attempt['device']} to {attempt['flavour']}: {attempt['outcome']}"


def _tell_head(attempt: dict[str, Any], name: str) -> dict[str, Any]:
    """What stands above its rows."""
    when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(attempt["when"]))
    drivers = f"{attempt['previous_driver'] or 'no driver'} -> {attempt['driver'] or 'no driver'}"
    result = f"{attempt['outcome']} in {tell_duration(attempt['duration'])}, {drivers}"
    asked = f"to {attempt['flavour']} by {attempt['requester']}"
    lines = [f"attempt {attempt['id']} at {when}, {asked}: {result}"]
    if attempt["rule"]:
        lines.append(f"rule: {attempt['rule']}")
    if attempt["forced"]:
        lines.append(f"taken by force from: {'; '.join(attempt['forced'])}")
    if attempt["reason"]:
        lines.append(attempt["reason"])
    return {"title": f"{attempt['device']} {name}".rstrip(), "lines": lines}
