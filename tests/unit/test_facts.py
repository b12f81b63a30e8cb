"""What is read for the rules, and what is not."""

import os
from pathlib import Path

import pytest
from fake_kernel import FakeKernel
from policies import make_device

from vfio_flavourd.kernel.facts import find_slot, read_facts, read_serials
from vfio_flavourd.kernel.inventory import read_device
from vfio_flavourd.kernel.sysfs import Sysfs
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.device import Device
from vfio_flavourd.model.policy import Match, Policy, Rule, Settings

ADDRESS = "0000:01:00.0"
ASKS_FOR_SERIALS = Policy(
    rules=(Rule("a drive", Match(serial=("x",)), "vfio", (), Settings(), None, "/etc/x.yaml:1"),)
)
SERIAL_NUMBER = bytes.fromhex("563412ffff9196b4")


class Host:
    """One device on a fake kernel."""

    def __init__(self, root: Path) -> None:
        self.kernel = FakeKernel(root)
        self.fake = self.kernel.add_device(ADDRESS)
        self.sysfs = Sysfs(str(root))
        self.directory = self.kernel.path(self.fake)

    @property
    def device(self) -> Device:
        return read_device(self.sysfs, parse_address(ADDRESS))

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_config(self, *capabilities: tuple[int, int, bytes], size: int = 4096) -> None:
        """Each is an ID, the next one's offset and what follows the header; they stand 0x20 apart."""
        config = bytearray(4096)
        for number, (identity, following, body) in enumerate(capabilities):
            at = 0x100 + 0x20 * number
            config[at : at + 4] = (following << 20 | 1 << 16 | identity).to_bytes(4, "little")
            config[at + 4 : at + 4 + len(body)] = body
        (self.directory / "config").write_bytes(config[:size])


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("path", "slot"),
    [
        ("pci0000:00/0000:00:02.0", "0000:00:02.0"),
        ("pci0000:00/0000:00:1c.0/0000:01:00.0", "0000:00:1c.0/00.0"),
        ("pci0000:80/0000:80:03.1/0000:81:00.0/0000:82:08.0/0000:85:00.1", "0000:80:03.1/00.0/08.0/00.1"),
        ("pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0", "0000:00:0e.0/06.0/00.0"),
        ("platform/40010000000.pcie/pci0000:00/0000:00:01.0/0000:01:1f.7", "0000:00:01.0/1f.7"),
    ],
)
def test_a_slot_has_no_bus_numbers_below_the_root(path: str, slot: str) -> None:
    address = path.rpartition("/")[2]
    assert find_slot(make_device(address, path=f"/sys/devices/{path}")) == slot


@pytest.mark.parametrize(
    ("vf", "slot"),
    [("0000:01:00.2", "0000:00:1c.0/00.2"), ("0000:02:00.2", "0000:00:1c.0/+1:00.2")],
)
def test_a_vf_on_another_bus_than_its_pf_has_a_slot_of_its_own(vf: str, slot: str) -> None:
    assert find_slot(make_device(vf), parse_address("0000:01:00.0")) == slot


def test_a_pf_a_vf_and_neither_are_told_apart(host: Host) -> None:
    assert read_facts(host.sysfs, host.device, Policy()).sriov is None
    host.write("sriov_totalvfs", "8\n")
    facts = read_facts(host.sysfs, host.device, Policy())
    assert (facts.sriov, facts.pf) == ("pf", None)
    (host.directory / "physfn").symlink_to("../0000:01:00.1")
    facts = read_facts(host.sysfs, host.device, Policy())
    assert (facts.sriov, facts.pf) == ("vf", parse_address("0000:01:00.1"))


def test_the_host_is_known_by_its_name(host: Host) -> None:
    assert read_facts(host.sysfs, host.device, Policy()).host_name == os.uname().nodename
    assert read_facts(host.sysfs, host.device, Policy(), host_name="other").host_name == "other"


def test_the_device_serial_number_is_read_as_lspci_prints_it(host: Host) -> None:
    host.write_config((0x0001, 0x120, b""), (0x0003, 0x140, SERIAL_NUMBER), (0x0010, 0, b""))
    assert read_serials(host.sysfs, host.device) == ("b4-96-91-ff-ff-12-34-56",)


def test_the_kernels_own_attribute_does_as_well(host: Host) -> None:
    host.write("serial_number", "b4-96-91-ff-ff-12-34-56\n")
    host.write_config((0x0003, 0, SERIAL_NUMBER))
    assert read_serials(host.sysfs, host.device) == ("b4-96-91-ff-ff-12-34-56",)


def test_a_drives_own_serial_has_no_blanks_at_its_ends(host: Host) -> None:
    host.write("nvme/nvme0/serial", "S4EW 0123            \n")
    assert read_serials(host.sysfs, host.device) == ("S4EW 0123",)


def test_a_serial_that_cannot_be_read_leaves_the_others(host: Host) -> None:
    (host.directory / "nvme/nvme0/serial").mkdir(parents=True)
    host.write("serial_number", "b4-96\n")
    assert read_serials(host.sysfs, host.device) == ("b4-96",)


@pytest.mark.parametrize("size", [0, 64, 256, 0x102])
def test_what_may_not_be_read_is_as_if_it_were_not_there(host: Host, size: int) -> None:
    host.write_config((0x0003, 0, SERIAL_NUMBER), size=size)
    assert read_serials(host.sysfs, host.device) == ()


@pytest.mark.parametrize(
    "capabilities",
    [
        [],
        [(0xFFFF, 0xFFF, b"")],
        [(0x0001, 0x100, b"")],
        [(0x0001, 0x120, b""), (0x0002, 0x100, b"")],
        [(0x0001, 0x040, b"")],
        [(0x0001, 0xFFC, b"")],
    ],
    ids=["none", "gone", "itself", "a circle", "backwards", "the end"],
)
def test_a_broken_list_of_capabilities_comes_to_an_end(
    host: Host, capabilities: list[tuple[int, int, bytes]]
) -> None:
    host.write_config(*capabilities)
    assert read_serials(host.sysfs, host.device) == ()


def test_a_device_that_goes_away_has_no_serials(host: Host) -> None:
    device = host.device
    host.write("nvme/nvme0/serial", "S4EW\n")
    host.kernel.remove_device(host.fake)
    assert read_serials(host.sysfs, device) == ()


def test_no_serial_is_read_unless_a_rule_asks(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write_config((0x0003, 0, SERIAL_NUMBER))
    opened: list[str] = []
    real = os.open

    def noted(path: str, flags: int) -> int:
        opened.append(path)
        return real(path, flags)

    monkeypatch.setattr(os, "open", noted)
    device = host.device
    assert read_facts(host.sysfs, device, Policy()).serials == ()
    assert "config" not in [Path(path).name for path in opened]
    opened.clear()
    assert read_facts(host.sysfs, device, ASKS_FOR_SERIALS).serials == ("b4-96-91-ff-ff-12-34-56",)
    assert "config" in [Path(path).name for path in opened]


def test_what_it_told_earlier_still_counts(host: Host) -> None:
    host.write_config((0x0003, 0, SERIAL_NUMBER))
    known = ("S4EW", "b4-96-91-ff-ff-12-34-56")
    assert read_facts(host.sysfs, host.device, ASKS_FOR_SERIALS, known).serials == known
    assert read_facts(host.sysfs, host.device, Policy(), known).serials == known


def test_of_a_known_device_nothing_is_read_that_may_block_but_what_its_driver_tells(host: Host) -> None:
    for name in ("config", "serial_number"):
        os.mkfifo(host.directory / name)  # opening it would never return
    known = ("b4-96-91-ff-ff-12-34-56",)
    assert read_facts(host.sysfs, host.device, ASKS_FOR_SERIALS, known).serials == known
    host.write("nvme/nvme0/serial", "S4EW\n")
    assert read_facts(host.sysfs, host.device, ASKS_FOR_SERIALS, known).serials == (*known, "S4EW")


def test_neither_driver_override_nor_uevent_is_opened(host: Host) -> None:
    for name in ("driver_override", "uevent"):
        os.mkfifo(host.directory / name)  # opening it would never return
    host.write_config((0x0003, 0, SERIAL_NUMBER))
    assert read_facts(host.sysfs, host.device, ASKS_FOR_SERIALS).serials
