"""Which unit a process belongs to."""

from ..model.errors import FlavourError
from ..model.requester import find_requester, parse_unit
from .sysfs import Sysfs


def find_unit(sysfs: Sysfs, requester: str) -> str:
    """Of the process that asks, while it is there; empty where there is none, or it is in no unit."""
    process = find_requester(requester)
    if process is None:
        return ""
    try:
        return parse_unit(sysfs.read(f"/proc/{process.pid}/cgroup"))
    except FlavourError:
        return ""
