"""Which rule decides."""

from dataclasses import replace
from typing import Any

import pytest
from policies import make_device, make_facts

from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.policy import (
    InUse,
    Match,
    NodeAccess,
    OthersInGroup,
    Policy,
    Rule,
    Settings,
    asks_for_serials,
    decide,
    fits,
)

MODALIAS = "pci:v000015B3d0000101Esv00001AF4sd00001100bc02sc00i00"


def rule(name: str, flavour: str | None = "vfio", **match: Any) -> Rule:
    return Rule(name, Match(**match), flavour, (), Settings(), None, f"/etc/{name}.yaml:3")


@pytest.mark.parametrize(
    ("field", "fitting", "other"),
    [
        ("address", (parse_address("01:00.0"),), (parse_address("01:00.1"),)),
        ("vendor", (0x15B3,), (0x8086,)),
        ("device", (0x101E,), (0x101D,)),
        ("subsystem_vendor", (0x1AF4,), (0x1AF5,)),
        ("subsystem_device", (0x1100,), (0x1101,)),
        ("device_class", ("02",), ("03",)),
        ("device_class", ("0200",), ("0201",)),
        ("device_class", ("020000",), ("020001",)),
        ("modalias", ("pci:v000015B3d*",), ("pci:v000015b3d*",)),
        ("modalias", ("*",), ("pci:",)),
        ("modalias", (MODALIAS,), (f"{MODALIAS}?",)),
        ("modalias", ("pci:v0000[0-9]5B3*",), ("pci:v0000[2-9]5B3*",)),
        ("driver", ("mlx5_core",), ("mlx5",)),
        ("driver", ("mlx5-core",), ("none",)),
        ("iommu_group", (7,), (0,)),
        ("sriov", "vf", "pf"),
        ("pf", (parse_address("01:00.1"),), (parse_address("01:00.0"),)),
        ("serial", ("s4ew",), ("S4E",)),
        ("serial", ("B4-96-91-ff-ff-12-34-56",), ("b4-96-91-ff-ff-12-34-57",)),
        ("host", ("node1",), ("node2",)),
        ("host", ("NODE*",), ("node",)),
        ("host", ("*.example.com",), ("*.example.org",)),
        ("slot", ("0000:00:1c.0/00.0",), ("0000:00:1c.0/00.1",)),
        ("slot", ("0000:00:1c.0",), ("0000:00:1c.4",)),
    ],
)
def test_each_condition_fits_what_it_names_and_nothing_else(field: str, fitting: Any, other: Any) -> None:
    serials = ("S4EW ", "b4-96-91-ff-ff-12-34-56")
    facts = make_facts(sriov="vf", pf=parse_address("01:00.1"), serials=serials)
    assert fits(Match(**{field: fitting}), facts)
    assert not fits(Match(**{field: other}), facts)
    if isinstance(fitting, tuple):
        either: Any = (*other, *fitting)
        assert fits(Match(**{field: either}), facts)


@pytest.mark.parametrize("field", ["sriov", "pf", "iommu_group", "serial"])
def test_a_device_without_a_thing_fits_no_rule_that_asks_for_it(field: str) -> None:
    facts = make_facts(make_device(iommu_group=None))
    asked: dict[str, Any] = {
        "sriov": "pf",
        "pf": (parse_address("01:00.0"),),
        "iommu_group": (0,),
        "serial": ("none",),
    }
    assert not fits(Match(**{field: asked[field]}), facts)


def test_a_slot_is_the_device_there_and_all_behind_it_but_not_one_whose_number_begins_alike() -> None:
    match = Match(slot=("0000:00:1c.0/00.0",))
    for slot, inside in {
        "0000:00:1c.0/00.0": True,
        "0000:00:1c.0/00.0/04.0/00.1": True,
        "0000:00:1c.0": False,
        "0000:00:1c.0/00.01": False,
        "0000:00:1c.0/+1:00.0": False,
    }.items():
        assert fits(match, make_facts(slot=slot)) is inside


def test_none_stands_for_no_driver() -> None:
    unbound = make_facts(make_device(driver=None))
    assert fits(Match(driver=("none",)), unbound)
    assert fits(Match(driver=("nvme", "none")), unbound)
    assert not fits(Match(driver=("mlx5_core",)), unbound)


def test_a_driver_may_be_named_as_its_module() -> None:
    assert fits(Match(driver=("vfio_pci",)), make_facts(make_device(driver="vfio-pci")))


def test_all_conditions_must_fit() -> None:
    assert fits(Match(vendor=(0x15B3,), sriov="vf"), make_facts(sriov="vf"))
    assert not fits(Match(vendor=(0x15B3,), sriov="vf"), make_facts(sriov="pf"))
    assert not fits(Match(vendor=(0x8086,), sriov="vf"), make_facts(sriov="vf"))


def test_the_first_rule_that_fits_decides_even_when_it_has_no_flavour() -> None:
    second = replace(
        rule("second", flavour=None, vendor=(0x15B3,)),
        drivers=("mlx5_vfio_pci",),
        settings=Settings(in_use=InUse.FORCE),
        nodes=NodeAccess("vm", None, 0o600),
    )
    rules = (rule("first", vendor=(0x8086,)), second, rule("third", sriov="vf"))
    decision = decide(make_facts(sriov="vf"), Policy(rules=rules))
    assert decision.rule is second
    assert decision.flavour is None
    assert (decision.drivers, decision.settings) == (second.drivers, second.settings)
    assert decision.nodes == second.nodes
    assert decision.reason == "rule 'second' (/etc/second.yaml:3)"


def test_without_a_rule_the_defaults_hold_and_no_flavour_is_wanted() -> None:
    defaults = Settings(load_timeout=3, group=OthersInGroup.TOGETHER)
    decision = decide(make_facts(), Policy(defaults=defaults, rules=(rule("other", vendor=(0x8086,)),)))
    assert (decision.rule, decision.flavour, decision.drivers) == (None, None, ())
    assert decision.settings == defaults
    assert decision.reason == "no rule matches"


def test_serials_are_asked_for_only_where_the_decision_hangs_on_them() -> None:
    facts = make_facts(sriov="vf")
    serial = rule("serial", vendor=(0x15B3,), serial=("x",))
    assert asks_for_serials(facts, Policy(rules=(serial,)))
    assert asks_for_serials(facts, Policy(rules=(rule("other", vendor=(0x8086,)), serial)))
    assert not asks_for_serials(facts, Policy(rules=(rule("before", sriov="vf"), serial)))
    assert not asks_for_serials(facts, Policy(rules=(rule("not mine", vendor=(0x8086,), serial=("x",)),)))
    assert not asks_for_serials(facts, Policy())


@pytest.mark.parametrize(
    ("one", "other", "covers"),
    [
        (Match(vendor=(1,)), Match(vendor=(1,)), True),
        (Match(vendor=(1, 2)), Match(vendor=(2, 1)), True),
        (Match(vendor=(1, 2)), Match(vendor=(1,), device=(3,)), True),
        (Match(vendor=(1,)), Match(vendor=(1, 2)), False),
        (Match(vendor=(1,), device=(3,)), Match(vendor=(1,)), False),
        (Match(sriov="vf"), Match(sriov="vf", vendor=(1,)), True),
        (Match(sriov="vf"), Match(sriov="pf"), False),
        (Match(iommu_group=(0,)), Match(), False),
    ],
)
def test_a_match_covers_another_that_can_only_fit_what_it_fits(
    one: Match, other: Match, covers: bool
) -> None:
    assert one.covers(other) is covers
