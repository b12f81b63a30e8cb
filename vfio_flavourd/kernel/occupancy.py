"""Who on this host uses a device.

Found by what is below the device's own directory in sysfs, never by guessing names. /proc is looked at only
where something is there that it could tell of.

Nothing here waits for a device or a file system: no `driver_override`, `uevent` or `sriov_numvfs` of a PCI
device is read, no link of a process is followed to a file system that may wait, no device node is opened.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..model.device import BRIDGE_CLASS
from ..model.occupancy import UNFORCEABLE, Subject, Use, User
from ..model.printable import printable
from .host_files import HostFiles
from .network_users import find_network_users
from .process_users import find_open_files, name_nvidia_nodes, name_vfio_nodes
from .routes import FindRoute, find_route
from .storage_users import find_storage_users
from .subtree import Subtree, read_subtree
from .volumes import Volume, find_volumes

# Base class 03h of the PCI code and ID assignment.
_DISPLAY_CLASS = 0x03

# Seconds, of the thirty that an answer is waited for; as many again are for open files.
_MOUNTS_PATIENCE = 10.0

# More than anybody reads: users of one kind, and characters of one.
_USERS = 10
_LENGTH = 200

_WORST_FIRST = sorted(Use, key=lambda use: use not in UNFORCEABLE)


class Occupancy:
    """Reads below `root` (empty for the real one). It keeps nothing, so any thread may ask."""

    def __init__(self, root: str = "", find_route: FindRoute = find_route) -> None:
        self._files = HostFiles(root)
        self._find_route = find_route

    def find_users(self, device: Subject) -> tuple[User, ...]:
        """Everyone who uses the device by the driver that it has now, the worst first.

        Without a driver nobody can, but for a bridge, a PF whose VFs are there all the same, and the console
        on what the firmware has set up.
        """
        if device.class_code >> 16 == BRIDGE_CLASS:
            return (User(Use.BRIDGE, "everything behind the bridge"),)
        subtree = read_subtree(self._files, device.path)
        users = [*_find_virtual_functions(subtree)]
        if device.class_code >> 16 == _DISPLAY_CLASS and self._is_boot_display(device, subtree):
            users.append(User(Use.DISPLAY, "the boot display"))
        if device.driver is not None:
            users += self._find_driver_users(device, subtree)
        return _summarise(users)

    def find_group_holders(self, iommu_group: int) -> tuple[User, ...]:
        """Processes that hold an IOMMU group by VFIO, whichever member of it they use."""
        members = f"/sys/kernel/iommu_groups/{iommu_group}/devices"
        paths = [
            path for name in self._files.list(members) if (path := self._files.follow(f"{members}/{name}"))
        ]
        devices = [device for path in paths for device in self._files.list(f"{path}/vfio-dev")]
        nodes = name_vfio_nodes(str(iommu_group), devices)
        return _summarise(find_open_files(self._files, nodes, paths))

    def _find_driver_users(self, device: Subject, subtree: Subtree) -> Iterator[User]:
        if subtree.hidden_interfaces:
            yield User(Use.PORT, "an interface in another network namespace")
        until = time.monotonic() + _MOUNTS_PATIENCE
        yield from find_network_users(self._files, subtree.interfaces, self._find_route, until)
        volumes = find_volumes(self._files, subtree)
        yield from find_storage_users(self._files, volumes, until)
        nodes = _name_nodes(subtree, volumes) | name_nvidia_nodes(self._files, device.driver)
        yield from find_open_files(self._files, nodes, (device.path,) if subtree.vfio_devices else ())

    def _is_boot_display(self, device: Subject, subtree: Subtree) -> bool:
        """As the firmware left it, or as the console has it: `fb0` is where that starts."""
        if subtree.vfio_devices:
            return False
        return self._files.read_value(f"{device.path}/boot_vga") == "1" or "fb0" in subtree.nodes


def _find_virtual_functions(subtree: Subtree) -> Iterator[User]:
    count = subtree.virtual_functions
    if count:
        yield User(Use.VFS, "1 VF enabled" if count == 1 else f"{count} VFs enabled")


def _name_nodes(subtree: Subtree, volumes: Iterable[Volume]) -> dict[str, Use]:
    nodes = dict.fromkeys(subtree.nodes, Use.OPEN)
    for volume in volumes:
        if volume.number:
            nodes.update(dict.fromkeys((source.removeprefix("/dev/") for source in volume.sources), Use.OPEN))
    for group, vfio_device in subtree.vfio_devices:
        nodes.update(name_vfio_nodes(group, (vfio_device,)))
    return nodes


def _summarise(users: Iterable[User]) -> tuple[User, ...]:
    """Each once, one line each, the worst first. No kind is left out, since decisions hang on it."""
    kinds: dict[Use, list[User]] = {use: [] for use in _WORST_FIRST}
    for user in dict.fromkeys(replace(user, what=_one_line(user.what)) for user in users):
        kinds[user.use].append(user)
    for use, found in kinds.items():
        if len(found) > _USERS:
            found[_USERS - 1 :] = [User(use, f"and {len(found) - _USERS + 1} more")]
    return tuple(user for found in kinds.values() for user in found)


def _one_line(text: str) -> str:
    # Anybody chooses the name of his process.
    line = printable(text.replace("\n", " "))
    return line if len(line) <= _LENGTH else line[: _LENGTH - 1] + "…"
