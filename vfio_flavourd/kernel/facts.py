"""sysfs -> what the policy's rules look at.

What the kernel answers from memory is read of every device. A serial may take reads of its configuration
space, which wake it up and wait for a reset of it to end (pci_config_pm_runtime_get() in
drivers/pci/pci.c, pci_wait_cfg() in drivers/pci/access.c), so it is read only where the decision hangs on it.
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import replace

from ..model.address import PciAddress, parse_address
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.policy import Facts, Policy, asks_for_serials
from .sysfs import Sysfs

_log = logging.getLogger(__name__)

# Extended capabilities: PCI Express Base Specification, 7.6 and 7.9.3.
_FIRST_EXTENDED_CAPABILITY = 0x100
_DEVICE_SERIAL_NUMBER = 0x0003
_EXTENDED_CAPABILITIES = (4096 - 256) // 8


def read_facts(
    sysfs: Sysfs, device: Device, policy: Policy, known_serials: tuple[str, ...] = (), host_name: str = ""
) -> Facts:
    """`known_serials` are those that it told earlier: an NVMe drive tells none while VFIO has it. May block
    where a rule asks for a serial and none is known: a driver that has come since may tell another one, its
    configuration space does not. Raises nothing for a device that goes away: it has fewer facts then.
    """
    pf = find_pf(sysfs, device)
    facts = Facts(
        device=device,
        slot=find_slot(device, pf),
        sriov="vf" if pf else "pf" if sysfs.exists(f"{device.path}/sriov_totalvfs") else None,
        pf=pf,
        serials=known_serials,
        host_name=host_name or os.uname().nodename,
    )
    if not asks_for_serials(facts, policy):
        return facts
    found = _read_its_drivers(sysfs, device) if known_serials else read_serials(sysfs, device)
    return replace(facts, serials=tuple(dict.fromkeys((*known_serials, *found))))


def find_slot(device: Device, pf: PciAddress | None = None) -> str:
    """Its path from the root bus, see `Facts`.

    A VF on another bus than its PF has the distance before its own numbers, `+1:00.2`: in sysfs it is its
    PF's neighbour (pci_iov_add_virtfn() in drivers/pci/iov.c), and more than one bus can have a 00.2.
    """
    slot: list[str] = []
    for part in device.path.split("/"):
        try:
            address = parse_address(part)
        except FlavourError:
            continue  # a root bus, also that of a domain behind a VMD device
        slot.append(f"{address.device:02x}.{address.function}" if slot else str(address))
    if pf and pf.bus != device.address.bus and len(slot) > 1:
        slot[-1] = f"+{device.address.bus - pf.bus}:{slot[-1]}"
    return "/".join(slot)


def read_serials(sysfs: Sysfs, device: Device) -> tuple[str, ...]:
    """What its driver's children tell, and the Device Serial Number as lspci prints it. May block."""
    found = list(_read_its_drivers(sysfs, device))
    # The kernel itself has a `serial_number` from 6.18 on.
    own = f"{device.path}/serial_number"
    if sysfs.exists(own):
        found += _read_all(sysfs, device, (own,))
    try:
        found.append(_read_device_serial_number(sysfs.root + device.path))
    except OSError as error:
        _log.debug("reading the configuration space of %s failed: %s", device.address, error)
    return tuple(dict.fromkeys(serial for serial in found if serial))


def _read_its_drivers(sysfs: Sysfs, device: Device) -> tuple[str, ...]:
    """The NVMe driver answers from memory."""
    base = f"{device.path}/nvme"
    return _read_all(sysfs, device, [f"{base}/{name}/serial" for name in sysfs.list(base)])


def _read_all(sysfs: Sysfs, device: Device, paths: Iterable[str]) -> tuple[str, ...]:
    """Those that there are; one that can't be read leaves the others."""
    found = []
    for path in paths:
        try:
            found.append(sysfs.read(path).strip())
        except FlavourError as error:
            _log.debug("a serial of %s is left out: %s", device.address, error)
    return tuple(serial for serial in found if serial)


def find_pf(sysfs: Sysfs, device: Device) -> PciAddress | None:
    name = sysfs.find_link(f"{device.path}/physfn")
    return None if name is None else parse_address(name)


def _read_device_serial_number(directory: str) -> str:
    """Empty where there is none, and without CAP_SYS_ADMIN, where pci_read_config() ends after 64 bytes."""
    file = os.open(f"{directory}/config", os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = _FIRST_EXTENDED_CAPABILITY
        # Header by header, as the kernel does: some chips lock up when undefined registers are read.
        for _ in range(_EXTENDED_CAPABILITIES):
            header = int.from_bytes(os.pread(file, 4, at), "little")
            if header in (0, 0xFFFFFFFF):
                break
            if header & 0xFFFF == _DEVICE_SERIAL_NUMBER:
                return os.pread(file, 8, at + 4)[::-1].hex("-")
            at = header >> 20 & 0xFFC
            if at < _FIRST_EXTENDED_CAPABILITY:
                break
    finally:
        os.close(file)
    return ""
