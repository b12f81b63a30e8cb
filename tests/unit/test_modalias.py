"""Modaliases, the patterns that match them, and how narrow those are."""

import ctypes
import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_flavourd.model.alias_pattern import tokens
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.modalias import flavoured, matches, normalised, parse_modalias, specificity

MLX5 = "pci:v000015B3d0000101Esv000015B3sd00000010bc02sc00i00"

libc = ctypes.CDLL(None)
libc.fnmatch.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)


@pytest.fixture(autouse=True)
def _no_pattern_is_remembered() -> None:
    """A mutant is tried in a fork of a process that has run the tests before, and would never read one."""
    tokens.cache_clear()


def c_fnmatch(pattern: str, text: str) -> bool:
    return bool(libc.fnmatch(pattern.encode("latin-1"), text.encode("latin-1"), 0) == 0)


def test_a_modalias_is_taken_apart_as_text() -> None:
    parsed = parse_modalias(MLX5 + "\n")
    assert (parsed.vendor, parsed.device, parsed.subvendor, parsed.subdevice) == (
        "000015B3",
        "0000101E",
        "000015B3",
        "00000010",
    )
    assert (parsed.base_class, parsed.subclass, parsed.interface, parsed.text) == ("02", "00", "00", MLX5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pci:",
        "usb:v1D6Bp0002d0602dc09dsc00dp00ic09isc00ip00in00",
        MLX5[:-1],
        MLX5 + "0",
        MLX5 + "*",
        MLX5.replace("101E", "101G"),
        MLX5.replace("101E", "101٣"),
        MLX5.replace("pci:", "PCI:"),
        MLX5.replace("pci:", "vfio_pci:"),
        MLX5 + "\n" + MLX5,
        "x" * 100_000,
        "\0",
    ],
)
def test_what_is_no_pci_modalias_is_one_clear_error(text: str) -> None:
    with pytest.raises(FlavourError) as caught:
        parse_modalias(text)
    assert caught.value.errno == errno.EINVAL
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert caught.value.hint


def test_an_error_shows_what_was_given_whole_up_to_eighty_characters() -> None:
    for length, shown in ((80, "x" * 80), (81, "x" * 77 + "...")):
        with pytest.raises(FlavourError) as caught:
            parse_modalias("x" * length)
        assert str(caught.value) == f"'{shown}' is not the modalias of a PCI device"


@given(st.text())
def test_any_text_is_a_modalias_or_an_error(text: str) -> None:
    try:
        assert parse_modalias(text).text == text.strip()
    except FlavourError as error:
        raised = error.errno
    else:
        raised = errno.EINVAL
    assert raised == errno.EINVAL


def test_flavouring_replaces_the_prefix_and_is_done_once() -> None:
    once = flavoured(MLX5)
    assert once == MLX5.replace("pci:", "vfio_pci:")
    assert flavoured(once) == once
    assert flavoured(MLX5, "uio") == "uio" + MLX5[3:]
    assert flavoured(MLX5, "vfio-pci") == once


@pytest.mark.parametrize("prefix", ["", "a b", "vfio_pci:", "*", "x" * 65])
def test_a_prefix_that_could_not_stand_in_an_alias_is_an_error(prefix: str) -> None:
    with pytest.raises(FlavourError, match="alias prefix"):
        flavoured(MLX5, prefix)


def test_another_flavours_modalias_is_an_error() -> None:
    with pytest.raises(FlavourError):
        flavoured(flavoured(MLX5, "uio"), "vfio_pci")


@pytest.mark.parametrize(
    ("pattern", "normal"),
    [
        ("vfio-pci:v*", "vfio_pci:v*"),
        ("a-[0-9]-b", "a_[0-9]_b"),
        ("[-]-[a-b]-", "[-]_[a-b]_"),
        ("a]", None),
        ("a[", None),
        ("[]a]", None),
        ("[[]-", "[[]_"),
    ],
)
def test_dashes_become_underscores_outside_of_brackets(pattern: str, normal: str | None) -> None:
    assert normalised(pattern) == normal


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("vfio_pci:v000015B3d0000101E*", True),
        ("vfio_pci:v000015B3d0000101[CE]sv*sd*bc*sc*i*", True),
        ("vfio_pci:v000015B3d0000101[!E]sv*sd*bc*sc*i*", False),
        ("vfio_pci:v000015B3d0000101[^A-D]sv*sd*bc*sc*i*", True),
        ("vfio_pci:v000015B3d0000101[E-]sv*sd*bc*sc*i*", True),
        ("vfio_pci:v000015B3d0000101[-E]sv*sd*bc*sc*i*", True),
        ("vfio_pci:v000015B3d0000101[E-", False),
        ("vfio_pci:v000015B3d000010??sv*", True),
        ("vfio_pci:v000015b3d0000101esv*sd*bc*sc*i*", False),
        ("vfio_pci:v000015B3d0000101E", False),
        ("fio_pci:v*", False),
        ("*", True),
        (r"vfio_pci:v\000015B3*", True),
        (r"vfio_pci:v000015B3*\*", False),
        ("vfio_pci:v000015B3*\\", False),
        ("", False),
    ],
)
def test_matching_is_over_the_whole_string_and_case_sensitive(pattern: str, expected: bool) -> None:
    assert matches(pattern, flavoured(MLX5)) is expected
    assert c_fnmatch(pattern, flavoured(MLX5)) is expected


@pytest.mark.parametrize(
    ("bracket", "inside", "outside"),
    [
        ("[A-C]", "ABC", "@D-"),
        ("[C-A]", "", "ABC-"),
        ("[!a]", "![b", "a"),
        ("[^a]", "^[b", "a"),
        ("[a!^]", "a!^", "b"),
        ("[!!]", "a", "!"),
        ("[]a]", "]a", "["),
        ("[!]a]", "[b!", "]a"),
        ("[a-]", "a-", "b]"),
        ("[-a]", "-a", "b"),
        ("[!-a]", "b!", "-a"),
        ("[a-c-e]", "abc-e", "d"),
        ("[+--]", "+,-", "."),
        (r"[\]a]", "]a", "\\"),
        (r"[\a-\c]", "abc", "\\d-"),
        (r"[a-\]]", "", "a]b-"),
        (r"[\!a]", "!a", "b\\"),
        ("[\xf0-\xff]", "\xf0\xff", "\xefa"),
    ],
)
def test_a_bracket_is_one_of_its_characters_as_in_the_c_library(
    bracket: str, inside: str, outside: str
) -> None:
    for character in inside + outside:
        assert matches(bracket, character) is (character in inside) is c_fnmatch(bracket, character)


@pytest.mark.parametrize("pattern", ["[", "[a", "[a-", "[a-b", "[!", "[]", "[!]", "[a\\", "[a-\\", "[\\]"])
def test_a_bracket_that_nothing_closes_is_read_as_in_the_c_library(pattern: str) -> None:
    for text in (pattern, pattern.replace("\\", ""), "a", "b", "[", ""):
        assert matches(pattern, text) is c_fnmatch(pattern, text)


# `[` inside of a bracket begins a class for fnmatch(3); no normalised alias can hold one that ends.
plain = st.sampled_from("ab01EC-!^\\?*\xe9\xff")
inside = st.text(st.sampled_from("ab01EC-!^\\\xe9"), min_size=1, max_size=5)
globs = st.lists(plain | inside.map(lambda text: f"[{text}]") | st.just("]"), max_size=8).map("".join)


@given(globs.filter(lambda text: normalised(text) is not None), st.text("ab01EC-!^\\\xe9\xff]", max_size=8))
@settings(max_examples=1000)
def test_matching_agrees_with_the_c_library(pattern: str, text: str) -> None:
    assert matches(pattern, text) is c_fnmatch(pattern, text)


hex_glob = st.lists(
    st.sampled_from("019ABEF*?") | st.sampled_from(["[CE]", "[0-9]", "[!A]", "[^0-8]", "[0-9A-F]"]),
    max_size=9,
).map("".join)
pci_globs = st.tuples(*[hex_glob | st.just("*")] * 7).map(
    lambda fields: "vfio_pci:v{}d{}sv{}sd{}bc{}sc{}i{}".format(*fields)
)
ids = st.sampled_from(("00000019", "0000ABEF", "00001000", "FFFFFFFF"))
modaliases = st.tuples(*[ids] * 4, *[st.sampled_from(("00", "9A"))] * 3).map(
    lambda fields: "vfio_pci:v{}d{}sv{}sd{}bc{}sc{}i{}".format(*fields)
)


@given(pci_globs, modaliases)
@settings(max_examples=300)
def test_matching_of_pci_patterns_agrees_with_the_c_library(pattern: str, text: str) -> None:
    assert matches(pattern, text) is c_fnmatch(pattern, text)


@given(st.text(), st.text())
def test_matching_and_specificity_never_raise(pattern: str, text: str) -> None:
    assert matches(pattern, text) in (True, False)
    assert len(specificity(pattern)) == 7


def test_many_stars_do_not_blow_up() -> None:
    assert not matches("*a" * 200 + "b", "a" * 5000)


@pytest.mark.parametrize(
    ("pattern", "ranks"),
    [
        ("vfio_pci:v*d*sv*sd*bc*sc*i*", (0, 0, 0, 0, 0, 0, 0)),
        ("vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*", (2, 2, 0, 0, 0, 0, 0)),
        ("vfio_pci:v000015B3d0000101E*", (2, 2, 0, 0, 0, 0, 0)),
        ("vfio_pci:v000015B3*", (2, 0, 0, 0, 0, 0, 0)),
        ("vfio_pci:v000015B3d0000101[CE]sv*", (2, 1, 0, 0, 0, 0, 0)),
        ("vfio_pci:v000015B3d0000101?sv*", (2, 1, 0, 0, 0, 0, 0)),
        ("vfio_pci:v000015B3d0000101*", (2, 1, 0, 0, 0, 0, 0)),
        ("vfio_pci:v000015B3d*1Esv000015B3sd*", (2, 1, 2, 0, 0, 0, 0)),
        ("vfio_pci:v*d*sv*sd*bc02sc00i00*", (0, 0, 0, 0, 2, 2, 2)),
        ("vfio_pci:v*d*sv*sd*bc02sc00i00", (0, 0, 0, 0, 2, 2, 2)),
        ("vfio_pci:v*d*sv*sd*bc02sc00i0*", (0, 0, 0, 0, 2, 2, 1)),
        ("vfio_pci:v*d*sv*sd*bc02sc*i*", (0, 0, 0, 0, 2, 0, 0)),
        ("vfio_pci:v*bc02*", (0, 0, 0, 0, 2, 0, 0)),
        ("vfio_pci:*sd00000010*", (0, 0, 0, 2, 0, 0, 0)),
        ("vfio_pci:v????????d**sv?*sd*bc??sc*i*", (0, 0, 0, 0, 0, 0, 0)),
        ("vfio_pci:v0000[0-9]5B3d*", (1, 0, 0, 0, 0, 0, 0)),
        ("vfio_pci:v000015b3d0000101dsv000015b3sd000000bcbc02sc00i00*", (2, 2, 2, 2, 2, 2, 2)),
        ("vfio_pci:*", (0,) * 7),
        ("vfio_pci*", (0,) * 7),
        ("*", (0,) * 7),
        ("", (0,) * 7),
    ],
)
def test_specificity_is_read_off_the_pattern_field_by_field(pattern: str, ranks: tuple[int, ...]) -> None:
    assert specificity(pattern) == ranks
