"""Which interface the host reaches an address by, and which has it.

One `RTM_GETROUTE` request for one address, which the kernel answers without the RTNL lock
(net/ipv4/route.c and net/ipv6/route.c, since 4.13). A dump of addresses takes that lock until 6.9, and so
does a network driver whose removal hangs: then it would hang as well.
"""

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

Address = IPv4Address | IPv6Address

# linux/rtnetlink.h
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_NLM_F_REQUEST = 1
_RTM_F_FIB_MATCH = 0x2000
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH = 1, 4, 9
_RTN_LOCAL = 2

_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Route:
    """`interfaces` are their numbers, several for a route of several ways; `is_local` says that the
    address is the host's own, on that interface; `is_default` that the route is for any address."""

    interfaces: tuple[int, ...]
    is_local: bool = False
    is_default: bool = False


FindRoute = Callable[[Address], Route | None]


def find_route(address: Address) -> Route | None:
    """None when there is no route, or the kernel can't be asked."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
            netlink.settimeout(1)
            netlink.send(pack_request(address))
            return parse_answer(netlink.recv(8192))
    except OSError:
        return None


def pack_request(address: Address) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # The entry of the table rather than the route made of it: that of an own address leads to `lo`.
    route = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), _RTA_DST) + address.packed
    size = _HEADER.size + len(route) + len(attribute)
    return _HEADER.pack(size, _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + route + attribute


def parse_answer(data: bytes) -> Route | None:
    """None for an error message, and for what makes no sense."""
    if len(data) < _HEADER.size + _ROUTE.size or _HEADER.unpack_from(data)[1] != _RTM_NEWROUTE:
        return None
    _, length, *_, route_type, _ = _ROUTE.unpack_from(data, _HEADER.size)
    interfaces: list[int] = []
    for kind, value in _split(data[_HEADER.size + _ROUTE.size :]):
        if kind == _RTA_OIF and len(value) >= 4:
            interfaces.append(struct.unpack_from("=I", value)[0])
        elif kind == _RTA_MULTIPATH:
            # struct rtnexthop: two bytes of flags and weight, then the number.
            interfaces += [struct.unpack_from("=I", way)[0] for _, way in _split(value) if len(way) >= 4]
    return Route(tuple(interfaces), route_type == _RTN_LOCAL, length == 0) if interfaces else None


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, position)
        if size < _ATTRIBUTE.size:
            return
        yield kind, data[position + _ATTRIBUTE.size : position + size]
        position += size + 3 & ~3
