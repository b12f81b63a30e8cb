"""How the kernel keeps modules out."""

from ..model.module_load import ModuleLock
from .host_files import HostFiles

LOCKDOWN = "/sys/kernel/security/lockdown"
_MODULES_DISABLED = "/proc/sys/kernel/modules_disabled"


def read_module_lock(files: HostFiles) -> ModuleLock:
    # `none [integrity] confidentiality` (security/lockdown/lockdown.c).
    level = files.read_value(LOCKDOWN).partition("[")[2].partition("]")[0]
    return ModuleLock(files.read_value(_MODULES_DISABLED) == "1", level)
