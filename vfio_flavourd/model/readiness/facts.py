"""What is read of a host before anything is judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..address import PciAddress
from ..aliases import Resolution
from ..device import Device
from ..flavour import Flavour
from ..modprobe_conf import ModprobeConf, Skipped
from ..policy import Decision
from ..resolution import Candidate


@dataclass(frozen=True, slots=True)
class Platform:
    """The machine and its kernel.

    `groups` is how many IOMMU groups there are, `units` the IOMMUs in /sys/class/iommu, `tables` the names
    of the firmware's ACPI tables (None: it has none, or they can't be listed). `boot_command` is what
    takes a changed command line into force, as far as that is known. `secure_boot` is None without EFI;
    `lockdown` is the kernel's level, empty where it has none. `unreadable` are paths that this user may not
    read.
    """

    release: str
    machine: str = "x86_64"
    cpu_vendor: str = ""
    cmdline: str = ""
    groups: int = 0
    units: tuple[str, ...] = ()
    tables: frozenset[str] | None = None
    boot_loader: str = ""
    is_noiommu_enabled: bool = False
    secure_boot: bool | None = None
    lockdown: str = ""
    is_signature_enforced: bool = False
    are_modules_disabled: bool = False
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Index:
    """The module index of the running kernel.

    `alias_trouble` is why there are no aliases, `damage` what is wrong with modules.alias.bin, `trouble` what
    can't be read of modprobe.d; `newer` a directory of modules that has changed since depmod ran. `generic`
    is vfio-pci as a candidate, and `is_generic_loaded` tells that it is there. `flavoured` are the modules of
    variants. `config` has the kernel's configuration of those, None where that isn't installed.
    """

    directory: str
    generic: Candidate
    alias_trouble: str = ""
    damage: str = ""
    trouble: tuple[str, ...] = ()
    skipped: Skipped = field(default_factory=Skipped)
    newer: str = ""
    is_generic_loaded: bool = False
    flavoured: frozenset[str] = frozenset()
    config: Mapping[str, str] | None = None
    conf: ModprobeConf = field(default_factory=ModprobeConf)


@dataclass(frozen=True, slots=True)
class Present:
    """A device that is there, with what the policy says of it and what could serve it."""

    device: Device
    flavour: Flavour
    decision: Decision
    resolution: Resolution
    is_vf: bool = False

    @property
    def address(self) -> PciAddress:
        return self.device.address


@dataclass(frozen=True, slots=True)
class Image:
    """An initramfs that is older than the policy's rules for early boot."""

    path: str
    which: str


@dataclass(frozen=True, slots=True)
class Applied:
    """How far the policy on disk has got. `is_newer` than the rules for early boot; `trouble` is why those
    can't be read, with its hint; `rebuild` the command that makes an initramfs."""

    is_newer: bool = False
    trouble: tuple[str, str] = ("", "")
    stale: tuple[Image, ...] = ()
    rebuild: str = ""


@dataclass(frozen=True, slots=True)
class Daemon:
    """`trouble` is why it doesn't answer, `hint` what to do; both are empty where it does. `policy_trouble`
    is why the policy on disk isn't in force, `stuck` has devices that the kernel does not give back,
    `decisions` what its policy says of each device."""

    trouble: str = ""
    hint: str = ""
    policy_trouble: str = ""
    stuck: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    decisions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    is_door_mounted: bool = True
