"""What the rig needs from the machine it runs on."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .errors import RigError

BOOT_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
}
BUILD_PACKAGES = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "unshare": "util-linux"}

KEYRINGS = Path("/usr/share/keyrings")
ROOT = Path(__file__).parents[2]


def require_for_boot() -> None:
    _install(_missing(BOOT_PACKAGES))


def require_for_build(release: str) -> None:
    """Raises RigError when not root: making a root tree needs chown, mknod and chroot."""
    if os.geteuid() != 0:
        raise RigError(f"building the {release} guest: must be root (only booting it need not be)")
    missing = _missing(BUILD_PACKAGES)
    # A release's own keyring, "debian-archive-<release>-*", comes with a recent enough package:
    # bookworm's was given trixie's keys in a point release.
    if not any(KEYRINGS.glob(f"debian-archive-{release}-automatic.*")):
        missing.append("debian-archive-keyring")
    _install(missing)


def _missing(packages: dict[str, str]) -> list[str]:
    return sorted({package for command, package in packages.items() if not shutil.which(command)})


def _install(packages: Sequence[str]) -> None:
    if not packages:
        return
    done = subprocess.run(
        [ROOT / ".ci/install-packages", *packages], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RigError(done.stderr.strip())
