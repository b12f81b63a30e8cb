"""The machine and its kernel: IOMMU, Secure Boot and lockdown, modules that can't be loaded."""

import shlex

from .facts import Index, Platform
from .finding import SUDO, Finding, State

# What the firmware describes its IOMMU in, and what its setup calls that.
_INTEL = ("DMAR", "VT-d")
_AMD = ("IVRS", "AMD-Vi (or IOMMU)")
_ARM = ("IORT", "SMMU")
_FIRMWARE = {"GenuineIntel": _INTEL, "AuthenticAMD": _AMD, "HygonGenuine": _AMD}

# Documentation/admin-guide/kernel-parameters.txt.
_OFF = frozenset({"intel_iommu=off", "amd_iommu=off", "iommu=off"})
_INTEL_ON = "intel_iommu=on"


def judge_platform(platform: Platform, index: Index) -> list[Finding]:
    return [
        _judge_iommu(platform),
        *_judge_noiommu(platform),
        *_judge_signatures(platform),
        *_judge_loading(platform, index),
        *_tell_unreadable(platform),
    ]


def _judge_iommu(platform: Platform) -> Finding:
    if platform.groups:
        return Finding(
            "iommu",
            State.OK,
            f"the IOMMU is on, with {platform.groups} {'group' if platform.groups == 1 else 'groups'}",
        )
    what = "the IOMMU is off: no device is in an IOMMU group, so VFIO can isolate none"
    reason, advice = _explain_off(platform)
    # Somebody has chosen to go without one.
    state = State.WARNING if platform.is_noiommu_enabled else State.PROBLEM
    return Finding("iommu", state, f"{what}; {reason}", advice)


def _explain_off(platform: Platform) -> tuple[str, str]:
    words = platform.cmdline.split()
    arm = _ARM if platform.machine == "aarch64" else None
    table, called = _FIRMWARE.get(platform.cpu_vendor) or arm or ("", "IOMMU")
    if off := [word for word in words if word in _OFF]:
        return (
            f"the kernel command line says {' '.join(off)}",
            _change(platform, remove=" ".join(off)),
        )
    if platform.units:
        return (
            f"the kernel has {', '.join(platform.units)}, but no device is behind it",
            "dmesg | grep -i -e iommu -e dmar -e amd-vi says more",
        )
    if platform.tables is not None and table and table not in platform.tables:
        return (
            f"the firmware has no {table} table",
            f"enable {called} in the firmware's setup (in a virtual machine: give it a virtual IOMMU)",
        )
    if platform.cpu_vendor == "GenuineIntel" and _INTEL_ON not in words:
        return (
            f"the kernel command line lacks {_INTEL_ON}",
            _change(platform, add=_INTEL_ON),
        )
    return (
        "the kernel has found none that it can use",
        f"enable {called} in the firmware's setup; dmesg | grep -i -e iommu -e dmar -e amd-vi says more",
    )


def _change(platform: Platform, *, add: str = "", remove: str = "") -> str:
    change = f"add {add} to" if add else f"take {remove} out of"
    match platform.boot_loader:
        case "grubby":
            option = f"--args={add}" if add else f"--remove-args={shlex.quote(remove)}"
            return f"grubby --update-kernel=ALL {option} && reboot"
        case "update-grub":
            return f"{change} GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub && reboot"
        case "kernel-install":
            return f"{change} /etc/kernel/cmdline, then kernel-install add-all && reboot"
        case _:
            return f"{change} the boot loader's configuration, then reboot"


def _judge_noiommu(platform: Platform) -> list[Finding]:
    if not platform.is_noiommu_enabled:
        return []
    return [
        Finding(
            "noiommu",
            State.WARNING,
            "VFIO's no-IOMMU mode is enabled: whoever has such a device can read and write all of the memory",
            "echo 0 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode; "
            "grep -r noiommu /etc/modprobe.d /proc/cmdline finds what enables it",
        )
    ]


def _judge_signatures(platform: Platform) -> list[Finding]:
    # Both only keep unsigned modules out: VFIO itself goes on working (kernel_lockdown(7)).
    reasons = []
    if platform.lockdown not in ("", "none"):
        reasons.append(f"the kernel is locked down ({platform.lockdown})")
    if platform.is_signature_enforced:
        reasons.append("the kernel demands signed modules")
    if not reasons:
        if platform.secure_boot:
            return [Finding("secure-boot", State.OK, "Secure Boot is on, and unsigned modules load")]
        return []
    if platform.secure_boot:
        reasons.insert(0, "Secure Boot is on")
    return [
        Finding(
            "lockdown",
            State.NOTE,
            f"{', '.join(reasons)}: a variant driver built on this host does not load unless it is signed",
            "mokutil --list-enrolled shows whose signatures count; kmodsign, or dkms, signs a module",
        )
    ]


def _judge_loading(platform: Platform, index: Index) -> list[Finding]:
    if not platform.are_modules_disabled:
        return []
    what = "kernel.modules_disabled is set, so no module can be loaded until the next boot"
    advice = "grep -r modules_disabled /etc/sysctl.conf /etc/sysctl.d /usr/lib/sysctl.d finds who sets it"
    if index.is_generic_loaded:
        return [Finding("modules-disabled", State.WARNING, f"{what}; vfio-pci is loaded", advice)]
    return [
        Finding("modules-disabled", State.PROBLEM, f"{what}, and vfio-pci is not loaded", advice),
    ]


def _tell_unreadable(platform: Platform) -> list[Finding]:
    if not platform.unreadable:
        return []
    what = f"not checked, because this user may not read it: {', '.join(platform.unreadable)}"
    return [Finding("not-looked-at", State.NOTE, what, SUDO)]
