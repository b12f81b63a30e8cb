"""Why a module could not be loaded, from what modprobe said and how the kernel is locked."""

import re
from dataclasses import dataclass

from .printable import printable

# strerror(3) of what finit_module(2) gives. A signature that is there but wrong is refused also where none is
# asked for (module_sig_check() in kernel/module/signing.c).
_SIGNATURE = (
    "Key was rejected by service",
    "Required key not available",
    "Package not installed",
    "Bad message",
)
_NOT_PERMITTED = "Operation not permitted"
# EPERM is of blacklisted() in kernel/module/main.c too. modprobe tells the errno of a module that is needed
# by the one asked for as that one's own.
_REFUSED = (_NOT_PERMITTED, "Permission denied")
_OF_ANOTHER_KERNEL = ("Exec format error", "Invalid module format")
# modprobe's own words for ENOENT.
_UNRESOLVED = "Unknown symbol in module"
# Without an init having run also for the value of an option, and for a symbol whose CRC or name space is
# another one (resolve_symbol() in kernel/module/main.c).
_INVALID = "Invalid argument"


@dataclass(frozen=True, slots=True)
class ModuleLock:
    """How the kernel keeps modules out: `kernel.modules_disabled`, and the level of its lockdown, empty or
    `none` without one."""

    are_disabled: bool = False
    lockdown: str = ""


def explain_failure(status: int, said: str, lock: ModuleLock) -> str:
    """One line: the cause, then modprobe's own words. `said` is all that modprobe wrote."""
    last = said.splitlines()[-1] if said else ""
    last = printable(re.sub(r"^modprobe: (ERROR: |FATAL: )?", "", last).strip())
    if not last:
        return f"modprobe ended with status {status}"
    cause = _find_cause(last, lock)
    return f"{cause}: {last}" if cause else last


def _find_cause(said: str, lock: ModuleLock) -> str:
    if re.search(r"^Module \S+ not found\b", said):
        return "no such module"
    if "install command" in said:
        return "modprobe.d has a command of its own for it"
    inserting = re.search(r"could not insert \S+ (.*)", said)
    if inserting is None:
        return ""
    error = inserting[1]
    if error.startswith(_SIGNATURE):
        return "signature refused"
    if error.startswith(_NOT_PERMITTED) and lock.are_disabled:
        return "no module can be loaded until the next boot (kernel.modules_disabled)"
    if error.startswith(_NOT_PERMITTED) and lock.lockdown not in ("", "none"):
        return f"the kernel is locked down ({lock.lockdown}), and the module not signed"
    if error.startswith(_OF_ANOTHER_KERNEL):
        return "built for another kernel"
    if error.startswith(_REFUSED):
        return "refused by a security module, or by module_blacklist= for it or one that it needs"
    if error.startswith(_UNRESOLVED):
        return "a symbol or parameter of it is not known to the kernel"
    if error.startswith(_INVALID):
        return "its init failed, or a parameter or symbol does not fit"
    if error.startswith("Cannot allocate memory"):
        return "out of memory"
    return "its init failed"
