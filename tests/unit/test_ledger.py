"""The records: whole, found again, and void for another device."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeKernel, PassingLedger
from hypothesis import given, settings
from hypothesis import strategies as st
from test_address import addresses

from vfio_flavourd.engine.ledger import Asked, Ledger, Record, find_record
from vfio_flavourd.kernel.inventory import read_device
from vfio_flavourd.kernel.processes import Worker
from vfio_flavourd.kernel.sysfs import Sysfs
from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.device import ENABLE_VFIO, Binding, Identity
from vfio_flavourd.model.flavour import Flavour
from vfio_flavourd.model.policy import OthersInGroup

ADDRESS = parse_address("0000:01:00.0")
RECORD = Record(
    address=ADDRESS,
    identity=Identity(0x8086, 0x10D3, 0x1AF4, 0x1100, 0, 4711),
    origin=Binding("e1000e", None),
    origin_flavour=Flavour.NATIVE,
    origin_module="e1000e",
    flavour=Flavour.VFIO,
    before=Binding("e1000e", None),
    written=("vfio-pci",),
    binding=Binding("vfio-pci", "vfio-pci"),
    personality=None,
    switching=True,
    worker=Worker(4712, 4713),
)

names = st.none() | st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
bindings = st.builds(Binding, driver=names, override=names | st.text(max_size=20))
numbers = st.integers(0, 0xFFFF)
records = st.builds(
    Record,
    address=addresses,
    identity=st.builds(Identity, numbers, numbers, numbers, numbers, numbers, st.integers(0, 2**63)),
    origin=bindings,
    origin_flavour=st.sampled_from([Flavour.NATIVE, Flavour.VFIO]),
    origin_module=names,
    flavour=st.sampled_from([Flavour.NATIVE, Flavour.VFIO]),
    before=bindings,
    binding=bindings,
    personality=st.none() | st.just(ENABLE_VFIO),
    switching=st.booleans(),
    worker=st.none() | st.builds(Worker, st.integers(1, 2**22), st.integers(0, 2**63)),
    together=st.lists(addresses, max_size=3).map(tuple),
    asked=st.none()
    | st.builds(
        Asked,
        st.booleans(),
        st.booleans(),
        st.lists(st.text(max_size=20), max_size=3).map(tuple),
        st.none() | st.sampled_from(OthersInGroup),
    ),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run/devices"


def load(directory: Path) -> Ledger:
    ledger = PassingLedger(directory)
    assert ledger.load() == {}
    return ledger


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fail(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, no_space)


def test_a_record_is_found_again_by_the_next_daemon(directory: Path) -> None:
    load(directory).write(RECORD)
    again = load(directory)
    assert again.find(ADDRESS) == RECORD
    assert again.all() == (RECORD,)
    assert files(directory) == ["0000:01:00.0.json"]


# What 0.1.0 wrote, byte for byte.
OF_0_1_0 = Path(__file__).parents[1] / "fuzz/corpus/ledger/of-0.1.0"


def test_an_upgrade_from_0_1_0_keeps_what_each_device_was(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / f"{ADDRESS}.json").write_bytes(OF_0_1_0.read_bytes())
    asked = replace(RECORD, written=(), binding=Binding("e1000e", None), personality=ENABLE_VFIO)
    assert load(directory).all() == (asked,)


def test_an_upgrade_from_0_1_0_keeps_what_a_device_was_whose_driver_was_not_asked(directory: Path) -> None:
    old = json.loads(OF_0_1_0.read_bytes()) | {"personality": None}
    directory.mkdir(parents=True)
    (directory / f"{ADDRESS}.json").write_text(json.dumps(old), encoding="ascii")
    [record] = load(directory).all()
    assert (record.origin, record.personality, record.together) == (RECORD.origin, None, ())


@settings(max_examples=40)
@given(record=records)
def test_every_record_comes_back_as_it_was_written(
    record: Record, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    load(directory).write(record)
    assert load(directory).all() == (record,)


def test_a_later_record_takes_the_place_of_the_earlier_one(directory: Path) -> None:
    ledger = load(directory)
    ledger.write(RECORD)
    later = replace(RECORD, switching=False, worker=None)
    ledger.write(later)
    assert ledger.find(ADDRESS) == later
    assert load(directory).all() == (later,)
    assert files(directory) == ["0000:01:00.0.json"]


def test_a_forgotten_record_stays_forgotten_and_the_others_stay(directory: Path) -> None:
    ledger = load(directory)
    other = replace(RECORD, address=parse_address("0000:02:00.0"))
    ledger.write(RECORD)
    ledger.write(other)
    ledger.forget(ADDRESS)
    ledger.forget(ADDRESS)
    assert ledger.find(ADDRESS) is None
    assert load(directory).all() == (other,)


def test_what_was_never_written_down_is_not_found(directory: Path) -> None:
    ledger = load(directory)
    ledger.forget(ADDRESS)
    assert ledger.find(ADDRESS) is None
    assert ledger.all() == ()


def spoil_with(**changes: Any) -> bytes:
    return json.dumps(json.loads(written()) | changes).encode()


def written() -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        load(Path(directory)).write(RECORD)
        return (Path(directory) / f"{ADDRESS}.json").read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 400,
        written()[:-1],
        written()[:50],
        b"\xff\xfe" + written(),
        b"[]",
        b"null",
        b"{}",
        b"17",
        spoil_with(version=2),
        spoil_with(version="1"),
        spoil_with(address="../../x"),
        spoil_with(address=1),
        spoil_with(identity={"vendor": 1}),
        spoil_with(identity=None),
        spoil_with(origin=None),
        spoil_with(origin={"driver": "e1000e", "override": None, "more": 1}),
        spoil_with(origin={"driver": "../../x", "override": None}),
        spoil_with(before={"driver": "e1000e/../../x", "override": None}),
        spoil_with(binding={"driver": "vfio-pci/unbind", "override": None}),
        spoil_with(origin_module="e1000e\n../../x"),
        spoil_with(flavour=5),
        spoil_with(together=["../../x"]),
        spoil_with(personality="../enable_vfio"),
        spoil_with(personality=""),
        spoil_with(together=None),
        spoil_with(worker=5),
        spoil_with(worker={"pid": "self", "started": 1}),
        spoil_with(written="vfio-pci"),
        spoil_with(switching="no"),
        spoil_with(flavour="\x1b[31m"),
        spoil_with(identity=dict.fromkeys(Identity.__slots__, "1")),
        spoil_with(personality={"driver": "x", "attribute": "../../../x"}),
    ],
)
def test_a_record_that_cannot_be_read_is_reported_and_set_aside_and_the_others_are_read(
    directory: Path, data: bytes
) -> None:
    other = replace(RECORD, address=parse_address("0000:02:00.0"))
    load(directory).write(other)
    path = directory / f"{ADDRESS}.json"
    path.write_bytes(data)
    ledger = PassingLedger(directory)
    (complaint,) = ledger.load().values()
    assert str(path) in complaint
    assert len(complaint.splitlines()) == 1
    assert ledger.all() == (other,)
    assert path.with_suffix(".corrupt").read_bytes() == data
    assert PassingLedger(directory).load() == {}


@settings(max_examples=60)
@given(cut=st.integers(0, 10_000), junk=st.binary(max_size=20))
def test_no_file_at_all_keeps_the_daemon_from_starting(
    cut: int, junk: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    whole = written()
    (directory / f"{ADDRESS}.json").write_bytes(whole[: cut % len(whole)] + junk)
    ledger = PassingLedger(directory)
    assert len(ledger.load()) + len(ledger.all()) == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_an_error_and_leaves_the_earlier_record_whole(
    directory: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    ledger = load(directory)
    ledger.write(RECORD)
    with monkeypatch.context() as patch:
        fail(patch, call)
        with pytest.raises(OSError, match="No space left"):
            ledger.write(replace(RECORD, flavour=Flavour.NATIVE))
    assert ledger.find(ADDRESS) == RECORD
    assert load(directory).all() == (RECORD,)
    ledger.write(replace(RECORD, switching=False))
    assert load(directory).all() == (replace(RECORD, switching=False),)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_first_record_that_finds_no_room_is_no_record(
    directory: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    ledger = load(directory)
    with monkeypatch.context() as patch:
        fail(patch, call)
        with pytest.raises(OSError, match="No space left"):
            ledger.write(RECORD)
    assert ledger.find(ADDRESS) is None
    assert load(directory).all() == ()
    assert not list(directory.glob("*.json"))


def test_a_record_is_synced_before_it_has_its_name_and_its_name_after(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = load(directory)
    seen: list[str] = []
    sync, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def replace_file(source: str, target: str) -> None:
        seen.append(f"rename {Path(source).name} {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace_file)
    ledger.write(RECORD)
    ledger.forget(ADDRESS)
    assert seen == [
        "sync 0000:01:00.0.new",
        "rename 0000:01:00.0.new 0000:01:00.0.json",
        "sync devices",
        "sync devices",
    ]


def test_the_records_are_roots_business_alone(directory: Path) -> None:
    load(directory).write(RECORD)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / f"{ADDRESS}.json").stat().st_mode & 0o133 == 0


def test_a_directory_that_is_there_already_is_taken_as_it_is(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "README").write_text("not a record", encoding="ascii")
    assert load(directory).all() == ()
    assert files(directory) == ["README"]


def test_a_record_of_another_device_at_the_same_address_is_void(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.add_device()
    device = read_device(Sysfs(str(kernel.root)), ADDRESS)
    ledger = load(tmp_path / "run/devices")
    assert find_record(ledger, device) is None
    mine = replace(RECORD, identity=device.identity)
    ledger.write(mine)
    assert find_record(ledger, device) == mine
    for field in ("vendor", "device", "subsystem_vendor", "subsystem_device", "revision", "inode"):
        other = replace(device.identity, **{field: getattr(device.identity, field) + 1})
        ledger.write(replace(RECORD, identity=other))
        assert find_record(ledger, device) is None
        assert ledger.find(PciAddress(0, 1, 0, 0)) is not None


def test_a_record_that_a_killed_daemon_was_about_to_write_is_gone_at_the_next_start(directory: Path) -> None:
    ledger = load(directory)
    ledger.write(RECORD)
    (directory / f"{ADDRESS}.new").write_bytes(written()[:50])
    (directory / "0000:02:00.0.new").write_bytes(b"")
    assert load(directory).all() == (RECORD,)
    assert files(directory) == [f"{ADDRESS}.json"]
