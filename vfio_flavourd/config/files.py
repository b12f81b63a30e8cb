"""Which policy files there are, and whether they can be trusted.

Every directory on the way is opened without following links and looked at through its descriptor, so what
was checked is what is read.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .problems import Place, Report

DIRECTORIES = tuple(
    f"{parent}/vfio-flavourd/policy.d" for parent in ("etc", "run", "usr/local/lib", "usr/lib")
)

# A person writes no more; whoever wants more has many files.
SIZE_LIMIT = 64 * 1024
TOTAL_LIMIT = 1024 * 1024

_A_LINK = "is a symbolic link, which is not followed"

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO would make its reader wait, and a device may do something when it is opened.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One that counts: it is neither masked nor overridden."""

    path: str
    data: bytes


def read_policy_files(root: Path, owner: int, report: Report) -> list[PolicyFile]:
    """In the order of their names. Everything must belong to `owner` and be writable by nobody else; what
    isn't so is reported, with everything else that keeps a file from being read."""
    found: dict[str, PolicyFile | None] = {}
    total = 0
    for directory in DIRECTORIES:
        opened = _open_directory(root, directory, owner, report)
        if opened is None:
            continue
        try:
            for name in sorted(os.listdir(opened)):
                if name in found or name.startswith("."):
                    continue
                if name.endswith(".yaml"):
                    file = found[name] = _read(opened, str(root / directory), name, owner, report)
                    total += 0 if file is None else len(file.data)
                    if total > TOTAL_LIMIT:
                        what = f"all files together are larger than {TOTAL_LIMIT} bytes"
                        report.error(Place(str(root / DIRECTORIES[0])), what)
                        return _in_order(found)
                elif name.endswith((".yml", ".json")):
                    report.warn(Place(f"{root / directory}/{name}"), "not named *.yaml, ignoring")
        finally:
            os.close(opened)
    return _in_order(found)


def _in_order(found: Mapping[str, PolicyFile | None]) -> list[PolicyFile]:
    return [file for _, file in sorted(found.items()) if file is not None]


def read_named_files(paths: Sequence[Path], limit: int, report: Report) -> list[PolicyFile]:
    """Of fewer than `limit` bytes each. Only what is in them counts, not whose they are."""
    files = []
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(limit)
        except OSError as error:
            report.error(Place(str(path)), f"can't be read: {error.strerror}")
            continue
        if _is_small(len(data), str(path), report, limit):
            files.append(PolicyFile(str(path), data))
    return files


def _open_directory(root: Path, directory: str, owner: int, report: Report) -> int | None:
    """A descriptor; None where there is no directory, or none that can be trusted."""
    at = root
    opened = os.open(at, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    trouble: tuple[Path, str, str] | None = None
    try:
        trouble = _find_unsafe(os.fstat(opened), at, owner)
        for part in Path(directory).parts:
            at /= part
            # Only the last one is to be listed.
            access = os.O_RDONLY if at == root / directory else os.O_PATH
            further = os.open(part, access | _DIRECTORY, dir_fd=opened)
            os.close(opened)
            opened = further
            trouble = trouble or _find_unsafe(os.fstat(opened), at, owner)
        if trouble is None:
            return opened
    except FileNotFoundError:
        trouble = None
    except OSError as error:
        # O_NOFOLLOW with O_DIRECTORY says of a link that it is no directory.
        what = _A_LINK if at.is_symlink() else f"can't be read: {error.strerror}"
        # Some systems have /usr/local as a link. With no such directory behind it there is nothing to refuse.
        is_absent = isinstance(error, NotADirectoryError) and not os.path.lexists(root / directory)
        trouble = None if is_absent else (at, what, "")
    os.close(opened)
    if trouble is not None:
        path, message, hint = trouble
        report.error(Place(str(path)), message, hint)
    return None


def _read(directory: int, path: str, name: str, owner: int, report: Report) -> PolicyFile | None:
    """None where there is nothing to be had of it, also because it is masked."""
    place = Place(f"{path}/{name}")
    try:
        if stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
            if os.readlink(name, dir_fd=directory) != "/dev/null":
                hint = "put the file itself there; a link to /dev/null masks files of the same name"
                report.error(place, _A_LINK, hint)
            return None
        file = os.open(name, _FILE, dir_fd=directory)
        try:
            return _read_trusted(file, place, owner, report, directory, name)
        finally:
            os.close(file)
    except OSError as error:
        report.error(place, f"can't be read: {error.strerror}")
        return None


def _read_trusted(
    file: int, place: Place, owner: int, report: Report, directory: int, name: str
) -> PolicyFile | None:
    before = os.fstat(file)
    if not stat.S_ISREG(before.st_mode):
        report.error(place, "is not a regular file")
        return None
    unsafe = _find_unsafe(before, Path(place.file), owner)
    if unsafe is not None:
        report.error(place, *unsafe[1:])
        return None
    data = b"".join(iter(lambda: os.read(file, SIZE_LIMIT), b"")) if before.st_size < SIZE_LIMIT else b""
    if not _is_small(max(before.st_size, len(data)), place.file, report):
        return None
    now = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not _same(before, os.fstat(file)) or not _same(before, now) or len(data) != before.st_size:
        report.error(place, "changed while it was being read", "reload when it has been written")
        return None
    return PolicyFile(place.file, data)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_mode", "st_uid")
    )


def _find_unsafe(status: os.stat_result, path: Path, owner: int) -> tuple[Path, str, str] | None:
    """What is wrong with its rights, and what to do. A sticky directory is no exception: anyone can make
    something new in it."""
    if status.st_uid != owner:
        wanted = "root" if owner == 0 else f"user {owner}"
        return path, f"belongs to user {status.st_uid}, not to {wanted}", f"chown {owner} {path}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        return path, f"its group or others can write to it, its mode is {mode:04o}", f"chmod go-w {path}"
    return None


def _is_small(size: int, path: str, report: Report, limit: int = SIZE_LIMIT) -> bool:
    if size < limit:
        return True
    report.error(Place(path), f"is {limit // 1024} KiB or larger", "split it: every *.yaml file counts")
    return False
