"""What a removal and a purge do with what is still there, in a root of its own."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_ledger import ADDRESS, RECORD

from vfio_flavourd.engine.ledger import Ledger
from vfio_flavourd.kernel.early_rules import RULES
from vfio_flavourd.model.device import Binding
from vfio_flavourd.model.udev_rules import GENERIC, PLACEHOLDER, PROPERTY

POSTRM = Path(__file__).parents[2] / "debian/vfio-flavourd.postrm"
DRIVER = "mlx5_vfio_pci"

# What the device had before the daemon gave it DRIVER, and what the rules for early boot had set: to what it
# has after the purge.
Purge = Callable[[str | None, str], str]


@pytest.fixture
def purge(tmp_path: Path) -> Purge:
    def run(before: str | None, set_by_rules: str) -> str:
        device = tmp_path / "sys/bus/pci/devices" / str(ADDRESS)
        device.mkdir(parents=True)
        driver = tmp_path / "sys/bus/pci/drivers" / DRIVER
        driver.mkdir(parents=True)
        (device / "driver").symlink_to(driver)
        (device / "driver_override").write_text(f"{DRIVER}\n", encoding="ascii")
        udev = tmp_path / "run/udev/data"
        udev.mkdir(parents=True)
        said = f"E:{PROPERTY}={set_by_rules}\n" if set_by_rules else ""
        (udev / f"+pci:{ADDRESS}").write_text(f"I:1\n{said}", encoding="ascii")
        ledger = Ledger(tmp_path / "run/vfio-flavourd/devices")
        ledger.load()
        vfio = Binding(DRIVER, DRIVER)
        ledger.write(replace(RECORD, origin=Binding(None, before), binding=vfio, switching=False))
        ledger.close()
        assert run_postrm(tmp_path, "remove", "purge") == ""
        assert not (tmp_path / "run/vfio-flavourd").exists()
        assert (device / "driver").readlink() == driver
        return (device / "driver_override").read_text(encoding="ascii").rstrip("\n")

    return run


def test_a_purge_gives_a_device_its_override_of_before_back(purge: Purge) -> None:
    assert purge("nvme", "") == "nvme"


def test_a_purge_leaves_a_device_that_had_no_override_without_one(purge: Purge) -> None:
    assert purge(None, "") == ""


def test_a_purge_never_gives_the_placeholder_back(purge: Purge) -> None:
    """No driver could ever have the device; also where udev's database has been lost."""
    assert purge(PLACEHOLDER, "") == ""


@pytest.mark.parametrize("override", [PLACEHOLDER, GENERIC])
def test_a_purge_does_not_give_back_what_the_rules_had_set(purge: Purge, override: str) -> None:
    assert purge(override, override) == ""


def test_a_purge_gives_back_what_somebody_set_over_that_of_the_rules(purge: Purge) -> None:
    assert purge(GENERIC, PLACEHOLDER) == GENERIC


def run_postrm(root: Path, *actions: str, path: str = "/usr/bin:/bin") -> str:
    """What it says, both ways."""
    said = ""
    for action in actions:
        done = subprocess.run(
            ["sh", POSTRM, action],
            env={"PATH": path, "DPKG_ROOT": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=20,
            check=True,
        )
        said += done.stdout
    return said


def get_stuck(root: Path, driver: str | None) -> Path:
    """A device whose override nobody can read, since a worker sleeps in the kernel with it locked."""
    device = root / "sys/bus/pci/devices" / str(ADDRESS)
    device.mkdir(parents=True)
    os.mkfifo(device / "driver_override")
    if driver is not None:
        (device / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True)
    udev = root / "run/udev/data"
    udev.mkdir(parents=True)
    (udev / f"+pci:{ADDRESS}").write_text(f"I:1\nE:{PROPERTY}={PLACEHOLDER}\n", encoding="ascii")
    ledger = Ledger(root / "run/vfio-flavourd/devices")
    ledger.load()
    ledger.write(RECORD)
    ledger.close()
    assert RECORD.switching
    assert RECORD.worker is not None
    (root / "proc" / str(RECORD.worker.pid)).mkdir(parents=True)
    return device


@pytest.mark.parametrize("driver", [None, DRIVER], ids=["in an unbind", "in a probe"])
def test_a_removal_and_a_purge_do_not_wait_for_a_device_that_is_stuck(
    tmp_path: Path, driver: str | None
) -> None:
    get_stuck(tmp_path, driver)
    said = run_postrm(tmp_path, "remove", "purge")
    assert said == f"vfio-flavourd: {ADDRESS} is stuck in a switch, its driver_override stays\n"
    assert not (tmp_path / "run/vfio-flavourd").exists()


def test_a_device_whose_switch_was_cut_off_is_let_go_by_a_removal(tmp_path: Path) -> None:
    """There is a record of it, but no worker any more."""
    device = get_stuck(tmp_path, None)
    (device / "driver_override").unlink()
    (device / "driver_override").write_text(f"{PLACEHOLDER}\n", encoding="ascii")
    for process in (tmp_path / "proc").iterdir():
        process.rmdir()
    assert run_postrm(tmp_path, "remove") == ""
    assert (device / "driver_override").read_text(encoding="ascii") == "\n"
    probe = tmp_path / "sys/bus/pci/drivers_probe"
    assert probe.read_text(encoding="ascii") == f"{ADDRESS}\n"


@pytest.mark.parametrize("action", ["remove", "purge"])
@pytest.mark.parametrize("written", [True, False])
def test_nothing_stays_of_the_rules_nor_of_some_that_were_cut_off(
    tmp_path: Path, action: str, written: bool
) -> None:
    rules = tmp_path / RULES
    rules.parent.mkdir(parents=True)
    others = rules.with_name("79-others.rules")
    for path in (others, rules.with_name(f".{rules.name}.new"), *([rules] if written else [])):
        path.touch()
    run_postrm(tmp_path, action)
    assert list(rules.parent.iterdir()) == [others]


@pytest.fixture
def programs(tmp_path: Path) -> str:
    """A PATH with an `update-initramfs` that says what it is told."""
    rebuild = tmp_path / "bin/update-initramfs"
    rebuild.parent.mkdir()
    rebuild.write_text('#!/bin/sh\necho "$@"\n', encoding="ascii")
    rebuild.chmod(0o755)
    return f"{rebuild.parent}:/usr/bin:/bin"


@pytest.mark.parametrize("action", ["remove", "purge"])
@pytest.mark.parametrize("written", [True, False])
def test_with_another_root_the_initramfs_of_the_host_is_left_alone(
    tmp_path: Path, programs: str, action: str, written: bool
) -> None:
    rules = tmp_path / RULES
    rules.parent.mkdir(parents=True)
    if written:
        rules.touch()
    said = run_postrm(tmp_path, action, path=programs)
    assert said == ("vfio-flavourd: an initramfs may still have rules of the policy\n" if written else "")


def test_on_the_host_itself_every_initramfs_is_made_anew(programs: str) -> None:
    """By that function alone: all else would be done to the host that runs this."""
    _, name, rest = POSTRM.read_text(encoding="utf-8").partition("rebuild_initramfs() {\n")
    function, end, _ = rest.partition("\n}\n")
    script = f"root=\n{name}{function}{end}rebuild_initramfs"
    done = subprocess.run(["sh", "-euc", script], env={"PATH": programs}, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"-u -k all\n"
