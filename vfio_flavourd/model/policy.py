"""What the owner of a host wants of its devices, and what that means for one of them."""

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from .address import PciAddress
from .device import ENABLE_VFIO, Device, Personality


class OthersInGroup(StrEnum):
    """What to do when others in the device's IOMMU group aren't on VFIO."""

    REFUSE = "refuse"
    TOGETHER = "together"  # switch all of the group's endpoints, or none
    IGNORE = "ignore"  # switch the one; the group is not usable then


class InUse(StrEnum):
    """What to do when the host or a guest uses the device."""

    REFUSE = "refuse"
    FORCE = "force"


class NoIommu(StrEnum):
    """What to do with a device that no IOMMU isolates."""

    REFUSE = "refuse"
    ALLOW = "allow"


# What a rule writes for a device that has no driver.
NO_DRIVER = "none"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a switch is made. Timeouts are in seconds: `load_timeout` for one candidate's module,
    `bind_timeout` for the writes of one move. `denied` are modules never to be used, as the index writes
    them, with `_` for `-`."""

    load_timeout: float = 10.0
    bind_timeout: float = 30.0
    group: OthersInGroup = OthersInGroup.REFUSE
    in_use: InUse = InUse.REFUSE
    noiommu: NoIommu = NoIommu.REFUSE
    denied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class FlavourKind:
    """A flavour: `alias_prefix` is that of the modules' aliases, None where there are none; `fallback`
    the module of the generic driver."""

    name: str
    alias_prefix: str | None
    fallback: str


VFIO = FlavourKind("vfio", "vfio_pci", "vfio_pci")

# Stands for a driver where none is named: the best one.
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class NodeAccess:
    """Who may open the VFIO nodes of a device; None leaves a thing as the kernel made it."""

    owner: str | None
    group: str | None
    mode: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules look at, beyond the device itself.

    `slot` is the device's path from its root bus, `0000:00:11.0/00.0`: bus numbers below the root, which
    change when a bridge is added, are not in it. `sriov` is `pf`, `vf` or None; `pf` the address of a VF's
    PF. `serials` are the device serial number of the PCI capability and those that its children tell.
    """

    device: Device
    slot: str
    sriov: str | None
    pf: PciAddress | None
    serials: tuple[str, ...]
    host_name: str


@dataclass(frozen=True, slots=True)
class Match:
    """All that is given must fit; of several values for one thing any. Empty means whatever it is.

    `slot` also means everything behind it; `device_class` is the start of the six digits; `driver` is the
    one bound now, `none` for none; `modalias` and `host` are globs.
    """

    address: tuple[PciAddress, ...] = ()
    slot: tuple[str, ...] = ()
    vendor: tuple[int, ...] = ()
    device: tuple[int, ...] = ()
    subsystem_vendor: tuple[int, ...] = ()
    subsystem_device: tuple[int, ...] = ()
    device_class: tuple[str, ...] = ()
    modalias: tuple[str, ...] = ()
    driver: tuple[str, ...] = ()
    iommu_group: tuple[int, ...] = ()
    sriov: str | None = None
    pf: tuple[PciAddress, ...] = ()
    serial: tuple[str, ...] = ()
    host: tuple[str, ...] = ()

    def conditions(self) -> dict[str, frozenset[object]]:
        """What is given, by field."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: frozenset(value if isinstance(value, tuple) else (value,))
            for name, value in given.items()
            if value
        }

    def covers(self, other: "Match") -> bool:
        """Whether it surely fits whatever the other one fits; globs and paths are compared as texts."""
        theirs = other.conditions()
        return all(name in theirs and theirs[name] <= values for name, values in self.conditions().items())


@dataclass(frozen=True, slots=True)
class Rule:
    """`flavour` is None where the rule only says how, not what. `drivers` is empty for `auto`. `origin` is
    `file:line`, for people."""

    name: str
    match: Match
    flavour: str | None
    drivers: tuple[str, ...]
    settings: Settings
    nodes: NodeAccess | None
    origin: str

    @property
    def reason(self) -> str:
        """Why something was decided, where this rule did."""
        return f"rule {self.name!r} ({self.origin})"


@dataclass(frozen=True, slots=True)
class Policy:
    """One valid set of policy files. `flavours` holds `vfio` too; `native` is no kind of its own. `metrics`
    is the path of the file for Prometheus, None for none."""

    defaults: Settings = Settings()
    rules: tuple[Rule, ...] = ()
    flavours: dict[str, FlavourKind] = field(default_factory=lambda: {VFIO.name: VFIO})
    personalities: tuple[Personality, ...] = (ENABLE_VFIO,)
    metrics: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says of one device; `rule` is None where no rule matches."""

    rule: Rule | None
    flavour: str | None
    drivers: tuple[str, ...]
    settings: Settings
    nodes: NodeAccess | None
    reason: str


def decide(facts: Facts, policy: Policy, applied: str = "") -> Decision:
    """The first rule that matches decides; without one, the defaults, and no flavour.

    The rule named `applied` matches whatever driver the device has: it has another one because of the rule.
    Without that two rules could take a device from each other for ever; with it, only one that stands above
    the one that was applied takes it.
    """
    for rule in policy.rules:
        match = replace(rule.match, driver=()) if rule.name == applied else rule.match
        if fits(match, facts):
            return Decision(rule, rule.flavour, rule.drivers, rule.settings, rule.nodes, rule.reason)
    return decide_by_default(policy)


def decide_by_default(policy: Policy) -> Decision:
    """What holds for a device that no rule is for."""
    return Decision(None, None, (), policy.defaults, None, "no rule matches")


def fits(match: Match, facts: Facts) -> bool:
    return _fits_but_for_the_serial(match, facts) and (
        not match.serial or any(_folded(serial) in _folded_all(match.serial) for serial in facts.serials)
    )


def asks_for_serials(facts: Facts, policy: Policy) -> bool:
    """Whether the decision hangs on the device's serials, which take reads that others do without."""
    for rule in policy.rules:
        if _fits_but_for_the_serial(rule.match, facts):
            return bool(rule.match.serial)
    return False


def _fits_but_for_the_serial(match: Match, facts: Facts) -> bool:
    # The cheap and telling ones first: most rules are done with at the vendor.
    device, identity = facts.device, facts.device.identity
    return (
        (not match.vendor or identity.vendor in match.vendor)
        and (not match.device or identity.device in match.device)
        and (not match.address or device.address in match.address)
        and (not match.subsystem_vendor or identity.subsystem_vendor in match.subsystem_vendor)
        and (not match.subsystem_device or identity.subsystem_device in match.subsystem_device)
        and (not match.device_class or f"{device.class_code:06x}".startswith(match.device_class))
        and (match.sriov is None or facts.sriov == match.sriov)
        and (not match.pf or facts.pf in match.pf)
        and (not match.iommu_group or device.iommu_group in match.iommu_group)
        and (not match.driver or _is_bound_to(device, match.driver))
        and (not match.slot or any(_lies_in(facts.slot, slot) for slot in match.slot))
        and (not match.modalias or any(fnmatchcase(device.modalias, glob) for glob in match.modalias))
        and (not match.host or any(is_host(facts.host_name, glob) for glob in match.host))
    )


def _lies_in(slot: str, place: str) -> bool:
    return slot == place or slot.startswith(f"{place}/")


def _is_bound_to(device: Device, drivers: tuple[str, ...]) -> bool:
    if device.driver is None:
        return NO_DRIVER in drivers
    # Whoever writes a policy has the module's name in mind as often: vfio_pci for vfio-pci.
    name = device.driver.replace("-", "_")
    return any(name == driver.replace("-", "_") for driver in drivers if driver != NO_DRIVER)


def is_host(name: str, glob: str) -> bool:
    full, pattern = name.lower(), glob.lower()
    return fnmatchcase(full, pattern) or fnmatchcase(full.partition(".")[0], pattern)


def _folded(serial: str) -> str:
    return serial.strip().lower()


def _folded_all(serials: tuple[str, ...]) -> set[str]:
    return {_folded(serial) for serial in serials}
