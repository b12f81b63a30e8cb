"""Loading modules, and which PCI drivers they bring."""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from ..model.errors import FlavourError
from ..model.module_load import explain_failure
from .host_files import HostFiles
from .inventory import DRIVERS
from .loading import Asked
from .module_lock import read_module_lock
from .sysfs import Sysfs

# Gives modprobe's exit status and what it said, when it has ended. Raises FlavourError where it can't be had.
Modprobe = Callable[[Asked, str], Coroutine[Any, Any, tuple[int, str]]]


class NotLoaded(Exception):
    """A module could not be had; the text is the reason, one phrase."""


class Modules(Collection[str]):
    """The loaded modules, asked of sysfs one by one; and more of them, by the `modprobe` program.

    A load can hang in the module's init, and its modprobe is unkillable then. It is left behind; a
    second wish for the same module waits for it instead of starting another.
    """

    def __init__(self, sysfs: Sysfs, modprobe: Modprobe) -> None:
        self._sysfs = sysfs
        self._modprobe = modprobe
        self._pending: dict[str, asyncio.Task[tuple[int, str]]] = {}
        self._loading: dict[str, asyncio.Future[None]] = {}

    def __contains__(self, module: object) -> bool:
        return self._sysfs.exists(f"/sys/module/{module}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._sysfs.list("/sys/module"))

    def __len__(self) -> int:
        return len(self._sysfs.list("/sys/module"))

    def __bool__(self) -> bool:
        return True

    def find_drivers(self, module: str) -> tuple[str, ...]:
        """The names of a live module's PCI drivers; none when it isn't there or isn't ready.

        A driver's name can't be told from its module's (`vfio_pci` brings `vfio-pci`).
        """
        base = f"/sys/module/{module}"
        if self._sysfs.exists(f"{base}/initstate") and self._sysfs.read(f"{base}/initstate") != "live":
            return ()
        return tuple(
            name.removeprefix("pci:")
            for name in self._sysfs.list(f"{base}/drivers")
            if name.startswith("pci:")
        )

    def has_driver(self, driver: str) -> bool:
        return self._sysfs.exists(f"{DRIVERS}/{driver}")

    async def load(self, module: str, timeout: float) -> tuple[str, ...]:
        """The module's PCI drivers, loading it when it isn't there. Raises NotLoaded.

        `modprobe` exits 0 also where it loaded nothing (kmod: blacklisted, or an `install` command),
        so what counts is what is in sysfs afterwards.
        """
        if drivers := self.find_drivers(module):
            return drivers
        if (loading := self._loading.get(module)) is not None:
            # For somebody else: one modprobe is enough, and sixteen at once take sixteen times as long.
            begun = time.monotonic()
            await asyncio.wait([loading], timeout=timeout)
            if drivers := self.find_drivers(module):
                return drivers
            timeout -= time.monotonic() - begun
            if timeout <= 0:
                raise NotLoaded("not loaded in time for another device either")
        with self._announced(module):
            return await self._load(module, timeout)

    @contextmanager
    def _announced(self, module: str) -> Iterator[None]:
        """Those who want it too wait meanwhile."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loading[module] = done
        try:
            yield
        finally:
            if self._loading.get(module) is done:
                del self._loading[module]
            done.set_result(None)

    async def _load(self, module: str, timeout: float) -> tuple[str, ...]:
        status, said = await self._run(Asked.MODULE, module, timeout)
        if drivers := self.find_drivers(module):
            return drivers
        if status:
            raise NotLoaded(explain_failure(status, said, read_module_lock(HostFiles(self._sysfs.root))))
        if not self._sysfs.exists(f"/sys/module/{module}"):
            raise NotLoaded("modprobe reported success, but the module is not there (an install command?)")
        raise NotLoaded("the module is there, but registers no PCI driver")

    async def load_native(self, modalias: str, timeout: float) -> None:
        """Load what udev would load for a device, blacklists respected. Whether it helped shows in sysfs."""
        try:
            await self._run(Asked.ALIAS, modalias, timeout)
        except NotLoaded:
            return  # the kernel's probe that follows says what there is

    async def _run(self, asked: Asked, name: str, timeout: float) -> tuple[int, str]:
        pending = self._pending.get(name)
        late = f"not loaded within {timeout:g} s; modprobe is still in the kernel"
        if pending is not None:
            late = f"still not loaded after another {timeout:g} s"
        else:
            pending = self._pending[name] = asyncio.create_task(self._modprobe(asked, name))
            pending.add_done_callback(lambda _: self._pending.pop(name, None))
        done, _ = await asyncio.wait([pending], timeout=timeout)
        if not done:
            raise NotLoaded(late)
        try:
            return pending.result()
        except FlavourError as error:
            raise NotLoaded(str(error)) from error
