"""What the members of an IOMMU group make of it."""

import pytest
from pictures import ISA_BRIDGE, PCI_BRIDGE, make_member

from vfio_flavourd.model.iommu_group import GroupMember, GroupState, IommuGroup, find_groups

ROOT_PORT = make_member("0000:00:01.0", 7, "pcieport", class_code=PCI_BRIDGE)
GPU, AUDIO, USB = "0000:01:00.0", "0000:01:00.1", "0000:01:00.2"


def make_group(*members: GroupMember) -> IommuGroup:
    (group,) = find_groups(members)
    return group


def native(address: str, driver: str = "snd_hda_intel") -> GroupMember:
    return make_member(address, 7, driver)


def on_vfio(address: str) -> GroupMember:
    return make_member(address, 7, "vfio-pci", "vfio")


def idle(address: str) -> GroupMember:
    return make_member(address, 7)


@pytest.mark.parametrize(
    ("members", "state", "viable"),
    [
        ([on_vfio(GPU), on_vfio(AUDIO)], GroupState.READY, True),
        ([on_vfio(GPU), idle(AUDIO), ROOT_PORT], GroupState.READY, True),
        ([on_vfio(GPU), native(AUDIO, "pci-stub")], GroupState.READY, True),
        ([idle(GPU), idle(AUDIO)], GroupState.FREE, True),
        ([on_vfio(GPU), native(AUDIO)], GroupState.MIXED, False),
        ([native(GPU), native(AUDIO)], GroupState.HOST, False),
        ([native(GPU), idle(AUDIO)], GroupState.HOST, False),
        ([ROOT_PORT], GroupState.BRIDGES, True),
        ([make_member(GPU, 7, "uio_pci_generic", "uio")], GroupState.HOST, False),
        ([make_member(GPU, 7, "vfio-pci", "vfio", is_noiommu=True)], GroupState.UNPROTECTED, True),
    ],
)
def test_a_group_is_viable_as_long_as_no_member_has_a_driver_that_does_dma(
    members: list[GroupMember], state: GroupState, viable: bool
) -> None:
    group = make_group(*members)
    assert (group.state, group.is_viable) == (state, viable)


@pytest.mark.parametrize(("driver", "class_code"), [("lpc_ich", ISA_BRIDGE), ("shpchp", PCI_BRIDGE)])
def test_a_bridge_whose_driver_may_do_dma_counts_as_any_other_device_does(
    driver: str, class_code: int
) -> None:
    bridge = make_member("0000:00:1f.0", 7, driver, class_code=class_code)
    group = make_group(bridge, on_vfio(GPU))
    assert (group.state, group.in_the_way) == (GroupState.MIXED, (bridge,))
    assert group.takes == (f"echo 0000:00:1f.0 > /sys/bus/pci/drivers/{driver}/unbind",)


def test_what_is_stuck_is_in_the_way_though_it_shows_no_driver() -> None:
    stuck = make_member(AUDIO, 7, None, is_stuck=True)
    group = make_group(on_vfio(GPU), stuck)
    assert (group.state, group.in_the_way) == (GroupState.MIXED, (stuck,))
    assert group.takes == (f"flavourctl show {AUDIO}",)


@pytest.mark.parametrize(
    ("members", "takes"),
    [
        ([native(GPU)], (f"flavourctl set {GPU} vfio",)),
        ([native(GPU), native(AUDIO)], (f"flavourctl set {GPU} vfio --group together",)),
        ([native(GPU), idle(AUDIO)], (f"flavourctl set {GPU} vfio",)),
        ([on_vfio(GPU), native(AUDIO)], (f"flavourctl set {AUDIO} vfio",)),
        ([on_vfio(GPU), native(AUDIO), native(USB)], (f"flavourctl set {AUDIO} vfio --group together",)),
        ([ROOT_PORT, idle(GPU)], (f"flavourctl set {GPU} vfio",)),
        ([on_vfio(GPU), ROOT_PORT], ()),
        ([ROOT_PORT], ()),
    ],
)
def test_what_it_takes_is_the_command_that_brings_all_that_is_in_the_way_to_vfio(
    members: list[GroupMember], takes: tuple[str, ...]
) -> None:
    assert make_group(*members).takes == takes


def test_a_bridge_in_the_way_is_unbound_before_the_others_are_switched() -> None:
    bridge = make_member("0000:00:1f.0", 7, "lpc_ich", class_code=ISA_BRIDGE)
    assert make_group(bridge, idle(GPU)).takes == (
        "echo 0000:00:1f.0 > /sys/bus/pci/drivers/lpc_ich/unbind",
        f"flavourctl set {GPU} vfio",
    )


def test_groups_come_by_number_and_what_has_none_is_in_none() -> None:
    members = [
        make_member(f"0000:0{bus}:00.0", group) for bus, group in ((1, 12), (2, 3), (3, None), (4, 12))
    ]
    groups = find_groups(members)
    assert [group.number for group in groups] == [3, 12]
    assert groups[1].members == (members[0], members[3])
