"""Ten thousand devices: each of them is told, and a line still fits the terminal."""

import re
from typing import Any, Self

import pytest
from pictures import answer, make_member

from vfio_flavourd.cli import groups, listing
from vfio_flavourd.cli.groups_dot import render_dot
from vfio_flavourd.cli.groups_svg import render_groups
from vfio_flavourd.cli.main import main
from vfio_flavourd.doors import blocking_client

ADDRESSES = [f"{n >> 13:04x}:{n >> 5 & 0xFF:02x}:{n & 0x1F:02x}.0" for n in range(10_000)]
FLAVOURS = (("native", "e1000e"), ("vfio", "vfio-pci"))
GROUPS = answer(
    make_member(address, n // 3, driver, flavour)
    for n, address in enumerate(ADDRESSES)
    for flavour, driver in [FLAVOURS[n % 2]]
)


def make_device(address: str) -> dict[str, Any]:
    return {
        "device": address,
        "flavour": "native",
        "phase": "",
        "stuck": "",
        "driver": "e1000e",
        "resolution": {"winner": "vfio_pci"},
        "iommu_group": 7,
        "wish": None,
        "rule": None,
        "name": "Intel Corporation 82574L Gigabit Network Connection",
        "ids": "8086:10d3",
    }


class Daemon:
    """A connection to one that is asked and never told."""

    def __init__(self, *, writes: bool) -> None:
        assert not writes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def call(self, method: str) -> dict[str, Any]:
        devices = [make_device(address) for address in ADDRESSES]
        return {"List": {"devices": devices, "policy_trouble": ""}, "Groups": GROUPS}[method]


@pytest.fixture(autouse=True)
def daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking_client, "connect", Daemon)
    for module in (listing, groups):
        monkeypatch.setattr(module, "find_width", lambda _: 80)


def test_the_list_has_each_in_a_line_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["DEVICE", *ADDRESSES]
    assert max(map(len, lines)) <= 80


def test_the_tree_has_each_in_a_line_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[1] for line in lines if line[0] in "├└") == ADDRESSES
    assert max(len(line) for line in lines if line[0] in "├└") <= 80


def test_the_pictures_have_each() -> None:
    nodes = re.findall(r'^ +"([0-9a-f:.]+)" \[label=', render_dot(GROUPS, "groups"), re.MULTILINE)
    assert sorted(nodes) == ADDRESSES
    labels = re.findall(r">([0-9a-f]{4}:[0-9a-f:.]+)</text>", render_groups(GROUPS, "groups", ""))
    assert sorted(labels) == ADDRESSES
