"""set and reset."""

import argparse
import sys
from typing import Any

from ..doors import blocking_client
from ..model.address import parse_address
from ..model.codes import Code, find_exit_status
from ..model.errors import FlavourError
from ..model.printable import printable
from .output import Interrupted, print_json
from .progress import Progress

Answer = dict[str, Any]

# Seconds for which the daemon is waited for when somebody wants to be gone.
_PATIENCE = 2.0


def switch(arguments: argparse.Namespace) -> int:
    # Refused here already, so that a typo needs no daemon.
    device = str(parse_address(arguments.device))
    if arguments.verb == "set" and arguments.dry_run:
        return _plan(arguments, device)
    outcome = _switch(arguments, device)
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


def _switch(arguments: argparse.Namespace, device: str) -> Answer | None:
    """The outcome; None where --no-wait does not wait for it."""
    parameters: Answer = {
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
    # In the daemon's words, which one who may not even switch does not come to hear.
    only_root = "make a wish last beyond this boot" if parameters.get("persist") else ""
    if arguments.force:
        only_root = "take a device by force"
    with blocking_client.connect(writes=True, only_root=only_root) as daemon:
        progress = Progress(no_color=getattr(arguments, "no_color", False))
        outcome: Answer = {}
        try:
            for reply in daemon.follow(method, tick=progress.refresh, **parameters):
                if running := reply["running"]:
                    progress.begin(running)
                    if arguments.no_wait and _is_write(running):
                        return None
                if step := reply["step"]:
                    progress.end(step)
                outcome = reply["outcome"] or outcome
        except KeyboardInterrupt:
            progress.clear()
            daemon.hang_up()
            raise Interrupted(_tell_what_goes_on(device)) from None
        finally:
            progress.clear()
        return outcome


def _is_write(running: str) -> bool:
    """Or what comes after one: from then on the daemon carries a switch to its end, whoever hangs up. Nothing
    else is told to have begun but loads."""
    return not running.rpartition(": ")[2].startswith("load ")


def _tell_what_goes_on(device: str) -> str:
    """After the daemon has been hung up on."""
    try:
        with blocking_client.connect(writes=False, patience=_PATIENCE) as daemon:
            now = daemon.call("Get", device=device)["device"]
    except FlavourError as error:
        return str(error)
    if now["phase"]:
        return f"{device}: the daemon carries the switch to its end"
    return f"{device}: it is {now['flavour']} by {_tell_driver(now['driver'])}, and nothing goes on"


def _plan(arguments: argparse.Namespace, device: str) -> int:
    with blocking_client.connect(writes=False) as daemon:
        answer = daemon.call(
            "Plan",
            device=device,
            flavour=arguments.flavour,
            drivers=arguments.driver,
            force=arguments.force or None,
            group=arguments.group,
        )
    if arguments.json:
        print_json({"device": device, "flavour": arguments.flavour, "steps": answer["steps"]})
    else:
        steps = map(printable, answer["steps"])
        print("\n".join(steps) or f"{device}: nothing to do, it is {arguments.flavour} already")
    return 0


def _tell(outcome: Answer) -> str:
    device = outcome["device"]
    if not outcome["changed"]:
        by = _tell_driver(outcome.get("driver"))
        return f"{device}: {outcome['flavour']} by {by}: {printable(outcome['reason'])}"
    line = f"{device}: {_tell_drivers(outcome)} in {outcome['duration'] * 1000:.0f} ms"
    if node := outcome.get("group_node"):
        line += f", {node}"
    lines = [line, f"  {printable(outcome['reason'])}"]
    lines += [f"  taken by force from: {printable(user['what'])}" for user in outcome["forced"]]
    for other in outcome["others"]:
        lines.append(f"  with it {other['device']}: {_tell_drivers(other)}: {printable(other['reason'])}")
    return "\n".join(lines)


def _tell_drivers(outcome: Answer) -> str:
    return f"{_tell_driver(outcome.get('previous_driver'))} -> {_tell_driver(outcome.get('driver'))}"


def _tell_driver(name: str | None) -> str:
    return printable(name or "no driver")
