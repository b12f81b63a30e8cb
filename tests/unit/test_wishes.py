"""What was asked for by hand, and the two files it is kept in."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vfio_flavourd.engine.wishes import Wishes
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.device import Device, Identity
from vfio_flavourd.model.flavour import Flavour
from vfio_flavourd.model.policy import OthersInGroup

IDENTITY = Identity(0x8086, 0x10D3, 0x1AF4, 0x1100, 0, 4711)
DEVICE = Device(
    address=parse_address("0000:01:00.0"),
    path="/sys/devices/pci0000:00/0000:01:00.0",
    identity=IDENTITY,
    modalias="pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00",
    class_code=0x020000,
    driver="e1000e",
    driver_module="e1000e",
    iommu_group=7,
    vfio_device=None,
    personality=None,
)
OTHER = replace(DEVICE, address=parse_address("0000:02:00.0"))
REPLUGGED = replace(DEVICE, identity=replace(IDENTITY, inode=4712))


class Files:
    """The boot's and the lasting one; `wishes` is what a daemon that starts now makes of them."""

    def __init__(self, directory: Path) -> None:
        self.boot = directory / "run/wishes.json"
        self.lasting = directory / "var/wishes.json"
        for path in (self.boot, self.lasting):
            path.parent.mkdir()

    @property
    def wishes(self) -> Wishes:
        return Wishes(self.boot, self.lasting)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def find(wishes: Wishes, device: Device = DEVICE) -> Flavour | None:
    wish = wishes.find(device)
    return None if wish is None else wish.flavour


def test_at_first_there_are_none_and_no_file_is_made(files: Files) -> None:
    assert find(files.wishes) is None
    files.wishes.drop([DEVICE.address])
    assert not files.boot.exists()
    assert not files.lasting.exists()


def test_a_wish_for_the_boot_is_found_after_a_restart_and_not_in_the_next_boot(files: Files) -> None:
    files.wishes.keep(DEVICE, Flavour.VFIO, ("mine",), persist=False)
    assert not files.lasting.exists()
    wish = files.wishes.find(DEVICE)
    assert wish is not None
    assert (wish.flavour, wish.drivers, wish.inode) == (Flavour.VFIO, ("mine",), 4711)
    assert find(files.wishes, REPLUGGED) is None
    files.boot.unlink()
    assert find(files.wishes) is None


def test_a_wish_that_lasts_is_for_a_device_with_the_same_ids_at_the_same_address(files: Files) -> None:
    files.wishes.keep(DEVICE, Flavour.VFIO, ("mine",), OthersInGroup.TOGETHER, persist=True)
    files.boot.unlink()
    wish = files.wishes.find(REPLUGGED)
    assert wish is not None
    assert (wish.drivers, wish.others) == (("mine",), OthersInGroup.TOGETHER)
    for field in ("vendor", "device", "subsystem_vendor", "subsystem_device"):
        assert find(files.wishes, replace(DEVICE, identity=replace(IDENTITY, **{field: 1}))) is None
    assert find(files.wishes, OTHER) is None
    assert find(files.wishes, replace(DEVICE, identity=replace(IDENTITY, revision=9))) == Flavour.VFIO


def test_the_later_wish_for_the_boot_stands_above_the_one_that_lasts(files: Files) -> None:
    wishes = files.wishes
    wishes.keep(DEVICE, Flavour.VFIO, (), persist=True)
    wishes.keep(DEVICE, Flavour.NATIVE, (), persist=False)
    assert find(files.wishes) == Flavour.NATIVE
    assert find(files.wishes, REPLUGGED) == Flavour.VFIO


def test_a_wish_that_is_dropped_is_in_neither_file(files: Files) -> None:
    wishes = files.wishes
    for device in (DEVICE, OTHER):
        wishes.keep(device, Flavour.VFIO, (), persist=True)
    assert wishes.drop([DEVICE.address])
    for some in (wishes, files.wishes):
        assert find(some) is None
        assert find(some, OTHER) == Flavour.VFIO
        assert list(some.lasting) == ["0000:02:00.0"]
    assert DEVICE.address not in json.loads(files.boot.read_text(encoding="ascii"))


def test_a_file_from_before_groups_were_kept_can_be_read(files: Files) -> None:
    old = {"flavour": "vfio", "drivers": [], "ids": [0x8086, 0x10D3, 0x1AF4, 0x1100], "inode": 0}
    files.lasting.write_text(json.dumps({"0000:01:00.0": old}), encoding="ascii")
    wish = files.wishes.find(DEVICE)
    assert wish is not None
    assert wish.others is None


GOOD: dict[str, Any] = {
    "flavour": "vfio",
    "drivers": ["vfio_pci"],
    "ids": [0x8086, 0x10D3, 0x1AF4, 0x1100],
    "inode": 0,
    "others": "together",
}


@pytest.mark.parametrize(
    "change",
    [
        {"flavour": 5},
        {"flavour": None},
        {"drivers": "vfio_pci"},
        {"drivers": [7]},
        {"drivers": None},
        {"ids": [1, 2, 3]},
        {"ids": ["a", "b", "c", "d"]},
        {"ids": 7},
        {"inode": None},
        {"inode": "x"},
        {"inode": float("inf")},
        {"ids": [float("inf"), 2, 3, 4]},
        {"others": "sometimes"},
    ],
    ids=str,
)
def test_what_is_not_as_it_was_written_is_told_and_taken_for_nothing(
    files: Files, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    files.lasting.write_text(json.dumps({"0000:01:00.0": {**GOOD, **change}}), encoding="ascii")
    assert find(files.wishes) is None
    (record,) = caplog.records
    assert "can't be read" in record.getMessage()
    files.lasting.write_text(json.dumps({"0000:01:00.0": GOOD}), encoding="ascii")
    assert find(files.wishes) == Flavour.VFIO


@pytest.mark.parametrize("address", ["../../x", "0000:01:00.9", "", "0000:01:00.0\n"])
def test_a_wish_for_what_is_no_address_is_no_wish(files: Files, address: str) -> None:
    files.lasting.write_text(json.dumps({address: GOOD}), encoding="ascii")
    assert files.wishes.lasting == {}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b'{"a', b"\xff", b"[" * 100_000, b'{"0000:01:00.0": []}']
)
def test_a_spoilt_file_is_told_and_the_next_wish_sets_it_aside(
    files: Files, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (files.boot, files.lasting):
        path.write_bytes(content)
    wishes = files.wishes
    assert len(caplog.records) == 2
    wishes.keep(DEVICE, Flavour.VFIO, (), persist=True)
    assert find(files.wishes) == find(files.wishes, REPLUGGED) == Flavour.VFIO
    for path in (files.boot, files.lasting):
        assert path.with_suffix(".corrupt").read_bytes() == content


def test_one_that_is_spoilt_costs_no_other_and_is_kept_aside(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.dumps({"0000:01:00.0": GOOD, "0000:02:00.0": {**GOOD, "others": "sometimes"}})
    files.lasting.write_text(content, encoding="ascii")
    wishes = files.wishes
    assert find(wishes) == Flavour.VFIO
    assert find(wishes, OTHER) is None
    (record,) = caplog.records
    assert "'0000:02:00.0'" in record.getMessage()
    assert files.lasting.read_text(encoding="ascii") == content
    assert not files.lasting.with_suffix(".corrupt").exists()
    third = replace(DEVICE, address=parse_address("0000:03:00.0"))
    wishes.keep(third, Flavour.VFIO, (), persist=True)
    assert list(files.wishes.lasting) == ["0000:01:00.0", "0000:03:00.0"]
    aside = files.lasting.with_suffix(".corrupt")
    assert aside.read_text(encoding="ascii") == content
    assert f"is kept as {str(aside)!r}" in caplog.text
    wishes.keep(OTHER, Flavour.VFIO, (), persist=True)
    assert aside.read_text(encoding="ascii") == content  # what is whole takes its place no more


def test_a_file_that_can_not_be_read_for_once_is_not_lost_with_the_next_wish(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.wishes.keep(OTHER, Flavour.VFIO, (), persist=True)
    content = files.lasting.read_bytes()

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        wishes = files.wishes
    wishes.keep(DEVICE, Flavour.VFIO, (), persist=True)
    assert files.lasting.with_suffix(".corrupt").read_bytes() == content


def test_what_can_not_be_set_aside_is_not_overwritten(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.lasting.write_bytes(b"spoilt")
    wishes = files.wishes

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        with pytest.raises(OSError, match="No space"):
            wishes.keep(DEVICE, Flavour.VFIO, (), persist=True)
    assert files.lasting.read_bytes() == b"spoilt"
    wishes.keep(DEVICE, Flavour.VFIO, (), persist=True)
    assert find(files.wishes, REPLUGGED) == Flavour.VFIO


def test_a_spoilt_file_that_somebody_has_taken_away_keeps_no_wish_from_the_disk(files: Files) -> None:
    files.lasting.write_bytes(b"spoilt")
    wishes = files.wishes
    files.lasting.unlink()
    wishes.keep(DEVICE, Flavour.VFIO, (), persist=True)
    assert find(files.wishes, REPLUGGED) == Flavour.VFIO


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_one_that_can_not_be_made_to_last_holds_for_the_boot_and_the_file_stays(
    files: Files, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    wishes = files.wishes
    wishes.keep(OTHER, Flavour.VFIO, (), persist=True)
    before = files.lasting.read_bytes()
    with monkeypatch.context() as patch:
        break_writing(patch, call)
        with pytest.raises(OSError, match="No space"):
            wishes.keep(DEVICE, Flavour.VFIO, (), persist=True)
    assert find(wishes) == Flavour.VFIO
    assert list(wishes.lasting) == ["0000:02:00.0"]
    assert files.lasting.read_bytes() == before


def test_one_for_the_boot_that_can_not_be_kept_is_told_and_holds_while_the_daemon_runs(
    files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wishes = files.wishes
    with monkeypatch.context() as patch:
        break_writing(patch, "replace")
        wishes.keep(DEVICE, Flavour.VFIO, (), persist=False)
    assert find(wishes) == Flavour.VFIO
    assert "can't be saved" in caplog.text
    assert find(files.wishes) is None


def test_one_that_can_not_be_taken_off_the_disk_holds_no_more_in_this_boot_and_is_still_known(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = files.wishes
    for device in (DEVICE, OTHER):
        wishes.keep(device, Flavour.VFIO, (), persist=True)
    before = files.lasting.read_bytes()
    with monkeypatch.context() as patch:
        break_writing(patch, "replace")
        with pytest.raises(OSError, match="No space"):
            wishes.drop([DEVICE.address])
    assert find(wishes) is None
    assert find(wishes, OTHER) == Flavour.VFIO
    assert list(wishes.lasting) == ["0000:01:00.0", "0000:02:00.0"]
    assert files.lasting.read_bytes() == before
    wishes.keep(DEVICE, Flavour.VFIO, (), persist=True)
    assert find(wishes, REPLUGGED) == Flavour.VFIO


def break_writing(patch: pytest.MonkeyPatch, call: str) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        patch.setattr(os, "fsync", no_space)
    else:
        patch.setattr(Path, "replace", no_space)
