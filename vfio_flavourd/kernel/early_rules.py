"""The compiled rules on disk, and whether an initramfs has been made since they last changed.

Their time stamp is when what they do last changed: where only their comments differ, it stays.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EIO
from pathlib import Path

from ..model.codes import Code
from ..model.errors import FlavourError
from ..model.udev_rules import RULES_NAME, Compiled

RULES = f"etc/udev/rules.d/{RULES_NAME}"

# libexec/policy-changed looks at the same files.
_SOURCES = (
    *(f"{parent}/vfio-flavourd/policy.d/*.yaml" for parent in ("etc", "run", "usr/local/lib", "usr/lib")),
    *(f"{parent}/modprobe.d/*.conf" for parent in ("etc", "run", "usr/local/lib", "usr/lib")),
)

# As initramfs-tools (Debian), dracut (Fedora, and others with initrd-) name them.
_IMAGE = re.compile(r"(?:initrd\.img|initramfs|initrd)-(.+?)(?:\.img)?", re.ASCII)
# kernel-install(8) has them in a directory for each kernel, named after it, within one for each system.
_ENTRIES = ("boot/*/*/initrd*", "boot/efi/*/*/initrd*", "efi/*/*/initrd*")
_REBUILD = (
    ("usr/sbin/update-initramfs", "update-initramfs -u -k all"),
    ("usr/bin/dracut", "dracut --force --regenerate-all"),
    ("usr/sbin/dracut", "dracut --force --regenerate-all"),
)


@dataclass(frozen=True, slots=True)
class StaleInitramfs:
    """One older than the rules: what it holds was made of an earlier policy, or of none. `running` says
    that it is the running kernel's."""

    path: Path
    release: str
    running: bool


def read_sources(root: Path, release: str) -> tuple[str, ...]:
    """What the rules depend on, as `path size mtime`: the policy, and where the variants are listed.

    To be read before the files themselves, so that what changes meanwhile is noticed the next time. Links
    are not followed: a policy file is none, and one to /dev/null would differ at each boot.
    """
    paths = [path for pattern in _SOURCES for path in root.glob(pattern) if not path.name.startswith(".")]
    lines = []
    for path in (*paths, root / "lib/modules" / release / "modules.alias"):
        try:
            status = path.lstat()
        except OSError:
            continue
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        lines.append(f"/{path.relative_to(root)} {status.st_size} {seconds}.{nanoseconds:09d}")
    return tuple(sorted(lines, key=os.fsencode))


def find_policy(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are files of the policy."""
    return tuple(source for source in sources if "/vfio-flavourd/policy.d/" in source)


def read_rules(root: Path) -> str | None:
    """Raises FlavourError where they are there but can't be read."""
    try:
        return os.fsdecode((root / RULES).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed("reading", root, error) from error


def write_rules(root: Path, compiled: Compiled) -> bool:
    """Whether the file differs now; what isn't there and would do nothing is not made. Raises FlavourError.

    A file that has nothing to do any more stays, without rules: an initramfs may still have the earlier
    ones, and its time stamp tells.
    """
    path = root / RULES
    before = read_rules(root)
    if before == compiled.text or (before is None and not compiled.acts):
        return False
    aside = path.with_name(f".{path.name}.new")
    try:
        stamp = path.stat().st_mtime_ns if before is not None else None
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(os.fsencode(compiled.text))
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            if stamp is not None and _effect(before or "") == _effect(compiled.text):
                os.utime(file.fileno(), ns=(stamp, stamp))
            os.fsync(file.fileno())
        aside.replace(path)
        _sync(path.parent)
    except OSError as error:
        with suppress(OSError):  # it was never made, or has its name by now
            aside.unlink()
        raise _failed("writing", root, error) from error
    return True


def find_stale_initramfs(root: Path, release: str) -> tuple[StaleInitramfs, ...]:
    """The running kernel's first; only of kernels whose modules are installed."""
    try:
        changed = (root / RULES).stat().st_mtime_ns
    except OSError:
        return ()
    stale = []
    for path, kernel in _find_images(root):
        try:
            made = path.stat().st_mtime_ns
        except OSError:
            continue
        if made < changed and (root / "lib/modules" / kernel).is_dir():
            stale.append(StaleInitramfs(path, kernel, running=kernel == release))
    return tuple(sorted(stale, key=lambda image: not image.running))


def _find_images(root: Path) -> Iterator[tuple[Path, str]]:
    """Each with the release of its kernel."""
    for path in sorted((root / "boot").glob("*")):
        if named := _IMAGE.fullmatch(path.name):
            yield path, named[1]
    for pattern in _ENTRIES:
        for path in sorted(root.glob(pattern)):
            yield path, path.parent.name


def find_rebuild_command(root: Path) -> str | None:
    """What makes the initramfs of every kernel anew on this host."""
    return next((command for program, command in _REBUILD if (root / program).exists()), None)


def _effect(text: str) -> list[str]:
    return [line for line in text.split("\n") if line and not line.startswith("#")]


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(what: str, root: Path, error: OSError) -> FlavourError:
    return FlavourError(
        f"{what} {str(root / RULES)!r} failed: {os.strerror(error.errno or EIO)}",
        code=Code.NOT_SAVED,
        hint="until that works, native drivers bind first at boot and the daemon switches devices later",
    )
