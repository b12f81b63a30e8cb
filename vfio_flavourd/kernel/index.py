"""Where the module index and modprobe.d lie, and when they have to be read again."""

import asyncio
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vfio_flavourd.model.alias_index import AliasIndex
from vfio_flavourd.model.aliases import AliasTable
from vfio_flavourd.model.modalias import FLAVOUR_PREFIX
from vfio_flavourd.model.modprobe_conf import ModprobeConf, joined, parse_cmdline, parse_modprobe_conf
from vfio_flavourd.model.module_files import ModuleFiles

# The last is where NixOS keeps what was booted.
MODULES = ("lib/modules", "usr/lib/modules", "run/booted-system/kernel-modules/lib/modules")
# In order of precedence, modprobe.d(5).
MODPROBE_D = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
INDEX_FILES = (
    *("modules.alias", "modules.alias.bin", "modules.dep"),
    *("modules.builtin", "modules.builtin.modinfo"),
)
# A second change within a tick of the clock that stamps files can leave the same stamps.
SETTLED_NS = 50_000_000


class ModuleIndex:
    """Keeps the running kernel's AliasTable, or that of `release`; `modprobe_d` stand for the system's."""

    def __init__(
        self, root: Path = Path("/"), release: str | None = None, modprobe_d: Sequence[Path] = ()
    ) -> None:
        self._root = root
        self._release = release
        self._modprobe_d = tuple(modprobe_d) or find_modprobe_d(root)
        self._read_for: str | None = None
        self._present: tuple[tuple[str, int, int], ...] = ()
        self._absent: tuple[str, ...] = ()
        self._settled = False
        self._held = False
        self._table = AliasTable(ModuleFiles())

    def table(self) -> AliasTable:
        """The table, read again when its files or the release have changed. Never raises for what is on disk.

        A look at every file takes some 1.5 µs apiece, so it is taken once in a turn of the loop. `held` is
        for a batch of devices where there is none.
        """
        if self._held:
            return self._table
        release = self._release or os.uname().release
        if not (self._settled and release == self._read_for and self._is_fresh()):
            self._read(release)
        self._hold_for_this_turn()
        return self._table

    def _hold_for_this_turn(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._held = True
        loop.call_soon(self._let_go)

    def _let_go(self) -> None:
        self._held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Looks once, and not again until the end: for what does not pause meanwhile."""
        self.table()
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _is_fresh(self) -> bool:
        """A file's ctime changes with whatever is done to it, a directory's with each name in it."""
        try:
            for path, changed, inode in self._present:
                status = os.stat(path)  # noqa: PTH116 - a Path would double what each look costs
                if status.st_ctime_ns != changed or status.st_ino != inode:
                    return False
        except OSError:
            return False
        return not any(os.access(path, os.F_OK) for path in self._absent)

    def _read(self, release: str) -> None:
        modules_dir = find_modules_dir(self._root, release)
        passed_by = [place for place in _places(self._root, release) if not _read_mode(place)]
        index = [modules_dir / name for name in INDEX_FILES]
        self._watch([*passed_by, *index, *self._modprobe_d, *find_conf_files(self._modprobe_d)])
        self._read_for = release
        cmdline, _ = _read_file(self._root / "proc/cmdline")
        self._table = read_alias_table(modules_dir, self._modprobe_d, (cmdline or b"").decode("latin-1"))

    def _watch(self, paths: Iterable[Path]) -> None:
        """Before the files are read: what changes while they are is then read again."""
        present: dict[tuple[int, int], tuple[str, int, int]] = {}
        absent = []
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                absent.append(str(path))
            else:
                # /lib is a link to /usr/lib on most hosts: one look is enough.
                seen = (str(path), status.st_ctime_ns, status.st_ino)
                present.setdefault((status.st_dev, status.st_ino), seen)
        self._present = tuple(present.values())
        self._absent = tuple(absent)
        youngest = max((changed for _, changed, _ in self._present), default=0)
        self._settled = youngest + SETTLED_NS < time.time_ns()


def find_modprobe_d(root: Path) -> tuple[Path, ...]:
    """Where the system's modprobe.d is, in order of precedence."""
    return tuple(root / directory / "modprobe.d" for directory in MODPROBE_D)


def find_modules_dir(root: Path, release: str) -> Path:
    """Where a kernel's modules are; where they would be, when they are nowhere."""
    places = _places(root, release)
    return next((place for place in places if _read_mode(place)), places[0])


def _places(root: Path, release: str) -> list[Path]:
    return [root / place / release for place in MODULES]


def read_alias_table(modules_dir: Path, modprobe_d: Sequence[Path], cmdline: str) -> AliasTable:
    """What can't be read becomes a warning of the table.

    `modules_dir` is like /lib/modules/<release>; `modprobe_d` are directories or single files, in order
    of precedence.
    """
    warnings: list[str] = []
    alias = modules_dir / "modules.alias"
    indexed, problem = _read_indexed(alias, FLAVOUR_PREFIX)
    if problem:
        warnings.append(
            f"can't use '{alias}.bin': {problem}, reading {alias.name} instead; depmod makes it anew"
        )
    text, problem = (None, "") if indexed else _read_file(alias)
    if not indexed and b"alias" not in (text or b""):
        warnings.append(f"no aliases from {str(alias)!r}: {problem or 'it has none'}")
    files = ModuleFiles(
        str(modules_dir),
        lambda: (_read_file(alias)[0] or b"") if text is None else text,
        {FLAVOUR_PREFIX: indexed} if indexed else {},
        _read_file(modules_dir / "modules.builtin.modinfo")[0] or b"",
        _read_file(modules_dir / "modules.dep")[0],
        _read_file(modules_dir / "modules.builtin")[0],
    )
    conf, unread = read_modprobe_conf(modprobe_d, cmdline)

    def has_file(path: str) -> bool:
        """An index without its tree, such as a copy of one, says nothing about files."""
        tree = modules_dir / Path(path).parts[0]
        return bool(_read_mode(modules_dir / path)) or not stat.S_ISDIR(_read_mode(tree))

    return AliasTable(files, conf, warnings=(*warnings, *unread), has_file=has_file)


def find_damage(modules_dir: Path) -> str:
    """What is wrong with depmod's index of aliases; empty where it is used, or doesn't count."""
    return _read_indexed(modules_dir / "modules.alias", FLAVOUR_PREFIX)[1]


def _read_indexed(alias: Path, prefix: str) -> tuple[list[tuple[bytes, bytes]], str]:
    """What depmod's index has of this prefix, and what is wrong with the index. Nothing where it is older
    than modules.alias, which somebody has edited then, or where that can't be read: others need it."""
    try:
        with open(alias, "rb", opener=_open) as text, open(f"{alias}.bin", "rb", opener=_open) as index:
            there = [os.fstat(file.fileno()) for file in (text, index)]
            if not all(stat.S_ISREG(each.st_mode) for each in there):
                return [], ""
            # Not by their ctime: what copies or unpacks a tree keeps when its files were written.
            if there[1].st_mtime_ns < there[0].st_mtime_ns:
                return [], ""
            read = partial(_read_at, index.fileno())
            return AliasIndex(read).find(f"{prefix}:".encode()), ""
    except OSError:
        return [], ""
    except ValueError as error:
        return [], str(error)


def _open(path: str, flags: int) -> int:
    """One that is a pipe is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_at(descriptor: int, at: int, size: int) -> bytes:
    return os.pread(descriptor, size, at)


def read_modprobe_conf(modprobe_d: Sequence[Path], cmdline: str) -> tuple[ModprobeConf, tuple[str, ...]]:
    """What is in force of modprobe.d and the kernel command line, and which files can't be read."""
    confs: list[ModprobeConf] = []
    unread = []
    for path in find_conf_files(modprobe_d):
        data, problem = _read_file(path)
        if data is None:
            unread.append(f"can't read {str(path)!r}: {problem}, ignoring")
        else:
            confs.append(parse_modprobe_conf(data, str(path)))
    return joined((*confs, parse_cmdline(cmdline))), tuple(unread)


def find_conf_files(modprobe_d: Sequence[Path]) -> list[Path]:
    """The files in force, in the order of their names: of those with one name, the first directory's.

    A link to nowhere masks as one to /dev/null does. `.alias` files, which kmod took before version 34 and
    modprobe.d(5) never named, do not count.
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
            ignored = path.name.startswith(".") or path.suffix != ".conf"
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
