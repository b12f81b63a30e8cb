"""Disks that the kernel itself serves to other hosts: it opens them without a holder's link, and without a
process that has them open. Only the configuration file system tells.

Where LIO and the NVMe target aren't loaded nothing of this is there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .host_files import HostFiles

_TARGETS = "/sys/kernel/config/target/core"
_SUBSYSTEMS = "/sys/kernel/config/nvmet/subsystems"

# As the kernel's own limit is (MAXSYMLINKS).
_LINKS = 40


@dataclass(frozen=True, slots=True)
class Export:
    """`path` is its directory; `names` are what is served as who set it up has named it, and where links in
    /dev lead from there; `number` its major:minor where that is told."""

    name: str
    path: str
    names: tuple[str, ...]
    number: str = ""


def read_exports(files: HostFiles) -> tuple[Export, ...]:
    """Those that are set up. One that isn't enabled has nothing open."""
    return tuple(
        each for each in (*_find_targets(files), *_find_namespaces(files)) if _is_enabled(files, each.path)
    )


def _find_targets(files: HostFiles) -> Iterator[Export]:
    """LIO's backstores: `iblock` opens a disk, `fileio` and `pscsi` may. What `udev_path` says is for people,
    though all tools set it; of an iblock `info` tells which device it has open
    (drivers/target/target_core_iblock.c)."""
    for adapter in files.list(_TARGETS):
        for store in files.list(f"{_TARGETS}/{adapter}"):
            path = f"{_TARGETS}/{adapter}/{store}"
            number = re.search(r"^ *Major: (\d+) Minor: (\d+)", files.read(f"{path}/info"), re.MULTILINE)
            yield Export(
                f"SCSI target {adapter}/{store}",
                path,
                _find_names(files, files.read_value(f"{path}/udev_path")),
                f"{number[1]}:{number[2]}" if number else "",
            )


def _find_namespaces(files: HostFiles) -> Iterator[Export]:
    """A namespace is served of a disk, or a whole controller by its character device
    (drivers/nvme/target/configfs.c)."""
    for subsystem in files.list(_SUBSYSTEMS):
        path = f"{_SUBSYSTEMS}/{subsystem}"
        parts = [f"namespaces/{number}" for number in files.list(f"{path}/namespaces")]
        for part in (*parts, "passthru"):
            names = _find_names(files, files.read_value(f"{path}/{part}/device_path"))
            what = part.replace("namespaces/", "namespace ")
            yield Export(f"NVMe target {subsystem} {what}", f"{path}/{part}", names)


def _is_enabled(files: HostFiles, path: str) -> bool:
    """Also where it can't be told."""
    return files.read_value(f"{path}/enable") != "0"


def _find_names(files: HostFiles, path: str) -> tuple[str, ...]:
    """Only in /dev is it certain that looking doesn't wait for a server."""
    names: list[str] = []
    target: str | None = path
    while target is not None and target.startswith("/dev/") and len(names) < _LINKS:
        names.append(target)
        target = files.follow(target)
    return tuple(names)
