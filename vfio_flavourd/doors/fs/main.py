"""vfio-flavour-fs: mounts the file system and serves it until it is told to stop."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pyfuse3

from ... import __version__, journal
from ...kernel.sysfs import Sysfs
from .interrupts import Interrupts
from .operations import FlavourFs

MOUNT_POINT = Path("/run/vfio-flavour")

# Requests of the kernel that are served at one time, each write for as long as its device takes. With more no
# message is read, neither Ctrl-C nor what is asked of other devices.
MOST_REQUESTS = 1000


async def _serve(mount_point: Path) -> None:
    interrupts = Interrupts()
    interrupts.install()
    options = set(pyfuse3.default_options) | {"fsname=vfio-flavour", "allow_other", "default_permissions"}
    flavour_fs = FlavourFs(Sysfs(), interrupts)
    pyfuse3.init(flavour_fs, str(mount_point), options)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        interrupts.end_all()
        pyfuse3.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        journal.notify("READY=1")
        await pyfuse3.main(max_tasks=MOST_REQUESTS)
    finally:
        journal.notify("STOPPING=1")
        pyfuse3.close(unmount=True)
        flavour_fs.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vfio-flavour-fs",
        description="Offer driver_flavour, use_vfio and last_error for each PCI device as files. "
        "Started by systemd.",
    )
    parser.add_argument("--version", action="version", version=f"vfio-flavour-fs {__version__}")
    parser.add_argument(
        "mount_point",
        nargs="?",
        type=Path,
        default=MOUNT_POINT,
        help="an existing directory (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        print(
            "vfio-flavour-fs: only root may mount it\n  systemctl start vfio-flavour-fs",
            file=sys.stderr,
        )
        return 77
    journal.open_log("vfio-flavour-fs")
    try:
        arguments.mount_point.mkdir(mode=0o755, exist_ok=True)
        asyncio.run(_serve(arguments.mount_point))
    except (RuntimeError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        print(f"vfio-flavour-fs: mounting on {str(arguments.mount_point)!r} failed: {why}", file=sys.stderr)
        print("  see whether the directory above it is there, and modprobe fuse works", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
