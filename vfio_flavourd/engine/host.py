"""The host as the engine sees it: its kernel, its index, its policy, its records."""

from dataclasses import dataclass
from pathlib import Path

from ..kernel.facts import read_facts
from ..kernel.hands import Hands
from ..kernel.index import ModuleIndex
from ..kernel.inventory import find_driver_module, read_device, read_devices, read_others_in_group
from ..kernel.looker import Looker
from ..kernel.modules import Modules
from ..kernel.sysfs import Sysfs
from ..model.address import PciAddress
from ..model.aliases import Resolution
from ..model.device import Device
from ..model.flavour import Flavour, find_flavour, parse_flavour
from ..model.policy import Decision, Facts, FlavourKind, decide, decide_by_default
from .changes import Changes
from .ledger import Ledger
from .policy import ModulesOfFlavours, PolicyInForce


@dataclass(frozen=True, slots=True)
class Host:
    """What a switch works with. `turn_timeout` is how long (seconds) one waits for another switch in the
    same IOMMU group, `release` the running kernel's; `state` is the directory of what holds for this boot,
    `lasting_state` of what outlives it."""

    sysfs: Sysfs
    hands: Hands
    modules: Modules
    index: ModuleIndex
    occupancy: Looker
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

    def read_others_in_group(self, device: Device) -> tuple[Device, ...]:
        return read_others_in_group(self.sysfs, device, self.policy.policy.personalities)

    def decide(self, device: Device, applied: str = "", facts: Facts | None = None) -> Decision:
        """What the policy says of a device; `applied` is the rule that was, if any, `facts` are the device's
        where they have been read."""
        policy = self.policy.policy
        if not policy.rules:
            return decide_by_default(policy)
        return decide(facts or self.read_facts(device), policy, applied)

    def read_facts(self, device: Device) -> Facts:
        """What rules look at; a serial only where one asks for it."""
        facts = read_facts(self.sysfs, device, self.policy.policy, self.policy.find_serials(device))
        if facts.serials:
            self.policy.serials[device.address] = (device.identity.inode, facts.serials)
        return facts

    def find_flavour(self, device: Device) -> Flavour:
        return find_flavour(device.vfio_device, device.driver_module, self._modules_of_flavours())

    def find_flavour_of(self, driver: str | None, vfio_device: str | None) -> Flavour:
        """The flavour of a device that has this driver and this VFIO device."""
        module = find_driver_module(self.sysfs, driver)
        return find_flavour(vfio_device, module, self._modules_of_flavours())

    def find_kind(self, flavour: Flavour) -> FlavourKind:
        """What a flavour other than `native` is. Raises FlavourError (EINVAL) where it is none any more: the
        policy may have been read again since somebody asked for it."""
        return self.policy.policy.flavours[parse_flavour(flavour, self.policy.flavours)]

    def resolve(
        self,
        modalias: str,
        kind: FlavourKind,
        named: tuple[str, ...] = (),
        denied: frozenset[str] = frozenset(),
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

    def _modules_of_flavours(self) -> ModulesOfFlavours:
        return self.policy.find_modules(self.index.table())
