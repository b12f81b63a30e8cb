"""The modules that match are those that kmod itself finds, in trees that depmod indexed."""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfio_flavourd.kernel.index import read_alias_table
from vfio_flavourd.model.alias_index import AliasIndex
from vfio_flavourd.model.aliases import Resolution, Source

RELEASE = "6.12.1-test"
FULL = "vfio_pci:v000015B3d0000101Esv000015B3sd00000010bc02sc00i00"
OTHERS = (
    "vfio_pci:v000015B3d0000101Csv000015B3sd00000010bc02sc00i00",
    "vfio_pci:v00008086d000010D3sv00008086sd00000000bc01sc08i02",
)

pytestmark = pytest.mark.skipif(
    shutil.which("modprobe", path="/sbin:/usr/sbin:/bin:/usr/bin") is None, reason="kmod is not installed"
)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which(program, path="/sbin:/usr/sbin:/bin:/usr/bin") or program
    return subprocess.run(
        [command, *arguments], capture_output=True, encoding="latin-1", check=False, timeout=20
    )


def build_module(aliases: Iterable[bytes]) -> bytes:
    """The smallest thing that depmod takes for a module: an ELF64 relocatable with a .modinfo section."""
    modinfo = b"".join(b"alias=" + alias + b"\0" for alias in aliases) + b"license=GPL\0"
    names = b"\0.modinfo\0.shstrtab\0"
    header_size, section_size = 64, 64
    body = modinfo + names
    body += b"\0" * (-len(body) % 8)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1",
        *(1, 62, 1, 0, 0, header_size + len(body), 0, header_size, 0, 0, section_size, 3, 2),
    )

    def section(name: int, kind: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)

    sections = bytes(section_size)
    sections += section(1, 1, header_size, len(modinfo))
    sections += section(10, 3, header_size + len(modinfo), len(names))
    return header + body + sections


def make_tree(
    root: Path, modules: Iterable[tuple[str, list[str]]], builtin: Iterable[tuple[str, str]] = ()
) -> Path:
    tree = root / "lib/modules" / RELEASE
    shutil.rmtree(root / "lib", ignore_errors=True)
    (tree / "kernel").mkdir(parents=True)
    for name, aliases in modules:
        data = build_module(alias.encode() for alias in aliases)
        (tree / f"kernel/{name.replace('_', '-')}.ko").write_bytes(data)
    (tree / "modules.order").write_text("")
    (tree / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name, _ in builtin))
    modinfo = b"".join(f"{name}.alias={alias}\0".encode() for name, alias in builtin)
    (tree / "modules.builtin.modinfo").write_bytes(modinfo)
    done = run("depmod", "-b", str(root), RELEASE)
    assert done.returncode == 0, done.stderr
    return tree


def ask_kmod(root: Path, conf: Path, alias: str) -> set[str]:
    done = run("modprobe", "-R", "-C", str(conf), "-d", str(root), "-S", RELEASE, alias)
    return set(done.stdout.split())


def matching(resolution: Resolution) -> set[str]:
    """kmod answers from the first place that has an answer."""
    found = [candidate for candidate in resolution.candidates if candidate.pattern]
    if any(candidate.origin.endswith("modinfo") for candidate in found):
        in_index = [candidate for candidate in found if not candidate.origin.endswith("modinfo")]
        found = in_index or found
    return {candidate.module for candidate in found}


def edit(tree: Path, text: bytes | None = None) -> None:
    """modules.alias, after depmod."""
    if text is not None:
        (tree / "modules.alias").write_bytes(text)
    after = (tree / "modules.alias.bin").stat().st_mtime_ns + 1
    os.utime(tree / "modules.alias", ns=(after, after))


def agree(root: Path, tree: Path, conf: Path) -> None:
    """By depmod's index as by the text that it is made of."""
    by_index = read_alias_table(tree, [conf], "")
    edit(tree)
    by_text = read_alias_table(tree, [conf], "")
    assert not by_text._files.indexed
    for modalias in (FULL, *OTHERS):
        expected = ask_kmod(root, conf, modalias)
        found = by_index.resolve(modalias)
        assert matching(found) == expected, modalias
        assert by_text.resolve(modalias) == found


fields = st.tuples(
    st.sampled_from(["000015B3", "00008086", "*", "0000????", "0000[18]*", "000015b3"]),
    st.sampled_from(["0000101E", "*", "0000101[CE]", "0000101[!E]", "0000101[^A-D]", "0000101?", "*1*"]),
    st.sampled_from(["*", "*", "000015B3", "0000[!1]*"]),
    st.sampled_from(["*", "*", "00000010", "000000-0", "000000[0-9]0"]),
    st.sampled_from(["*", "02", "0[12]", "0?"]),
    st.sampled_from(["*", "00"]),
    st.sampled_from(["*", "00*", "00", "02*"]),
).map(lambda parts: "vfio_pci:v{}d{}sv{}sd{}bc{}sc{}i{}".format(*parts))
patterns = fields | st.tuples(fields, st.integers(10, 50)).map(lambda cut: cut[0][: cut[1]] + "*")
odd = st.sampled_from(
    ["vfio_pci:*", "*", "vfio-pci:v*", "vfio*:v*15B3*", "vfio_pci:v]*", "vfio_pci:v[", "pci:*"]
)
names = st.sampled_from(["a_vfio_pci", "b_vfio_pci", "c_d_vfio_pci", "vfio_pci", "e"])
conf_lines = st.one_of(
    st.tuples(patterns | odd, names).map(lambda pair: f"alias {pair[0]} {pair[1]}"),
    st.tuples(patterns, names).map(lambda pair: f"\talias\t{pair[0]}  {pair[1].replace('_', '-')} # x"),
    st.tuples(patterns, names).map(lambda pair: f"alias {pair[0]} \\\n{pair[1]}"),
    st.tuples(patterns, names).map(lambda pair: f"alias {pair[0].replace('v', chr(92) + 'v')} {pair[1]}"),
    names.map(lambda name: f"blacklist {name}"),
    st.sampled_from(["# x", "", "alias", "alias x", "nonsense", "#\\", "options e x=1", "  # y"]),
)


@given(
    modules=st.dictionaries(names, st.lists(patterns, max_size=3), max_size=5),
    builtin=st.lists(st.tuples(st.sampled_from(["bi_one", "bi_two"]), patterns), max_size=2),
    conf=st.lists(conf_lines, max_size=4),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_modules_match(
    tmp_path: Path, modules: dict[str, list[str]], builtin: list[tuple[str, str]], conf: list[str]
) -> None:
    tree = make_tree(tmp_path, modules.items(), builtin)
    conf_dir = tmp_path / "conf"
    conf_dir.mkdir(exist_ok=True)
    (conf_dir / "a.conf").write_text("\n".join(conf))
    agree(tmp_path, tree, conf_dir)


def test_of_a_module_with_several_matching_aliases_the_same_is_shown(tmp_path: Path) -> None:
    for aliases in (["vfio_pci:v0*", "vfio_pci:v00*"], ["vfio_pci:v00*", "vfio_pci:v0*"]):
        tree = make_tree(tmp_path, [("a_vfio_pci", aliases)])
        agree(tmp_path, tree, tmp_path)
        assert read_alias_table(tree, [], "").resolve(FULL).candidates[0].pattern == "vfio_pci:v00*"


def test_the_same_files_of_modprobe_d_count(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, [("vfio_pci", ["vfio_pci:v*"])])
    conf_dir = tmp_path / "conf"
    # Not b.alias: kmod took such files before version 34, so its answer depends on the machine.
    for name in ("a.conf", "c.conf~", ".d.conf", "conf", "e.txt", "f.conf.bak", "x.conf"):
        shutil.rmtree(conf_dir, ignore_errors=True)
        conf_dir.mkdir()
        (conf_dir / name).write_text("alias vfio_pci:v* other\n")
        agree(tmp_path, tree, conf_dir)


@pytest.mark.parametrize(
    "conf",
    [
        "alias vfio_pci:v* a\nalias vfio_pci:v* b\n",
        "alias vfio_pci:v\\* other\n",
        "alias vfio_pci:v[]0]* other\n",
        "alias vfio_pci:v[!1]* other\n",
        "alias vfio_pci:v[0-9]*[]]* other\n",
        "alias vfio_pci:v0000[a--]* other\n",
        "install vfio_pci /bin/false\nblacklist vfio_pci\n",
        "alias other vfio_pci\nalias vfio_pci:v* other\n",
        "\\\nalias vfio_pci:v* other",
        "#\\\nalias vfio_pci:v* other\nalias vfio_pci:v* another",
    ],
)
def test_the_same_modules_match_for_odd_lines_of_modprobe_d(tmp_path: Path, conf: str) -> None:
    tree = make_tree(tmp_path, [("vfio_pci", ["vfio_pci:v*d*sv*sd*bc*sc*i*"])])
    path = tmp_path / "x.conf"
    path.write_bytes(conf.encode())
    agree(tmp_path, tree, path)


def test_a_file_that_depmod_did_not_see_is_missing(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, [("vfio_pci", ["vfio_pci:v*"]), ("mlx5_vfio_pci", ["vfio_pci:v000015B3d*"])])
    assert read_alias_table(tree, [], "").resolve(FULL).winner == "mlx5_vfio_pci"
    (tree / "kernel/mlx5-vfio-pci.ko").unlink()
    resolution = read_alias_table(tree, [], "").resolve(FULL)
    assert resolution.winner == "vfio_pci"
    assert resolution.candidates[0].reason == "module file missing: kernel/mlx5-vfio-pci.ko"
    assert resolution.candidates[-1].source is Source.FALLBACK


# depmod's index

OTHER_TEXT = b"alias vfio_pci:v* o7\n"


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """A tree with an index."""
    generic = ("vfio_pci", ["vfio_pci:v*d*sv*sd*bc*sc*i*"])
    variants = [("mlx5_vfio_pci", ["vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*"])]
    others = [
        (f"o{number}", [f"pci:v{number:08X}d*sv*sd*bc*sc*i*", f"of:N{number}"]) for number in range(300)
    ]
    return make_tree(tmp_path, [generic, *variants, *others])


def open_index(data: bytes) -> AliasIndex:
    return AliasIndex(lambda at, size: data[at : at + size])


def find_winner(tree: Path, warning: str = "") -> str | None:
    table = read_alias_table(tree, [], "")
    assert all(warning in told for told in table.warnings)
    assert len(table.warnings) == bool(warning)
    return table.resolve(FULL).winner


def test_the_index_counts_that_depmod_has_made_and_not_the_text(indexed: Path) -> None:
    assert find_winner(indexed) == "mlx5_vfio_pci"
    edit(indexed, OTHER_TEXT)
    shutil.copystat(indexed / "modules.alias.bin", indexed / "modules.alias")
    assert find_winner(indexed) == "mlx5_vfio_pci"


def test_what_was_edited_after_depmod_counts_and_not_the_index(indexed: Path) -> None:
    edit(indexed, OTHER_TEXT)
    assert find_winner(indexed) == "o7"


def test_what_was_edited_after_depmod_counts_in_a_copy_too(indexed: Path, tmp_path: Path) -> None:
    edit(indexed, OTHER_TEXT)
    for name in ("modules.alias", "modules.alias.bin"):
        shutil.copy2(indexed / name, tmp_path / name)
    assert read_alias_table(tmp_path, [], "").resolve(FULL).winner == "o7"


def test_an_index_that_is_no_file_is_not_waited_for(indexed: Path) -> None:
    (indexed / "modules.alias").write_bytes(OTHER_TEXT)
    (indexed / "modules.alias.bin").unlink()
    os.mkfifo(indexed / "modules.alias.bin")
    assert find_winner(indexed) == "o7"


def test_without_the_text_the_index_alone_does_not_count_since_others_need_the_text(indexed: Path) -> None:
    (indexed / "modules.alias").unlink()
    assert find_winner(indexed, "no aliases from") == "vfio_pci"


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda data: data[:-200], lambda data: b"x" + data[1:]])
def test_with_a_damaged_index_the_text_counts_and_that_is_told(
    indexed: Path, spoil: Callable[[bytes], bytes]
) -> None:
    (indexed / "modules.alias").write_bytes(OTHER_TEXT)
    index = indexed / "modules.alias.bin"
    index.write_bytes(spoil(index.read_bytes()))
    assert find_winner(indexed, "modules.alias.bin': it") == "o7"


def test_where_every_byte_of_an_index_is_spoilt_in_turn_it_is_told_or_gives_aliases(indexed: Path) -> None:
    whole = (indexed / "modules.alias.bin").read_bytes()
    for at in range(0, len(whole), 7):
        with suppress(ValueError):
            found = open_index(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]).find(b"vfio_pci:")
            assert all(alias.startswith(b"vfio_pci:") for alias, _ in found)


def test_an_index_of_which_a_node_is_below_itself_has_no_end() -> None:
    # The root, at 12, has one child, "a": itself.
    data = struct.pack(">3I2BI", 0xB007F457, 0x00020001, 0x2000000C, 97, 97, 0x2000000C)
    with pytest.raises(ValueError, match="no end"):
        open_index(data).find(b"")


def test_an_index_of_which_a_node_is_below_itself_with_many_values_has_no_end() -> None:
    values = b"".join(struct.pack(">I2s", number, b"m") for number in range(15_000))
    data = struct.pack(">3I2BII", 0xB007F457, 0x00020001, 0x6000000C, 97, 97, 0x6000000C, 15_000) + values
    with pytest.raises(ValueError, match="no end"):
        open_index(data).find(b"")


def test_a_node_that_is_longer_than_what_is_read_at_a_time_is_read_whole(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(3000)]
    tree = make_tree(tmp_path, [(name, ["vfio_pci:v1"]) for name in names])
    with (tree / "modules.alias.bin").open("rb") as file:
        index = AliasIndex(lambda at, size: os.pread(file.fileno(), size, at))
        assert {module.decode() for _, module in index.find(b"vfio_pci:")} == set(names)


def test_the_whole_index_is_the_whole_text(indexed: Path) -> None:
    index = open_index((indexed / "modules.alias.bin").read_bytes())
    text = [line.split()[1:] for line in (indexed / "modules.alias").read_bytes().splitlines()[1:]]
    assert sorted(index.find(b"")) == sorted((alias, module) for alias, module in text)
    assert [module for _, module in index.find(b"pci:")] == [m for a, m in text if a.startswith(b"pci:")]
    assert index.find(b"pci:v00000007d*sv*sd*bc*sc*i*") == [(b"pci:v00000007d*sv*sd*bc*sc*i*", b"o7")]
    assert index.find(b"pci:v00000007d*sv*sd*bc*sc*i*x") == []
