"""Has the rules for early boot say what the policy says, and leave the host what it needs.

What the daemon would refuse to take from the running host, the rules leave to it at the next boot. What was
seen in use once counts until it is seen free: when the system comes up next to nothing is mounted and there
is no route yet, and a device that is given away then can't be found in use any more.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from .. import __version__
from ..kernel.claims import find_driverctl_override
from ..kernel.early_rules import read_rules, write_rules
from ..kernel.facts import find_pf, find_slot, read_facts
from ..kernel.inventory import read_devices
from ..kernel.sysfs import Sysfs
from ..model.address import PciAddress
from ..model.aliases import AliasTable
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.occupancy import Use, User
from ..model.policy import VFIO, Policy
from ..model.udev_header import Header, Kept, Spared, find_ids, parse_header
from ..model.udev_rules import Compiled, compile_rules

# Without these the host stops on its way up, in an emergency shell at best.
_NEEDED = frozenset({Use.ROOT, Use.MOUNT, Use.SWAP, Use.HOLDER})

# Uses that come back with each boot, where the native driver does.
_USED = frozenset({Use.ROUTE, Use.ADDRESS, Use.PORT, Use.NETWORK_STORAGE, Use.DISPLAY})


@dataclass(frozen=True, slots=True)
class Update:
    """`changed` where the rules are others now: udevd has to be told, and an initramfs is older."""

    changed: bool
    notes: tuple[str, ...]


def update_rules(
    root: Path,
    policy: Policy,
    sources: tuple[str, ...],
    *,
    sysfs: Sysfs,
    table: AliasTable,
    find_users: Callable[[Device], tuple[User, ...]],
    host_name: str,
    kept: tuple[Kept, ...] | None = None,
    carry: bool,
) -> Update:
    """Write them where they differ. May take its time: it looks who uses each device. Raises FlavourError.

    `sources` are those of `read_sources()`, from before the policy was read. `kept` are wishes by hand, None
    for those that the rules name already. `carry` also keeps what they spare already, unless VFIO has it by
    now; without it only what is in use at this moment counts, as when a person asks.
    """
    before = parse_header(read_rules(root) or "")
    devices = read_devices(sysfs, policy.personalities)
    header = Header(
        version=__version__,
        sources=sources,
        spared=_find_spared(sysfs, devices, find_users, before.spared if carry else ()),
        kept=before.kept if kept is None else kept,
    )
    compiled = _compile(root, policy, header, devices, sysfs=sysfs, table=table, host_name=host_name)
    return Update(write_rules(root, compiled), compiled.notes)


def find_notes(
    root: Path, policy: Policy, *, sysfs: Sysfs, table: AliasTable, host_name: str
) -> tuple[str, ...]:
    """Those that `update_rules()` would give, but for what is spared: here that is what the rules
    spare already, since anybody may ask, and only root sees who uses a device."""
    try:
        header = parse_header(read_rules(root) or "")
    except FlavourError:
        header = parse_header("")
    spared = {each.address for each in header.spared}
    every = read_devices(sysfs, policy.personalities) if spared else ()
    devices = [device for device in every if device.address in spared]
    return _compile(root, policy, header, devices, sysfs=sysfs, table=table, host_name=host_name).notes


def are_missing(root: Path, policy: Policy, *, sysfs: Sysfs, table: AliasTable, host_name: str) -> bool:
    """Whether there are none, though the policy has something for them. Raises FlavourError where they can't
    be read."""
    if read_rules(root) is not None:
        return False
    return _compile(root, policy, Header(), (), sysfs=sysfs, table=table, host_name=host_name).acts


def _compile(
    root: Path,
    policy: Policy,
    header: Header,
    devices: Iterable[Device],
    *,
    sysfs: Sysfs,
    table: AliasTable,
    host_name: str,
) -> Compiled:
    spared = {each.address for each in header.spared}
    named = {each.driver.replace("-", "_") for each in policy.personalities if each.driver}
    return compile_rules(
        policy,
        header,
        host_name=host_name,
        variants=[alias for alias in table.flavoured_aliases() if alias.module != VFIO.fallback],
        personal=table.plain_aliases(named) if named else (),
        claimed=[device.address for device in devices if find_driverctl_override(root, device.address)],
        present=[
            read_facts(sysfs, device, policy, host_name=host_name)
            for device in devices
            if device.address in spared
        ],
    )


def _find_spared(
    sysfs: Sysfs,
    devices: Iterable[Device],
    find_users: Callable[[Device], tuple[User, ...]],
    before: tuple[Spared, ...],
) -> tuple[Spared, ...]:
    devices = tuple(devices)
    slots = {device.address: find_slot(device, find_pf(sysfs, device)) for device in devices}
    at_address = {device.address: device for device in devices}
    at_slot = {slots[device.address]: device for device in devices}
    absent: list[Spared] = []
    found: dict[PciAddress, Spared] = {}
    for each in before:
        # Where the buses are numbered anew another device may have its address.
        there = at_slot.get(each.slot) if each.slot else at_address.get(each.address)
        if there is None:
            absent.append(each)
        elif find_ids(there.identity) == each.ids and there.vfio_device is None:
            found[there.address] = replace(each, address=there.address, slot=slots[there.address])
    for device in devices:
        users = [user for user in find_users(device) if user.use in _NEEDED | _USED]
        if users:
            found[device.address] = Spared(
                address=device.address,
                ids=find_ids(device.identity),
                needed=any(user.use in _NEEDED for user in users),
                why="; ".join(user.what for user in users),
                slot=slots[device.address],
            )
    return tuple(sorted((*absent, *found.values()), key=lambda each: each.address))
