"""Build stages kept between runs, each in a directory named after the hash of its inputs."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Enough for two branches and their packages side by side; a guest that is running keeps its
# image open, so removing the file from under it does no harm.
KEPT = 2


def cache_directory() -> Path:
    if explicit := os.environ.get("VFIO_FLAVOUR_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vfio-flavourd"


def hash_inputs(*inputs: str | Path) -> str:
    """Text counts as it is; a file by its content and mode; a directory by all its files."""
    digest = hashlib.sha256()
    for value in inputs:
        if isinstance(value, str):
            digest.update(f"text {len(value)}\n{value}".encode())
            continue
        for path in sorted(value.rglob("*")) if value.is_dir() else [value]:
            if path.is_symlink():
                digest.update(f"link {path.relative_to(value)} {path.readlink()}\n".encode())
            elif path.is_file():
                content = path.read_bytes()
                digest.update(f"file {path.relative_to(value)} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()[:16]


def stage(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory `name`-`key`, made by `build` unless it is there already.

    `build` fills a directory that is renamed once it is complete, so an interrupted build leaves
    nothing that a later one would take for good.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    done = cache / f"{name}-{key}"
    with locked(cache / f"{name}.lock"):
        if not done.is_dir():
            partial = cache / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            build(partial)
            partial.rename(done)
        os.utime(done)
        _forget_oldest(cache, name)
    return done


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_oldest(cache: Path, name: str) -> None:
    stages = [path for path in cache.iterdir() if path.name.rpartition("-")[0] == name and path.is_dir()]
    stages.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in stages[KEPT:]:
        shutil.rmtree(path)
