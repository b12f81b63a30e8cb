"""resolve: works on the index itself, without the daemon."""

import argparse
from dataclasses import asdict
from pathlib import Path

from ..kernel.index import ModuleIndex, find_modprobe_d, read_alias_table
from ..kernel.inventory import read_device
from ..kernel.sysfs import Sysfs
from ..model.address import parse_address
from ..model.codes import Code
from ..model.errors import FlavourError
from .output import print_json, tell_candidates


def resolve(arguments: argparse.Namespace) -> int:
    sysfs = Sysfs()
    modalias = arguments.device
    if not modalias.startswith(("pci:", "vfio_pci:")):
        modalias = read_device(sysfs, parse_address(modalias)).modalias
    modules_dir, modprobe_d = arguments.modules_dir, arguments.modprobe_d or ()
    for path in (modules_dir, *modprobe_d):
        trouble = ""
        if path is not None and not path.exists():
            trouble = f"there is no {str(path)!r}"
        elif path is modules_dir is not None and not path.is_dir():
            trouble = f"{str(path)!r} is not a directory"
        if trouble:
            raise FlavourError(
                trouble,
                code=Code.INVALID_ARGUMENT,
                hint="--modules-dir takes one like /lib/modules/6.12.1, --modprobe-d like /etc/modprobe.d",
            )
    if modules_dir is None:
        table, loaded = ModuleIndex(modprobe_d=modprobe_d).table(), sysfs.list("/sys/module")
    else:
        # Another tree than the running kernel's: what is loaded, or on its command line, says nothing of it.
        table, loaded = read_alias_table(modules_dir, modprobe_d or find_modprobe_d(Path("/")), ""), ()
    resolution = table.resolve(modalias, loaded=loaded)
    data = {
        "modalias": resolution.modalias,
        "candidates": [asdict(candidate) for candidate in resolution.candidates],
        "winner": resolution.winner,
        "warnings": list(resolution.warnings),
    }
    if arguments.json:
        print_json(data)
    else:
        print(resolution.modalias)
        for line in tell_candidates(data):
            print(f"  {line}")
    return 0 if resolution.winner is not None else 1
