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
_OF_ANOTHER_KERNEL = ("Exec format error", "Invalid module format")


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
    return "its init failed"
