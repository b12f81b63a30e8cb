"""Flavours: their names, and which one a device has."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_flavourd.model.address import PciAddress
from vfio_flavourd.model.device import Device, Identity
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, find_flavour, parse_flavour

VFIO_MODULES = frozenset({"vfio_pci", "good_vfio"})


def make_device(driver: str | None, module: str | None, vfio_device: str | None = None) -> Device:
    return Device(
        address=PciAddress(0, 1, 0, 0),
        path="/sys/devices/pci0000:00/0000:01:00.0",
        identity=Identity(0x8086, 0x10D3, 0x1AF4, 0x1100, 0, 1),
        modalias="pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00",
        class_code=0x020000,
        driver=driver,
        driver_module=module,
        iommu_group=7,
        vfio_device=vfio_device,
        personality=None,
    )


@pytest.mark.parametrize(("text", "flavour"), [("native", Flavour.NATIVE), ("vfio", Flavour.VFIO)])
def test_the_two_flavours_have_these_names(text: str, flavour: Flavour) -> None:
    assert parse_flavour(text) == flavour
    assert str(flavour) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "VFIO",
        "Native",
        " vfio",
        "vfio ",
        "vfio\n",
        "vfio\0",
        "[vfio]",
        "1",
        "../../x",
        "vfio" * 2560,
        "\udcff",
        "\x1b[31m",
    ],
)
def test_nothing_else_is_a_flavour_and_the_hint_lists_what_is(text: str) -> None:
    with pytest.raises(FlavourError) as caught:
        parse_flavour(text)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.hint.startswith("allowed: native or vfio")
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    ("text", "nearest"), [("vfoi", "vfio"), ("vfi", "vfio"), ("nativ", "native"), ("natvie", "native")]
)
def test_a_misspelt_flavour_is_told_the_nearest_name(text: str, nearest: str) -> None:
    with pytest.raises(FlavourError) as caught:
        parse_flavour(text)
    assert caught.value.hint.endswith(f"did you mean {nearest}?")


def test_what_is_far_from_every_name_is_told_none() -> None:
    with pytest.raises(FlavourError) as caught:
        parse_flavour("xyzzy")
    assert caught.value.hint == "allowed: native or vfio"


@given(st.text(max_size=20))
def test_no_text_at_all_raises_anything_else(text: str) -> None:
    code = 0
    try:
        assert parse_flavour(text) == text
    except FlavourError as error:
        code = error.errno
    assert code in (0, errno.EINVAL)


@pytest.mark.parametrize(
    ("device", "flavour"),
    [
        (make_device("e1000e", "e1000e"), Flavour.NATIVE),
        (make_device(None, None), Flavour.NATIVE),
        (make_device("ahci", None), Flavour.NATIVE),
        (make_device("vfio-pci", "vfio_pci", "vfio0"), Flavour.VFIO),
        (make_device("good-vfio-pci", "good_vfio", "vfio0"), Flavour.VFIO),
        # A VFIO driver that has the device keeps the host from it, VFIO device or not.
        (make_device("good-vfio-pci", "good_vfio"), Flavour.VFIO),
        # A driver that changed its own personality, and a VFIO driver that nothing lists.
        (make_device("chameleon", "chameleon", "vfio3"), Flavour.VFIO),
        (make_device("builtin-vfio", None, "vfio1"), Flavour.VFIO),
        # The driver's name says nothing.
        (make_device("vfio-pci-lookalike", "lookalike"), Flavour.NATIVE),
    ],
)
def test_a_devices_flavour_is_what_it_is(device: Device, flavour: Flavour) -> None:
    modules = {Flavour.VFIO: VFIO_MODULES}
    assert find_flavour(device.vfio_device, device.driver_module, modules) == flavour
