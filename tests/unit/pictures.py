"""Hosts and attempts to draw, and what a picture is looked at for."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vfio_flavourd.doors.rendering import render_group, render_group_member
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.device import Device, Identity
from vfio_flavourd.model.flavour import Flavour
from vfio_flavourd.model.iommu_group import GroupMember, find_groups

NIC, PCI_BRIDGE, ISA_BRIDGE = 0x020000, 0x060400, 0x060100
GOLDEN = Path(__file__).parent / "golden"
SVG = "{http://www.w3.org/2000/svg}"

# Wider than the font of a viewer has them on average; a label is checked as a whole.
_GLYPH, _BOLD_GLYPH, _OTHER_GLYPH = 0.56, 0.65, 1.0


def make_member(
    address: str,
    group: int | None,
    driver: str | None = None,
    flavour: str = "native",
    class_code: int = NIC,
    *,
    is_stuck: bool = False,
    is_noiommu: bool = False,
) -> GroupMember:
    device = Device(
        address=parse_address(address),
        path=f"/sys/devices/pci0000:00/{address}",
        identity=Identity(0x8086, 0x10D3, 0, 0, 0, 0),
        modalias="",
        class_code=class_code,
        driver=driver,
        driver_module=driver,
        iommu_group=group,
        vfio_device="vfio0" if flavour == "vfio" else None,
        personality=None,
        is_noiommu=is_noiommu,
    )
    return GroupMember(device, Flavour(flavour), is_stuck)


def answer(members: Iterable[GroupMember], names: dict[str, str] | None = None) -> dict[str, Any]:
    """What `Groups` replies."""
    every = sorted(members, key=lambda member: member.device.address)

    def find_name(device: Device) -> str:
        return (names or {}).get(str(device.address), "Intel Corporation 82574L Gigabit Network Connection")

    return {
        "groups": [asdict(render_group(group, find_name)) for group in find_groups(every)],
        "ungrouped": [
            asdict(render_group_member(member, find_name(member.device)))
            for member in every
            if member.device.iommu_group is None
        ],
    }


def check_golden(name: str, text: str) -> None:
    """As the file in golden/ has it; GOLDEN=write makes that anew, to be looked at."""
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"not as {path}"


def check_picture(text: str) -> ET.Element:
    """Well-formed, of a size, and each label readable: none cut off, none over another one."""
    root = ET.fromstring(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
    assert root.attrib["font-family"] == "sans-serif"
    boxes = list(_find_boxes(root))
    for label, (left, top, right, bottom) in boxes:
        assert left >= 0, label
        assert top >= 0, label
        assert right <= width, label
        assert bottom <= height, label
    boxes.sort(key=lambda each: each[1][1])
    for number, (one, a) in enumerate(boxes, 1):
        for other, b in boxes[number:]:
            if b[1] >= a[3]:
                break
            assert a[2] <= b[0] or b[2] <= a[0], f"{one!r} and {other!r} overlap"
    return root


Box = tuple[float, float, float, float]


def _find_boxes(root: ET.Element) -> Iterator[tuple[str, Box]]:
    for element in root.iter(f"{SVG}text"):
        label = element.text or ""
        size = float(element.attrib["font-size"])
        glyph = _BOLD_GLYPH if element.attrib.get("font-weight") == "bold" else _GLYPH
        width = sum(glyph if character.isascii() else _OTHER_GLYPH for character in label) * size
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[element.attrib.get("text-anchor", "start")]
        yield label, (left, y - 0.8 * size, left + width, y + 0.22 * size)


def find_labels(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]
