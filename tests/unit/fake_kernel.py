"""A kernel that behaves, for speed and for faults that a guest can't make.

Modelled on drivers/base/bus.c, drivers/base/dd.c and drivers/pci/pci-driver.c of 6.12, and on what the
guest shows: a directory tree that real code reads, and a `Hands` that carries out the same operations
as a worker process does, but against this model.
"""

import asyncio
import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfio_flavourd.engine.changes import Changes
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.host import Host
from vfio_flavourd.engine.ledger import Ledger
from vfio_flavourd.engine.policy import PolicyInForce
from vfio_flavourd.kernel.hands import Blocked, Guard, Operation, Result
from vfio_flavourd.kernel.index import ModuleIndex
from vfio_flavourd.kernel.loading import Asked
from vfio_flavourd.kernel.modules import Modules
from vfio_flavourd.kernel.sysfs import Sysfs
from vfio_flavourd.model.address import PciAddress
from vfio_flavourd.model.device import Device
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import Policy, Settings

RELEASE = "6.12.0-fake"
GENERIC_ALIAS = "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci"

# The first IOMMU group that VFIO makes up for a device without one.
MADE_UP = 100


@dataclass(eq=False)
class FakeDriver:
    """`ids` are the (vendor, device) pairs that it takes without an override; a VFIO driver has none.

    While `remove_blocks` is set an unbind waits for it, as it does for a guest that holds the device.
    """

    name: str
    module: str | None
    ids: frozenset[tuple[int, int]] = frozenset()
    vfio: bool = False
    probe_errno: int = 0
    remove_blocks: asyncio.Event | None = None
    on_probe: Callable[["FakeDevice"], None] | None = None


@dataclass(eq=False)
class FakeModule:
    name: str
    drivers: tuple[FakeDriver, ...] = ()
    status: int = 0
    said: str = ""
    hang: asyncio.Event | None = None
    loads: int = 0


@dataclass(eq=False)
class FakeDevice:
    """`held` is the device's lock in other hands: what takes the lock waits for it."""

    address: str
    vendor: int
    device: int
    class_code: int
    group: int | None
    driver: FakeDriver | None = None
    override: str | None = None
    can_probe: bool = True
    personality_errno: int | None = None
    removed: bool = False
    held: asyncio.Event | None = None

    @property
    def modalias(self) -> str:
        base, sub, interface = self.class_code >> 16, self.class_code >> 8 & 0xFF, self.class_code & 0xFF
        ids = f"v{self.vendor:08X}d{self.device:08X}sv00001AF4sd00001100"
        return f"pci:{ids}bc{base:02X}sc{sub:02X}i{interface:02X}"


class FakeKernel:
    """Keeps the tree under `root` true to its devices, drivers and modules; `writes` is what was written.

    With `crash_after` the daemon is killed before the operation that comes after so many; the worker with
    it, unless `batch_goes_on`. With `dies_at` the next worker alone is killed, before that operation.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices: dict[str, FakeDevice] = {}
        self.drivers: dict[str, FakeDriver] = {}
        self.modules: dict[str, FakeModule] = {}
        self.writes: list[str] = []
        self.crash_after: int | None = None
        self.batch_goes_on = False
        self.dies_at: int | None = None
        self.users: dict[str, tuple[User, ...]] = {}
        self.group_holders: dict[int, tuple[User, ...]] = {}
        self._vfio_devices = 0
        self._processes = 1000
        self._exits: dict[int, list[asyncio.Future[None]]] = {}
        for path in ("bus/pci/devices", "bus/pci/drivers", "module"):
            (root / "sys" / path).mkdir(parents=True)
        for path in (f"lib/modules/{RELEASE}", "run", "var/lib"):
            (root / path).mkdir(parents=True)
        self.write_index([])
        vfio_pci = FakeDriver("vfio-pci", "vfio_pci", vfio=True)
        self.modules["vfio_pci"] = FakeModule("vfio_pci", (vfio_pci,))

    # making things

    def write_index(self, lines: Sequence[str]) -> None:
        path = self.root / f"lib/modules/{RELEASE}/modules.alias"
        path.write_text("\n".join([*lines, GENERIC_ALIAS]) + "\n", encoding="ascii")

    def add_device(
        self,
        address: str = "0000:01:00.0",
        vendor: int = 0x8086,
        device: int = 0x10D3,
        class_code: int = 0x020000,
        group: int | None = 7,
    ) -> FakeDevice:
        made = FakeDevice(address, vendor, device, class_code, group)
        self.devices[address] = made
        path = self.path(made)
        path.mkdir(parents=True)
        for name, value in {
            "vendor": f"0x{vendor:04x}",
            "device": f"0x{device:04x}",
            "subsystem_vendor": "0x1af4",
            "subsystem_device": "0x1100",
            "revision": "0x00",
            "class": f"0x{class_code:06x}",
            "modalias": made.modalias,
        }.items():
            (path / name).write_text(value + "\n", encoding="ascii")
        if group is not None:
            self._put_into_group(made, group)
        (self.root / "sys/bus/pci/devices" / address).symlink_to(path)
        return made

    def _put_into_group(self, device: FakeDevice, number: int) -> Path:
        group = self.root / f"sys/kernel/iommu_groups/{number}"
        (group / "devices").mkdir(parents=True, exist_ok=True)
        (group / "devices" / device.address).symlink_to(self.path(device))
        (self.path(device) / "iommu_group").symlink_to(group)
        return group

    def remove_device(self, device: FakeDevice) -> None:
        device.removed = True
        (self.root / "sys/bus/pci/devices" / device.address).unlink()
        if device.group is not None:
            (self.root / f"sys/kernel/iommu_groups/{device.group}/devices" / device.address).unlink()
        path = self.path(device)
        path.rename(self.root / f"gone-{device.address}-{path.stat().st_ino}")
        del self.devices[device.address]

    def add_module(
        self, *drivers: FakeDriver, name: str = "", alias: str = "", **traits: object
    ) -> FakeModule:
        module = FakeModule(name or drivers[0].module or "", drivers, **traits)  # type: ignore[arg-type]
        self.modules[module.name] = module
        if alias:
            index = self.root / f"lib/modules/{RELEASE}/modules.alias"
            lines = index.read_text(encoding="ascii").splitlines()[:-1]
            self.write_index([*lines, f"alias {alias} {module.name}"])
        return module

    def add_native(self, device: FakeDevice, name: str = "e1000e") -> FakeDriver:
        """A loaded native driver that has the device."""
        driver = FakeDriver(name, name, frozenset({(device.vendor, device.device)}))
        self.add_module(driver)
        self.load(name)
        return driver

    def load(self, name: str) -> None:
        module = self.modules[name]
        base = self.root / "sys/module" / name
        if base.exists():
            return
        (base / "drivers").mkdir(parents=True)
        (base / "initstate").write_text("live\n", encoding="ascii")
        for driver in module.drivers:
            self.register(driver)

    def register(self, driver: FakeDriver) -> None:
        path = self.root / "sys/bus/pci/drivers" / driver.name
        path.mkdir()
        if driver.module is not None:
            (path / "module").symlink_to(self.root / "sys/module" / driver.module)
            (self.root / "sys/module" / driver.module / "drivers" / f"pci:{driver.name}").symlink_to(path)
        self.drivers[driver.name] = driver
        # driver_attach(): a new driver is offered every device without one.
        for device in self.devices.values():
            if device.driver is None and self.matches(driver, device):
                self.probe(driver, device)

    def unload(self, name: str) -> None:
        for driver in self.modules[name].drivers:
            del self.drivers[driver.name]
            for path in (
                self.root / "sys/bus/pci/drivers" / driver.name / "module",
                self.root / "sys/module" / name / "drivers" / f"pci:{driver.name}",
            ):
                path.unlink()
            (self.root / "sys/bus/pci/drivers" / driver.name).rmdir()
        (self.root / "sys/module" / name / "initstate").unlink()
        (self.root / "sys/module" / name / "drivers").rmdir()
        (self.root / "sys/module" / name).rmdir()

    def add_personality(self, device: FakeDevice) -> Path:
        """The attribute by which the driver that has the device turns itself into a VFIO driver."""
        path = self.path(device) / "enable_vfio"
        path.write_text("0\n", encoding="ascii")
        return path

    def start_process(self) -> int:
        self._processes += 1
        path = self.root / f"proc/{self._processes}"
        path.mkdir(parents=True)
        fields = " ".join(str(number) for number in range(4, 30))
        (path / "stat").write_text(f"{self._processes} (python3) S {fields}", encoding="ascii")
        return self._processes

    def end_process(self, pid: int) -> None:
        (self.root / f"proc/{pid}/stat").unlink()
        (self.root / f"proc/{pid}").rmdir()
        for ended in self._exits.pop(pid, []):
            ended.set_result(None)

    def await_exit(self, pid: int) -> "asyncio.Future[None]":
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if (self.root / f"proc/{pid}").exists():
            self._exits.setdefault(pid, []).append(ended)
        else:
            ended.set_result(None)
        return ended

    # behaving

    def path(self, device: FakeDevice) -> Path:
        return self.root / "sys/devices/pci0000:00" / device.address

    @staticmethod
    def matches(driver: FakeDriver, device: FakeDevice) -> bool:
        if device.override is not None:
            return device.override == driver.name
        return (device.vendor, device.device) in driver.ids

    def probe(self, driver: FakeDriver, device: FakeDevice) -> int:
        """really_probe(): 0 or an errno."""
        if driver.on_probe is not None:
            driver.on_probe(device)
        if device.removed or not (device.can_probe or device.override is not None):
            return errno.ENODEV
        if driver.probe_errno:
            return errno.EAGAIN if driver.probe_errno == 517 else driver.probe_errno
        device.driver = driver
        (self.path(device) / "driver").symlink_to(self.root / "sys/bus/pci/drivers" / driver.name)
        if driver.vfio:
            self.add_vfio_device(device)
        return 0

    def add_vfio_device(self, device: FakeDevice) -> None:
        if device.group is None:  # vfio_noiommu_group_alloc()
            group = self._put_into_group(device, MADE_UP + self._vfio_devices)
            (group / "name").write_text("vfio-noiommu\n", encoding="ascii")
        (self.path(device) / f"vfio-dev/vfio{self._vfio_devices}").mkdir(parents=True)
        self._vfio_devices += 1

    def remove_vfio_device(self, device: FakeDevice) -> None:
        base = self.path(device) / "vfio-dev"
        for child in base.iterdir():
            child.rmdir()
        base.rmdir()
        if device.group is None:
            group = (self.path(device) / "iommu_group").readlink()
            (self.path(device) / "iommu_group").unlink()
            shutil.rmtree(group)

    def release(self, device: FakeDevice) -> None:
        self._hide_driver(device)
        device.driver = None

    def _hide_driver(self, device: FakeDevice) -> None:
        """__device_release_driver() takes the link away before the driver's remove() runs, and
        vfio_unregister_group_dev() the VFIO device before it waits for who uses it."""
        assert device.driver is not None
        if device.driver.vfio:
            self.remove_vfio_device(device)
        (self.path(device) / "driver").unlink()

    @staticmethod
    async def take_lock(device: FakeDevice) -> None:
        while (held := device.held) is not None:
            await held.wait()
            if device.held is held:
                device.held = None

    async def write(self, path: str, text: str) -> None:
        """A store to sysfs; raises OSError."""
        self.writes.append(f"{path.removeprefix('/sys/bus/pci/')} {text.strip()}".strip())
        parts = path.split("/")
        if path == "/sys/bus/pci/drivers_probe":
            device = self.find(text)
            if device.driver is None:
                for driver in list(self.drivers.values()):
                    if self.matches(driver, device):
                        self.probe(driver, device)  # its error is swallowed
                        return
        elif path.startswith("/sys/bus/pci/drivers/"):
            if parts[5] not in self.drivers:
                raise OSError(errno.ENOENT, "no such driver")
            await self._write_driver(self.drivers[parts[5]], parts[6], text)
        else:
            device = self.find(parts[4])
            if parts[5] == "driver_override":
                await self.take_lock(device)
            self._write_device(device, parts[5], text)

    async def _write_driver(self, driver: FakeDriver, attribute: str, address: str) -> None:
        device = self.find(address)
        if attribute == "unbind":
            # unbind_store() looks before it takes the lock, device_driver_detach() again under it.
            if device.driver is not driver:
                raise OSError(errno.ENODEV, "another driver has it")
            await self.take_lock(device)
            if device.driver is not driver:
                return
            self._hide_driver(device)
            if driver.remove_blocks is not None:
                device.held = driver.remove_blocks
                await driver.remove_blocks.wait()
                device.held = None
            device.driver = None
            return
        if device.driver is None:
            await self.take_lock(device)
        if not self.matches(driver, device):
            raise OSError(errno.ENODEV, "does not match")
        if device.driver is not None:
            raise OSError(errno.EBUSY, "has a driver")
        if code := self.probe(driver, device):
            raise OSError(code, "probe failed")

    def _write_device(self, device: FakeDevice, attribute: str, text: str) -> None:
        if attribute == "driver_override":
            # driver_set_override() takes what stands before the first newline; no text clears it.
            device.override = text.partition("\n")[0] or None
            return
        path = self.path(device) / attribute
        if attribute != "enable_vfio" or not path.exists():
            raise OSError(errno.ENOENT, "no such attribute")
        if device.personality_errno:
            raise OSError(device.personality_errno, "refused")
        path.write_text(text, encoding="ascii")
        # Writing what it is already changes nothing, as in sriov_numvfs_store().
        is_vfio = (self.path(device) / "vfio-dev").exists()
        if text.strip() == "1" and not is_vfio:
            self.add_vfio_device(device)
        elif text.strip() == "0" and is_vfio:
            self.remove_vfio_device(device)

    def find(self, address: str) -> FakeDevice:
        if address not in self.devices:
            raise OSError(errno.ENODEV, "no such device")
        return self.devices[address]


class Crash(BaseException):
    """The daemon is killed here."""


class FakeHands:
    """`Hands`, against the fake kernel."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._tasks: set[asyncio.Task[None]] = set()
        self.operations = 0

    async def carry_out(
        self,
        operations: Sequence[Operation],
        *,
        timeout: float,
        guard: Guard | None = None,
        begun: Callable[[int], None] | None = None,
        watch: Callable[[Result], None] | None = None,
    ) -> list[Result]:
        results: list[Result] = []
        finished: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        pid = self._kernel.start_process()
        if begun is not None:
            begun(pid)

        async def work() -> None:
            error = await self._work(pid, operations, guard, results, watch)
            self._kernel.end_process(pid)
            if error is not None:
                finished.set_exception(error)
            elif not finished.done():
                finished.set_result(results)

        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        done, _ = await asyncio.wait([finished], timeout=timeout)
        if not done:
            raise Blocked(pid, results, finished)
        return finished.result()

    async def _work(
        self,
        pid: int,
        operations: Sequence[Operation],
        guard: Guard | None,
        results: list[Result],
        watch: Callable[[Result], None] | None,
    ) -> BaseException | None:
        """What the one who waits is raised, where somebody is killed."""
        error: BaseException | None = None
        dies_at, self._kernel.dies_at = self._kernel.dies_at, None
        for index, operation in enumerate(operations):
            if index == dies_at:
                return FlavourError(f"worker process {pid} died before its work was done")
            self.operations += 1
            if self._kernel.crash_after is not None and self.operations > self._kernel.crash_after:
                error = Crash()
                if not self._kernel.batch_goes_on:
                    break
            result = await self._one(index, operation, guard)
            if error is None:
                results.append(result)
                if watch is not None:
                    watch(result)
            if result.errno:
                break
        return error

    async def _one(self, index: int, operation: Operation, guard: Guard | None) -> Result:
        kind, *rest = operation
        code, value = 0, None
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            if guard is not None:
                self._check_guard(*guard)
            value = await self._do(str(kind), [str(each) for each in rest])
        except OSError as error:
            code = error.errno or errno.EIO
        return Result(index, start, loop.time(), code, value)

    def _check_guard(self, path: str, inode: int) -> None:
        try:
            found = Path(f"{self._kernel.root}{path}").stat().st_ino
        except FileNotFoundError:
            found = -1
        if found != inode:
            raise OSError(errno.ENODEV, "another device")

    async def _do(self, kind: str, rest: list[str]) -> object:
        kernel = self._kernel
        path = Path(f"{kernel.root}{rest[0]}")
        if kind == "write":
            await kernel.write(rest[0], rest[1])
            return None
        if kind == "expect":
            if await self._read_override(rest[0]) != rest[1]:
                raise OSError(errno.ESTALE, "not as expected")
            return None
        if kind == "read":
            return await self._read_override(rest[0])
        if kind == "link":
            return path.readlink().name if path.is_symlink() else None
        assert kind == "names", kind
        return sorted(child.name for child in path.iterdir()) if path.exists() else []

    async def _read_override(self, path: str) -> str:
        device = self._kernel.find(path.split("/")[4])
        await self._kernel.take_lock(device)
        return "(null)" if device.override is None else device.override

    async def modprobe(self, asked: Asked, name: str) -> tuple[int, str]:
        """As the unit that loads modules."""
        module = self._kernel.modules.get(name)
        if module is None:
            return 1, f"modprobe: FATAL: Module {name} not found in directory /lib/modules/{RELEASE}"
        module.loads += 1
        if module.hang is not None:
            await module.hang.wait()
        if module.status or not module.drivers:
            return module.status, module.said
        self._kernel.load(module.name)
        return 0, ""

    def await_exit(self, pid: int) -> "asyncio.Future[None]":
        return self._kernel.await_exit(pid)


class FakeOccupancy:
    """`Occupancy`, as the test says; a bridge is in use by what is behind it."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def find_users(self, device: Device) -> tuple[User, ...]:
        if device.is_bridge:
            return (User(Use.BRIDGE, "a bridge"),)
        return self._kernel.users.get(str(device.address), ())

    async def see_users(self, device: Device) -> tuple[User, ...]:
        await asyncio.sleep(0)
        return self.find_users(device)

    def find_group_holders(self, iommu_group: int) -> tuple[User, ...]:
        return self._kernel.group_holders.get(iommu_group, ())


class PassingLedger(Ledger):
    """A test has many daemons, one after the other: each one's records are closed with it."""

    def load(self) -> dict[PciAddress | None, str]:
        self.close()
        return super().load()

    def close(self) -> None:
        if self._descriptor >= 0:
            super().close()
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def make_host(
    kernel: FakeKernel,
    policy: Policy | None = None,
    *,
    load: float = 1.0,
    bind: float = 1.0,
    group: float = 1.0,
    release: str = "6.12.0",
) -> Host:
    sysfs = Sysfs(str(kernel.root))
    hands = FakeHands(kernel)
    ledger = PassingLedger(kernel.root / "run/devices")
    ledger.load()
    if policy is None:
        policy = Policy(defaults=Settings(load_timeout=load, bind_timeout=bind))
    return Host(
        sysfs=sysfs,
        hands=hands,  # type: ignore[arg-type]
        modules=Modules(sysfs, hands.modprobe),
        index=ModuleIndex(kernel.root, RELEASE),
        ledger=ledger,
        changes=Changes(),
        occupancy=FakeOccupancy(kernel),  # type: ignore[arg-type]
        policy=PolicyInForce(policy),
        release=release,
        state=kernel.root / "run",
        lasting_state=kernel.root / "var/lib",
        root=kernel.root,
        turn_timeout=group,
    )


def make_engine(kernel: FakeKernel, policy: Policy | None = None, **options: Any) -> Engine:
    return Engine(make_host(kernel, policy, **options))


def before_write(kernel: FakeKernel, attribute: str, do: Callable[[], object]) -> None:
    """`do` is done once, right before the first write to that attribute."""
    _meddle(kernel, attribute, do, is_after=False)


def after_write(kernel: FakeKernel, attribute: str, do: Callable[[], object]) -> None:
    """`do` is done once, right after the first write to that attribute that succeeds."""
    _meddle(kernel, attribute, do, is_after=True)


def _meddle(kernel: FakeKernel, attribute: str, do: Callable[[], object], *, is_after: bool) -> None:
    real = kernel.write
    done = False

    async def write(path: str, text: str) -> None:
        nonlocal done
        is_meant = not done and path.endswith(attribute)
        if is_after:
            await real(path, text)
        if is_meant:
            done = True
            do()
        if not is_after:
            await real(path, text)

    kernel.write = write  # type: ignore[method-assign]  # this is what a fake is for


def has(device: FakeDevice) -> tuple[str | None, str | None]:
    """Its driver and its override."""
    return (device.driver.name if device.driver else None, device.override)


async def no_reload() -> None:
    """There is nothing to read again."""


def pending(engine: Engine) -> set["asyncio.Task[None]"]:
    """What goes on in the background."""
    return engine._quarantine._tasks | engine._turns._releases | engine.reconciler._agenda.looks


async def ended() -> None:
    """What a door has closed is closed a few turns of the loop later."""
    for _ in range(5):
        await asyncio.sleep(0)
