"""Who uses a device's network interfaces."""

import socket
import struct
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
from fake_host import CONTAINER, DEVICE, FakeHost

from vfio_flavourd.kernel.mounts import Mount
from vfio_flavourd.kernel.network_users import find_server_addresses
from vfio_flavourd.kernel.routes import Route, find_route, pack_request, parse_answer
from vfio_flavourd.model.occupancy import Use, User

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the kernel's numbers are a little-endian host's"
)

LINK_LOCAL = "fe8000000000000000fc00fffe000001 02 40 20 80     eth0\n"
UP_ONLY = (
    "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 "
    "00000000000000000000000000000000 00000100 00000002 00000000 00000001     eth0\n"
    "00000000000000000000000000000000 00 00000000000000000000000000000000 00 "
    "00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n"
)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def eth0(host: FakeHost) -> str:
    return host.add_interface("eth0", 2)


def test_an_interface_that_is_merely_up_is_not_in_use(host: FakeHost, eth0: str) -> None:
    host.write("/proc/net/if_inet6", LINK_LOCAL)
    host.write("/proc/net/ipv6_route", UP_ONLY)
    host.add_address("127.0.0.1", 1)
    assert host.users() == ()


def test_what_another_interface_has_is_not_this_ones(host: FakeHost, eth0: str) -> None:
    host.add_route("eth1", "00000000", "00000000", "010200C0", 3)
    host.add_route("eth1", "000200C0", "00FFFFFF")
    host.add_address("192.0.2.7", 3)
    host.write("/proc/net/if_inet6", "fd000000000000000000000000000002 03 40 00 82     eth1\n")
    assert host.users() == ()


# routes


@pytest.mark.parametrize(
    "parent", [f"{DEVICE}/net", f"{DEVICE}/virtio2/net", f"{DEVICE}/usb1/1-1/1-1:1.0/net"]
)
def test_the_default_route_is_found_wherever_the_interface_is(host: FakeHost, parent: str) -> None:
    host.add_interface("eth0", 2, parent)
    host.add_route("eth0", "00000000", "00000000", "010200C0", 3)
    assert host.users() == (User(Use.ROUTE, "default route via eth0"),)


def test_an_ipv6_default_route_is_one(host: FakeHost, eth0: str) -> None:
    line = f"{'0' * 32} 00 {'0' * 32} 00 fd{'0' * 29}1 00000400 00000003 00000000 00000003     eth0\n"
    host.write("/proc/net/ipv6_route", UP_ONLY + line)
    assert host.told() == ["route: default route via eth0"]


@pytest.mark.parametrize("far_away", ["240.0.0.1", "2000::1"])
def test_every_way_of_a_default_route_of_several_is_one(host: FakeHost, eth0: str, far_away: str) -> None:
    host.add_route("eth1", "00000000", "00000000", "010200C0", 3)  # the file has the first way only
    host.routes[far_away] = Route((3, 2))
    assert host.users() == ()
    host.routes[far_away] = Route((3, 2), is_default=True)
    assert host.told() == ["route: default route via eth0"]
    host.add_route("eth0", "00000000", "00000000", "010200C0", 3)
    assert host.told() == ["route: default route via eth0"]


def test_a_route_that_rejects_is_none(host: FakeHost, eth0: str) -> None:
    host.add_route("eth0", "00000000", "00000000", flags=0x201)
    host.write("/proc/net/ipv6_route", f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 1 0 00200200 eth0\n")
    assert host.users() == ()


def test_lines_that_make_no_sense_are_passed_over(host: FakeHost, eth0: str) -> None:
    host.write("/proc/net/route", "Iface\teth0\neth0\t\neth0\tx\ty\t0001\t0\t0\t0\tz\neth0\t0\t0\tzz\t\n\0\n")
    host.write("/proc/net/ipv6_route", "\n0 00\nx 00 0 0 0 0 0 0 3 eth0\n")
    host.write("/proc/net/if_inet6", "\nzz 02 40 00 80 eth0\nfd00 02 40 00 80 eth0\n")
    host.write("/proc/net/fib_trie", "/32 host LOCAL\n  |-- x\n   /32 host LOCAL\n  |--\n  /32 host LOCAL\n")
    assert host.users() == ()


# addresses


def test_an_address_is_told_with_the_length_of_its_network(host: FakeHost, eth0: str) -> None:
    host.add_route("eth0", "000200C0", "00FFFFFF")
    host.add_address("192.0.2.7", 2)
    assert host.users() == (User(Use.ADDRESS, "192.0.2.7/24 on eth0"),)


def test_an_address_that_stands_alone_is_one(host: FakeHost, eth0: str) -> None:
    host.add_address("203.0.113.1", 2)
    assert host.told() == ["address: 203.0.113.1/32 on eth0"]


@pytest.mark.parametrize("route", [None, Route((9,))])
def test_an_address_that_the_kernel_cannot_be_asked_about_is_told_by_its_network(
    host: FakeHost, eth0: str, route: Route | None
) -> None:
    host.add_route("eth0", "000200C0", "00FFFFFF")
    host.add_address("192.0.2.7", 2)
    del host.routes["192.0.2.7"]
    if route is not None:
        host.routes["192.0.2.7"] = route
    assert host.told() == ["address: 192.0.2.7/24 on eth0"]


def test_an_ipv6_address_is_one(host: FakeHost, eth0: str) -> None:
    host.write("/proc/net/if_inet6", LINK_LOCAL + "fd000000000000000000000000000002 02 40 00 82     eth0\n")
    assert host.told() == ["address: fd00::2/64 on eth0"]


# ports and what is made of an interface

PPPOE = "Id       Address              Device\n"


@pytest.mark.parametrize("name", ["eth0", "enp129s0f1np1"])
def test_an_interface_below_pppoe_is_in_use(host: FakeHost, name: str) -> None:
    """The default route is by ppp0, which has no link to it."""
    host.add_interface(name, 2)
    host.add_virtual("ppp0", 3, "ppp")
    host.add_route("ppp0", "00000000", "00000000")
    host.write("/proc/net/pppoe", PPPOE)
    assert host.users() == ()
    host.write("/proc/net/pppoe", f"{PPPOE}0100C0DE 02:00:00:00:00:01     eth9\n\n")
    assert host.users() == ()
    sessions = f"0100C0DE 02:00:00:00:00:01 {name:>8}\n0200C0DE 02:00:00:00:00:01 {name:>8}\n"
    host.write("/proc/net/pppoe", PPPOE + sessions)
    assert host.users() == (User(Use.PORT, f"PPPoE runs on {name}"),)


def test_pppoe_on_a_vlan_is_told_with_the_interface_below(host: FakeHost, eth0: str) -> None:
    host.add_virtual("eth0.7", 3, "vlan", eth0)
    host.write("/proc/net/pppoe", f"{PPPOE}0100C0DE 02:00:00:00:00:01   eth0.7\n")
    assert host.told() == ["port: vlan eth0.7 runs on eth0", "port: PPPoE runs on eth0.7 over eth0"]


@pytest.mark.parametrize(
    ("name", "directory", "devtype", "told"),
    [
        ("br0", "bridge", "bridge", "port of bridge br0 (eth0)"),
        ("bond0", "bonding", "bond", "port of bond bond0 (eth0)"),
        ("bond0", "bonding", "", "port of bond bond0 (eth0)"),
        ("team0", "", "", "port of team0 (eth0)"),
        ("vrf0", "", "vrf", "port of vrf vrf0 (eth0)"),
    ],
)
def test_a_port_is_told_with_what_it_is_a_port_of(
    host: FakeHost, eth0: str, name: str, directory: str, devtype: str, told: str
) -> None:
    master = host.add_virtual(name, 3, devtype, eth0)
    host.enslave(eth0, master)
    if directory:
        host.add_directory(f"{master}/{directory}")
    assert host.users() == (User(Use.PORT, told),)


@pytest.mark.parametrize(
    ("name", "devtype", "told"),
    [("eth0.100", "vlan", "vlan eth0.100 runs on eth0"), ("mv0", "", "mv0 runs on eth0")],
)
def test_what_runs_on_an_interface_uses_it(
    host: FakeHost, eth0: str, name: str, devtype: str, told: str
) -> None:
    host.add_virtual(name, 3, devtype, eth0)
    assert host.users() == (User(Use.PORT, told),)


def test_routes_and_addresses_are_found_through_all_that_is_made_of_an_interface(
    host: FakeHost, eth0: str
) -> None:
    bond = host.add_virtual("bond0", 3, "bond", eth0)
    bridge = host.add_virtual("br0", 4, "bridge", bond)
    host.enslave(eth0, bond)
    host.enslave(bond, bridge)
    host.add_route("br0", "00000000", "00000000", "010200C0", 3)
    host.add_route("br0", "000200C0", "00FFFFFF")
    host.add_address("192.0.2.7", 4)
    assert host.told() == [
        "route: default route via br0 over bond0 over eth0",
        "address: 192.0.2.7/24 on br0 over bond0 over eth0",
        "port: port of bond bond0 (eth0)",
    ]


def test_a_bond_of_two_of_a_devices_interfaces_is_looked_at_once(host: FakeHost, eth0: str) -> None:
    eth1 = host.add_interface("eth1", 3)
    bond = host.add_virtual("bond0", 4, "bond", eth0, eth1)
    for port in (eth0, eth1):
        host.enslave(port, bond)
    host.add_address("192.0.2.7", 4)
    assert host.told() == [
        "address: 192.0.2.7/32 on bond0 over eth0",
        "port: port of bond bond0 (eth0)",
        "port: port of bond bond0 (eth1)",
    ]


def test_another_port_of_the_same_bridge_is_not_followed(host: FakeHost, eth0: str) -> None:
    other = host.add_virtual("veth1", 5, "")
    bridge = host.add_virtual("br0", 4, "bridge", eth0, other)
    for port in (eth0, other):
        host.enslave(port, bridge)
    host.add_address("198.51.100.1", 5)
    assert host.told() == ["port: port of bridge br0 (eth0)"]


def test_an_interface_in_another_network_name_space_is_in_use(host: FakeHost) -> None:
    """The directory is there as long as an interface is, and shows none of another name space's."""
    host.path(f"{DEVICE}/net").mkdir()
    assert host.told() == ["port: an interface in another network namespace"]


# storage over the network


def test_a_network_file_system_is_told_with_its_server(host: FakeHost, eth0: str) -> None:
    host.mount("0:70", "/mnt/nfs", "nfs4", "nas:/export", "rw,vers=4.2,addr=192.0.2.9,clientaddr=192.0.2.7")
    assert host.users() == ()
    host.routes["192.0.2.9"] = Route((2,))
    assert host.told() == ["network storage: /mnt/nfs (nfs4) from 192.0.2.9 by eth0"]


def test_a_server_that_is_reached_by_another_interface_does_not_count(host: FakeHost, eth0: str) -> None:
    host.mount("0:70", "/mnt/nfs", "nfs4", "nas:/export", "rw,addr=192.0.2.9")
    host.routes["192.0.2.9"] = Route((3,))
    assert host.users() == ()


def test_a_server_that_is_reached_by_several_ways_counts_for_each(host: FakeHost, eth0: str) -> None:
    host.mount("0:70", "/mnt/smb", "cifs", "//nas/share", "rw,addr=fd00::9")
    host.routes["fd00::9"] = Route((3, 2))
    assert host.told() == ["network storage: /mnt/smb (cifs) from fd00::9 by eth0"]


def test_the_root_over_the_network_is_worse_than_storage(host: FakeHost, eth0: str) -> None:
    host.mount("0:70", "/", "nfs", "192.0.2.9:/root", "rw,addr=192.0.2.9")
    host.routes["192.0.2.9"] = Route((2,))
    assert host.users() == (User(Use.ROOT, "/ (nfs) from 192.0.2.9 by eth0"),)


def test_a_containers_network_file_system_is_told_with_who_sees_it(host: FakeHost, eth0: str) -> None:
    host.add_process(CONTAINER, "plex", name_space="mnt:[4026532500]")
    host.mount("0:70", "/media", "nfs4", "nas:/m", "rw,addr=192.0.2.9", pid=CONTAINER)
    host.routes["192.0.2.9"] = Route((2,))
    assert host.users() == (
        User(
            Use.NETWORK_STORAGE,
            f"/media (nfs4, seen by plex (pid {CONTAINER})) from 192.0.2.9 by eth0",
            CONTAINER,
        ),
    )


def test_iscsi_and_nvme_over_the_network_are_told(host: FakeHost, eth0: str) -> None:
    host.write("/sys/class/iscsi_connection/connection1:0/persistent_address", "192.0.2.9\n")
    host.write("/sys/class/iscsi_connection/connection2:0/persistent_address", "nas.example\n")
    host.write("/sys/class/nvme/nvme5/uevent", "NVME_TRTYPE=tcp\nNVME_TRADDR=192.0.2.10\nNVME_TRSVCID=4420\n")
    host.write("/sys/class/nvme/nvme0/uevent", "NVME_TRTYPE=pcie\n")
    for address in ("192.0.2.9", "192.0.2.10"):
        host.routes[address] = Route((2,))
    assert host.told() == [
        "network storage: iSCSI disks from 192.0.2.9 by eth0",
        "network storage: NVMe disks of nvme5 from 192.0.2.10 by eth0",
    ]


def test_mounts_are_looked_through_only_where_a_network_file_system_is_registered(
    host: FakeHost, eth0: str
) -> None:
    host.mount("0:70", "/mnt/nfs", "nfs4", "nas:/export", "rw,addr=192.0.2.9")
    host.routes["192.0.2.9"] = Route((2,))
    host.path("/proc/filesystems").write_text("nodev\tsysfs\n\text4\n", encoding="ascii")
    assert host.told() == []
    host.path("/proc/filesystems").write_text("nodev\tsysfs\nnodev\tnfs4\n\text4\n", encoding="ascii")
    assert host.told() == ["network storage: /mnt/nfs (nfs4) from 192.0.2.9 by eth0"]


def test_mounts_that_cannot_be_read_in_time_may_be_over_the_network(
    host: FakeHost, eth0: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.mount("0:70", "/mnt/nfs", "nfs4", "nas:/export", "rw,addr=192.0.2.9")
    host.routes["192.0.2.9"] = Route((2,))
    host.add_process(CONTAINER, "many", name_space="mnt:[4026532500]")
    host.mount("0:71", "/mnt", "nfs4", "nas:/m", "rw,addr=192.0.2.9", pid=CONTAINER)
    monkeypatch.setattr("vfio_flavourd.kernel.occupancy._MOUNTS_PATIENCE", -1.0)
    unread = f"mounts of 1 processes, from many (pid {CONTAINER}) on, could not be looked into in time"
    assert host.told() == [
        "network storage: /mnt/nfs (nfs4) from 192.0.2.9 by eth0",
        f"network storage: {unread}",
    ]


@pytest.mark.parametrize(
    ("fs_type", "source", "options", "addresses"),
    [
        ("nfs", "nas:/", ("addr=192.0.2.9",), ["192.0.2.9"]),
        ("nfs4", "nas:/", ("addr=fe80::1%eth0",), ["fe80::1%eth0"]),
        ("ceph", "192.0.2.1:6789,[fd00::1]:6789:/", ("name=admin",), ["192.0.2.1", "fd00::1"]),
        ("ceph", "admin@fsid.fs=/", ("mon_addr=192.0.2.1:3300/192.0.2.2:3300",), ["192.0.2.1", "192.0.2.2"]),
        ("nfs", "nas:/", ("addr=nas", "addr="), []),
        ("nfs", "nas:/", (), []),
    ],
)
def test_the_servers_of_a_mount_are_read_from_what_the_kernel_shows(
    fs_type: str, source: str, options: tuple[str, ...], addresses: list[str]
) -> None:
    mount = Mount("0:70", "/mnt", fs_type, source, options, 1)
    assert [str(address) for address in find_server_addresses(mount)] == addresses


# asking the kernel


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def answer(*attributes: bytes, kind: int = 24, route_type: int = 1, length: int = 32) -> bytes:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, length, 0, 0, 254, 0, 0, route_type, 0)
    body += b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def test_a_request_is_for_one_address() -> None:
    for address, family in (
        (ip_address("192.0.2.9"), socket.AF_INET),
        (ip_address("fd00::9"), socket.AF_INET6),
    ):
        data = pack_request(address)
        assert struct.unpack_from("=IHHII", data) == (len(data), 26, 1, 1, 0)
        assert data[16:18] == bytes((family, address.max_prefixlen))
        assert data[28:] == attribute(1, address.packed)


@pytest.mark.parametrize("failure", [None, OSError(1, "not permitted"), TimeoutError()])
def test_a_kernel_that_does_not_answer_is_no_error(
    monkeypatch: pytest.MonkeyPatch, failure: OSError | None
) -> None:
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def open_socket(family: int, kind: int, protocol: int) -> socket.socket:
        if failure is not None:
            raise failure
        assert (family, protocol) == (socket.AF_NETLINK, 0)
        return ours

    monkeypatch.setattr("vfio_flavourd.kernel.routes.socket.socket", open_socket)
    with ours, kernels:
        kernels.send(answer(attribute(4, struct.pack("=I", 2))))
        found = find_route(ip_address("192.0.2.9"))
        assert found == (Route((2,)) if failure is None else None)
        assert failure is not None or kernels.recv(8192) == pack_request(ip_address("192.0.2.9"))


def test_an_answer_has_one_interface_or_several() -> None:
    destination, number = attribute(1, bytes((192, 0, 2, 9))), attribute(4, struct.pack("=I", 2))
    assert parse_answer(answer(destination, number)) == Route((2,))
    assert parse_answer(answer(number, route_type=2)) == Route((2,), is_local=True)
    ways = b"".join(struct.pack("=HBBI", 16, 0, 0, way) + bytes(8) for way in (2, 3))
    assert parse_answer(answer(destination, attribute(9, ways))) == Route((2, 3))
    assert parse_answer(answer(attribute(9, ways), length=0)) == Route((2, 3), is_default=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(64),
        answer(kind=2),
        answer(),
        answer(b"\4\0"),
        answer(struct.pack("=HH", 0, 4)),
        answer(struct.pack("=HHH", 6, 4, 0)),
        answer(attribute(9, struct.pack("=HBB", 4, 0, 0))),
    ],
)
def test_an_answer_that_makes_no_sense_is_none(data: bytes) -> None:
    assert parse_answer(data) is None
