"""The module index and what it has: vfio-pci, and the variants that devices of this host could have."""

import re
from collections.abc import Sequence

from ..address import PciAddress
from ..resolution import Source
from ..upstream_variants import UPSTREAM_VARIANTS, UpstreamVariant
from .facts import Index, Platform, Present
from .finding import SUDO, Finding, State, name_some

# What a candidate's reason begins with when somebody keeps it from being loaded, or it can't be.
_KEPT_OUT = ("blacklisted", "its install command")
_NO_FILE = "module file missing"


def judge_modules(
    platform: Platform, index: Index, devices: Sequence[Present], *, is_root: bool
) -> list[Finding]:
    return [
        *_judge_index(platform, index, is_root=is_root),
        *_judge_generic(platform, index),
        *_judge_kept_out(platform, devices),
        *_judge_missing(platform, index, devices),
    ]


def _judge_index(platform: Platform, index: Index, *, is_root: bool) -> list[Finding]:
    depmod = f"depmod -a {platform.release}"
    # The daemon, which is root, may well read what this user may not.
    state, advice = (State.WARNING, "what is in it does not count") if is_root else (State.NOTE, SUDO)
    findings = [Finding("modules", state, each.removesuffix(", ignoring"), advice) for each in index.trouble]
    if index.alias_trouble:
        what = (
            f"{index.directory}/modules.alias can't be used, so no variant driver is found: "
            f"{index.alias_trouble}"
        )
        advice = f"{depmod}; if an upgrade has removed the running kernel's modules: reboot"
        return [*findings, Finding("modules", State.PROBLEM, what, advice)]
    if index.damage:
        what = f"{index.directory}/modules.alias.bin can't be used, by modprobe neither: {index.damage}"
        findings.append(Finding("modules", State.WARNING, what, f"{depmod} && flavourctl reload"))
    if index.newer:
        findings.append(
            Finding(
                "modules",
                State.WARNING,
                f"the module index is older than the modules in {index.newer}, so new ones are not found",
                f"{depmod} && flavourctl reload",
            )
        )
    if index.skipped.count:
        findings.append(
            Finding(
                "modules",
                State.NOTE,
                f"{index.skipped.count} malformed {_lines(index.skipped.count)} skipped, the first in "
                f"{index.skipped.origins[0]}",
                depmod if "modules.alias" in index.skipped.origins[0] else "mend or remove them",
            )
        )
    return findings or [Finding("modules", State.OK, "the module index is in order")]


def _lines(count: int) -> str:
    where = "in modprobe.d or the module index"
    return f"line {where} is" if count == 1 else f"lines {where} are"


def _judge_generic(platform: Platform, index: Index) -> list[Finding]:
    if index.alias_trouble and not index.is_generic_loaded:
        return []  # that is told, and nothing is known beyond
    if index.generic.accepted:
        return [Finding("vfio-pci", State.OK, "vfio-pci is available")]
    reason = index.generic.reason
    if reason.startswith(_KEPT_OUT):
        advice = "remove that line, and run flavourctl reload"
    else:
        advice = (
            f"install the package with all modules of kernel {platform.release} "
            "(Debian: apt install linux-image-amd64, Ubuntu: linux-modules-extra), or build VFIO_PCI"
        )
    return [Finding("vfio-pci", State.PROBLEM, f"vfio-pci is not available: {reason}", advice)]


def _judge_kept_out(platform: Platform, devices: Sequence[Present]) -> list[Finding]:
    kept_out: dict[tuple[str, str], list[PciAddress]] = {}
    for present in devices:
        for candidate in present.resolution.candidates:
            generic = candidate.source is Source.FALLBACK
            told = candidate.reason.startswith((*_KEPT_OUT, _NO_FILE))
            if told and not candidate.accepted and not generic:
                kept_out.setdefault((candidate.module, candidate.reason), []).append(present.address)
    findings = []
    for (module, reason), addresses in kept_out.items():
        what = f"the variant driver {module} for {name_some(addresses)} is not used: {reason}"
        if reason.startswith(_NO_FILE):
            advice = f"install it, or else depmod -a {platform.release} && flavourctl reload"
            findings.append(Finding("modules", State.WARNING, what, advice))
        else:
            advice = "if that is not meant, remove that line, and run flavourctl reload"
            findings.append(Finding("blacklist", State.WARNING, what, advice))
    return findings


def _judge_missing(platform: Platform, index: Index, devices: Sequence[Present]) -> list[Finding]:
    findings = []
    for variant in UPSTREAM_VARIANTS:
        served = [present for present in devices if _is_served(variant, present)]
        if without := [present for present in served if not _has_one(present)]:
            findings.append(_tell_missing(variant, platform, index, without))
    return findings


def _is_served(variant: UpstreamVariant, present: Present) -> bool:
    identity = present.device.identity
    fits = (identity.vendor, identity.device) in variant.ids
    return fits and (present.is_vf or not variant.vf_only)


def _has_one(present: Present) -> bool:
    """Whichever: it may be the vendor's own."""
    return any(candidate.source is not Source.FALLBACK for candidate in present.resolution.candidates)


def _tell_missing(
    variant: UpstreamVariant, platform: Platform, index: Index, devices: Sequence[Present]
) -> Finding:
    since = ".".join(map(str, variant.since))
    if _version(platform.release) < variant.since:
        why, advice = f"kernel {platform.release} is older", f"run Linux {since} or later"
    elif variant.module in index.flavoured:
        why, advice = f"that of kernel {platform.release} does not know this ID", "run a later kernel"
    else:
        setting = None if index.config is None else index.config.get(variant.config, "n")
        built = "has none" if setting is None else f"has {variant.config}={setting}"
        why = f"kernel {platform.release} {built}"
        advice = f"run a kernel with {variant.config}=m, or build this module for it"
        if setting == "m":
            why += " and the module is not installed"
            advice = f"install the package with all modules of kernel {platform.release}"
    wanted = any(present.decision.flavour == "vfio" for present in devices)
    return Finding(
        "variant",
        State.WARNING if wanted else State.NOTE,
        f"{name_some(present.address for present in devices)}: Linux has had the variant driver "
        f"{variant.module} for it since {since}, but {why}; vfio-pci serves instead, without what that adds",
        advice,
    )


def _version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)
