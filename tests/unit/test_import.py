"""import: the policy it prints is valid, and decides each device as what it was made from does."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeKernel
from hypothesis import given
from hypothesis import strategies as st
from policies import make_device, make_facts
from served import Said

from vfio_flavourd.cli import importing
from vfio_flavourd.cli.main import main
from vfio_flavourd.config.load import load_files
from vfio_flavourd.model.device import Device, Identity
from vfio_flavourd.model.from_modprobe import match_of, tell
from vfio_flavourd.model.modprobe_conf import joined, parse_cmdline, parse_modprobe_conf
from vfio_flavourd.model.policy import Facts, Policy, decide
from vfio_flavourd.model.vfio_ids import VfioId, find_vfio_ids, parse_vfio_ids

Say = Callable[..., Said]


@pytest.fixture
def say(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    monkeypatch.setattr(importing, "ROOT", str(kernel.root))
    put(kernel, "proc/cmdline", "root=/dev/vda ro\n")

    def run(*argv: str) -> Said:
        status = main(["import", *argv])
        caught = capsys.readouterr()
        return Said(status, caught.out, caught.err)

    return run


def put(kernel: FakeKernel, path: str, text: str | bytes) -> Path:
    file = kernel.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def load(text: str, directory: Path) -> Policy:
    """As `flavourctl check FILE` does, and without a warning either."""
    file = directory / "imported.yaml"
    file.write_text(text, encoding="utf-8")
    loaded = load_files([file])
    assert loaded.warnings == ()
    return loaded.policy


def facts_of(address: str, **traits: Any) -> Facts:
    return make_facts(make_device(address, **traits))


# driverctl


def test_a_saved_override_becomes_a_rule_for_its_address(say: Say, kernel: FakeKernel) -> None:
    kernel.add_device("0000:01:00.0")
    put(kernel, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    put(kernel, "usr/sbin/update-initramfs", "")
    assert say("driverctl") == Said(
        0,
        """\
# Made by `flavourctl import driverctl`. What to do next:
# 1. write it to /etc/vfio-flavourd/policy.d/50-driverctl.yaml
# 2. flavourctl check
# 3. driverctl unset-override 0000:01:00.0
# 4. flavourctl reload
# 5. update-initramfs -u -k all
#
# Without its driver: line a rule gives each device the best driver that there is for it.
version: 1
rules:
  # /etc/driverctl.d/pci-0000:01:00.0
  - name: "driverctl 0000:01:00.0"
    match:
      address: "0000:01:00.0"
    flavour: vfio
    driver: vfio-pci
""",
        "",
    )


def test_the_policy_gives_each_address_what_driverctl_did(
    say: Say, kernel: FakeKernel, tmp_path: Path
) -> None:
    saved = {
        "0000:01:00.0": ("vfio-pci", "vfio", ("vfio-pci",)),
        "0000:01:00.1": ("mlx5_vfio_pci", "vfio", ("mlx5_vfio_pci",)),
        "0000:01:00.2": ("uio_pci_generic", "uio", ("uio_pci_generic",)),
        "10000:e1:00.0": ("vfio-pci", "vfio", ("vfio-pci",)),
    }
    for address, (driver, _, _) in saved.items():
        put(kernel, f"etc/driverctl.d/pci-{address}", f"{driver}\n")
    policy = load(say("driverctl").out, tmp_path)
    for address, (_, flavour, drivers) in saved.items():
        decision = decide(facts_of(address), policy)
        assert (decision.flavour, decision.drivers) == (flavour, drivers)
    assert decide(facts_of("0000:01:00.3"), policy).rule is None
    assert policy.flavours["uio"].fallback == "uio_pci_generic"


@pytest.mark.parametrize(
    ("name", "driver", "told"),
    [
        ("pci-0000:02:00.0", "igb", "igb is no VFIO driver, and a policy can't name a native one"),
        ("pci-0000:02:00.0", "pci-stub", "pci-stub is no VFIO driver"),
        ("pci-0000:02:00.0", "none", "a policy can't keep a device without any driver"),
        ("pci-0000:02:00.0", "a b", "'a b' can't be a driver's name"),
        ("vmbus-ed963694", "uio_hv_generic", "not a PCI device"),
    ],
)
def test_what_a_policy_can_not_say_is_in_the_file_and_on_stderr(
    say: Say, kernel: FakeKernel, tmp_path: Path, name: str, driver: str, told: str
) -> None:
    kernel.add_device("0000:01:00.0")
    put(kernel, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    put(kernel, f"etc/driverctl.d/{name}", f"{driver}\n")
    said = say("driverctl")
    assert (said.status, len(load(said.out, tmp_path).rules)) == (0, 1)
    (line,) = said.err.splitlines()
    assert line.startswith(f"flavourctl: /etc/driverctl.d/{name}: ")
    assert told in line
    assert f"# - {line.removeprefix('flavourctl: ')}\n" in said.out


def test_only_what_can_not_be_said_is_1_and_no_policy(say: Say, kernel: FakeKernel) -> None:
    put(kernel, "etc/driverctl.d/pci-0000:02:00.0", "igb\n")
    said = say("driverctl")
    assert (said.status, said.out) == (1, "")
    error = "flavourctl: importing from driverctl: found nothing that a policy could say"
    assert said.err.splitlines()[-2] == error


@pytest.mark.parametrize("source", ["driverctl", "modprobe"])
def test_nothing_to_import_is_1_and_no_policy_and_the_other_source_is_named(say: Say, source: str) -> None:
    said = say(source)
    assert (said.status, said.out) == (1, "")
    error, hint = said.err.splitlines()
    assert error == f"flavourctl: importing from {source}: found nothing that a policy could say"
    assert f"flavourctl import {({'driverctl', 'modprobe'} - {source}).pop()}" in hint


@pytest.mark.parametrize(("user", "status"), [(0, 1), (1000, 77)])
def test_what_can_not_be_read_of_modprobe_d_is_no_half_policy(
    say: Say, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, user: int, status: int
) -> None:
    put(kernel, "etc/modprobe.d/a.conf", "options vfio-pci ids=1:2\n")
    (kernel.root / "etc/modprobe.d/b.conf").symlink_to("b.conf")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    said = say("modprobe")
    assert (said.status, said.out) == (status, "")
    assert "b.conf': too many levels of symbolic links" in said.err


def test_overrides_that_this_user_may_not_read_are_77(
    say: Say, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(kernel, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    monkeypatch.setattr(os, "access", lambda path, mode: path != file)
    said = say("driverctl")
    assert (said.status, said.out) == (77, "")
    assert "/etc/driverctl.d/pci-0000:01:00.0 can't be read by this user" in said.err


def test_an_override_for_a_device_that_is_not_there_is_taken_and_told(say: Say, kernel: FakeKernel) -> None:
    put(kernel, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    said = say("driverctl")
    assert "driverctl 0000:01:00.0" in said.out
    assert "no device is at 0000:01:00.0 now" in said.err


def test_nothing_from_outside_reaches_the_terminal_or_the_file_unescaped(
    say: Say, kernel: FakeKernel, tmp_path: Path
) -> None:
    put(kernel, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    put(kernel, "etc/driverctl.d/x\n- name: evil\x1b[31m", "dr\x1biver\n")
    put(kernel, "etc/driverctl.d/pci-0000:01:00.1", b"\xff\x1b]0;x\x07\nrules: []\n")
    said = say("driverctl")
    assert len(load(said.out, tmp_path).rules) == 1
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())
    put(kernel, "etc/modprobe.d/a\x1b[1m.conf", b"options vfio-pci ids=1:2\x1b[31m,\xff\xfe,x\x1by\n")
    said = say("modprobe")
    assert len(load(said.out, tmp_path).rules) == 1
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())


def test_as_json_it_has_the_rules_the_remarks_and_what_to_do_next(say: Say, kernel: FakeKernel) -> None:
    put(kernel, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    data = json.loads(say("driverctl", "--json").out)
    assert (data["version"], data["source"]) == (1, "driverctl")
    assert data["policy"]["rules"] == [
        {
            "name": "driverctl 0000:01:00.0",
            "match": {"address": "0000:01:00.0"},
            "flavour": "vfio",
            "driver": "vfio-pci",
            "origin": "/etc/driverctl.d/pci-0000:01:00.0",
        }
    ]
    assert len(data["remarks"]) == 1
    assert data["next"][-1] == "flavourctl reload"


# modprobe


def test_ids_become_rules_and_every_place_of_them_is_to_be_cleared(say: Say, kernel: FakeKernel) -> None:
    first = put(kernel, "etc/modprobe.d/a.conf", "options vfio_pci ids=1234:5678\n")
    conf = put(
        kernel,
        "etc/modprobe.d/vfio.conf",
        "options vfio-pci ids=10de:1b80,10de:10f0 disable_vga=1\nsoftdep nouveau pre: vfio-pci\n",
    )
    assert say("modprobe") == Said(
        0,
        f"""\
# Made by `flavourctl import modprobe`. What to do next:
# 1. write it to /etc/vfio-flavourd/policy.d/50-modprobe.yaml
# 2. flavourctl check
# 3. remove ids= from {conf}:1
# 4. remove ids= from {first}:1
# 5. flavourctl reload
#
# Without its driver: line a rule gives each device the best driver that there is for it.
#
# Not taken over, or worth knowing:
# - {first}:1: its ids= has no effect: {conf}:1 sets it again later
# - {conf}:1: disable_vga=1 is to be kept: a policy has nothing like it
# - {conf}:2: softdep nouveau pre: vfio-pci is not needed with a policy
version: 1
rules:
  # {conf}:1
  - name: "vfio-pci 10de:1b80"
    match:
      vendor: 0x10de
      device: 0x1b80
    flavour: vfio
    driver: vfio-pci
  # {conf}:1
  - name: "vfio-pci 10de:10f0"
    match:
      vendor: 0x10de
      device: 0x10f0
    flavour: vfio
    driver: vfio-pci
""",
        f"flavourctl: {first}:1: its ids= has no effect: {conf}:1 sets it again later\n"
        f"flavourctl: {conf}:1: disable_vga=1 is to be kept: a policy has nothing like it\n"
        f"flavourctl: {conf}:2: softdep nouveau pre: vfio-pci is not needed with a policy\n",
    )


def test_the_command_line_comes_after_modprobe_d(say: Say, kernel: FakeKernel, tmp_path: Path) -> None:
    put(kernel, "etc/modprobe.d/vfio.conf", "options vfio-pci ids=1234:5678\n")
    put(kernel, "proc/cmdline", "ro vfio_pci.ids=10de:1b80,10de:10f0 quiet -- vfio-pci.ids=1:1\n")
    rules = load(say("modprobe").out, tmp_path).rules
    assert [rule.name for rule in rules] == ["vfio-pci 10de:1b80", "vfio-pci 10de:10f0"]


def test_an_entry_that_another_one_covers_or_that_nothing_can_have_is_left_out(
    say: Say, kernel: FakeKernel, tmp_path: Path
) -> None:
    ids = "10de:ffffffff,10de:1b80,10de:ffffffff,12345:1,8086:10d3:ffffffff:ffffffff:1000000:1ff0000,1234"
    put(kernel, "etc/modprobe.d/vfio.conf", f"options vfio-pci ids={ids}\n")
    said = say("modprobe")
    assert [rule.name for rule in load(said.out, tmp_path).rules] == ["vfio-pci 10de:any"]
    assert len(said.err.splitlines()) == 5


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ("10de:1b80", [(0x10DE, 0x1B80, None, None, 0, 0)]),
        ("0x10DE:0x1b80:1:2:030000:ff0000", [(0x10DE, 0x1B80, 1, 2, 0x030000, 0xFF0000)]),
        ("10de:ffffffff:ffffffff:ffffffff:030000", [(0x10DE, None, None, None, 0x030000, 0)]),
        (",, 8086:10d3 ,", [(0x8086, 0x10D3, None, None, 0, 0)]),
        ("8086:10d3:", [(0x8086, 0x10D3, None, None, 0, 0)]),
        ("8086:10d3zz:1", [(0x8086, 0x10D3, None, None, 0, 0)]),
        ("8086: 10d3:1:2:3:4:5", [(0x8086, 0x10D3, 1, 2, 3, 4)]),
        ("8086", []),
        ("8086:", []),
        ("-1:1", []),
        ("8086.10d3", []),
    ],
)
def test_entries_are_read_as_the_kernels_sscanf_does(
    value: str, fields: list[tuple[int | None, ...]]
) -> None:
    ids, malformed = parse_vfio_ids(value)
    found = [
        (each.vendor, each.device, each.subvendor, each.subdevice, each.device_class, each.class_mask)
        for each in ids
    ]
    assert found == fields
    assert bool(malformed) == (not fields)


@pytest.mark.parametrize(
    "text",
    [
        "options vfio-pci ids=1:2\n",
        "options vfio_pci disable_vga=1 ids=1:2\n",
        'options vfio-pci ids="1:2"\n',
        'options vfio-pci "ids=1:2"\n',
        "options vfio-pci \\\n  ids=1:2\n",
        "options vfio-pci ids=3:4 ids=1:2\n",
        "options vfio-pci ids=3:4\noptions vfio-pci ids=1:2\n",
        "options vfio-pci ids=1:2\n# options vfio-pci ids=3:4\n",
        "options vfio-pci ids=1:2\noptions vfio ids=3:4\noptions vfio-pci xids=3:4\n",
        "options vfio-pci ids=1:2, 3:4\n",
    ],
)
def test_ids_are_found_however_their_line_is_written(text: str) -> None:
    ids = find_vfio_ids(parse_modprobe_conf(text.encode(), "x.conf")).ids
    assert [(each.vendor, each.device) for each in ids] == [(1, 2)]


def test_blanks_within_quotes_belong_to_the_value() -> None:
    confs = [
        parse_modprobe_conf(b'options vfio-pci ids="1:2, 3:4"\n', "x.conf"),
        parse_cmdline('ro vfio-pci.ids="5:6, 7:8" quiet'),
    ]
    assert [each.vendor for each in find_vfio_ids(confs[0]).ids] == [1, 3]
    assert [each.vendor for each in find_vfio_ids(joined(confs)).ids] == [5, 7]


_numbers = st.sampled_from([None, 0x10DE, 0x1B80, 0x8086])
_classes = st.sampled_from([0x000000, 0x030000, 0x030200, 0x0C0330, 0x01080A])
_masks = st.sampled_from([0, 0xFF0000, 0xFFFF00, 0xFFFFFF, 0x00FF00, 0xF00000, 0x0000FF, 0x020204, 0x010000])
_ids = st.builds(VfioId, _numbers, _numbers, _numbers, _numbers, _classes, _masks)


@given(
    each=_ids,
    numbers=st.tuples(*[st.sampled_from([0x10DE, 0x1B80, 0x8086, 0x1234])] * 4),
    device_class=st.sampled_from([0x000000, 0x030000, 0x030200, 0x0C0330, 0x01080A, 0xFFFFFF]),
)
def test_a_match_fits_just_the_devices_that_the_entry_does(
    each: VfioId,
    numbers: tuple[int, int, int, int],
    device_class: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    match = "".join(f"      {key}: '{value}'\n" for key, value in match_of(each))
    text = f"version: 1\nrules:\n  - name: x\n    match:\n{match}    flavour: vfio\n"
    policy = load(text, tmp_path_factory.getbasetemp())
    device = pci_device(numbers, device_class)
    assert (decide(make_facts(device), policy).rule is not None) == each.fits(device)
    assert tell(each)


def pci_device(numbers: tuple[int, int, int, int], device_class: int) -> Device:
    vendor, device, subvendor, subdevice = numbers
    base, sub, interface = device_class >> 16, device_class >> 8 & 0xFF, device_class & 0xFF
    return make_device(
        identity=Identity(vendor, device, subvendor, subdevice, 0, 1),
        class_code=device_class,
        modalias=f"pci:v{vendor:08X}d{device:08X}sv{subvendor:08X}sd{subdevice:08X}"
        f"bc{base:02X}sc{sub:02X}i{interface:02X}",
    )
