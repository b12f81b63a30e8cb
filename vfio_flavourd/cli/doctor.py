"""doctor: looks at the host itself, and asks the daemon where it answers."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..doors import blocking_client
from ..engine.readiness import examine
from ..kernel.readiness import is_mounted
from ..model.errors import FlavourError
from ..model.printable import printable
from ..model.readiness.facts import Daemon
from ..model.readiness.finding import Finding, State
from .output import print_json
from .terminal import BOLD, DIM, GREEN, OFF, RED

ROOT = "/"
OWNER = 0

_MOUNT_POINT = "/run/vfio-flavour"
# Nobody who asks whether all is well wants to wait for a daemon that isn't.
_PATIENCE = 10.0


def doctor(arguments: argparse.Namespace) -> int:
    findings = examine(Path(ROOT), os.uname().release, _ask_daemon(), owner=OWNER)
    is_ready = all(finding.state is not State.PROBLEM for finding in findings)
    if arguments.json:
        print_json({"ready": is_ready, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings, color=arguments.color)
    return 0 if is_ready else 1


def _print(findings: Sequence[Finding], *, color: bool) -> None:
    bold, dim, red, green, off = (BOLD, DIM, RED, GREEN, OFF) if color else ("",) * 5
    paint = {State.PROBLEM: red, State.WARNING: bold, State.NOTE: "", State.OK: green}
    counts = [
        f"{number} {state}{'s' * (number != 1)}"
        for state in (State.PROBLEM, State.WARNING, State.NOTE)
        if (number := sum(finding.state is state for finding in findings))
    ]
    is_ready = all(finding.state is not State.PROBLEM for finding in findings)
    verdict = f"{green}ready{off}" if is_ready else f"{red}not ready{off}"
    print(f"{verdict}: {', '.join(counts) or 'nothing stands in the way'}")
    for finding in findings:
        if finding.state is not State.OK:
            print(f"{paint[finding.state]}{finding.state}{off}: {printable(finding.what)}")
            if finding.advice:
                print(f"  {dim}->{off} {printable(finding.advice)}")
    if fine := [printable(finding.what) for finding in findings if finding.state is State.OK]:
        print(f"{green}fine{off}: {'; '.join(fine)}")


def _ask_daemon() -> Daemon:
    is_door_mounted = is_mounted(Path(ROOT), _MOUNT_POINT, "fuse")
    try:
        with blocking_client.connect(writes=False, patience=_PATIENCE) as daemon:
            answer = daemon.call("List")
    except FlavourError as error:
        return Daemon(trouble=str(error), hint=error.hint, is_door_mounted=is_door_mounted)
    stuck = {device["device"]: device["stuck"] for device in answer["devices"] if device["stuck"]}
    decisions = {device["device"]: device["policy_reason"] for device in answer["devices"]}
    return Daemon(
        policy_trouble=answer["policy_trouble"],
        stuck=stuck,
        decisions=decisions,
        is_door_mounted=is_door_mounted,
    )
