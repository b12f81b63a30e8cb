"""Where the module index and modprobe.d lie, and when they have to be read again."""

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from vfio_flavourd.model.aliases import AliasTable
from vfio_flavourd.model.modprobe_conf import ModprobeConf, joined, parse_cmdline, parse_modprobe_conf
from vfio_flavourd.model.module_files import ModuleFiles

# The last is where NixOS keeps what was booted.
MODULES = ("lib/modules", "usr/lib/modules", "run/booted-system/kernel-modules/lib/modules")
# In order of precedence, modprobe.d(5).
MODPROBE_D = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
INDEX_FILES = ("modules.alias", "modules.dep", "modules.builtin", "modules.builtin.modinfo")
# A second change within a tick of the clock that stamps files can leave the same stamps.
SETTLED_NS = 50_000_000

_Stamp = tuple[int, int, int, int] | None


class ModuleIndex:
    """Keeps the running kernel's AliasTable, or that of `release`."""

    def __init__(self, root: Path = Path("/"), release: str | None = None) -> None:
        self._root = root
        self._release = release
        self._modprobe_d = tuple(root / directory / "modprobe.d" for directory in MODPROBE_D)
        self._read_for: str | None = None
        self._stamps: tuple[tuple[str, _Stamp], ...] = ()
        self._settled = False
        self._table = AliasTable(ModuleFiles())

    def table(self) -> AliasTable:
        """The table, read again when its files or the release have changed. Never raises for what is on disk.

        Each call looks at every file, some 1.5 µs apiece: ask once for a batch of devices.
        """
        release = self._release or os.uname().release
        if not (self._settled and release == self._read_for and self._is_fresh()):
            self._read(release)
        return self._table

    def _is_fresh(self) -> bool:
        return all(_read_stamp(path) == stamp for path, stamp in self._stamps)

    def _read(self, release: str) -> None:
        places = [self._root / place / release for place in MODULES]
        modules_dir = next((place for place in places if _read_mode(place)), places[0])
        absent = [place for place in places if not _read_mode(place)]
        index = [modules_dir / name for name in INDEX_FILES]
        confs = find_conf_files(self._modprobe_d)
        watched = [str(path) for path in (*absent, modules_dir, *index, *self._modprobe_d, *confs)]
        self._stamps = tuple((path, _read_stamp(path)) for path in watched)
        youngest = max((max(stamp[:2]) for _, stamp in self._stamps if stamp), default=0)
        self._settled = youngest + SETTLED_NS < time.time_ns()
        self._read_for = release
        cmdline, _ = _read_file(self._root / "proc/cmdline")
        self._table = read_alias_table(modules_dir, self._modprobe_d, (cmdline or b"").decode("latin-1"))


def read_alias_table(modules_dir: Path, modprobe_d: Sequence[Path], cmdline: str) -> AliasTable:
    """What can't be read becomes a warning of the table.

    `modules_dir` is like /lib/modules/<release>; `modprobe_d` are directories or single files, in order
    of precedence.
    """
    contents: dict[str, bytes | None] = {}
    warnings: list[str] = []
    for name in INDEX_FILES:
        path = modules_dir / name
        contents[name], problem = _read_file(path)
        if name == "modules.alias" and not (contents[name] or b"").strip(b"\0\n\t "):
            warnings.append(f"no aliases from {str(path)!r}: {problem or 'it is empty'}")
    files = ModuleFiles(
        str(modules_dir),
        contents["modules.alias"] or b"",
        contents["modules.builtin.modinfo"] or b"",
        contents["modules.dep"],
        contents["modules.builtin"],
    )
    confs: list[ModprobeConf] = []
    for path in find_conf_files(modprobe_d):
        data, problem = _read_file(path)
        if data is None:
            warnings.append(f"can't read {str(path)!r}: {problem}, ignoring")
        else:
            confs.append(parse_modprobe_conf(data, str(path)))
    conf = joined((*confs, parse_cmdline(cmdline)))

    def has_file(path: str) -> bool:
        """An index without its tree, such as a copy of one, says nothing about files."""
        tree = modules_dir / Path(path).parts[0]
        return bool(_read_mode(modules_dir / path)) or not stat.S_ISDIR(_read_mode(tree))

    return AliasTable(files, conf, warnings=tuple(warnings), has_file=has_file)


def find_conf_files(modprobe_d: Sequence[Path]) -> list[Path]:
    """The files in force, in the order of their names: of those with one name, the first directory's.

    A link to nowhere masks as one to /dev/null does. `.alias` files count as `.conf` ones; kmod's
    conf_files_filter_out() takes both (libkmod/libkmod-config.c).
    """
    first: dict[bytes, Path] = {}
    for directory in modprobe_d:
        if stat.S_ISREG(_read_mode(directory)):
            first.setdefault(os.fsencode(directory.name), directory)
            continue
        try:
            entries = list(directory.iterdir())
        except OSError:
            continue
        for path in entries:
            ignored = path.name.startswith(".") or path.suffix not in (".conf", ".alias")
            if not ignored and not stat.S_ISDIR(_read_mode(path)):
                first.setdefault(os.fsencode(path.name), path)
    return [first[name] for name in sorted(first)]


def _read_file(path: Path) -> tuple[bytes | None, str]:
    """The content, or None and why. Anything but a file (a link to /dev/null among it) is empty, unread."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return None, os.strerror(error.errno or 0).lower()
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b"", "it is not a file"
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readall(), ""
    except OSError as error:
        return None, os.strerror(error.errno or 0).lower()
    finally:
        os.close(descriptor)


def _read_mode(path: Path) -> int:
    """0 for what isn't there or can't be looked at."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _read_stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)  # noqa: PTH116 - on each call for each file; a Path costs as much again
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
