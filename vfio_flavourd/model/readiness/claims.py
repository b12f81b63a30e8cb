"""Others who give devices to a driver: driverctl, and what stands in modprobe.d and on the command line."""

from collections.abc import Collection, Sequence

from ..address import PciAddress
from ..device import Device
from ..flavour import Flavour
from ..modprobe_conf import ModprobeConf
from ..override import Override
from ..policy import Decision
from ..vfio_ids import VFIO_PCI, VfioIds, find_vfio_ids
from .facts import Present
from .finding import Finding, State, name_some


def judge_driverctl(
    overrides: Sequence[Override], decided: Sequence[tuple[Device, Decision]], vfio_modules: Collection[str]
) -> list[Finding]:
    """Of the devices that are there. A native driver stands in nobody's way where the policy says nothing."""
    decisions = {device.address: decision for device, decision in decided}
    findings = []
    for override in overrides:
        decision = decisions.get(override.address) if override.address else None
        if decision is None:
            continue
        name = f"{override.address}: driverctl has {override.driver} saved for it"
        undo = f"driverctl unset-override {override.address}"
        is_vfio = override.driver.replace("-", "_") in vfio_modules
        if decision.flavour is None:
            if is_vfio:
                what = f"{name}; a policy could do it instead"
                findings.append(Finding("driverctl", State.NOTE, what, "flavourctl import driverctl"))
            continue
        same = decision.flavour == (Flavour.VFIO if is_vfio else Flavour.NATIVE)
        what = f"{name}, so it is left to that although {decision.reason} says {decision.flavour}"
        findings.append(Finding("driverctl", State.WARNING if same else State.PROBLEM, what, undo))
    return findings


def judge_modprobe(conf: ModprobeConf, devices: Sequence[Present]) -> list[Finding]:
    return [*_judge_ids(find_vfio_ids(conf), devices), *_judge_lines(conf)]


def _judge_ids(ids: VfioIds, devices: Sequence[Present]) -> list[Finding]:
    findings = []
    if ids.malformed:
        what = f"vfio-pci's ids= in {ids.origin} has entries that are no IDs: {', '.join(ids.malformed)}"
        findings.append(
            Finding("vfio-pci-ids", State.WARNING, what, "an ID is vendor:device, hexadecimal: 10de:1b80")
        )
    if ids.replaced:
        what = f"vfio-pci's ids= in {', '.join(ids.replaced)} has no effect: {ids.origin} sets it again later"
        findings.append(Finding("vfio-pci-ids", State.WARNING, what, "write all IDs in one line"))
    if not ids.ids:
        return findings
    claimed = [present for present in devices if any(each.fits(present.device) for each in ids.ids)]
    begin = f"vfio-pci's ids= in {ids.origin} claims {name_some(each.address for each in claimed)}"
    against = [each for each in claimed if each.decision.flavour not in (None, Flavour.VFIO)]
    before = [each for each in claimed if each.decision.flavour == Flavour.VFIO and _has_better(each)]
    remove = f"remove it from {ids.origin}"
    importing = "flavourctl import modprobe writes the same as a policy"
    if against:
        rules = ", ".join(dict.fromkeys(f"{each.decision.reason}" for each in against))
        what = (
            f"{begin}, although {rules} says {against[0].decision.flavour} of {name_some(map(_of, against))}"
        )
        findings.append(Finding("vfio-pci-ids", State.PROBLEM, what, remove))
    elif before:
        what = (
            f"{begin}: it may get {name_some(map(_of, before))} before the policy's driver, "
            f"{before[0].resolution.winner}, does"
        )
        findings.append(Finding("vfio-pci-ids", State.WARNING, what, remove))
    elif claimed:
        findings.append(
            Finding(
                "vfio-pci-ids", State.NOTE, f"{begin} whenever it is loaded", f"{importing}; then {remove}"
            )
        )
    else:
        what = f"vfio-pci's ids= in {ids.origin} claims no device that is here"
        findings.append(Finding("vfio-pci-ids", State.NOTE, what))
    return findings


def _has_better(present: Present) -> bool:
    winner = present.resolution.winner
    named = {driver.replace("-", "_") for driver in present.decision.drivers}
    return winner not in (None, VFIO_PCI) and VFIO_PCI not in named


def _judge_lines(conf: ModprobeConf) -> list[Finding]:
    lines = [
        f"softdep {line.module} {line.rest} ({line.origin})"
        for line in conf.softdeps
        if "vfio" in f"{line.module} {line.rest}"
    ]
    lines += [
        f"install {line.modules} {line.command} ({line.origin})"
        for line in conf.installs
        if "vfio" in f"{line.modules} {line.command}"
    ]
    if not lines:
        return []
    what = f"modprobe.d affects when VFIO drivers are loaded: {'; '.join(lines)}"
    advice = "with a policy it is not needed: its rules for early boot keep native drivers away"
    return [Finding("modprobe.d", State.NOTE, what, advice)]


def _of(present: Present) -> PciAddress:
    return present.address
