"""Who serves a flavour: the rules of resolution, one promise at a time."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_flavourd.model.aliases import AliasTable, Source
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.modprobe_conf import joined, parse_cmdline, parse_modprobe_conf
from vfio_flavourd.model.module_files import ModuleFiles

VECTORS: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "data/resolution-vectors.yaml").read_text(encoding="utf-8")
)
MLX5 = VECTORS["devices"]["mlx5_vf"]
GENERIC = "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci"
MLX5_ALIAS = "alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci"


def make_table(
    aliases: list[str],
    modprobe_d: list[str] | None = None,
    *,
    cmdline: str = "",
    builtin_modinfo: bytes = b"",
    dep: bytes | None = None,
    builtin: bytes | None = None,
    missing: frozenset[str] = frozenset(),
) -> AliasTable:
    files = ModuleFiles(
        "/m",
        "\n".join(aliases).encode,
        builtin_modinfo=builtin_modinfo,
        dep=dep,
        builtin=builtin,
    )
    conf = parse_modprobe_conf("\n".join(modprobe_d or []).encode(), "/etc/modprobe.d/x.conf")
    return AliasTable(
        files, joined((conf, parse_cmdline(cmdline))), has_file=lambda path: path not in missing
    )


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_vector(case: dict[str, Any]) -> None:
    lines = [VECTORS["lines"].get(line, line) for line in case["aliases"]]
    table = make_table(lines, case.get("modprobe_d"))
    resolution = table.resolve(VECTORS["devices"][case["device"]])
    assert resolution.winner == case["expect"]
    assert resolution.candidates[-1].module == "vfio_pci"
    assert resolution.candidates[-1].source is Source.FALLBACK


# --- what is asked for


@pytest.mark.parametrize("modalias", ["", "pci:v*", "usb:v1D6B", "of:NfooT(null)", "pci:v000015B3d0000101E"])
def test_what_is_no_pci_modalias_is_an_error(modalias: str) -> None:
    with pytest.raises(FlavourError):
        make_table([GENERIC]).resolve(modalias)


def test_a_flavoured_modalias_gives_the_same_answer() -> None:
    table = make_table([GENERIC, MLX5_ALIAS])
    own = table.resolve(MLX5 + "\n")
    assert own == table.resolve(MLX5.replace("pci:", "vfio_pci:"))
    assert own.modalias == MLX5.replace("pci:", "vfio_pci:")


def test_lower_case_digits_are_told_about() -> None:
    resolution = make_table([GENERIC, MLX5_ALIAS]).resolve(MLX5.replace("15B3", "15b3"))
    assert resolution.winner == "vfio_pci"
    assert any("lower-case" in warning for warning in resolution.warnings)


def test_another_flavour_has_its_own_prefix_and_fallback() -> None:
    table = make_table([MLX5_ALIAS, "alias uio_pci:v000015B3d* uio_mlx"])
    resolution = table.resolve(MLX5, prefix="uio_pci", fallback="uio_pci_generic")
    assert [candidate.module for candidate in resolution.candidates] == ["uio_mlx", "uio_pci_generic"]
    for prefix in ("uio_pci", "uio-pci"):
        assert table.resolve(MLX5, prefix=prefix, fallback="uio_pci_generic") == resolution
        assert table.flavoured_modules(prefix, "uio_pci_generic") == {"uio_mlx", "uio_pci_generic"}
        assert [line.module for line in table.flavoured_aliases(prefix)] == ["uio_mlx"]


def test_a_flavour_without_aliases_has_its_fallback_and_no_warning() -> None:
    resolution = make_table([MLX5_ALIAS]).resolve(MLX5, prefix="", fallback="uio_pci_generic")
    assert [candidate.module for candidate in resolution.candidates] == ["uio_pci_generic"]
    assert resolution.warnings == ()


# --- authority


def test_a_named_driver_comes_first_and_then_only_the_fallback() -> None:
    resolution = make_table([GENERIC, MLX5_ALIAS]).resolve(MLX5, named=("xe-vfio-pci", "qat_vfio_pci"))
    assert [(candidate.module, candidate.source) for candidate in resolution.candidates] == [
        ("xe_vfio_pci", Source.NAMED),
        ("qat_vfio_pci", Source.NAMED),
        ("vfio_pci", Source.FALLBACK),
    ]


def test_the_fallback_by_its_drivers_name_is_tried_once() -> None:
    resolution = make_table([GENERIC]).resolve(MLX5, named=("vfio-pci",))
    assert [candidate.module for candidate in resolution.accepted] == ["vfio_pci"]
    assert resolution.accepted[0].source is Source.NAMED


@pytest.mark.parametrize("name", ["", "../x", "a b", "x\n", "x" * 65, "é", "a.ko", "٣"])
def test_a_name_that_no_driver_can_have_is_an_error(name: str) -> None:
    with pytest.raises(FlavourError, match="can't be the name of a driver"):
        make_table([GENERIC]).resolve(MLX5, named=(name,))


def test_named_drivers_keep_their_order_whatever_is_loaded() -> None:
    resolution = make_table([]).resolve(MLX5, named=("b", "a", "b"), loaded={"a"})
    assert [candidate.module for candidate in resolution.candidates] == ["b", "a", "vfio_pci"]
    assert resolution.warnings == ()


def test_a_wide_alias_of_modprobe_d_replaces_a_narrow_one_of_the_index() -> None:
    resolution = make_table([GENERIC, MLX5_ALIAS], ["alias vfio-pci:v* my-vfio"]).resolve(MLX5)
    assert [candidate.module for candidate in resolution.candidates] == ["my_vfio", "vfio_pci"]
    assert resolution.candidates[0].origin == "/etc/modprobe.d/x.conf:1"


def test_modprobe_d_replaces_nothing_for_the_devices_it_does_not_match() -> None:
    table = make_table([GENERIC, MLX5_ALIAS], ["alias vfio_pci:v00008086* my_vfio"])
    assert table.resolve(MLX5).winner == "mlx5_vfio_pci"


@pytest.mark.parametrize("pattern", ["vfio*15B3*", "*15B3*", "?fio_pci:v000015B3*", "[v]fio_pci:v000015B3*"])
def test_modprobe_d_may_match_with_a_wildcard_in_the_prefix(pattern: str) -> None:
    table = make_table([GENERIC, MLX5_ALIAS], [f"alias {pattern} my_vfio", "alias usb:* other"])
    assert table.resolve(MLX5).winner == "my_vfio"


def test_modprobe_d_may_send_a_device_back_to_the_generic_driver() -> None:
    resolution = make_table([GENERIC, MLX5_ALIAS], ["alias vfio_pci:v000015B3* vfio_pci"]).resolve(MLX5)
    assert (resolution.winner, resolution.candidates[0].source) == ("vfio_pci", Source.MODPROBE_D)
    assert len(resolution.accepted) == 1


def test_narrower_wins_within_modprobe_d_too() -> None:
    conf = ["alias vfio_pci:v000015B3* wide", "alias vfio_pci:v000015B3d0000101E* narrow"]
    assert make_table([], conf).resolve(MLX5).winner == "narrow"


def test_what_is_blacklisted_in_modprobe_d_does_not_bring_the_index_back() -> None:
    conf = ["alias vfio_pci:v000015B3* my_vfio", "blacklist my_vfio"]
    assert make_table([GENERIC, MLX5_ALIAS], conf).resolve(MLX5).winner == "vfio_pci"


def test_a_built_in_variant_comes_after_the_index_and_before_the_fallback() -> None:
    modinfo = b"x.license=GPL\0bi_vfio.alias=vfio_pci:v000015B3d0000101E*\0bi_vfio.alias=pci:v*\0"
    resolution = make_table([GENERIC], builtin_modinfo=modinfo, dep=b"kernel/vfio-pci.ko:\n").resolve(MLX5)
    assert [(candidate.module, candidate.source) for candidate in resolution.candidates] == [
        ("bi_vfio", Source.BUILTIN),
        ("vfio_pci", Source.FALLBACK),
    ]
    assert resolution.winner == "bi_vfio"


def test_the_plain_aliases_of_a_module_are_those_of_the_index_and_those_it_has_as_a_part_of_the_kernel() -> (
    None
):
    modinfo = b"mlx5_core.alias=pci:v000015B3d*\0mlx5_core.alias=auxiliary:x\0other.alias=pci:v*\0"
    lines = ["alias pci:v000015B3d0000101Esv* mlx5_core", MLX5_ALIAS, "alias pci:v* third"]
    found = make_table(lines, builtin_modinfo=modinfo).plain_aliases({"mlx5_core"})
    assert [line.pattern for line in found] == ["pci:v000015B3d0000101Esv*", "pci:v000015B3d*"]


# --- specificity

RANKED = [
    "v000015B3d0000101Esv000015B3sd00000010bc02sc00i00*",
    "v000015B3d0000101Esv000015B3sd00000010*",
    "v000015B3d0000101Esv000015B3sd*bc02*",
    "v000015B3d0000101Esv000015B3*",
    "v000015B3d0000101Esv*sd00000010bc*sc*i*",
    "v000015B3d0000101Esv*sd*bc02sc00i00*",
    "v000015B3d0000101E*",
    "v000015B3d0000101[CE]sv000015B3sd00000010bc02sc00i00*",
    "v000015B3d00001?1Esv*sd*bc*sc*i*",
    "v000015B3d*sv000015B3sd*bc*sc*i*",
    "v000015B3d*",
    "v0000[01]5B3d0000101Esv000015B3sd00000010bc02sc00i00",
    "v*d0000101Esv*sd*bc*sc*i*",
    "v*d*sv000015B3sd*bc02sc00i00*",
    "v*d*sv*sd*bc02sc00i00*",
    "v*d*sv*sd*bc02sc*i*",
    "v*d*sv*sd*bc0?sc00i00",
    "v*d*sv*sd*bc*sc*i*",
]


@given(st.permutations(list(enumerate(RANKED))))
@settings(max_examples=60)
def test_the_narrower_pattern_wins_whatever_the_order_of_the_lines(lines: list[tuple[int, str]]) -> None:
    table = make_table([f"alias vfio_pci:{pattern} m{rank}" for rank, pattern in lines])
    resolution = table.resolve(MLX5)
    assert [candidate.module for candidate in resolution.candidates] == [
        *(f"m{rank}" for rank in range(len(RANKED))),
        "vfio_pci",
    ]
    assert resolution.warnings == ()


def test_a_module_is_listed_once_at_its_best_place() -> None:
    lines = [GENERIC, "alias vfio_pci:v000015B3* other", "alias vfio_pci:v* mlx5_vfio_pci", MLX5_ALIAS]
    resolution = make_table(lines).resolve(MLX5)
    assert [candidate.module for candidate in resolution.candidates] == ["mlx5_vfio_pci", "other", "vfio_pci"]
    assert resolution.candidates[0].pattern == "vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*"


def test_the_fallback_shows_the_alias_it_has() -> None:
    last = make_table([GENERIC]).resolve(MLX5).candidates[-1]
    assert (last.pattern, last.origin) == ("vfio_pci:v*d*sv*sd*bc*sc*i*", "/m/modules.alias")


# --- ties

TIE = ["alias vfio_pci:v000015B3d0000101Esv* b_vfio", "alias vfio_pci:v000015B3d0000101E* a_vfio"]


def test_of_two_equals_the_first_in_the_index_wins_and_it_is_said() -> None:
    resolution = make_table([*TIE, GENERIC]).resolve(MLX5)
    assert resolution.winner == "b_vfio"
    assert resolution.warnings == (
        "b_vfio and a_vfio match equally narrowly: b_vfio goes first, being first in modules.alias",
    )
    assert "a tie of b_vfio and a_vfio" in resolution.candidates[0].reason


def test_of_two_equals_the_loaded_one_wins() -> None:
    table = make_table([*TIE, GENERIC])
    assert table.resolve(MLX5).winner == "b_vfio"
    resolution = table.resolve(MLX5, loaded={"a_vfio", "vfio_pci"})
    assert resolution.winner == "a_vfio"
    assert "already loaded" in resolution.warnings[0]
    assert table.resolve(MLX5).winner == "b_vfio"


def test_a_loaded_module_does_not_beat_a_narrower_one() -> None:
    assert make_table([GENERIC, MLX5_ALIAS]).resolve(MLX5, loaded=["vfio_pci"]).winner == "mlx5_vfio_pci"


def test_a_rejected_one_is_no_tie() -> None:
    resolution = make_table([*TIE, GENERIC], ["blacklist b_vfio"]).resolve(MLX5)
    assert (resolution.winner, resolution.warnings) == ("a_vfio", ())


# --- rejections


@pytest.mark.parametrize(
    ("modprobe_d", "cmdline", "said"),
    [
        (["", "blacklist mlx5_vfio_pci"], "", "/etc/modprobe.d/x.conf:2"),
        (["\tblacklist\t mlx5-vfio-pci  # why"], "", "/etc/modprobe.d/x.conf:1"),
        ([], "quiet module_blacklist=foo,mlx5_vfio_pci ro", "module_blacklist="),
        ([], 'root=/dev/sda module-blacklist="foo,mlx5-vfio-pci"', "module-blacklist="),
        ([], '"module_blacklist=mlx5_vfio_pci"', "module_blacklist="),
        ([], "module_blacklist=mlx5_vfio_pci module_blacklist=foo", "module_blacklist="),
        ([], "modprobe.blacklist=mlx5_vfio_pci\n", "modprobe.blacklist="),
        ([], "modprobe.blacklist=a modprobe.blacklist=b,mlx5-vfio-pci -- single", "modprobe.blacklist="),
    ],
)
def test_a_blacklisted_variant_gives_way_to_the_next_one(
    modprobe_d: list[str], cmdline: str, said: str
) -> None:
    resolution = make_table([GENERIC, MLX5_ALIAS], modprobe_d, cmdline=cmdline).resolve(MLX5)
    assert resolution.winner == "vfio_pci"
    assert [candidate.accepted for candidate in resolution.candidates] == [False, True]
    assert resolution.candidates[0].reason.startswith("blacklisted by ")
    assert said in resolution.candidates[0].reason


@pytest.mark.parametrize(
    "cmdline",
    [
        "xmodule_blacklist=mlx5_vfio_pci",
        "module_blacklist",
        "module_blacklist=",
        "module_blacklist=mlx5",
        "ro -- module_blacklist=mlx5_vfio_pci",
        'init="/bin/x module_blacklist=mlx5_vfio_pci"',
        "modprobe.blacklist mlx5_vfio_pci",
    ],
)
def test_what_only_looks_like_a_blacklist_is_none(cmdline: str) -> None:
    assert make_table([GENERIC, MLX5_ALIAS], cmdline=cmdline).resolve(MLX5).winner == "mlx5_vfio_pci"


def test_policy_denies_by_either_spelling() -> None:
    table = make_table([GENERIC, MLX5_ALIAS])
    for name in ("mlx5_vfio_pci", "mlx5-vfio-pci"):
        resolution = table.resolve(MLX5, denied=frozenset({name}))
        assert (resolution.winner, resolution.candidates[0].reason) == ("vfio_pci", "denied by policy")
    assert table.resolve(MLX5).winner == "mlx5_vfio_pci"


def test_a_named_driver_can_be_rejected_too() -> None:
    resolution = make_table([GENERIC], ["blacklist other"]).resolve(MLX5, named=("other",))
    assert resolution.winner == "vfio_pci"


def test_with_every_candidate_rejected_there_is_no_winner() -> None:
    resolution = make_table([GENERIC], ["blacklist vfio_pci"]).resolve(MLX5)
    assert resolution.winner is None
    assert resolution.accepted == ()
    assert "every candidate is rejected" in resolution.warnings


DEP = b"kernel/a/mlx5-vfio-pci.ko.xz: kernel/a/ghost_vfio.ko\nupdates/dkms/vfio-pci.ko:\n"


def test_a_module_that_modules_dep_does_not_know_is_missing() -> None:
    lines = [GENERIC, MLX5_ALIAS, "alias vfio_pci:v000015B3d0000101Esv000015B3* ghost_vfio"]
    resolution = make_table(lines, dep=DEP).resolve(MLX5)
    assert resolution.winner == "mlx5_vfio_pci"
    assert resolution.candidates[0].reason == "module file missing: not in modules.dep"


def test_a_module_whose_file_is_gone_is_missing() -> None:
    missing = frozenset({"kernel/a/mlx5-vfio-pci.ko.xz"})
    resolution = make_table([GENERIC, MLX5_ALIAS], dep=DEP, missing=missing).resolve(MLX5)
    assert resolution.winner == "vfio_pci"
    assert resolution.candidates[0].reason == "module file missing: kernel/a/mlx5-vfio-pci.ko.xz"


def test_where_nobody_can_look_the_files_that_modules_dep_names_are_taken_to_be_there() -> None:
    table = AliasTable(ModuleFiles("/m", f"{GENERIC}\n{MLX5_ALIAS}\n".encode, dep=DEP))
    assert table.resolve(MLX5).winner == "mlx5_vfio_pci"


def test_a_longer_name_is_another_module() -> None:
    dep = b"kernel/my-mlx5-vfio-pci.ko:\nkernel/mlx5-vfio-pci.ko.bak:\nkernel/vfio_pci.ko:\n"
    assert make_table([GENERIC, MLX5_ALIAS], dep=dep).resolve(MLX5).winner == "vfio_pci"


def test_what_is_loaded_or_built_in_needs_no_file() -> None:
    dep = b"kernel/x.ko:\n"
    table = make_table([GENERIC, MLX5_ALIAS], dep=dep, builtin=b"kernel/vfio-pci.ko\n")
    assert table.resolve(MLX5).winner == "vfio_pci"
    assert table.resolve(MLX5, loaded={"mlx5_vfio_pci"}).winner == "mlx5_vfio_pci"


@pytest.mark.parametrize("dep", [None, b"", b"\0\0\0"])
def test_nothing_is_missing_where_nothing_is_known_about_files(dep: bytes | None) -> None:
    assert make_table([GENERIC, MLX5_ALIAS], dep=dep).resolve(MLX5).winner == "mlx5_vfio_pci"


def test_an_install_command_that_refuses_is_a_rejection_unless_loaded() -> None:
    table = make_table(
        [GENERIC, MLX5_ALIAS], ["install mlx5* /bin/false  # no", "install mlx5_vfio_pci /bin/x"]
    )
    resolution = table.resolve(MLX5)
    assert resolution.winner == "vfio_pci"
    assert resolution.candidates[0].reason == (
        "its install command is '/bin/false # no' (/etc/modprobe.d/x.conf:1)"
    )
    assert table.resolve(MLX5, loaded={"mlx5_vfio_pci"}).winner == "mlx5_vfio_pci"


def test_another_install_command_is_left_to_modprobe() -> None:
    conf = ["install mlx5_vfio_pci /sbin/modprobe -i mlx5_vfio_pci", "install mlx5* /bin/false"]
    assert make_table([GENERIC, MLX5_ALIAS], conf).resolve(MLX5).winner == "mlx5_vfio_pci"


# --- nothing to go by


@pytest.mark.parametrize("lines", [[], ["alias pci:v000015B3d0000101Esv* mlx5_core"], ["\0" * 4096]])
def test_without_flavoured_aliases_there_is_the_fallback_and_a_warning(lines: list[str]) -> None:
    resolution = make_table(lines).resolve(MLX5)
    assert [candidate.module for candidate in resolution.candidates] == ["vfio_pci"]
    assert resolution.warnings == ("no vfio_pci: alias is known, so there is only vfio_pci",)


def test_a_catch_all_alone_is_no_reason_to_warn() -> None:
    assert make_table([GENERIC]).resolve(MLX5).warnings == ()


# --- the whole


@given(
    st.lists(st.text(st.sampled_from("*?[]!-^\\0159ABCDEFvdscbi:_p "), max_size=40), max_size=8),
    st.lists(st.binary(max_size=40), max_size=3),
    st.text(max_size=40),
)
@settings(max_examples=200)
def test_no_index_and_no_command_line_raises(lines: list[str], junk: list[bytes], cmdline: str) -> None:
    data = b"\n".join([*(f"alias vfio_pci:{line} some_module".encode() for line in lines), *junk])
    conf = joined((parse_modprobe_conf(data, "c"), parse_cmdline(cmdline)))
    table = AliasTable(
        ModuleFiles("/m", lambda: data, builtin_modinfo=b"\0".join(junk), dep=data, builtin=data), conf
    )
    resolution = table.resolve(MLX5, loaded=["some_module"])
    assert resolution.candidates[-1].source is Source.FALLBACK
    assert table.skipped.count >= 0
    assert "vfio_pci" in table.flavoured_modules()


def test_the_flavoured_modules_are_those_with_an_alias_and_the_fallback() -> None:
    modinfo = b"bi.alias=vfio_pci:v*\0"
    table = make_table(
        [MLX5_ALIAS, "alias pci:v* native"],
        ["alias vfio_pci:v* conf", "alias * any"],
        builtin_modinfo=modinfo,
    )
    assert table.flavoured_modules() == {"mlx5_vfio_pci", "conf", "bi", "vfio_pci"}
