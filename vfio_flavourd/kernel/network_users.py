"""Who uses a device's network interfaces.

Everything comes from files that the kernel makes without the RTNL lock, which a driver that hangs in its
removal may hold: attributes in /sys/class/net are not read, but for `uevent` and `ifindex`.
"""

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

from ..model.occupancy import Use, User
from .host_files import HostFiles
from .mounts import Mount, read_mounts, tell_unread
from .routes import Address, FindRoute, Route
from .storage_users import judge_mount, name_view

# linux/route.h
_RTF_UP, _RTF_GATEWAY, _RTF_REJECT = 0x1, 0x2, 0x200

# net/ipv6.h: an address of this scope is there as soon as the interface is up.
_SCOPE_LINK = 0x20

# Assigned to nobody, so no route is narrower than the default one.
_FAR_AWAY: tuple[Address, ...] = (IPv4Address("240.0.0.1"), IPv6Address("2000::1"))

_NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph"})


@dataclass(frozen=True, slots=True)
class _Interface:
    """`label` says by way of which other one it uses the device: `br0 over eth0`."""

    name: str
    path: str
    label: str


@dataclass(frozen=True, slots=True)
class _Ipv4Route:
    name: str
    network: IPv4Network
    has_gateway: bool


def find_network_users(
    files: HostFiles, paths: Sequence[str], find_route: FindRoute, until: float
) -> Iterator[User]:
    """`paths` are the directories of the device's own interfaces; `until` is when to stop reading mounts
    (`read_mounts`)."""
    for path in paths:
        yield from _find_ports(files, path)
    if paths:
        yield from _find_traffic(files, paths, find_route, until)


def _find_traffic(
    files: HostFiles, paths: Sequence[str], find_route: FindRoute, until: float
) -> Iterator[User]:
    interfaces = _find_interfaces(files, paths)
    labels = {interface.name: interface.label for interface in interfaces}
    numbers = {files.read_value(f"{interface.path}/ifindex"): interface.name for interface in interfaces}

    def find_interfaces(route: Route | None) -> list[str]:
        ways = (str(number) for number in (route.interfaces if route is not None else ()))
        return [numbers[way] for way in ways if way in numbers]

    def find_interface(route: Route | None) -> str | None:
        return next(iter(find_interfaces(route)), None)

    routes = tuple(_read_routes(files, labels))
    defaults = [route.name for route in routes if route.network.prefixlen == 0]
    defaults += _read_ipv6_default_routes(files)
    for address in _FAR_AWAY:
        entry = find_route(address)
        # The files have of a route of several ways the first one (net/ipv4/fib_trie.c), and no other tables.
        defaults += find_interfaces(entry) if entry is not None and entry.is_default else []
    for name in dict.fromkeys(defaults):
        if name in labels:
            yield User(Use.ROUTE, f"default route via {labels[name]}")
    yield from _find_pppoe(files, labels)
    for own_address in _read_ipv4_addresses(files):
        near = {
            route.name: route.network.prefixlen
            for route in sorted(routes, key=lambda route: route.network.prefixlen)
            if not route.has_gateway and own_address in route.network
        }
        entry = find_route(own_address)
        # Where it isn't local it is in a table of its own, as with a VRF, or the kernel can't be asked.
        own = find_interface(entry) if entry is not None and entry.is_local else next(iter(near), None)
        if own is not None:
            # An address can also stand alone.
            yield User(Use.ADDRESS, f"{own_address}/{near.get(own, 32)} on {labels[own]}")
    for text, name in _read_ipv6_addresses(files):
        if name in labels:
            yield User(Use.ADDRESS, f"{text} on {labels[name]}")
    unread: list[int] = []
    for use, what, server, pid in _find_servers(files, until, unread):
        way = find_interface(find_route(server))
        if way is not None:
            yield User(use, f"{what} from {server} by {labels[way]}", pid)
    yield from tell_unread(files, Use.NETWORK_STORAGE, unread)


def _find_interfaces(files: HostFiles, paths: Sequence[str]) -> tuple[_Interface, ...]:
    """The device's own, and all that are made of them, to the top: VLANs, bonds, bridges."""
    pending = [_Interface(_name(path), path, _name(path)) for path in paths]
    found: dict[str, _Interface] = {}
    while pending:
        interface = pending.pop(0)
        if interface.name in found:
            continue
        found[interface.name] = interface
        pending += [
            _Interface(_name(path), path, f"{_name(path)} over {interface.label}")
            for path in _find_uppers(files, interface.path)
        ]
    return tuple(found.values())


def _find_uppers(files: HostFiles, path: str) -> Iterator[str]:
    """Net core links each interface to what is made of it (net/core/dev.c, since 3.12)."""
    for name in files.list(path):
        upper = files.follow(f"{path}/{name}") if name.startswith("upper_") else None
        if upper is not None:
            yield upper


def _find_ports(files: HostFiles, path: str) -> Iterator[User]:
    master = files.follow(f"{path}/master")
    if master is not None:
        yield User(Use.PORT, f"port of {_describe(files, master)} ({_name(path)})")
    for upper in _find_uppers(files, path):
        if upper != master:
            yield User(Use.PORT, f"{_describe(files, upper)} runs on {_name(path)}")


def _describe(files: HostFiles, path: str) -> str:
    kind = files.read_properties(f"{path}/uevent").get("DEVTYPE", "")
    for directory, name in (("bridge", "bridge"), ("bonding", "bond")):
        if files.exists(f"{path}/{directory}"):
            kind = name
    return f"{kind} {_name(path)}".lstrip()


def _name(path: str) -> str:
    return path[path.rfind("/") + 1 :]


def _read_routes(files: HostFiles, names: Collection[str]) -> Iterator[_Ipv4Route]:
    """Those of the main table by these interfaces."""
    for line in files.read_lines("/proc/net/route"):
        name = line.partition("\t")[0]
        if name not in names:
            continue
        with suppress(ValueError, IndexError):
            fields = line.split("\t")
            flags = int(fields[3], 16)
            network = IPv4Network((str(_parse_ipv4(fields[1])), str(_parse_ipv4(fields[7]))))
            if flags & _RTF_UP and not flags & _RTF_REJECT:
                yield _Ipv4Route(name, network, bool(flags & _RTF_GATEWAY))


def _parse_ipv4(text: str) -> IPv4Address:
    # Four bytes in network order, printed as one number of the host's (net/ipv4/fib_trie.c).
    return IPv4Address(int(text, 16).to_bytes(4, sys.byteorder))


def _read_ipv6_default_routes(files: HostFiles) -> Iterator[str]:
    for line in files.read_lines("/proc/net/ipv6_route"):
        fields = line.split()
        with suppress(ValueError, IndexError):
            flags = int(fields[8], 16)
            if fields[1] == "00" and not int(fields[0], 16) and flags & _RTF_UP and not flags & _RTF_REJECT:
                yield fields[9]


def _find_pppoe(files: HostFiles, labels: Mapping[str, str]) -> Iterator[User]:
    """Nothing in sysfs leads from `ppp0` to the interface that it goes by. Each line is a session: its
    number, the address of the other end, the interface (drivers/net/ppp/pppoe.c)."""
    lines = (line.split() for line in files.read_lines("/proc/net/pppoe"))
    for name in dict.fromkeys(fields[2] for fields in lines if len(fields) == 3):
        if name in labels:
            yield User(Use.PORT, f"PPPoE runs on {labels[name]}")


def _read_ipv4_addresses(files: HostFiles) -> Iterator[IPv4Address]:
    """The host's own: leaves of the table that have a local route of full length."""
    leaf = ""
    seen = set()
    for line in files.read_lines("/proc/net/fib_trie"):
        kind, _, rest = line.lstrip().partition(" ")
        if kind == "|--":
            leaf = rest
        elif kind == "/32" and rest == "host LOCAL" and leaf not in seen:
            seen.add(leaf)
            with suppress(ValueError):
                address = IPv4Address(leaf)
                if not address.is_loopback:
                    yield address


def _read_ipv6_addresses(files: HostFiles) -> Iterator[tuple[str, str]]:
    for line in files.read_lines("/proc/net/if_inet6"):
        fields = line.split()
        with suppress(ValueError, IndexError):
            if not int(fields[3], 16) & _SCOPE_LINK:
                yield f"{IPv6Address(bytes.fromhex(fields[0]))}/{int(fields[2], 16)}", fields[5]


def _find_servers(
    files: HostFiles, until: float, unread: list[int]
) -> Iterator[tuple[Use, str, Address, int | None]]:
    """What the host has mounted or attached over the network, and from where."""
    seen = set()
    for mount in read_mounts(files, until, unread) if _may_mount_by_network(files) else ():
        if mount.fs_type not in _NETWORK_FILE_SYSTEMS or (mount.point, mount.source) in seen:
            continue
        seen.add((mount.point, mount.source))
        use = Use.ROOT if judge_mount(mount) is Use.ROOT else Use.NETWORK_STORAGE
        for server in find_server_addresses(mount):
            what = f"{mount.point} ({mount.fs_type}{name_view(files, mount)})"
            yield use, what, server, None if mount.pid == 1 else mount.pid
    disks = [
        ("iSCSI disks", files.read_value(f"/sys/class/iscsi_connection/{name}/persistent_address"))
        for name in files.list("/sys/class/iscsi_connection")
    ]
    # Not by `address`, which waits for the queue of a server that doesn't answer.
    disks += [
        (
            f"NVMe disks of {name}",
            files.read_properties(f"/sys/class/nvme/{name}/uevent").get("NVME_TRADDR", ""),
        )
        for name in files.list("/sys/class/nvme")
    ]
    for what, text in disks:
        address = _parse_address(text)
        if address is not None:
            yield Use.NETWORK_STORAGE, what, address, None


def _may_mount_by_network(files: HostFiles) -> bool:
    """Whether there can be such a mount in any name space: what is mounted keeps its type registered
    (get_fs_type() in fs/filesystems.c). Looking through all name spaces takes most of the time otherwise."""
    types = {line.rpartition("\t")[2] for line in files.read_lines("/proc/filesystems")}
    return not types or not types.isdisjoint(_NETWORK_FILE_SYSTEMS)


def find_server_addresses(mount: Mount) -> tuple[Address, ...]:
    """`addr=` of NFS and SMB; the monitors of Ceph are in `mon_addr=`, or named as the source."""
    options = dict(option.partition("=")[::2] for option in mount.options)
    texts = [options.get("addr", ""), *options.get("mon_addr", "").split("/")]
    if mount.fs_type == "ceph":
        texts += mount.source.rpartition(":/")[0].split(",")
    addresses = (_parse_address(text) for text in texts)
    return tuple(dict.fromkeys(address for address in addresses if address is not None))


def _parse_address(text: str) -> Address | None:
    """With a port or without; None for a name."""
    for candidate in (text, re.sub(r"^\[?(.*?)\]?:\d+$", r"\1", text)):
        with suppress(ValueError):
            return ip_address(candidate.strip("[]"))
    return None
