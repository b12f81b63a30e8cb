"""What the owner of a host wants of its devices, and what that means for one of them."""

from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from .address import PciAddress
from .device import Device


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


@dataclass(frozen=True, slots=True)
class Settings:
    """How a switch is made. Timeouts are in seconds: `load_timeout` for one candidate's module,
    `bind_timeout` for the writes of one move."""

    load_timeout: float = 10.0
    bind_timeout: float = 30.0
    group: OthersInGroup = OthersInGroup.REFUSE
    in_use: InUse = InUse.REFUSE
    noiommu: NoIommu = NoIommu.REFUSE
    denied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Personality:
    """A driver that becomes a VFIO driver by an attribute of its own, and is never unbound.

    `attribute` is a path below the device's directory; writing `on` makes it a VFIO device, `off` takes
    that back. `ready` is the path below the device's directory whose presence (with at least one entry,
    if a directory) tells that it is one. `driver` is the PCI driver's name; empty for any.
    """

    driver: str
    attribute: str
    on: str = "1"
    off: str = "0"
    ready: str = "vfio-dev"


ENABLE_VFIO = Personality(driver="", attribute="enable_vfio")


@dataclass(frozen=True, slots=True)
class FlavourKind:
    """A flavour: `alias_prefix` is that of the modules' aliases, None where there are none; `fallback`
    the module of the generic driver."""

    name: str
    alias_prefix: str | None
    fallback: str


VFIO = FlavourKind("vfio", "vfio_pci", "vfio_pci")


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
    """All that is given must fit; of several values for one thing any. Empty means whatever it is."""

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


@dataclass(frozen=True, slots=True)
class Policy:
    """One valid set of policy files. `flavours` holds `vfio` too; `native` is no kind of its own."""

    defaults: Settings = Settings()
    rules: tuple[Rule, ...] = ()
    flavours: dict[str, FlavourKind] = field(default_factory=lambda: {VFIO.name: VFIO})
    personalities: tuple[Personality, ...] = (ENABLE_VFIO,)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says of one device; `rule` is None where no rule matches."""

    rule: Rule | None
    flavour: str | None
    drivers: tuple[str, ...]
    settings: Settings
    nodes: NodeAccess | None
    reason: str


def decide(facts: Facts, policy: Policy) -> Decision:
    """The first rule that matches decides; without one, the defaults, and no flavour."""
    for rule in policy.rules:
        if fits(rule.match, facts):
            reason = f"rule {rule.name!r} ({rule.origin})"
            return Decision(rule, rule.flavour, rule.drivers, rule.settings, rule.nodes, reason)
    return Decision(None, None, (), policy.defaults, None, "no rule matches")


def fits(match: Match, facts: Facts) -> bool:
    device, identity = facts.device, facts.device.identity
    return (
        (not match.address or device.address in match.address)
        and (not match.vendor or identity.vendor in match.vendor)
        and (not match.device or identity.device in match.device)
        and (not match.modalias or any(fnmatchcase(device.modalias, glob) for glob in match.modalias))
    )
