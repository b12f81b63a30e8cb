"""resolve: works on the index itself, without the daemon."""

import argparse
from dataclasses import asdict
from pathlib import Path

from ..kernel.index import MODPROBE_D, ModuleIndex, read_alias_table
from ..kernel.inventory import read_device
from ..kernel.sysfs import Sysfs
from ..model.address import parse_address
from .output import print_json, tell_candidates


def resolve(arguments: argparse.Namespace) -> int:
    sysfs = Sysfs()
    modalias = arguments.device
    if not modalias.startswith(("pci:", "vfio_pci:")):
        modalias = read_device(sysfs, parse_address(modalias)).modalias
    if arguments.modules_dir is None and arguments.modprobe_d is None:
        resolution = ModuleIndex().table().resolve(modalias, loaded=sysfs.list("/sys/module"))
    else:
        # Another tree than the running kernel's: what is loaded here says nothing about it.
        import os

        modules_dir = arguments.modules_dir or Path("/lib/modules") / os.uname().release
        modprobe_d = arguments.modprobe_d or [
            Path("/") / directory / "modprobe.d" for directory in MODPROBE_D
        ]
        resolution = read_alias_table(modules_dir, modprobe_d, "").resolve(modalias)
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
