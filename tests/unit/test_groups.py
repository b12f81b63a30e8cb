"""groups: the tree, the graph and the picture of a host's IOMMU groups."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import test_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    ISA_BRIDGE,
    PCI_BRIDGE,
    answer,
    check_golden,
    check_picture,
    find_labels,
    make_member,
)
from test_cli import DEVICE, Host

from vfio_flavourd.cli.groups import render_tree
from vfio_flavourd.cli.groups_dot import render_dot
from vfio_flavourd.cli.groups_svg import render_groups
from vfio_flavourd.model.iommu_group import GroupMember

host = test_cli.host  # the fixture

TITLE = "IOMMU groups of here"
EVIL = '<b>&amp; "Ünïcödé" \\N 日本語 \x1b[31m\u202e]]> '

# One of each kind.
MEMBERS = (
    make_member("0000:00:01.0", 10, "pcieport", class_code=PCI_BRIDGE),
    make_member("0000:01:00.0", 10, "vfio-pci", "vfio"),
    make_member("0000:01:00.1", 10, "snd_hda_intel"),
    make_member("0000:02:00.0", 11, "vfio-pci", "vfio"),
    make_member("0000:02:00.1", 12, "nvme"),
    make_member("0000:03:00.0", 13),
    make_member("0000:00:1f.0", 14, "lpc_ich", class_code=ISA_BRIDGE),
    make_member("0000:00:1f.2", 14, "ahci"),
    make_member("0000:00:1f.3", 14, "i801_smbus"),
    make_member("0000:00:02.0", 15, "pcieport", class_code=PCI_BRIDGE),
    make_member("0000:05:00.0", 16, "uio_pci_generic", "uio"),
    make_member("0000:06:00.0", 17, is_stuck=True),
    make_member("0000:07:00.0", 0, "vfio-pci", "vfio", is_noiommu=True),
    make_member("10000:e1:00.0", None, "nvme"),
)
NAMES = {"0000:02:00.0": EVIL * 6, "0000:02:00.1": "x" * 150}


def make_host(groups: int, devices: int) -> list[GroupMember]:
    drivers = (("nvme", "native"), ("vfio-pci", "vfio"), (None, "native"), ("mlx5_core", "native"))
    members = []
    for number in range(devices):
        driver, flavour = drivers[(number * 7 + number // groups) % 4]
        address = f"0000:{number // 32:02x}:{number % 32:02x}.0"
        members.append(make_member(address, number % groups, driver, flavour))
    return members


def render_picture(data: dict[str, Any]) -> str:
    return render_groups(data, TITLE, "Linux 6.12.0")


def test_the_tree_says_of_each_group_whether_a_guest_can_have_it_and_what_it_takes() -> None:
    tree = render_tree(answer(MEMBERS, NAMES))
    check_golden("groups.txt", "\n".join(tree) + "\n")
    assert all(line.isprintable() for line in tree)


def test_in_a_narrow_terminal_names_give_way_and_what_is_to_be_typed_does_not() -> None:
    data = answer(MEMBERS, NAMES)
    tree = render_tree(data, width=60)
    assert all(len(line) <= 60 for line in tree if line[0] in "├└")
    assert [line for line in tree if "for a guest: " in line] == [
        line for line in render_tree(data) if "for a guest: " in line
    ]


def test_the_graph_is_one_that_graphviz_takes() -> None:
    graph = render_dot(answer(MEMBERS, NAMES), TITLE)
    check_golden("groups.dot", graph)
    # Quotes are closed on their line, and what is not quoted is of Graphviz's own words.
    for line in graph.splitlines():
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", line)
        assert '"' not in bare
        assert bare.isascii()
    if dot := shutil.which("dot"):
        subprocess.run([dot, "-Tcanon"], input=graph.encode(), capture_output=True, check=True)


def test_the_picture_shows_every_device_with_its_flavour_and_driver() -> None:
    picture = render_picture(answer(MEMBERS, NAMES))
    check_golden("groups.svg", picture)
    labels = find_labels(check_picture(picture))
    for member in MEMBERS:
        assert str(member.device.address) in labels
        assert member.device.is_bridge or str(member.flavour) in labels
        assert member.device.driver or "no driver" in labels
    assert "flavourctl set 0000:01:00.1 vfio" in " ".join(labels)


def test_a_group_that_a_guest_can_have_and_one_it_cannot_differ_in_more_than_colour() -> None:
    picture = render_picture(answer(MEMBERS))
    strokes = set(re.findall(r'stroke-width="([\d.]+)" stroke-dasharray="([^"]+)"', picture))
    assert len(strokes) == 6  # one of each state that there is
    assert '<pattern id="look-vfio"' in picture
    assert 'fill="url(#look-vfio)"' in picture


@pytest.mark.parametrize(("groups", "devices"), [(1, 1), (1, 40), (80, 300), (300, 300)])
def test_many_devices_are_in_columns_about_as_wide_as_a_screen_is(groups: int, devices: int) -> None:
    data = answer(make_host(groups, devices))
    root = check_picture(render_picture(data))
    if groups > 1:
        assert 1 < float(root.attrib["width"]) / float(root.attrib["height"]) < 2.4
    assert sum(label.endswith(".0") for label in find_labels(root)) >= devices
    assert len(render_tree(data)) >= groups + devices
    assert render_dot(data, TITLE).count("fillcolor=") == devices


def test_a_host_without_an_iommu_is_told_what_to_turn_on() -> None:
    data = answer([make_member(DEVICE, None, "e1000e")])
    assert render_tree(data)[0] == "in no IOMMU group: nothing isolates them"
    labels = " ".join(find_labels(check_picture(render_picture(data))))
    assert "turn the IOMMU on" in labels
    assert DEVICE in render_dot(data, TITLE)


def test_an_empty_host_has_an_empty_picture_that_says_so() -> None:
    data = answer([])
    assert render_tree(data) == ["no PCI devices on this host"]
    assert "no PCI devices on this host" in find_labels(check_picture(render_picture(data)))
    assert "no PCI devices on this host" in render_dot(data, TITLE)


@settings(max_examples=30)
@given(
    name=st.text(max_size=200),
    driver=st.text("abcdefghijklmnopqrstuvwxyz_WM", min_size=1, max_size=64),
    flavour=st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True),
)
def test_whatever_a_device_is_called_no_label_is_cut_or_over_another(
    name: str, driver: str, flavour: str
) -> None:
    members = [make_member(DEVICE, 7, driver, flavour), make_member("0000:01:00.1", 7)]
    data = answer(members, {DEVICE: name})
    check_picture(render_picture(data))
    assert all(line.isprintable() for line in render_tree(data))


# as somebody at a terminal sees it


def test_groups_is_a_tree_unless_another_form_is_asked_for(host: Host) -> None:
    said = host.say("groups")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == [
        "IOMMU group 7: not viable: the host has it",
        f"└─ {DEVICE}  native  e1000e    {host.name}",
        f"   for a guest: flavourctl set {DEVICE} vfio",
    ]
    assert host.say("groups", "--tree").out == said.out
    assert host.say("groups", "--dot").out.startswith("graph iommu_groups {\n")
    check_picture(host.say("groups", "--svg").out)
    assert host.say("groups", "--svg", "--dot").status == 2
    assert host.kernel.writes == []


def test_groups_as_json_has_the_groups_and_what_is_in_none(host: Host) -> None:
    host.kernel.add_device("0000:02:00.0", group=None)
    data = host.say("groups", "--json").data
    (group,) = data["groups"]
    assert {name: group[name] for name in ("group", "state", "viable", "in_the_way", "takes")} == {
        "group": 7,
        "state": "host",
        "viable": False,
        "in_the_way": [DEVICE],
        "takes": [f"flavourctl set {DEVICE} vfio"],
    }
    (member,) = group["members"]
    assert member == {
        "device": DEVICE,
        "name": host.name,
        "flavour": "native",
        "driver": "e1000e",
        "bridge": False,
        "standing": "host driver",
    }
    assert [each["device"] for each in data["ungrouped"]] == ["0000:02:00.0"]


def test_what_it_takes_makes_the_group_one_that_a_guest_can_have(host: Host) -> None:
    sibling = host.kernel.add_device("0000:01:00.1")
    host.kernel.add_native(sibling, "snd_hda_intel")
    command = host.say("groups", "--json").data["groups"][0]["takes"][0]
    assert host.say(*command.split()[1:]).status == 0
    (group,) = host.say("groups", "--json").data["groups"]
    assert (group["state"], group["viable"], group["takes"]) == ("ready", True, [])


def test_a_picture_is_not_written_to_a_terminal(host: Host) -> None:
    host.monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    said = host.say_alone("groups", "--svg")
    test_cli.check_error(said, 2, "a terminal can't show a picture")
    assert "flavourctl groups --svg > groups.svg" in said.err
