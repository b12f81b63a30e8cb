"""A running guest: QEMU, its control protocol, and commands in it."""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import host
from .cache import cache_directory
from .channel import COMMAND_TIMEOUT, Channel, CommandFailed, Pending, Result
from .devices import HOTPLUG_PORTS, qemu_devices
from .errors import RigError
from .image import Image
from .qmp import Qmp

# 40 s on two idle cores without KVM; a busy machine takes several times as long.
BOOT_TIMEOUT = 300.0
# An orderly shutdown takes 5 to 10 s; one that waits for a service's stop takes that long more.
SHUTDOWN_TIMEOUT = 180.0
UPDATE_TIMEOUT = 600.0
# Seen once in some hundred boots, three seconds after the start, in sched_clock_cpu(): while the kernel
# patches its own code (jump labels), another emulated processor runs into the breakpoint, and the kernel no
# longer knows it as its own. No disk is mounted by then.
_EMULATOR_RACE = b"Oops: int3"
BOOT_TRIES = 3
KERNEL_ARGUMENTS = "root=/dev/vda rw console=ttyS0 intel_iommu=on panic=-1 quiet"
NVME_SIZE = 64 * 1024 * 1024
CONSOLE_LOGS_KEPT = 20


class Guest:
    """`with Guest(image) as guest:` boots it and ends it; nothing in it outlives that.

    What it writes to its disks stays for as long as the Guest lives, so also when it reboots.
    """

    def __init__(self, image: Image, *, memory_mib: int = 2048, boot_timeout: float = BOOT_TIMEOUT) -> None:
        self.image = image
        self.initrd = image.initrd
        """What the next boot uses."""
        self.memory_mib = memory_mib
        self.boot_timeout = boot_timeout
        self.boot_seconds = 0.0
        """Of the last boot, as the next three."""
        self.state = ""
        """What `systemctl is-system-running` said after the boot."""
        self.modules_at_boot: frozenset[str] = frozenset()
        self.kernel_log = ""
        """Of the last boot, read when it was over: the kernel keeps 256 KiB, which a few tests fill."""
        self.console = _console_log(image.release.name)
        self._life = contextlib.ExitStack()
        self._connections = contextlib.ExitStack()
        self._qemu: subprocess.Popen[bytes] | None = None
        self._plugged: set[str] = set()

    def __enter__(self) -> Self:
        host.require_for_boot()
        try:
            self._make_disks()
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._end_qemu()
        self._life.close()

    def reboot(self, *, power_cut: bool = False, initrd: Path | None = None) -> None:
        """Boots it anew from the same disks; `initrd` stays the one to use from then on.

        A power cut loses what the guest has not yet made its disk write down: neither its page cache
        nor what it sent without a flush. Devices that were plugged in while it ran are gone afterwards.
        """
        if not power_cut:
            self._shut_down()
        self._end_qemu()
        self.initrd = initrd or self.initrd
        self._boot()

    def update_initramfs(self) -> float:
        """Makes the initramfs anew in the guest, for its next boots too; returns the guest's seconds."""
        done = self.run("update-initramfs -u", timeout=UPDATE_TIMEOUT)
        self.initrd = self._scratch / "initrd.img"
        self.pull(self.run("echo /boot/initrd.img-$(uname -r)").stdout.strip(), self.initrd)
        return done.duration

    def run(self, command: str, *, timeout: float = COMMAND_TIMEOUT, check: bool = True) -> Result:
        result = self.start(command).wait(timeout)
        if check and result.rc != 0:
            raise CommandFailed(result)
        return result

    def start(self, command: str) -> Pending:
        return self._channel.run(command)

    def kill_all(self) -> None:
        """The commands that have not ended yet."""
        self._channel.kill_all()

    def hold(self, *devices: str) -> Pending:
        """A process that holds them (BDFs) as a virtual machine does, until it is killed."""
        holder = self.start(f"exec /usr/libexec/guest-vfio-holder {' '.join(devices)}")
        holder.wait_for("holding")
        return holder

    def loaded_modules(self) -> frozenset[str]:
        return frozenset(line.split()[0] for line in self.read("/proc/modules").splitlines())

    def read(self, path: str) -> str:
        return self.run(f"cat '{path}'").stdout.removesuffix("\n")

    def push(self, local: Path, remote: str, *, timeout: float = COMMAND_TIMEOUT) -> None:
        self._channel.push(local, remote, timeout)

    def pull(self, remote: str, local: Path, *, timeout: float = COMMAND_TIMEOUT) -> None:
        self._channel.pull(remote, local, timeout)

    def qmp(self, command: str, **arguments: object) -> Any:
        return self._qmp.execute(command, arguments)

    def device_add(self, driver: str, *, id: str, port: str = "hotplug1", **properties: object) -> str:
        """Plugs a device into one of the hotplug ports; returns the address it will have."""
        self._qmp.forget_events()
        self.qmp("device_add", driver=driver, id=id, bus=f"{port}_port", addr="0", **properties)
        self._plugged.add(id)
        return HOTPLUG_PORTS[port]

    def device_del(self, id: str, *, wait: bool = True, timeout: float = COMMAND_TIMEOUT) -> None:
        """Asks the guest to give the device up, and waits until it has.

        A kernel that can't (a VFIO user holds the device) leaves the request standing: wait=False.
        """
        self.qmp("device_del", id=id)
        if wait:
            self.wait_device_deleted(id, timeout=timeout)

    def wait_device_deleted(self, id: str, *, timeout: float = COMMAND_TIMEOUT) -> None:
        self._qmp.wait_event("DEVICE_DELETED", timeout, device=id)
        self._plugged.discard(id)

    def unplug_all(self) -> None:
        """What is still plugged in."""
        for plugged in sorted(self._plugged):
            with contextlib.suppress(RigError):  # it has been asked for already
                self.qmp("device_del", id=plugged)
            self.wait_device_deleted(plugged)

    def console_tail(self, lines: int = 40) -> str:
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        tail = "\n".join(text.splitlines()[-lines:])
        return f"--- end of '{self.console}':\n{tail}"

    def _make_disks(self) -> None:
        directory = self._life.enter_context(tempfile.TemporaryDirectory(prefix="guest-"))
        self._scratch = Path(directory)
        self._root = self._scratch / "root.qcow2"
        self._nvme = self._scratch / "nvme.img"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.image.disk)]
        subprocess.run([*create, str(self._root)], check=True)
        self._nvme.touch()
        os.truncate(self._nvme, NVME_SIZE)

    def _boot(self, tries: int = BOOT_TRIES) -> None:
        started = time.monotonic()
        printed = self.console.stat().st_size
        try:
            self._start_qemu()
            if not self._channel.wait_hello(self.boot_timeout):
                raise RigError(f"no word from the guest's agent within {self.boot_timeout} s")
            ready = "systemctl is-system-running --wait; udevadm settle"
            self.state = self.run(ready, timeout=self.boot_timeout, check=False).stdout.strip()
            self.modules_at_boot = self.loaded_modules()
            self.kernel_log = self.run("dmesg").stdout
        except RigError as error:
            console = self.console.read_bytes()[printed:]
            if tries > 1 and _EMULATOR_RACE in console and b"EXT4-fs" not in console:
                self._end_qemu()
                self._boot(tries - 1)
                return
            raise RigError(f"the guest did not boot: {error}\n{self.console_tail()}") from error
        self.boot_seconds = time.monotonic() - started

    def _shut_down(self) -> None:
        """With -no-reboot QEMU ends where the machine would start again."""
        assert self._qemu is not None
        self.start("systemctl reboot")
        try:
            self._qemu.wait(SHUTDOWN_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise RigError(
                f"the guest did not shut down within {SHUTDOWN_TIMEOUT} s\n{self.console_tail()}"
            ) from None

    def _end_qemu(self) -> None:
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        self._connections.close()
        self._plugged.clear()

    def _start_qemu(self) -> None:
        # Connected before QEMU starts: no path to wait for, and QEMU's death is an end of file.
        agent, agent_of_qemu = socket.socketpair()
        control, control_of_qemu = socket.socketpair()
        with agent_of_qemu, control_of_qemu, self.console.open("ab") as log:
            self._qemu = subprocess.Popen(
                self._command(agent_of_qemu.fileno(), control_of_qemu.fileno()),
                pass_fds=(agent_of_qemu.fileno(), control_of_qemu.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self._channel = Channel(agent)
        self._connections.callback(self._channel.close)
        self._connections.callback(control.close)
        self._qmp = Qmp(control)
        self._connections.callback(self._qmp.close)

    def _command(self, agent_fd: int, control_fd: int) -> list[str]:
        return [
            # A guest never outlives the tests, even if they are killed.
            "setpriv", "--pdeathsig", "KILL", "--",
            "qemu-system-x86_64",
            # "max" as it is: with svm taken away systemd could start no process at all.
            "-machine", "q35,sata=off,smbus=off", "-accel", "tcg,thread=multi", "-cpu", "max",
            "-smp", "2", "-m", str(self.memory_mib),
            "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", str(self.image.kernel), "-initrd", str(self.initrd),
            "-append", KERNEL_ARGUMENTS,
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-chardev", f"socket,id=control,fd={control_fd}", "-mon", "chardev=control,mode=control",
            "-chardev", f"socket,id=agent,fd={agent_fd}",
            # With "unsafe" a flush gets as far as this machine's page cache, which is as far as it
            # must get to survive QEMU.
            "-drive", f"file={self._root},if=none,id=root,format=qcow2,cache=unsafe",
            "-drive", f"file={self._nvme},if=none,id=nvme,format=raw,cache=unsafe",
            "-device", "intel-iommu,intremap=off,caching-mode=on",
            *qemu_devices(),
            "-device", "virtserialport,bus=agent.0,chardev=agent,name=guest.agent",
        ]  # fmt: skip


def _console_log(release: str) -> Path:
    """A path of its own; kept after the guest is gone, for whoever wants to know why."""
    directory = cache_directory() / "consoles"
    directory.mkdir(parents=True, exist_ok=True)
    old = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in old[CONSOLE_LOGS_KEPT:]:
        path.unlink(missing_ok=True)
    fd, name = tempfile.mkstemp(prefix=f"{release}-", suffix=".log", dir=directory)
    os.close(fd)
    return Path(name)
