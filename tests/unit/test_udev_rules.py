"""What the compiled rules do with a device is what the policy says of it."""

from dataclasses import fields, replace
from fnmatch import fnmatchcase
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from udev_interpreter import Event, FakeUdevDevice, apply, parse

from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.device import Device, Identity, Personality
from vfio_flavourd.model.modprobe_conf import AliasLine
from vfio_flavourd.model.policy import (
    VFIO,
    Decision,
    Facts,
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
from vfio_flavourd.model.udev_header import Free, Header, Kept, Spared, find_ids, parse_header
from vfio_flavourd.model.udev_match import translate, widened
from vfio_flavourd.model.udev_rules import GENERIC, PLACEHOLDER, Compiled, compile_rules

UIO = FlavourKind("uio", None, "uio_pci_generic")
VARIANT = AliasLine("vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*", "mlx5_vfio_pci", "modules.alias")
FLAVOURS = {"vfio": VFIO, "uio": UIO}
NIC = parse_address("0000:01:00.0")
SWITCH = "vfio_flavourd.policy"
ANY = Match()


def make_facts(
    address: str = "0000:01:00.0",
    *,
    parent: str = "0000:00:1c.0",
    ids: tuple[int, int, int, int] = (0x8086, 0x10D3, 0x8086, 0xA01F),
    class_code: int = 0x020000,
    group: int | None = 7,
    pf: str | None = None,
    sriov: str | None = None,
    serials: tuple[str, ...] = (),
    driver: str | None = None,
) -> Facts:
    place = parse_address(address)
    vendor, device, subvendor, subdevice = ids
    base, sub, interface = class_code >> 16, class_code >> 8 & 0xFF, class_code & 0xFF
    modalias = (
        f"pci:v{vendor:08X}d{device:08X}sv{subvendor:08X}sd{subdevice:08X}"
        f"bc{base:02X}sc{sub:02X}i{interface:02X}"
    )
    slot = address if not parent else f"{parent}/{place.device:02x}.{place.function}"
    own_pf = parse_address(pf) if pf else None
    if own_pf and parent and own_pf.bus != place.bus:
        slot = f"{parent}/+{place.bus - own_pf.bus}:{place.device:02x}.{place.function}"
    bridge = f"/{parent}" if parent else ""
    return Facts(
        Device(
            place,
            f"/sys/devices/pci0000:00{bridge}/{address}",
            Identity(*ids, 0, 1),
            modalias,
            class_code,
            driver,
            driver,
            group,
            None,
            None,
        ),
        slot,
        "vf" if pf else sriov,
        own_pf,
        serials,
        "virt1.example.org",
    )


def make_udev(facts: Facts, **others: str) -> FakeUdevDevice:
    """The same device as udev sees it, before any driver is there."""
    device, ids = facts.device, facts.device.identity
    attributes = {
        "vendor": f"0x{ids.vendor:04x}\n",
        "device": f"0x{ids.device:04x}\n",
        "subsystem_vendor": f"0x{ids.subsystem_vendor:04x}\n",
        "subsystem_device": f"0x{ids.subsystem_device:04x}\n",
        "class": f"0x{device.class_code:06x}\n",
        "modalias": f"{device.modalias}\n",
        "driver_override": "(null)\n",
        **others,
    }
    paths = {f"/sys/kernel/iommu_groups/{device.iommu_group}/devices/{device.address}", "iommu_group"}
    if device.iommu_group is None:
        paths = set()
    if device.driver:
        paths.add("driver")
    if facts.pf:
        attributes["physfn/uevent"] = f"DRIVER=x\nPCI_SLOT_NAME={facts.pf}\nMODALIAS=pci:v\n"
        paths.add("physfn")
    if facts.sriov == "pf":
        attributes["sriov_totalvfs"] = "8\n"
        paths.add("sriov_totalvfs")
    return FakeUdevDevice(str(device.address), device.path.removeprefix("/sys"), attributes, paths)


def make_rule(match: Match = ANY, flavour: str | None = "vfio", **others: object) -> Rule:
    rule = Rule("x", match, flavour, (), Settings(), None, "10.yaml:3")
    return replace(rule, **others)  # type: ignore[arg-type]


def make_policy(*rules: Rule, **others: object) -> Policy:
    return replace(Policy(rules=rules, flavours=FLAVOURS), **others)  # type: ignore[arg-type]


def compiled(policy: Policy, header: Header | None = None, **others: object) -> Compiled:
    head = header or Header("1", ("/etc/vfio-flavourd/policy.d/10.yaml 3 1.0",))
    return compile_rules(policy, head, host_name="virt1.example.org", variants=(VARIANT,), **others)  # type: ignore[arg-type]


def event_of(rules: Compiled, device: FakeUdevDevice) -> Event:
    return apply(parse(rules.text), device)


def override_of(rules: Compiled, facts: Facts, **others: str) -> str | None:
    """What the device's `driver_override` becomes; None for nothing."""
    return dict(event_of(rules, make_udev(facts, **others)).written).get("driver_override")


def test_a_matching_device_gets_the_generic_driver_and_its_module() -> None:
    event = event_of(compiled(make_policy(make_rule(Match(vendor=(0x8086,))))), make_udev(make_facts()))
    assert event.written == [("driver_override", GENERIC)]
    assert event.run == ["kmod load vfio_pci"]
    assert event.properties["VFIO_FLAVOUR_OVERRIDE"] == GENERIC


def test_where_the_generic_driver_is_loaded_it_is_told_of_the_device() -> None:
    device = make_udev(make_facts())
    device.paths.add("/sys/bus/pci/drivers/vfio-pci")
    event = event_of(compiled(make_policy(make_rule())), device)
    assert event.written == [("driver_override", GENERIC), ("[subsystem/pci]drivers_probe", "0000:01:00.0")]


def test_another_device_is_untouched() -> None:
    event = event_of(compiled(make_policy(make_rule(Match(vendor=(0x10DE,))))), make_udev(make_facts()))
    assert (event.written, event.run) == ([], [])


def test_a_device_that_a_variant_may_serve_waits_for_the_daemon() -> None:
    facts = make_facts(ids=(0x15B3, 0x101E, 0x15B3, 0x0001))
    rules = compiled(make_policy(make_rule()))
    assert override_of(rules, facts) == PLACEHOLDER
    assert override_of(rules, make_facts()) == GENERIC
    assert event_of(rules, make_udev(facts)).run == []


def test_a_denied_variant_does_not_count() -> None:
    facts = make_facts(ids=(0x15B3, 0x101E, 0x15B3, 0x0001))
    denied = Settings(denied=frozenset({"mlx5_vfio_pci"}))
    assert override_of(compiled(make_policy(make_rule(settings=denied))), facts) == GENERIC


def test_without_the_generic_driver_the_daemon_decides() -> None:
    rules = compiled(make_policy(make_rule(settings=Settings(denied=frozenset({"vfio_pci"})))))
    assert override_of(rules, make_facts()) is None
    assert rules.notes == ("rule 'x': vfio_pci is denied: the daemon looks for another driver",)


@pytest.mark.parametrize(
    ("drivers", "override"),
    [
        (("vfio-pci",), GENERIC),
        (("vfio_pci",), GENERIC),
        (("vfio-pci", "other"), GENERIC),
        (("mlx5_vfio_pci",), PLACEHOLDER),
        (("other", "vfio-pci"), PLACEHOLDER),
    ],
)
def test_a_named_driver_is_waited_for_unless_it_is_the_generic_one(
    drivers: tuple[str, ...], override: str
) -> None:
    facts = make_facts(ids=(0x15B3, 0x101E, 0x15B3, 0x0001))
    assert override_of(compiled(make_policy(make_rule(drivers=drivers))), facts) == override


@pytest.mark.parametrize("drivers", [(), ("vfio-pci",)])
def test_a_device_that_its_group_goes_with_waits_for_the_daemon(drivers: tuple[str, ...]) -> None:
    together = Settings(group=OthersInGroup.TOGETHER)
    rules = compiled(make_policy(make_rule(settings=together, drivers=drivers)))
    assert override_of(rules, make_facts()) == PLACEHOLDER


def test_a_flavour_of_ones_own_waits_for_the_daemon() -> None:
    rules = compiled(make_policy(make_rule(flavour="uio")))
    assert override_of(rules, make_facts(group=None)) == PLACEHOLDER


@pytest.mark.parametrize("flavour", ["native", None])
def test_the_first_rule_that_matches_keeps_a_device_from_the_next(flavour: str | None) -> None:
    rules = compiled(make_policy(make_rule(Match(address=(NIC,)), flavour), make_rule()))
    assert override_of(rules, make_facts()) is None
    assert override_of(rules, make_facts("0000:01:00.1")) == GENERIC


def test_a_policy_without_early_effect_compiles_to_comments() -> None:
    for policy in (make_policy(), make_policy(make_rule(flavour="native"))):
        rules = compiled(policy)
        assert not rules.acts
        assert all(line.startswith("#") for line in rules.text.splitlines())


@pytest.mark.parametrize("action", ["change", "bind", "remove"])
def test_only_a_new_device_is_touched(action: str) -> None:
    device = replace(make_udev(make_facts()), action=action)
    assert event_of(compiled(make_policy(make_rule())), device).written == []


def test_a_second_add_event_changes_nothing() -> None:
    rules = compiled(make_policy(make_rule()))
    device = make_udev(make_facts())
    assert event_of(rules, device).written
    assert event_of(rules, device).written == []
    device.paths.add("driver")
    assert event_of(rules, device).written == []


@pytest.mark.parametrize("override", ["nvme\n", "vfio-pci\n", f"{PLACEHOLDER}\n"])
def test_an_override_that_is_there_stays(override: str) -> None:
    for flavour in ("vfio", "uio"):
        rules = compiled(make_policy(make_rule(flavour=flavour)))
        event = event_of(rules, make_udev(make_facts(), driver_override=override))
        assert (event.written, event.run) == ([], [])


@pytest.mark.parametrize("override", ["(null)\n", "\n", ""])
def test_no_override_reads_as_null_or_as_nothing(override: str) -> None:
    assert override_of(compiled(make_policy(make_rule())), make_facts(), driver_override=override) == GENERIC


def test_what_the_rules_wrote_is_known_after_later_events() -> None:
    device = replace(make_udev(make_facts()), action="bind", database={"VFIO_FLAVOUR_OVERRIDE": GENERIC})
    event = event_of(compiled(make_policy(make_rule())), device)
    assert event.properties == {"VFIO_FLAVOUR_OVERRIDE": GENERIC}


def test_the_kernel_command_line_switches_them_off() -> None:
    rules = compiled(make_policy(make_rule()))
    assert event_of(rules, replace(make_udev(make_facts()), cmdline={SWITCH: "0"})).written == []
    assert event_of(rules, replace(make_udev(make_facts()), cmdline={SWITCH: "1"})).written != []


def test_bridges_and_what_driverctl_has_are_left_alone() -> None:
    rules = compiled(make_policy(make_rule()), claimed=(parse_address("0000:02:00.0"),))
    assert override_of(rules, make_facts(class_code=0x060400)) is None
    assert override_of(rules, make_facts("0000:02:00.0")) is None
    device = make_udev(make_facts())
    device.paths.add(f"/etc/driverctl.d/pci-{device.kernel}")
    assert event_of(rules, device).written == []


def test_a_device_without_isolation_is_left_alone_unless_that_is_allowed() -> None:
    facts = make_facts(group=None)
    assert override_of(compiled(make_policy(make_rule())), facts) is None
    allowed = make_rule(settings=Settings(noiommu=NoIommu.ALLOW))
    assert override_of(compiled(make_policy(allowed)), facts) == GENERIC


def test_the_boot_display_goes_only_by_force() -> None:
    facts = make_facts(class_code=0x030000)
    forced = make_rule(settings=Settings(in_use=InUse.FORCE))
    assert override_of(compiled(make_policy(make_rule())), facts, boot_vga="1\n") is None
    assert override_of(compiled(make_policy(make_rule())), facts, boot_vga="0\n") == GENERIC
    assert override_of(compiled(make_policy(forced)), facts, boot_vga="1\n") == GENERIC


@pytest.mark.parametrize("needed", [True, False])
def test_no_rule_takes_what_the_host_needs_and_only_force_what_it_uses(needed: bool) -> None:
    facts = make_facts()
    spared = Spared(NIC, find_ids(facts.device.identity), needed, "default route via eth0")
    head = Header(spared=(spared,))
    forced = make_rule(settings=Settings(in_use=InUse.FORCE))
    assert override_of(compiled(make_policy(make_rule()), head), facts) is None
    assert override_of(compiled(make_policy(forced), head), facts) == (None if needed else GENERIC)
    (note,) = compiled(make_policy(make_rule()), head, present=(facts,)).notes
    assert note.startswith("rule 'x' would take 0000:01:00.0 from the host")
    another = make_facts(ids=(0x8086, 0x1533, 0x8086, 0xA01F))
    assert override_of(compiled(make_policy(make_rule()), head), another) == GENERIC
    assert compiled(make_policy(make_rule()), head, present=(another,)).notes == ()


def test_rules_for_what_is_free_alone_take_that_and_nothing_else() -> None:
    facts, other = make_facts(), make_facts("0000:02:00.0")
    another = make_facts(ids=(0x8086, 0x1533, 0x8086, 0xA01F))
    free = (Free(NIC, find_ids(facts.device.identity)),)
    rules = compiled(make_policy(make_rule()), Header(free=free, only_free=True))
    assert [override_of(rules, each) for each in (facts, other, another)] == [GENERIC, None, None]
    assert rules.notes[0].startswith("no daemon has had this policy in force yet")
    everything = compiled(make_policy(make_rule()), Header(free=free))
    assert [override_of(everything, each) for each in (facts, other, another)] == [GENERIC] * 3
    nothing = compiled(make_policy(make_rule()), Header(only_free=True))
    assert not nothing.acts
    assert compiled(make_policy(make_rule(flavour="native")), Header(only_free=True)).notes == ()


def test_a_wish_by_hand_stands_above_the_rules() -> None:
    facts, other = make_facts(), make_facts("0000:02:00.0")
    ids = find_ids(facts.device.identity)
    native = compiled(make_policy(make_rule()), Header(kept=(Kept(NIC, ids, "native"),)))
    assert (override_of(native, facts), override_of(native, other)) == (None, GENERIC)
    vfio = compiled(make_policy(make_rule(flavour="native")), Header(kept=(Kept(NIC, ids, "vfio"),)))
    assert (override_of(vfio, facts), override_of(vfio, other)) == (GENERIC, None)
    named = compiled(make_policy(), Header(kept=(Kept(NIC, ids, "vfio", ("other",)),)))
    assert override_of(named, facts) == PLACEHOLDER


@pytest.mark.parametrize(
    ("match", "why"),
    [
        (Match(serial=("a1",)), "a serial, which is only known once the native driver has the device"),
        (Match(driver=("nvme",)), "a driver, which the device has not got yet"),
        (Match(modalias=("pci:v*|x",)), "a modalias that udev can't compare"),
        (Match(modalias=('pci:"',)), "a modalias that udev can't compare"),
        (Match(modalias=("pci:[z-a]*",)), "a modalias that udev can't compare"),
        (Match(device_class=("0x02",)), "a class that udev can't compare"),
        (Match(slot=("somewhere",)), "a slot that udev can't compare"),
        (Match(slot=("0000:00:1c.0/+1:00.2",)), "a slot that udev can't compare"),
    ],
)
def test_what_cannot_be_told_yet_is_left_to_the_daemon(match: Match, why: str) -> None:
    undecided = replace(match, vendor=(0x8086,))
    rules = compiled(make_policy(make_rule(undecided), make_rule()))
    assert rules.notes == (f"rule 'x': it names {why}: the daemon applies it afterwards",)
    assert override_of(rules, make_facts("0000:01:00.2", parent="0000:00:1c.0")) is None or match.slot
    assert override_of(rules, make_facts("0000:02:00.0", ids=(0x10DE, 1, 2, 3))) == GENERIC


def test_a_device_without_a_driver_is_one_that_has_none() -> None:
    assert override_of(compiled(make_policy(make_rule(Match(driver=("none",))))), make_facts()) == GENERIC


def test_a_driver_that_becomes_a_vfio_driver_itself_binds_first() -> None:
    vgpu = Personality("nvidia", "nvidia/current_vgpu_type")
    alias = AliasLine("pci:v000010DEd*sv*sd*bc03sc02i00*", "nvidia", "modules.alias")
    gpu = make_facts(ids=(0x10DE, 0x2230, 0x10DE, 1), class_code=0x030200, pf="0000:01:00.0")
    policy = make_policy(make_rule(), personalities=(vgpu,))
    rules = compiled(policy, personal=(alias,))
    assert override_of(rules, gpu) is None
    assert override_of(rules, make_facts()) == GENERIC
    named = make_policy(make_rule(drivers=("nvidia",)), personalities=(vgpu,))
    assert override_of(compiled(named), gpu) is None
    assert override_of(compiled(make_policy(make_rule(drivers=("vfio-pci",)))), gpu) == GENERIC


def test_a_vf_on_another_bus_than_its_pf_is_not_taken_for_what_is_in_the_slot() -> None:
    policy = make_policy(make_rule(Match(slot=("0000:00:1c.0/00.2",))), make_rule(flavour="native"))
    rules = compiled(policy)
    assert override_of(rules, make_facts("0000:01:00.2")) == GENERIC
    assert override_of(rules, make_facts("0000:02:00.2", pf="0000:01:00.0")) is None
    whole = compiled(make_policy(make_rule(Match(slot=("0000:00:1c.0",)))))
    assert override_of(whole, make_facts("0000:02:00.2", pf="0000:01:00.0")) == GENERIC


def test_a_slot_behind_a_vmd_device_is_found() -> None:
    device = make_udev(make_facts("10000:e1:00.0"))
    device.devpath = "/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0"
    for slot in ("0000:00:0e.0/06.0/00.0", "0000:00:0e.0/06.0", "0000:00:0e.0"):
        rules = compiled(make_policy(make_rule(Match(slot=(slot,)))))
        assert dict(event_of(rules, device).written)["driver_override"] == GENERIC
        device.attributes["driver_override"] = "(null)\n"
    rules = compiled(make_policy(make_rule(Match(slot=("0000:00:0e.0/00.0",)))))
    assert event_of(rules, device).written == []


def test_rules_of_other_hosts_are_left_out_and_the_host_is_noted() -> None:
    elsewhere = compiled(make_policy(make_rule(Match(host=("other*",)))))
    assert not elsewhere.acts
    assert parse_header(elsewhere.text).host == "virt1.example.org"
    assert override_of(compiled(make_policy(make_rule(Match(host=("VIRT?",))))), make_facts()) == GENERIC
    assert parse_header(compiled(make_policy(make_rule())).text).host == ""


EVIL = 'x\nSUBSYSTEM=="pci", RUN+="/bin/sh"\\'


def test_nothing_that_a_person_wrote_gets_out_of_a_comment() -> None:
    spared = Spared(NIC, (1, 2, 3, 4), True, EVIL)
    head = Header(sources=(EVIL,), spared=(spared,), kept=(Kept(NIC, (1, 2, 3, 4), EVIL, (EVIL,)),))
    rule = make_rule(Match(modalias=(EVIL, "pci:*")), name=EVIL, origin=EVIL, drivers=(EVIL,))
    rules = compiled(make_policy(rule, make_rule(Match(serial=(EVIL,), host=("*", EVIL)), name=EVIL)), head)
    for line in rules.text.splitlines():
        assert "RUN+=" not in line or line.startswith("# ")
    parse(compiled(make_policy(rule, make_rule()), head).text)


def test_the_header_is_read_back() -> None:
    head = Header(
        "0.1.0",
        ("/etc/vfio-flavourd/policy.d/10.yaml 12 1700000000.000000001",),
        "",
        (
            Spared(NIC, (1, 2, 3, 4), True, "root on nvme0n1", "0000:00:1c.0/+1:00.0"),
            Spared(NIC, (1, 2, 3, 5), False, ""),
        ),
        (Kept(NIC, (1, 2, 3, 4), "vfio", ("a", "b")),),
        (Free(NIC, (1, 2, 3, 4)), Free(NIC, (1, 2, 3, 5))),
        only_free=True,
    )
    assert parse_header(compiled(make_policy(make_rule()), head).text) == head
    assert parse_header("garbage\n# spared: x\n# kept: 0000:01:00.0 1:2 vfio\n") == Header()


def test_a_thousand_addresses_make_no_line_that_udev_refuses() -> None:
    many = tuple(PciAddress(0, bus, 0, 0) for bus in range(256)) * 8
    rules = compiled(make_policy(make_rule(Match(address=many, pf=many, iommu_group=(7, 8)))))
    assert override_of(rules, make_facts(pf="0000:01:00.0")) == GENERIC


TOO_MANY = "it names more combinations than udev should compare: the daemon applies it afterwards"


def count_gotos(rules: Compiled, number: int) -> int:
    """The lines that lead to what is done with a device of that rule."""
    return rules.text.count(f'GOTO="vfio_flavour_rule_{number}"\n')


def test_a_rule_of_many_values_for_many_things_is_left_to_the_daemon_at_once() -> None:
    """As lines they would be 57,624,000, of 4 KB each, and 37 KB in a policy."""
    many = tuple(range(0x8086, 0x8086 + 2000))
    groups = tuple(range(1500))
    match = Match(vendor=many, device=many, subsystem_vendor=many, subsystem_device=many, iommu_group=groups)
    translated = translate(match, "virt1", 1000)
    assert translated is not None
    assert len(list(islice(translated.lines(), 1001))) <= 1000
    rules = compiled(make_policy(make_rule(match), make_rule()))
    assert rules.notes == (f"rule 'x': {TOO_MANY}",)
    ours = (0x8086, 0x8087, 0x8088, 0x8089)
    assert override_of(rules, make_facts(ids=ours)) is None
    assert override_of(rules, make_facts(ids=(0x1000, *ours[1:]))) == GENERIC


@pytest.mark.parametrize(("slot", "most"), [((), 1000), (("0000:00:1c.0/00.0",), 500)])
def test_a_rule_may_become_a_thousand_lines_with_those_for_what_is_doubtful(
    slot: tuple[str, ...], most: int
) -> None:
    match = Match(slot=slot, iommu_group=tuple(range(most)))
    rules = compiled(make_policy(make_rule(match)))
    assert count_gotos(rules, 1) == most
    assert TOO_MANY not in "".join(rules.notes)
    assert override_of(rules, make_facts()) == GENERIC
    more = compiled(make_policy(make_rule(replace(match, iommu_group=tuple(range(most + 1))))))
    assert more.notes == (f"rule 'x': {TOO_MANY}",)
    assert override_of(more, make_facts()) is None


def test_all_rules_together_may_become_five_thousand_lines_and_one_line_each() -> None:
    groups = tuple(range(1000))
    long = [make_rule(Match(vendor=(number,), iommu_group=groups)) for number in range(6)]
    rules = compiled(make_policy(*long, make_rule(Match(vendor=(0x8086,)))))
    assert [count_gotos(rules, number) for number in range(1, 8)] == [1000] * 5 + [0, 1]
    assert rules.notes == (f"rule 'x': {TOO_MANY}",)
    found = [override_of(rules, make_facts(ids=(vendor, 1, 2, 3))) for vendor in (4, 5, 0x8086)]
    assert found == [GENERIC, None, GENERIC]


@pytest.mark.parametrize(
    ("pattern", "glob"),
    [
        ("vfio_pci:v000015B3d*", "pci:v000015B3d*"),
        ("vfio_pci:v[0-9]*d[1|2]*", "pci:v?*d?*"),
        ("vfio_pci:v0[12]*", "pci:v0[12]*"),
        ('vfio_pci:v"*', "pci:v?*"),
        ("vfio*:v000015B3*", "pci:*"),
    ],
)
def test_an_alias_becomes_a_glob_that_fits_at_least_as_much(pattern: str, glob: str) -> None:
    assert widened(pattern, "vfio_pci") == glob


ADDRESSES = st.sampled_from(["0000:01:00.0", "0000:01:00.1", "0000:02:00.0", "0000:02:00.1", "0000:02:10.1"])
IDS = st.tuples(*[st.sampled_from([0x8086, 0x15B3, 0x101E, 0x10D3])] * 4)
CLASSES = st.sampled_from([0x020000, 0x010802, 0x030000, 0x030001, 0x060400])
SERIALS = st.sampled_from(["", "A1", "b2"])
GLOBS = [
    "*",
    "pci:v00008086*",
    "pci:*bc02sc*",
    "pci:v000015B3d0000101E*",
    "pci:v0000[18]*",
    "pci:[!v]*",
    "pci",
]


def several(*values: object) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True).map(tuple)


MATCHES = st.builds(
    Match,
    address=several(NIC, parse_address("0000:02:00.1")),
    slot=several("0000:00:1c.0", "0000:00:1c.0/00.0", "0000:00:1c.0/00.1", "0000:00:1d.0/00.0"),
    vendor=several(0x8086, 0x15B3),
    device=several(0x101E, 0x10D3),
    subsystem_vendor=several(0x8086),
    subsystem_device=several(0x101E),
    device_class=several("02", "0300", "030000", "0"),
    modalias=several(*GLOBS),
    driver=several("none", "nvme"),
    iommu_group=several(7, 8),
    sriov=st.sampled_from([None, None, "pf", "vf"]),
    pf=several(NIC, parse_address("0000:02:00.0")),
    serial=several("a1"),
    host=several("virt*", "other"),
)
# Most rules of a policy ask for one or two things; with all at once nothing would ever fit.
FIELDS = [field.name for field in fields(Match)]
SPARSE = st.builds(
    lambda match, names: replace(Match(), **{name: getattr(match, name) for name in names}),
    MATCHES,
    st.lists(st.sampled_from(FIELDS), max_size=2, unique=True),
)
RULES = st.builds(
    Rule,
    name=st.just("x"),
    match=SPARSE,
    flavour=st.sampled_from([None, "native", "vfio", "vfio", "uio"]),
    drivers=st.sampled_from([(), (), ("vfio-pci",), ("other",)]),
    settings=st.builds(
        Settings,
        in_use=st.sampled_from(InUse),
        noiommu=st.sampled_from(NoIommu),
        denied=st.sampled_from([frozenset(), frozenset({"mlx5_vfio_pci"}), frozenset({"vfio_pci"})]),
    ),
    nodes=st.just(NodeAccess("root", None, None)),
    origin=st.just("10.yaml:1"),
)
DEVICES = st.builds(
    make_facts,
    ADDRESSES,
    parent=st.sampled_from(["0000:00:1c.0", "0000:00:1d.0"]),
    ids=IDS,
    class_code=CLASSES,
    group=st.sampled_from([7, 8, None]),
    pf=st.sampled_from([None, "0000:01:00.0", "0000:02:00.0"]),
    sriov=st.sampled_from([None, "pf"]),
)


def is_decided(rule: Rule, facts: Facts) -> bool:
    """Whether a rule that fits but for what can't be told asks for nothing of that kind."""
    driver = not rule.match.driver or "none" in rule.match.driver
    vf_in_slot = bool(rule.match.slot) and facts.sriov == "vf"
    return driver and not rule.match.serial and not vf_in_slot


@settings(max_examples=250)
@given(st.lists(RULES, max_size=4), DEVICES, st.booleans())
def test_the_rules_decide_as_the_policy_does(rules: list[Rule], facts: Facts, boot_vga: bool) -> None:
    policy = make_policy(*rules)
    event = event_of(compiled(policy), make_udev(facts, **({"boot_vga": "1\n"} if boot_vga else {})))
    override = dict(event.written).get("driver_override")
    decision = decide(facts, policy)
    assert override in (None, GENERIC, PLACEHOLDER)
    if override is not None:
        # Also whatever its serials turn out to be.
        for serials in ((), ("A1",), ("b2",)):
            again = decide(replace(facts, serials=serials), policy)
            assert again.rule is decision.rule
        assert decision.flavour in FLAVOURS
        assert not facts.device.is_bridge
        assert (
            facts.device.iommu_group is not None or decision.flavour == "uio" or isolation_is_waived(decision)
        )
        assert not boot_vga or decision.settings.in_use is InUse.FORCE
        assert (override == PLACEHOLDER) == must_wait(decision.rule, facts)
    elif decision.rule is not None and decision.flavour in FLAVOURS:
        assert (
            facts.device.is_bridge
            or (boot_vga and decision.settings.in_use is InUse.REFUSE)
            or (facts.device.iommu_group is None and decision.settings.noiommu is NoIommu.REFUSE)
            or (decision.flavour == "vfio" and "vfio_pci" in decision.settings.denied)
            or any(not is_decided(rule, facts) for rule in rules)
        )


def isolation_is_waived(decision: Decision) -> bool:
    return decision.settings.noiommu is NoIommu.ALLOW


def must_wait(rule: Rule | None, facts: Facts) -> bool:
    assert rule is not None
    if rule.flavour != "vfio" or rule.drivers == ("other",):
        return True
    variant = fnmatchcase(facts.device.modalias, "pci:v000015B3d0000101E*")
    return variant and not rule.drivers and VARIANT.module not in rule.settings.denied
