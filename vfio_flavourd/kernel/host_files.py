"""Reads of what may vanish, or be denied, while it is looked at: there is nothing then.

`Sysfs` tells why a read failed, for a device that somebody asked about. Who looks for users passes by
thousands of processes and files that are none of a request's business.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..model.errors import FlavourError
from .sysfs import Sysfs


class HostFiles:
    """Reads below `root` (empty for the real one). A path is given as the kernel names it."""

    def __init__(self, root: str = "") -> None:
        self.root = root
        self._sysfs = Sysfs(root)

    def read(self, path: str) -> str:
        """The whole text; empty when it can't be read."""
        try:
            with open(self.root + path, "rb", buffering=0) as file:  # noqa: PTH123 - for thousands
                return file.readall().decode("utf-8", "replace")
        except OSError:
            return ""

    def read_value(self, path: str) -> str:
        return self.read(path).rstrip("\n\0")

    def read_lines(self, path: str) -> Iterator[str]:
        """Line by line, since a router's tables in /proc/net have a million; ends where it can't go on."""
        with suppress(OSError), Path(self.root + path).open("rb") as file:
            for line in file:
                yield line.decode("utf-8", "replace").rstrip("\n")

    def read_properties(self, path: str) -> dict[str, str]:
        """The KEY=VALUE lines of a `uevent`. Only for devices of a class: that of a device on a bus may
        wait for its lock."""
        return dict(line.split("=", 1) for line in self.read(path).split("\n") if "=" in line)

    def find_link(self, path: str) -> str | None:
        try:
            return self._sysfs.find_link(path)
        except FlavourError:
            return None

    def follow(self, path: str) -> str | None:
        try:
            return self._sysfs.follow(path)
        except FlavourError:
            return None

    def list(self, path: str) -> tuple[str, ...]:
        try:
            return self._sysfs.list(path)
        except FlavourError:
            return ()

    def exists(self, path: str) -> bool:
        return self._sysfs.exists(path)

    def list_processes(self) -> tuple[int, ...]:
        """By number, so that process 1 is the first."""
        return tuple(sorted(int(name) for name in self.list("/proc") if name.isdecimal()))

    def read_name(self, pid: int) -> str:
        """What a process is called. Not by its `cmdline`, which waits for a lock of its address space."""
        return self.read_value(f"/proc/{pid}/comm") or "a process"
