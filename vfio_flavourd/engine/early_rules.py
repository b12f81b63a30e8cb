"""Has the rules for early boot say what the policy says, and leave the host what it needs.

What the daemon would refuse to take from the running host, the rules leave to it at the next boot. What was
seen in use once counts until it is seen free: when the system comes up next to nothing is mounted and there
is no route yet, and a device that is given away then can't be found in use any more. So for a policy that no
daemon has had in force yet only devices are taken then that were seen free before.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from .. import __version__
from ..kernel.claims import find_driverctl_override
from ..kernel.early_rules import find_policy, read_rules, write_rules
from ..kernel.facts import find_pf, find_slot, read_facts
from ..kernel.inventory import read_devices
from ..kernel.sysfs import Sysfs
from ..model.address import PciAddress
from ..model.aliases import AliasTable
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Flavour, find_flavour
from ..model.occupancy import Use, User
from ..model.policy import VFIO, Policy
from ..model.udev_header import Free, Header, Kept, Spared, find_ids, parse_header
from ..model.udev_rules import Compiled, compile_rules
from .policy import PolicyInForce

# Without these the host stops on its way up, in an emergency shell at best.
_NEEDED = frozenset({Use.ROOT, Use.MOUNT, Use.SWAP, Use.HOLDER})

# Uses that come back with each boot, where the native driver does.
_USED = frozenset({Use.ROUTE, Use.ADDRESS, Use.PORT, Use.NETWORK_STORAGE, Use.DISPLAY})


class Occasion(StrEnum):
    """When the rules are made: until a person says so, what will be in use may not be yet."""

    BEFORE_UDEV = "before udev"
    START = "a daemon has started"
    WISH = "a lasting wish"
    ASKED = "a reload"


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
    occasion: Occasion,
) -> Update:
    """Write them where they differ. May take its time: it looks who uses each device. Raises FlavourError.

    `sources` are those of `read_sources()`, from before the policy was read. `kept` are wishes by hand, None
    for those that the rules name already. What they spare already stays so, unless VFIO has it by now or a
    person asks. What was seen free counts until the next daemon starts.
    """
    before = parse_header(read_rules(root) or "")
    devices = read_devices(sysfs, policy.personalities)
    pfs = {device.address: find_pf(sysfs, device) for device in devices}
    slots = {device.address: find_slot(device, pfs[device.address]) for device in devices}
    asked = occasion is Occasion.ASKED
    spared = _find_spared(devices, slots, find_users, () if asked else before.spared)
    # A card has its VFs made long after.
    endpoints = [device for device in devices if not (device.is_bridge or pfs[device.address])]
    modules = PolicyInForce(policy).find_modules(table)
    given = [
        device
        for device in endpoints
        if asked or find_flavour(device.vfio_device, device.driver_module, modules) != Flavour.NATIVE
    ]
    remembered = before.free if occasion in (Occasion.BEFORE_UDEV, Occasion.WISH) else ()
    is_known = find_policy(before.sources) == find_policy(sources) and before.host in ("", host_name)
    header = Header(
        version=__version__,
        sources=sources,
        spared=spared,
        kept=before.kept if kept is None else kept,
        free=_find_free(endpoints, given, spared, remembered),
        only_free=occasion is Occasion.BEFORE_UDEV and (before.only_free or not is_known),
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
    devices: Iterable[Device],
    slots: Mapping[PciAddress, str],
    find_users: Callable[[Device], tuple[User, ...]],
    before: tuple[Spared, ...],
) -> tuple[Spared, ...]:
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


def _find_free(
    devices: Iterable[Device], given: Iterable[Device], spared: Iterable[Spared], before: Iterable[Free]
) -> tuple[Free, ...]:
    """`given` are those that the host does without now, unless they are spared; `before` are from earlier."""
    now = {device.address: Free(device.address, find_ids(device.identity)) for device in devices}
    used = {each.address for each in spared}
    found = {each for each in before if now.get(each.address, each) == each}
    found |= {now[device.address] for device in given}
    return tuple(sorted((each for each in found if each.address not in used), key=lambda each: each.address))
