"""driverctl's saved overrides as a policy."""

import re
from collections.abc import Collection, Sequence

from .address import PciAddress
from .draft import Draft, DraftRule
from .flavour import Flavour
from .override import Override
from .policy import FlavourKind

_DIRECTORY = "/etc/driverctl.d"

# As a policy takes it.
_DRIVER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", re.ASCII)

# Drivers of other user-space frameworks: a policy has them as flavours of its own.
_USER_SPACE = {"uio_pci_generic": "uio", "igb_uio": "igb-uio"}


def draft_from_driverctl(
    overrides: Sequence[Override], vfio_modules: Collection[str], present: Collection[PciAddress]
) -> Draft:
    """`vfio_modules` are the modules that bring VFIO drivers, `present` the devices that are there."""
    rules: list[DraftRule] = []
    flavours: dict[str, FlavourKind] = {}
    remarks: list[str] = []
    undo: list[str] = []
    for override in overrides:
        origin = f"{_DIRECTORY}/{override.name}"
        address, driver = override.address, override.driver
        module = driver.replace("-", "_")
        if address is None:
            remarks.append(f"{origin}: not a PCI device, so it is left to driverctl")
            continue
        if module in vfio_modules:
            flavour: str = Flavour.VFIO
        elif module in _USER_SPACE:
            flavour = _USER_SPACE[module]
            flavours[flavour] = FlavourKind(flavour, None, module)
        else:
            remarks.append(_explain(origin, driver))
            continue
        rules.append(DraftRule(f"driverctl {address}", (("address", str(address)),), flavour, driver, origin))
        undo.append(f"driverctl unset-override {address}")
        if address not in present:
            remarks.append(f"{origin}: no device is at {address} now; the rule is for when one is")
    return Draft("driverctl", tuple(rules), tuple(flavours.values()), tuple(remarks), tuple(undo))


def _explain(origin: str, driver: str) -> str:
    if driver == "none":
        what = "a policy can't keep a device without any driver"
    elif _DRIVER.fullmatch(driver) is None:
        what = f"{driver!r} can't be a driver's name"
    else:
        what = f"{driver} is no VFIO driver, and a policy can't name a native one"
    return f"{origin}: {what}, so it is left to driverctl"
