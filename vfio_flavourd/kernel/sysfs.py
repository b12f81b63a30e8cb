"""Reads of sysfs, with its root injected.

Writes are not here: they may block for as long as somebody holds the device, so they are made by a
process of their own (`hands`).
"""

import errno
import os

from ..model.codes import Code
from ..model.errors import FlavourError


class Sysfs:
    """Reads below `root` (empty for the real one). A path is given as the kernel names it, from `/sys`."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    def read(self, path: str) -> str:
        """An attribute's text without its newline. Raises FlavourError: ENODEV when it is gone, else EIO."""
        try:
            # A file object would take longer than the read.
            descriptor = os.open(self.root + path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, 4096).decode("utf-8", "replace").rstrip("\n\0")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._translate(path, error) from error

    def find_link(self, path: str) -> str | None:
        """The last part of a link's target; None when there is no such link."""
        target = self._read_link(path)
        return None if target is None else target[target.rfind("/") + 1 :]

    def follow(self, path: str) -> str | None:
        """Where one link leads, as the kernel names it; None when there is no such link."""
        target = self._read_link(path)
        if target is None:
            return None
        # sysfs links are relative; a test's tree may have absolute ones.
        return os.path.normpath(os.path.join(os.path.dirname(path), target.removeprefix(self.root)))

    def list(self, path: str) -> tuple[str, ...]:
        """The sorted names in a directory; none when it does not exist."""
        try:
            return tuple(sorted(os.listdir(self.root + path)))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise self._translate(path, error) from error

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root + path)

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(self.root + path)

    def read_inode(self, path: str) -> int:
        """Raises FlavourError, as `read` does."""
        try:
            return os.stat(self.root + path).st_ino
        except OSError as error:
            raise self._translate(path, error) from error

    def _read_link(self, path: str) -> str | None:
        try:
            return os.readlink(self.root + path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._translate(path, error) from error

    @staticmethod
    def _translate(path: str, error: OSError) -> FlavourError:
        # A directory that vanishes while it is read gives ENOENT, an attribute of a removed device ENODEV.
        gone = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        return FlavourError(
            f"reading {path!r} failed: {os.strerror(error.errno or errno.EIO)}",
            code=Code.DEVICE_GONE if gone else Code.FAILED,
            hint="flavourctl list shows whether the device is still there" if gone else "",
        )
