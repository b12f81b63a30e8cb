"""Tells udev who may open VFIO nodes: files for its rules, and events for nodes that are there already."""

import logging
import os
from pathlib import Path

from .inventory import DEVICES, find_vfio_device
from .sysfs import Sysfs

_log = logging.getLogger(__name__)

# Below the daemon's own directory in /run, where 91-vfio-flavourd-nodes.rules looks.
DIRECTORY = "nodes"

# Class devices without a parent, vfio_create_group() in drivers/vfio/group.c.
_GROUPS = "/sys/devices/virtual/vfio"


def write_node_files(directory: Path, files: dict[str, str]) -> tuple[str, ...]:
    """The names of those that differ now, be it that they are gone. To be called before a node appears.

    Raises OSError.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    before = {path.name: path.read_text(encoding="ascii") for path in directory.iterdir()}
    differing = []
    for name in sorted(before.keys() | files.keys()):
        if before.get(name) == files.get(name):
            continue
        if not name.startswith("."):
            differing.append(name)
        if name in files:
            aside = directory / f".{name}"
            aside.write_text(files[name], encoding="ascii")
            aside.replace(directory / name)
        else:
            (directory / name).unlink()
    return tuple(differing)


def announce(sysfs: Sysfs, names: tuple[str, ...]) -> None:
    """Has udev look again at the nodes of these groups and devices, where there are any.

    Neither a group nor a VFIO device has a driver of its own, so writing to its `uevent` waits for nobody.
    """
    for name in names:
        if name.isdecimal():
            path = f"{_GROUPS}/{name}"
        elif (child := find_vfio_device(sysfs, f"{DEVICES}/{name}")) is not None:
            path = f"{DEVICES}/{name}/vfio-dev/{child}"
        else:
            continue
        try:
            descriptor = os.open(f"{sysfs.root}{path}/uevent", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            _log.debug("no node to look at in %r: %s", path, error)
            continue
        try:
            os.write(descriptor, b"change")
        except OSError as error:
            _log.debug("udev is not told of %r: %s", path, error)
        finally:
            os.close(descriptor)
