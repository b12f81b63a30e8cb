"""The host as the engine sees it: its kernel, its index, its policy, its records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..kernel.facts import read_facts
from ..kernel.hands import Hands
from ..kernel.index import ModuleIndex
from ..kernel.inventory import find_driver_module, read_device, read_devices, read_group
from ..kernel.modules import Modules
from ..kernel.occupancy import Occupancy
from ..kernel.sysfs import Sysfs
from ..model.address import PciAddress
from ..model.aliases import AliasTable, Resolution
from ..model.device import Device
from ..model.flavour import Flavour, find_flavour
from ..model.policy import Decision, FlavourKind, Policy, decide
from .changes import Changes
from .ledger import Ledger

_ModulesOfFlavours = Mapping[Flavour, frozenset[str]]


class PolicyInForce:
    """The last good set. `trouble` says why a newer one is not in force, and is empty otherwise. `changed` is
    called when something else than the files has changed what is wanted: a wish that lasts."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.trouble = ""
        self.changed: Callable[[], None] = _nobody_listens
        self.policy = policy or Policy()
        self._modules: tuple[AliasTable, _ModulesOfFlavours] | None = None

    def replace(self, policy: Policy) -> None:
        self.policy = policy
        self.trouble = ""
        self._modules = None
        self.changed()

    @property
    def flavours(self) -> tuple[Flavour, ...]:
        """All that there are, `native` first."""
        return (Flavour.NATIVE, *map(Flavour, self.policy.flavours))

    def find_modules(self, table: AliasTable) -> _ModulesOfFlavours:
        """Which modules bring the drivers of each flavour but `native`."""
        if self._modules is None or self._modules[0] is not table:
            found = {
                Flavour(kind.name): table.flavoured_modules(kind.alias_prefix, kind.fallback)
                if kind.alias_prefix is not None
                else frozenset({kind.fallback.replace("-", "_")})
                for kind in self.policy.flavours.values()
            }
            self._modules = (table, found)
        return self._modules[1]


def _nobody_listens() -> None:
    """Nothing is made from the policy."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a switch works with. `turn_timeout` is how long (seconds) one waits for another switch in the
    same IOMMU group, `release` the running kernel's; `state` is the directory of what holds for this boot,
    `lasting_state` of what outlives it."""

    sysfs: Sysfs
    hands: Hands
    modules: Modules
    index: ModuleIndex
    occupancy: Occupancy
    policy: PolicyInForce
    ledger: Ledger
    changes: Changes
    release: str
    state: Path
    lasting_state: Path
    root: Path = Path("/")
    turn_timeout: float = 30.0

    def read_device(self, address: PciAddress) -> Device:
        """Raises FlavourError (ENODEV)."""
        return read_device(self.sysfs, address, self.policy.policy.personalities)

    def read_devices(self) -> tuple[Device, ...]:
        return read_devices(self.sysfs, self.policy.policy.personalities)

    def read_group(self, iommu_group: int) -> tuple[Device, ...]:
        return read_group(self.sysfs, iommu_group, self.policy.policy.personalities)

    def decide(self, device: Device) -> Decision:
        """What the policy says of a device."""
        policy = self.policy.policy
        return decide(read_facts(self.sysfs, device, policy), policy)

    def find_flavour(self, device: Device) -> Flavour:
        return find_flavour(device.vfio_device, device.driver_module, self._modules_of_flavours())

    def find_flavour_of(self, driver: str | None, vfio_device: str | None) -> Flavour:
        """The flavour of a device that has this driver and this VFIO device."""
        module = find_driver_module(self.sysfs, driver)
        return find_flavour(vfio_device, module, self._modules_of_flavours())

    def resolve(
        self, modalias: str, kind: FlavourKind, named: tuple[str, ...] = (), denied: frozenset[str] = frozenset()
    ) -> Resolution:
        """Which drivers would serve it. Raises FlavourError (EINVAL)."""
        return self.index.table().resolve(
            modalias,
            prefix=kind.alias_prefix or "",
            fallback=kind.fallback,
            named=named,
            denied=denied,
            loaded=self.modules,
        )

    def _modules_of_flavours(self) -> _ModulesOfFlavours:
        return self.policy.find_modules(self.index.table())
