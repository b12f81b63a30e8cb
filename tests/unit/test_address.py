"""PCI addresses, as people, programs and attackers write them."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_flavourd.model.address import PciAddress, parse_address
from vfio_flavourd.model.errors import FlavourError

addresses = st.builds(
    PciAddress,
    domain=st.integers(0, 0xFFFFFFFF),
    bus=st.integers(0, 0xFF),
    device=st.integers(0, 0x1F),
    function=st.integers(0, 7),
)


@pytest.mark.parametrize(
    ("text", "kernel_form"),
    [
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("0000:AB:1F.7", "0000:ab:1f.7"),
        ("aB:0c.1", "0000:ab:0c.1"),
        ("10000:e1:00.0", "10000:e1:00.0"),
        ("FFFFFFFF:FF:1F.7", "ffffffff:ff:1f.7"),
        ("00000:01:00.0", "0000:01:00.0"),
    ],
)
def test_an_address_is_read_in_either_case_with_its_domain_or_without(text: str, kernel_form: str) -> None:
    assert str(parse_address(text)) == kernel_form


@given(addresses)
def test_what_an_address_is_written_as_is_read_as_the_same(address: PciAddress) -> None:
    assert parse_address(str(address)) == address
    assert parse_address(str(address).upper()) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "0000:01:00.0\n",
        "\n0000:01:00.0",
        "0000:01:00.0\0",
        "0000:01:00.0 ",
        "../../x",
        "0000:01:00.0/../0000:02:00.0",
        "0000:01:00.8",
        "0000:01:20.0",
        "0000:101:00.0",
        "000:01:00.0",
        "123456789:01:00.0",
        "0000:01:00",
        "0000-01-00.0",
        "0000:0g:00.0",
        "pci:v00008086d000010D3",
        "0000:01:00.0" * 854,
        "٠٠٠٠:٠١:٠٠.٠",
        "\udcff",
    ],
)
def test_anything_else_is_refused_in_one_short_line_that_says_what_an_address_is(text: str) -> None:
    with pytest.raises(FlavourError) as caught:
        parse_address(text)
    assert caught.value.errno == errno.EINVAL
    assert "0000:01:00.0" in caught.value.hint
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400


@given(st.text(max_size=30))
def test_no_text_at_all_raises_anything_else(text: str) -> None:
    code = 0
    try:
        assert parse_address(text) == parse_address(str(parse_address(text)))
    except FlavourError as error:
        code = error.errno
    assert code in (0, errno.EINVAL)


@given(st.lists(addresses, max_size=8))
def test_addresses_sort_by_domain_bus_device_and_function(found: list[PciAddress]) -> None:
    by_number = sorted(found, key=lambda each: (each.domain, each.bus, each.device, each.function))
    assert sorted(found) == by_number
