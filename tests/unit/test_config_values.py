"""What a valid file means, value by value."""

from pathlib import Path
from typing import Any

import pytest
from policies import load, load_text, make_device, make_facts, write

from vfio_flavourd.config.definitions import MATCH
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.device import ENABLE_VFIO, Personality
from vfio_flavourd.model.policy import (
    VFIO,
    FlavourKind,
    InUse,
    Match,
    NodeAccess,
    NoIommu,
    OthersInGroup,
    Policy,
    Rule,
    Settings,
    decide,
)


def load_rule(root: Path, lines: str) -> Rule:
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    match = "" if lines.startswith("match") else "    match: {vendor: 1}\n"
    (rule,) = load_text(root, f"version: 1\nrules:\n  - name: x\n{match}{body}").policy.rules
    return rule


@pytest.mark.parametrize(
    ("match", "field", "value"),
    [
        ("vendor: 0x15b3", "vendor", (0x15B3,)),
        ("vendor: 0X15B3", "vendor", (0x15B3,)),
        ("vendor: 15b3", "vendor", (0x15B3,)),
        ("vendor: '15b3'", "vendor", (0x15B3,)),
        ("vendor: 1017", "vendor", (0x1017,)),
        ("vendor: 0101", "vendor", (0x0101,)),
        ("vendor: 1e10", "vendor", (0x1E10,)),
        ("vendor: 0b11", "vendor", (0x0B11,)),
        ("vendor: 5", "vendor", (5,)),
        ("vendor: [0x15b3, 8086]", "vendor", (0x15B3, 0x8086)),
        ("subsystem_vendor: 0017", "subsystem_vendor", (0x17,)),
        ("class: 0x0300", "device_class", ("0300",)),
        ("class: 03", "device_class", ("03",)),
        ("class: 010802", "device_class", ("010802",)),
        ("class: 0C", "device_class", ("0c",)),
        ("class: [03, 0403]", "device_class", ("03", "0403")),
        ("address: 0000:01:00.0", "address", (parse_address("01:00.0"),)),
        ("address: 01:00.0", "address", (parse_address("01:00.0"),)),
        ("address: 10000:E1:1f.7", "address", (parse_address("10000:e1:1f.7"),)),
        ("address: [00:02.0, 00:03.0]", "address", (parse_address("00:02.0"), parse_address("00:03.0"))),
        ("pf: 59:1a.0", "pf", (parse_address("59:1a.0"),)),
        ("slot: 00:1C.0/00.0/1F.7", "slot", ("0000:00:1c.0/00.0/1f.7",)),
        ("slot: 0000:00:1c.0", "slot", ("0000:00:1c.0",)),
        ("slot: 0000:00:1c.0/+1:00.2", "slot", ("0000:00:1c.0/+1:00.2",)),
        ("modalias: '*'", "modalias", ("*",)),
        ("modalias: pci:v000015B3d*", "modalias", ("pci:v000015B3d*",)),
        ("driver: none", "driver", ("none",)),
        ("driver: no", "driver", ("no",)),
        ("driver: [nvme, null]", "driver", ("nvme", "null")),
        ("iommu_group: 0", "iommu_group", (0,)),
        ("iommu_group: [1, 20]", "iommu_group", (1, 20)),
        ("sriov: vf", "sriov", "vf"),
        ("serial: 0123", "serial", ("0123",)),
        ("serial: 2024-01-01", "serial", ("2024-01-01",)),
        ("serial: no", "serial", ("no",)),
        ("serial: 'A B'", "serial", ("A B",)),
        ("host: ['node[0-9]', x]", "host", ("node[0-9]", "x")),
    ],
)
def test_a_condition_is_taken_as_it_is_written(tmp_path: Path, match: str, field: str, value: Any) -> None:
    assert load_rule(tmp_path, f"match:\n  {match}").match == Match(**{field: value})
    assert load_rule(tmp_path, f"match: {{{match}}}").match == Match(**{field: value})


def test_every_key_of_a_match_is_a_field_of_match() -> None:
    names = {"device_class" if key.name == "class" else key.name for key in MATCH.keys}
    assert names == set(Match.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1m", 60),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1h", 3600),
        ("59m59s999ms", 3599.999),
        ("1ms", 0.001),
    ],
)
def test_a_duration_is_seconds(tmp_path: Path, text: str, seconds: float) -> None:
    settings = load_rule(tmp_path, f"load_timeout: {text}\nbind_timeout: {text}").settings
    assert settings.load_timeout == settings.bind_timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "drivers"),
    [
        ("auto", ()),
        ("[auto]", ()),
        ("mlx5_vfio_pci", ("mlx5_vfio_pci",)),
        ("[a, b-c]", ("a", "b-c")),
        ("no", ("no",)),
    ],
)
def test_a_driver_is_auto_a_name_or_names(tmp_path: Path, text: str, drivers: tuple[str, ...]) -> None:
    assert load_rule(tmp_path, f"driver: {text}").drivers == drivers


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("{mode: 0660}", NodeAccess(None, None, 0o660)),
        ("{mode: 660}", NodeAccess(None, None, 0o660)),
        ("{owner: qemu, group: '36'}", NodeAccess("qemu", "36", None)),
        ("{group: 0644, mode: '0600'}", NodeAccess(None, "0644", 0o600)),
    ],
)
def test_nodes_have_an_owner_a_group_and_an_octal_mode(tmp_path: Path, text: str, nodes: NodeAccess) -> None:
    assert load_rule(tmp_path, f"nodes: {text}").nodes == nodes


def test_a_rule_has_the_defaults_where_it_says_nothing(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        """\
version: 1
defaults: {load_timeout: 20s, group: together, deny: [bad-vfio, worse]}
rules:
  - {name: a, match: {vendor: 1}}
  - {name: b, match: {vendor: 2}, group: ignore, in_use: force, noiommu: allow, deny: worst}
""",
    )
    defaults = Settings(
        load_timeout=20, group=OthersInGroup.TOGETHER, denied=frozenset({"bad_vfio", "worse"})
    )
    first, second = loaded.policy.rules
    assert loaded.policy.defaults == first.settings == defaults
    assert second.settings == Settings(
        load_timeout=20,
        group=OthersInGroup.IGNORE,
        in_use=InUse.FORCE,
        noiommu=NoIommu.ALLOW,
        denied=frozenset({"bad_vfio", "worse", "worst"}),
    )


def test_a_later_file_overrides_the_defaults_of_an_earlier_one_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "version: 1\ndefaults: {load_timeout: 1s, bind_timeout: 1s, deny: a}\n", "10.yaml")
    write(tmp_path, "version: 1\ndefaults: {load_timeout: 2s, deny: b}\n", "20.yaml")
    write(tmp_path, "version: 1\nrules: [{name: x, match: {vendor: 1}}]\n", "05.yaml")
    policy = load(tmp_path).policy
    assert policy.defaults == Settings(load_timeout=2, bind_timeout=1, denied=frozenset({"b"}))
    assert policy.rules[0].settings == policy.defaults


def test_own_flavours_stand_beside_vfio(tmp_path: Path) -> None:
    uio, other = "{alias_prefix: none, fallback: uio-pci-generic}", "{alias_prefix: x, fallback: y}"
    policy = load_text(tmp_path, f"version: 1\nflavours:\n  uio: {uio}\n  on: {other}\n").policy
    assert policy.flavours == {
        "vfio": VFIO,
        "uio": FlavourKind("uio", None, "uio_pci_generic"),
        "on": FlavourKind("on", "x", "y"),
    }


def test_a_rule_may_use_a_flavour_of_a_later_file(tmp_path: Path) -> None:
    write(tmp_path, "version: 1\nrules: [{name: x, match: {vendor: 1}, flavour: uio}]\n", "10.yaml")
    write(tmp_path, "version: 1\nflavours: {uio: {alias_prefix: none, fallback: x}}\n", "20.yaml")
    assert load(tmp_path).policy.rules[0].flavour == "uio"


def test_personalities_come_after_the_one_that_is_built_in(tmp_path: Path) -> None:
    policy = load_text(
        tmp_path,
        """\
version: 1
personalities:
  - {driver: nvidia, attribute: nvidia/current_vgpu_type, on: 558, off: 0}
  - {driver: other, attribute: mode, on: no, off: yes, ready: a/b}
""",
    ).policy
    assert policy.personalities == (
        ENABLE_VFIO,
        Personality("nvidia", "nvidia/current_vgpu_type", "558", "0", "vfio-dev"),
        Personality("other", "mode", "no", "yes", "a/b"),
    )


def test_the_least_file_there_is_changes_nothing(tmp_path: Path) -> None:
    assert load_text(tmp_path, "version: 1\n").policy == Policy()
    assert load_text(tmp_path, b"\xef\xbb\xbfversion: '1'\r\nrules: []\r\n").policy == Policy()


def test_a_rule_knows_where_it_stands(tmp_path: Path) -> None:
    path = write(tmp_path, "version: 1\nrules:\n  # a comment\n  - name: no\n    match: {vendor: 0x15b3}\n")
    (rule,) = load(tmp_path).policy.rules
    assert (rule.name, rule.origin) == ("no", f"{path}:4")
    assert decide(make_facts(make_device()), load(tmp_path).policy).reason == f"rule 'no' ({path}:4)"
