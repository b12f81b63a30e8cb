"""Looks a host over: reads what there is to know, and has the model judge it. Needs no daemon, and no root
as far as it goes."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..config.files import DIRECTORIES
from ..config.problems import PolicyError
from ..kernel.claims import read_driverctl_overrides
from ..kernel.early_rules import find_rebuild_command, find_stale_initramfs, read_rules, read_sources
from ..kernel.facts import read_facts
from ..kernel.index import ModuleIndex
from ..kernel.inventory import read_devices
from ..kernel.readiness import find_unreadable, read_index, read_platform
from ..kernel.sysfs import Sysfs
from ..model.aliases import AliasTable
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import find_flavour
from ..model.policy import VFIO, Decision, Policy, decide
from ..model.readiness.claims import judge_driverctl, judge_modprobe
from ..model.readiness.facts import Applied, Daemon, Image, Present
from ..model.readiness.finding import SUDO, Finding, State, worst_first
from ..model.readiness.modules import judge_modules
from ..model.readiness.platform import judge_platform
from ..model.readiness.policy import (
    judge_applied,
    judge_daemon,
    judge_groups,
    judge_in_force,
    judge_mixed_groups,
)
from ..model.udev_header import parse_header
from .early_rules import are_missing
from .policy import PolicyInForce, has_files, is_switched_off


def examine(root: Path, release: str, daemon: Daemon, *, owner: int = 0) -> tuple[Finding, ...]:
    """Every finding, the worst first. `owner` is whose the policy's files must be."""
    known, findings = _examine_policy(root, owner)
    policy = known or Policy()
    table = ModuleIndex(root, release).table()
    devices = _read_present(root, policy, table)
    platform = read_platform(root, release)
    index = read_index(root, release, table)
    findings += judge_platform(platform, index)
    findings += judge_modules(platform, index, devices, is_root=os.geteuid() == 0)
    findings += judge_modprobe(index.conf, devices)
    findings += judge_mixed_groups(devices)
    if known is None:
        # That it is not in force has its reason told.
        daemon = replace(daemon, policy_trouble="")
    else:
        decided = [(each.device, each.decision) for each in devices]
        findings += examine_applied(root, release, decided, table)
        findings += _examine_missing(root, policy, table)
        findings += judge_groups(platform, index.conf, devices)
        if not _hides_serials(policy):
            findings += judge_in_force(daemon, policy.rules, devices)
    findings += judge_daemon(daemon)
    return worst_first(findings)


def examine_applied(
    root: Path, release: str, decided: Sequence[tuple[Device, Decision]], table: AliasTable
) -> list[Finding]:
    """Where this host is not yet, or not after the next boot, what its policy says."""
    overrides = read_driverctl_overrides(root)
    vfio_modules = table.flavoured_modules(VFIO.alias_prefix or "", VFIO.fallback)
    return [*judge_driverctl(overrides, decided, vfio_modules), *judge_applied(_read_applied(root, release))]


def read_decided(root: Path, policy: Policy) -> list[tuple[Device, Decision]]:
    """What the policy says of each device that is there."""
    sysfs = Sysfs(str(root).rstrip("/"))
    devices = read_devices(sysfs, policy.personalities)
    return [(device, decide(read_facts(sysfs, device, policy), policy)) for device in devices]


def _examine_policy(root: Path, owner: int) -> tuple[Policy | None, list[Finding]]:
    """None where it is not known, or switched off."""
    if is_switched_off(root):
        what = "the policy is switched off on the kernel command line, so no device is touched unasked"
        return None, [Finding("policy", State.WARNING, what, "take vfio_flavourd.policy=0 away and reboot")]
    if unreadable := find_unreadable(root, DIRECTORIES):
        what = f"the policy was not checked: {', '.join(unreadable)} can't be read by this user"
        return None, [Finding("policy", State.NOTE, what, SUDO)]
    if not has_files(root):
        return Policy(), [Finding("policy", State.OK, "there are no policy rules")]
    # Not needed by a host without a policy, see PolicyInForce.
    from ..config.load import load_policy

    try:
        loaded = load_policy(root, owner=owner)
    except PolicyError as error:
        what = f"the policy is not valid: {error}"
        return None, [Finding("policy", State.PROBLEM, what, "flavourctl check")]
    findings = [Finding("policy", State.NOTE, str(problem), problem.hint) for problem in loaded.warnings]
    if not loaded.policy.rules:
        return loaded.policy, [*findings, Finding("policy", State.OK, "there are no policy rules")]
    if _hides_serials(loaded.policy):
        what = "rules that ask for a serial number could not be judged: only root can read all of those"
        findings.append(Finding("policy", State.NOTE, what, SUDO))
    return loaded.policy, [*findings, Finding("policy", State.OK, "the policy is valid")]


def _hides_serials(policy: Policy) -> bool:
    """Without CAP_SYS_ADMIN a read of a device's configuration space ends before its serial number."""
    return os.geteuid() != 0 and any(rule.match.serial for rule in policy.rules)


def _read_present(root: Path, policy: Policy, table: AliasTable) -> list[Present]:
    sysfs = Sysfs(str(root).rstrip("/"))
    modules = PolicyInForce(policy).find_modules(table)
    loaded = sysfs.list("/sys/module")
    present = []
    for device in read_devices(sysfs, policy.personalities):
        facts = read_facts(sysfs, device, policy)
        decision = decide(facts, policy)
        present.append(
            Present(
                device=device,
                flavour=find_flavour(device.vfio_device, device.driver_module, modules),
                decision=decision,
                resolution=table.resolve(device.modalias, denied=decision.settings.denied, loaded=loaded),
                is_vf=facts.sriov == "vf",
            )
        )
    return present


def _examine_missing(root: Path, policy: Policy, table: AliasTable) -> list[Finding]:
    """Not among the remarks of a check: who has just written his first policy has yet to reload it."""
    sysfs = Sysfs(str(root).rstrip("/"))
    try:
        missing = are_missing(root, policy, sysfs=sysfs, table=table, host_name=os.uname().nodename)
    except FlavourError:
        return []  # that they can't be read is told
    what = "there are no rules for early boot yet, so native drivers bind first at boot"
    return [Finding("early-rules", State.WARNING, what, "flavourctl reload")] if missing else []


def _read_applied(root: Path, release: str) -> Applied:
    try:
        rules = read_rules(root)
    except FlavourError as error:
        return Applied(trouble=(str(error), error.hint))
    return Applied(
        is_newer=rules is not None and parse_header(rules).sources != read_sources(root, release),
        stale=tuple(
            Image(str(image.path), "the running kernel's" if image.running else f"that of {image.release}")
            for image in find_stale_initramfs(root, release)
        ),
        rebuild=find_rebuild_command(root) or "rebuild it",
    )
