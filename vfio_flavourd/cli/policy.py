"""check, cat-config and reload. The first two read the files themselves and need no daemon."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..config.load import Loaded, load_files, load_policy
from ..config.problems import PolicyError, Problem
from ..config.render import render_data, render_yaml
from ..kernel.claims import find_driverctl_override
from ..kernel.early_rules import find_rebuild_command, find_stale_initramfs, read_rules, read_sources
from ..kernel.facts import read_facts
from ..kernel.inventory import read_devices
from ..kernel.sysfs import Sysfs
from ..model.codes import find_exit_status
from ..model.errors import FlavourError
from ..model.policy import Policy, decide
from ..model.printable import printable
from ..model.udev_header import parse_header
from .output import print_json

ROOT = "/"


def check(arguments: argparse.Namespace) -> int:
    """The files that are given, else what is installed."""
    try:
        loaded = load_files(arguments.files) if arguments.files else load_policy(ROOT)
    except PolicyError as error:
        return _refuse(arguments, error)
    _print_problems(loaded.warnings)
    remarks = [] if arguments.files else _find_remarks(Path(ROOT), loaded.policy)
    for remark in remarks:
        print(f"flavourctl: {printable(remark)}", file=sys.stderr)
    if arguments.json:
        problems = [asdict(problem) for problem in loaded.warnings]
        print_json({"files": loaded.files, "problems": problems, "remarks": remarks})
    else:
        print(_tell(loaded))
    return 0


def _find_remarks(root: Path, policy: Policy) -> list[str]:
    """Where this host is not yet what its policy says."""
    remarks = _find_claims(root, policy)
    release = os.uname().release
    try:
        rules = read_rules(root)
    except FlavourError as error:
        return [f"{error}; {error.hint}"]
    if rules is not None and parse_header(rules).sources != read_sources(root, release):
        remarks.append("policy files have changed since they were applied: flavourctl reload")
    command = find_rebuild_command(root) or "rebuild it"
    for image in find_stale_initramfs(root, release):
        which = "the running kernel's" if image.running else f"that of {image.release}"
        remarks.append(f"{image.path} ({which}) is older than the policy's rules for early boot: {command}")
    return remarks


def _find_claims(root: Path, policy: Policy) -> list[str]:
    sysfs = Sysfs(str(root).rstrip("/"))
    claims = []
    for device in read_devices(sysfs, policy.personalities):
        claim = find_driverctl_override(root, device.address)
        decision = decide(read_facts(sysfs, device, policy), policy) if claim else None
        if decision is not None and decision.flavour is not None:
            claims.append(
                f"{device.address}: driverctl has {claim} saved for it, so it is left to that although "
                f"{decision.reason} says {decision.flavour}: driverctl unset-override {device.address}"
            )
    return claims


def cat_config(arguments: argparse.Namespace) -> int:
    try:
        loaded = load_policy(ROOT)
    except PolicyError as error:
        return _refuse(arguments, error)
    _print_problems(loaded.warnings)
    if arguments.json:
        print_json({"files": loaded.files, "policy": render_data(loaded.merged)})
    else:
        print(render_yaml(loaded.merged), end="")
    return 0


def reload(arguments: argparse.Namespace) -> int:
    """Raises InvalidPolicyError when the daemon refuses the files."""
    # Only this one talks to the daemon.
    import asyncio

    asyncio.run(_reload())
    if arguments.json:
        print_json({"reloaded": True})
    else:
        print("reloaded")
    return 0


async def _reload() -> None:
    from ..doors.client import connect

    client = await connect(writes=True)
    try:
        await client.call("Reload")
    finally:
        client.close()


def _refuse(arguments: argparse.Namespace, error: PolicyError) -> int:
    _print_problems(error.problems)
    if arguments.json:
        print_json({"files": error.files, "problems": [asdict(problem) for problem in error.problems]})
    return find_exit_status(error.code, error.errno)


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print("\n".join(printable(line) for line in problem.render()), file=sys.stderr)


def _tell(loaded: Loaded) -> str:
    if not loaded.files:
        return "valid: there are no policy files, so no device is touched unasked"
    rules, files = len(loaded.policy.rules), len(loaded.files)
    return f"valid: {rules} rule{'s' * (rules != 1)} in {files} file{'s' * (files != 1)}"
