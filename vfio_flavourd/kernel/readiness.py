"""Reads what tells whether a host is ready. Nothing here raises for what isn't there or can't be read."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..model.aliases import AliasTable
from ..model.readiness.facts import Index, Platform
from ..model.upstream_variants import UPSTREAM_VARIANTS
from .claims import DRIVERCTL
from .host_files import HostFiles
from .index import MODPROBE_D, find_damage, find_modules_dir, read_modprobe_conf
from .inventory import IOMMU_GROUPS
from .module_lock import LOCKDOWN, read_module_lock

_TABLES = "/sys/firmware/acpi/tables"
# UEFI Specification, 3.3 Globally Defined Variables: four bytes of attributes come first.
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_BOOT_LOADERS = (
    ("usr/sbin/grubby", "grubby"),
    ("usr/sbin/update-grub", "update-grub"),
    ("etc/kernel/cmdline", "kernel-install"),
)
_GENERIC_MODALIAS = "pci:v0000FFFFd0000FFFFsv0000FFFFsd0000FFFFbcFFscFFiFF"
# A package manager unpacks modules and runs depmod right after; within this time they belong together.
_SETTLED_NS = 2_000_000_000


def read_platform(root: Path, release: str) -> Platform:
    files = HostFiles(str(root).rstrip("/"))
    tables = files.list(_TABLES)
    lock = read_module_lock(files)
    return Platform(
        release=release,
        machine=os.uname().machine,
        cpu_vendor=_read_cpu_vendor(files),
        cmdline=files.read_value("/proc/cmdline"),
        groups=len(files.list(IOMMU_GROUPS)),
        units=files.list("/sys/class/iommu"),
        tables=frozenset(tables) if tables else None,
        boot_loader=next((name for path, name in _BOOT_LOADERS if (root / path).exists()), ""),
        is_noiommu_enabled=_is_set(files, "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"),
        secure_boot=_read_secure_boot(root),
        lockdown=lock.lockdown,
        is_signature_enforced=_is_set(files, "/sys/module/module/parameters/sig_enforce"),
        are_modules_disabled=lock.are_disabled,
        unreadable=(
            *find_unreadable(root, [DRIVERCTL]),
            *(f"/{name}" for name in ("boot", _SECURE_BOOT, LOCKDOWN.lstrip("/")) if _is_hidden(root / name)),
        ),
    )


def read_index(root: Path, release: str, table: AliasTable) -> Index:
    files = HostFiles(str(root).rstrip("/"))
    directory = find_modules_dir(root, release)
    conf, unread = read_modprobe_conf(
        [root / parent / "modprobe.d" for parent in MODPROBE_D], files.read("/proc/cmdline")
    )
    flavoured = frozenset(alias.module for alias in table.flavoured_aliases())
    return Index(
        directory=str(directory),
        alias_trouble=_find_alias_trouble(directory / "modules.alias"),
        damage=find_damage(directory),
        generic=table.resolve(_GENERIC_MODALIAS, loaded=files.list("/sys/module")).candidates[-1],
        trouble=unread,
        skipped=table.skipped,
        newer=_find_newer(directory),
        is_generic_loaded=files.exists("/sys/module/vfio_pci"),
        flavoured=flavoured,
        config=_read_config(root, directory, release),
        conf=conf,
    )


def find_unreadable(root: Path, directories: Iterable[str]) -> tuple[str, ...]:
    """Which of these, and of the files in them, this user may not read."""
    unreadable = []
    for name in directories:
        directory = root / name
        try:
            paths = [directory, *directory.iterdir()]
        except OSError:
            paths = [directory]
        unreadable += [f"/{path.relative_to(root)}" for path in paths if _is_hidden(path)]
    return tuple(unreadable)


def _is_hidden(path: Path) -> bool:
    """What isn't there is not."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return not os.access(path, os.R_OK)


def is_mounted(root: Path, point: str, fs_type: str) -> bool:
    """In this process's own view."""
    for line in HostFiles(str(root).rstrip("/")).read_lines("/proc/self/mountinfo"):
        fields = line.split()
        if len(fields) > 6 and fields[4] == point and fs_type in fields[6:]:
            return True
    return False


def _is_set(files: HostFiles, path: str) -> bool:
    return files.read_value(path) in ("1", "Y")


def _read_cpu_vendor(files: HostFiles) -> str:
    for line in files.read_lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "vendor_id":
            return value.strip()
    return ""


def _read_secure_boot(root: Path) -> bool | None:
    try:
        return (root / _SECURE_BOOT).read_bytes()[4:5] == b"\1"
    except OSError:
        return None


def _find_alias_trouble(path: Path) -> str:
    try:
        return "" if b"alias" in path.read_bytes() else "it has no aliases"
    except OSError as error:
        return os.strerror(error.errno or 0).lower()


def _find_newer(directory: Path) -> str:
    """The first directory of modules that has changed since depmod ran, which itself changes the top one."""
    try:
        made = (directory / "modules.dep").stat().st_mtime_ns + _SETTLED_NS
    except OSError:
        return ""
    for path, _, _ in os.walk(directory):
        if path == str(directory):
            continue
        try:
            if Path(path).stat().st_mtime_ns > made:
                return path
        except OSError:
            continue
    return ""


def _read_config(root: Path, directory: Path, release: str) -> Mapping[str, str] | None:
    """What is said of upstream's variants; None where the kernel's configuration isn't installed."""
    for path in (root / f"boot/config-{release}", directory / "config"):
        try:
            text = path.read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        wanted = {variant.config for variant in UPSTREAM_VARIANTS}
        settings = (line.partition("=") for line in text.splitlines())
        return {name: value for name, equals, value in settings if equals and name in wanted}
    return None
