"""What a purge does with the overrides of devices that are still there, in a root of its own."""

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
        for action in ("remove", "purge"):
            subprocess.run(
                ["sh", POSTRM, action], env={"PATH": "/usr/bin:/bin", "DPKG_ROOT": str(tmp_path)}, check=True
            )
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
    rebuild = tmp_path / "bin/update-initramfs"
    rebuild.parent.mkdir()
    rebuild.write_text('#!/bin/sh\necho "$@"\n', encoding="ascii")
    rebuild.chmod(0o755)
    done = subprocess.run(
        ["sh", POSTRM, action],
        env={"PATH": f"{rebuild.parent}:/usr/bin:/bin", "DPKG_ROOT": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert list(rules.parent.iterdir()) == [others]
    assert done.stdout == ("-u -k all\n" if written else "")
