"""import: a policy out of what driverctl or modprobe have been told. Needs no daemon, and changes nothing."""

import argparse
import os
import sys
from pathlib import Path

from ..config.draft import render_draft, render_draft_data
from ..kernel.claims import DRIVERCTL, read_driverctl_overrides
from ..kernel.early_rules import find_rebuild_command
from ..kernel.index import MODPROBE_D, ModuleIndex, read_modprobe_conf
from ..kernel.inventory import read_devices
from ..kernel.readiness import find_unreadable
from ..kernel.sysfs import Sysfs
from ..model.codes import Code
from ..model.draft import Draft
from ..model.errors import FlavourError
from ..model.from_driverctl import draft_from_driverctl
from ..model.from_modprobe import draft_from_modprobe
from ..model.printable import printable
from ..model.upstream_variants import UPSTREAM_MODULES
from .output import print_json

ROOT = "/"


def import_policy(arguments: argparse.Namespace) -> int:
    """Raises FlavourError where there is nothing to make a policy of."""
    draft = _from_driverctl(Path(ROOT)) if arguments.source == "driverctl" else _from_modprobe(Path(ROOT))
    for remark in draft.remarks:
        print(f"flavourctl: {printable(remark)}", file=sys.stderr)
    if not draft.rules:
        other = "modprobe" if draft.source == "driverctl" else "driverctl"
        raise FlavourError(
            f"importing from {draft.source}: found nothing that a policy could say",
            code=Code.NOTHING_FOUND,
            hint=f"flavourctl import {other} looks at the other place",
        )
    rebuild = find_rebuild_command(Path(ROOT)) or ""
    if arguments.json:
        print_json(render_draft_data(draft, rebuild))
    else:
        print(render_draft(draft, rebuild), end="")
    return 0


def _from_driverctl(root: Path) -> Draft:
    if unreadable := find_unreadable(root, [DRIVERCTL]):
        raise FlavourError(
            f"importing from driverctl: {', '.join(unreadable)} can't be read by this user",
            code=Code.NOT_PERMITTED,
            hint="sudo flavourctl import driverctl",
        )
    table = ModuleIndex(root, os.uname().release).table()
    devices = read_devices(Sysfs(str(root).rstrip("/")))
    return draft_from_driverctl(
        read_driverctl_overrides(root),
        table.flavoured_modules() | UPSTREAM_MODULES,
        {device.address for device in devices},
    )


def _from_modprobe(root: Path) -> Draft:
    cmdline = (root / "proc/cmdline").read_text(encoding="latin-1")
    conf, unread = read_modprobe_conf([root / parent / "modprobe.d" for parent in MODPROBE_D], cmdline)
    if unread:
        as_root = os.geteuid() == 0
        raise FlavourError(
            f"importing from modprobe: {unread[0].removesuffix(', ignoring')}",
            code=Code.FAILED if as_root else Code.NOT_PERMITTED,
            hint="mend or remove it" if as_root else "sudo flavourctl import modprobe",
        )
    return draft_from_modprobe(conf)
