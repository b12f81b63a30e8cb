"""check and cat-config, which read the files themselves and need no daemon."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..config.files import DIRECTORIES
from ..config.load import Loaded, load_files, load_policy
from ..config.problems import PolicyError, Problem
from ..config.render import render_data, render_yaml
from ..engine.early_rules import find_notes
from ..engine.readiness import examine_applied, read_decided
from ..kernel.index import ModuleIndex
from ..kernel.readiness import find_unreadable
from ..kernel.sysfs import Sysfs
from ..model.codes import Code, find_exit_status
from ..model.errors import FlavourError
from ..model.policy import Policy
from ..model.printable import printable
from ..model.readiness.finding import State
from .output import print_json

ROOT = "/"


def check(arguments: argparse.Namespace) -> int:
    """The files that are given, else what is installed."""
    try:
        if arguments.files:
            _check_readable(
                shlex.join(["check", *map(str, arguments.files)]),
                Path("/"),
                [str(path.absolute()) for path in arguments.files],
            )
            _check_there(arguments.files)
            loaded = load_files(arguments.files)
        else:
            _check_readable("check", Path(ROOT), DIRECTORIES)
            loaded = load_policy(ROOT)
    except PolicyError as error:
        return _refuse(arguments, error)
    _print_problems(loaded.warnings)
    remarks = _find_remarks(Path(ROOT), loaded.policy, installed=not arguments.files)
    for remark in remarks:
        print(f"flavourctl: {printable(remark)}", file=sys.stderr)
    if arguments.json:
        problems = [asdict(problem) for problem in loaded.warnings]
        print_json({"files": loaded.files, "problems": problems, "remarks": remarks})
    else:
        print(_tell(loaded))
    return 0


def _check_readable(command: str, root: Path, paths: Sequence[str]) -> None:
    """Raises FlavourError: what can't be looked at is not therefore wrong."""
    if unreadable := find_unreadable(root, paths):
        raise FlavourError(
            f"{', '.join(unreadable)} can't be read by this user",
            code=Code.NOT_PERMITTED,
            hint=f"sudo flavourctl {command}",
        )


def _check_there(files: Sequence[Path]) -> None:
    """Raises FlavourError: a mistyped name is no mistake in a policy."""
    for path in files:
        if not path.exists() or path.is_dir():
            what = f"{str(path)!r} is a directory" if path.is_dir() else f"there is no {str(path)!r}"
            raise FlavourError(
                what, code=Code.INVALID_ARGUMENT, hint="check takes files, or none for what is installed"
            )


def _find_remarks(root: Path, policy: Policy, *, installed: bool) -> list[str]:
    """Where this host is not yet what its policy says, and which rules its udev rules leave to the daemon."""
    name = os.uname()
    table = ModuleIndex(root, name.release).table()
    sysfs = Sysfs(str(root).rstrip("/"))
    notes = find_notes(root, policy, sysfs=sysfs, table=table, host_name=name.nodename)
    findings = examine_applied(root, name.release, read_decided(root, policy), table) if installed else ()
    return [*(f"{each.what}: {each.advice}" for each in findings if each.state is not State.NOTE), *notes]


def cat_config(arguments: argparse.Namespace) -> int:
    _check_readable("cat-config", Path(ROOT), DIRECTORIES)
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
