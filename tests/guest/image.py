"""The guest's disk, built in stages that are cached apart.

base     the release's root tree, and beside it the same tree with a compiler and kernel headers
modules  the test drivers, and upstream's variant drivers, for the base's kernel
system   the base with the modules and the guest's own configuration
image    the system with the project's package, as an ext4 image
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cache, host, mirror
from .errors import RigError

HERE = Path(__file__).parent
MODULES = HERE / "modules"
ROOTFS = HERE / "rootfs"
AGENT = HERE / "agent.py"

PACKAGES = [
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "python3", "linux-image-amd64", "initramfs-tools"),
    *("pciutils", "iproute2", "procps", "driverctl", "fuse3"),
    # What makes a host a user of its devices.
    *("e2fsprogs", "fdisk", "dmsetup", "mdadm"),
    "lz4",
]
TOOLCHAIN = ["gcc", "make"]

# The initramfs only mounts the root disk: MODULES=most would make it ten times as large, and
# under software emulation unpacking it takes longer than the rest of the boot. So that a test can
# make another one in the guest, it is compressed quickly rather than well.
INITRAMFS = """
mkdir -p "$1/etc/initramfs-tools/conf.d"
printf '%s\\n' MODULES=list COMPRESS=lz4 COMPRESSLEVEL=1 > "$1/etc/initramfs-tools/conf.d/guest"
printf '%s\\n' virtio_pci virtio_blk ext4 > "$1/etc/initramfs-tools/modules"
"""
LEFT_OUT = [
    *("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"),
    # The root is on neither, and the initramfs would look for arrays and volumes at each boot.
    *("/usr/share/initramfs-tools/*/mdadm", "/usr/share/initramfs-tools/*/dmsetup"),
]

# Nobody logs in, nothing is fetched, and a timer that fires in the middle of a measurement spoils it.
MASKED = [
    "getty.target",
    "systemd-networkd-wait-online.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp.service",
    *("e2scrub_reap.service", "mdmonitor.service", "mdmonitor-oneshot.timer"),
    *("mdcheck_start.timer", "mdcheck_continue.timer"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("fstrim.timer", "systemd-tmpfiles-clean.timer"),
    # No test needs these, and each takes an emulated processor up to a second of every boot.
    *("ldconfig.service", "systemd-journal-catalog-update.service", "systemd-binfmt.service"),
    *("modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@configfs.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount"),
]

IMAGE_SIZE = "3G"


@dataclass(frozen=True, slots=True)
class Release:
    name: str
    # The package whose sources hold upstream's variant drivers, and those to build from it:
    # directory below drivers/vfio/pci -> configuration symbol.
    linux_source: str | None = None
    upstream: tuple[tuple[str, str], ...] = ()
    packages: tuple[str, ...] = ()
    """In this release's guest only."""


RELEASES = {
    release.name: release
    for release in (
        Release(
            "trixie",
            "linux-source-6.12",
            (
                ("virtio", "CONFIG_VIRTIO_VFIO_PCI"),
                ("nvgrace-gpu", "CONFIG_NVGRACE_GPU_VFIO_PCI"),
                ("mlx5", "CONFIG_MLX5_VFIO_PCI"),
            ),
            # For the tutorial's guest, which runs in this one.
            ("qemu-system-x86",),
        ),
        Release("bookworm"),
    )
}
DEFAULT_RELEASE = "trixie"


@dataclass(frozen=True, slots=True)
class Image:
    release: Release
    kernel: Path
    initrd: Path
    disk: Path


def build_image(release: Release, deb: Path | None = None, extra: Sequence[str] = ()) -> Image:
    """The guest's image, with the package `deb` installed in it if there is one, and with it Debian's `extra`
    packages: such an image is kept beside the tests' own."""
    base_key = cache.hash_inputs(release.name, repr(release), *PACKAGES, *TOOLCHAIN, INITRAMFS, *LEFT_OUT)
    modules_key = cache.hash_inputs(base_key, MODULES)
    system_key = cache.hash_inputs(modules_key, ROOTFS, AGENT, *MASKED)
    image_key = cache.hash_inputs(system_key, IMAGE_SIZE, *([deb] if deb else []), *extra)

    name = f"image-{release.name}-extra" if extra else f"image-{release.name}"
    wanted = cache.cache_directory() / f"{name}-{image_key}"
    if not wanted.is_dir():
        host.require_for_build(release.name)
        base = cache.stage(f"base-{release.name}", base_key, lambda out: _build_base(release, out))
        modules = cache.stage(
            f"modules-{release.name}", modules_key, lambda out: _build_modules(release, base, out)
        )
        system = cache.stage(
            f"system-{release.name}", system_key, lambda out: _build_system(base, modules, out)
        )
        wanted = cache.stage(name, image_key, lambda out: _build_disk(release, base, system, deb, extra, out))
    os.utime(wanted)
    return Image(release, wanted / "vmlinuz", wanted / "initrd.img", wanted / "root.img")


def _build_base(release: Release, out: Path) -> None:
    root, toolchain = out / "root", out / "toolchain"
    _run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join([*PACKAGES, *release.packages])}",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        f"--essential-hook={INITRAMFS}",
        release.name,
        str(root),
        *map(str, mirror.read_sources(release.name)),
    )
    # In the same stage as the kernel: a mirror keeps only the newest headers, so a tree made
    # later could find none for this one.
    _run("cp", "-a", str(root), str(toolchain))
    _chroot(toolchain, "apt-get", "update")
    sources = [release.linux_source] if release.linux_source else []
    _apt_install(toolchain, f"linux-headers-{_kernel_release(root)}", *TOOLCHAIN, *sources)
    if release.linux_source:
        archive = toolchain / f"usr/src/{release.linux_source}.tar.xz"
        directory = f"{release.linux_source}/drivers/vfio"
        _run("tar", "-C", str(toolchain / "usr/src"), "-xf", str(archive), directory)
        archive.unlink()


def _build_modules(release: Release, base: Path, out: Path) -> None:
    tree = out / "toolchain"
    _run("cp", "-a", str(base / "toolchain"), str(tree))
    sources = tree / "usr/src"
    shutil.copytree(MODULES, sources / "vft")
    make = ["make", "-C", f"/lib/modules/{_kernel_release(tree)}/build", f"-j{os.cpu_count()}"]
    _chroot(tree, *make, "M=/usr/src/vft", "modules")
    # Debian's kernel has these switched off; the symbol is set on the command line instead.
    for directory, symbol in release.upstream:
        path = f"/usr/src/{release.linux_source}/drivers/vfio/pci/{directory}"
        _chroot(tree, *make, f"M={path}", f"{symbol}=m", "modules")
    for module in sources.rglob("*.ko"):
        shutil.copy(module, out)
    shutil.rmtree(tree)


def _build_system(base: Path, modules: Path, out: Path) -> None:
    root = out / "root"
    _run("cp", "-a", str(base / "root"), str(root))
    # cp, not copytree: the links in it are links in the guest.
    _run("cp", "-a", "--no-preserve=ownership", f"{ROOTFS}/.", str(root))
    agent = root / "usr/libexec/guest-agent"
    agent.parent.mkdir(exist_ok=True)
    shutil.copy(AGENT, agent)
    agent.chmod(0o755)
    updates = root / "usr/lib/modules" / _kernel_release(root) / "updates"
    updates.mkdir()
    for module in modules.glob("*.ko"):
        shutil.copy(module, updates)
    _chroot(root, "depmod", _kernel_release(root))
    _run("systemctl", f"--root={root}", "set-default", "multi-user.target")
    _run("systemctl", f"--root={root}", "enable", "guest-agent.service")
    _run("systemctl", f"--root={root}", "mask", *MASKED)


def _build_disk(
    release: Release, base: Path, system: Path, deb: Path | None, extra: Sequence[str], out: Path
) -> None:
    root = system / "root"
    if deb is not None:
        root = out / "root"
        _run("cp", "-a", str(system / "root"), str(root))
        _install_package(release, base, root, deb, extra)
    kernel = _kernel_release(root)
    shutil.copy(root / f"boot/vmlinuz-{kernel}", out / "vmlinuz")
    shutil.copy(root / f"boot/initrd.img-{kernel}", out / "initrd.img")
    _run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(out / "root.img"), IMAGE_SIZE)
    if deb is not None:
        shutil.rmtree(root)


def _install_package(release: Release, base: Path, root: Path, deb: Path, extra: Sequence[str]) -> None:
    """Lets apt find what the package depends on; what it downloads is kept for the next time."""
    archives = cache.cache_directory() / f"archives-{release.name}"
    archives.mkdir(exist_ok=True)
    lists = root / "var/lib/apt/lists"
    _run("cp", "-a", f"{base}/toolchain/var/lib/apt/lists/.", str(lists))
    in_guest = root / "var/cache/apt/archives"
    with cache.locked(cache.cache_directory() / f"archives-{release.name}.lock"):
        for package in archives.glob("*.deb"):
            shutil.copy(package, in_guest)
        shutil.copy(deb, root / "package.deb")
        try:
            _apt_install(root, "./package.deb", *extra)
        except RigError:
            # The lists are as old as the base: the mirror may have dropped what they name.
            _chroot(root, "apt-get", "update")
            _apt_install(root, "./package.deb", *extra)
        for package in in_guest.glob("*.deb"):
            shutil.copy(package, archives)
    (root / "package.deb").unlink()
    _chroot(root, "apt-get", "clean")
    shutil.rmtree(lists)


def _apt_install(root: Path, *packages: str) -> None:
    _chroot(root, "apt-get", "install", "--yes", "--no-install-recommends", *packages)


def _kernel_release(root: Path) -> str:
    (release,) = (path.name for path in (root / "usr/lib/modules").iterdir())
    return release


# With a mount name space of its own, so that /proc goes away with the command whatever happens.
CHROOT = 'mount -t proc proc "$0/proc" && cd "$0" && exec chroot "$0" "$@"'


def _chroot(root: Path, *command: str) -> None:
    resolver = root / "etc/resolv.conf"
    shutil.copy("/etc/resolv.conf", resolver)
    _run("unshare", "--mount", "sh", "-c", CHROOT, str(root), *command)
    resolver.unlink()


def _run(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = _call(command, environment)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise RigError(f"'{' '.join(command)}' failed with {done.returncode}:\n{tail}")


def _call(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
