"""The files as depmod and people write them, in real directories."""

import asyncio
import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from vfio_flavourd.kernel import index
from vfio_flavourd.kernel.index import ModuleIndex, find_conf_files, read_alias_table
from vfio_flavourd.model.aliases import AliasTable, Source
from vfio_flavourd.model.modprobe_conf import parse_modprobe_conf
from vfio_flavourd.model.module_files import ModuleFiles

MLX5 = "pci:v000015B3d0000101Esv000015B3sd00000010bc02sc00i00"
PATTERN = b"vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*"
ALIAS = b"alias " + PATTERN + b" mlx5_vfio_pci\n"
GENERIC = b"alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
NATIVE = b"alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core\n"
RELEASE = "6.12.1-test"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "lib/modules" / RELEASE).mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("quiet\n")
    return tmp_path


def write_conf(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_index(root: Path, data: bytes, name: str = "modules.alias") -> Path:
    path = root / "lib/modules" / RELEASE / name
    path.write_bytes(data)
    return path


def winner(root: Path) -> str | None:
    return ModuleIndex(root, RELEASE).table().resolve(MLX5).winner


# --- lines of modules.alias


@pytest.mark.parametrize(
    "data",
    [
        ALIAS,
        ALIAS.rstrip(b"\n"),
        b"# Aliases extracted from modules themselves.\n" + ALIAS,
        b"   " + ALIAS,
        b"\t" + ALIAS.replace(b" ", b"\t"),
        ALIAS.replace(b" ", b"  "),
        ALIAS.replace(b"\n", b" # for the VFs\n"),
        ALIAS.replace(b"\n", b"# for the VFs\n"),
        ALIAS.replace(b"\n", b" # f\xfcr \xff\xfe\n"),
        ALIAS.replace(b"\n", b"   \n"),
        ALIAS.replace(b"\n", b"\r\n"),
        b"alias \xff\xfe:v* \xe9\n\x80\x81\n" + ALIAS,
        ALIAS.replace(b"vfio_pci:", b"vfio-pci:").replace(b"mlx5_vfio_pci", b"mlx5-vfio-pci"),
        NATIVE * 50_000 + ALIAS + NATIVE * 50_000,
        GENERIC + b"x" * 1_000_000 + b"\n" + ALIAS,
        b"alias vfio_pci:v000015B3d0000101Esv*\n" + ALIAS,
        b"\0\0\0\n" + ALIAS,
    ],
    ids=lambda data: repr(data[:40]),
)
def test_an_alias_is_found_however_the_line_is_written(root: Path, data: bytes) -> None:
    write_index(root, data)
    assert winner(root) == "mlx5_vfio_pci"


@pytest.mark.parametrize(
    "line",
    [
        PATTERN + b" mlx5_vfio_pci",
        b"alias " + PATTERN,
        b"alias " + PATTERN + b" ",
        b"alias " + PATTERN + b" # mlx5_vfio_pci",
        b"Alias " + PATTERN + b" mlx5_vfio_pci",
        b"alias" + PATTERN + b" mlx5_vfio_pci",
        b"alias " + PATTERN + b" ../mlx5_vfio_pci",
        b"alias " + PATTERN + b" mlx\xff",
        b"alias " + PATTERN + b" " + b"x" * 65,
        b"alias " + PATTERN.replace(b"101E", b"101[E") + b" mlx5_vfio_pci",
        b"alias " + PATTERN.replace(b"101E", b"101E]") + b" mlx5_vfio_pci",
        b"garbage",
    ],
)
def test_a_malformed_line_is_skipped_and_counted(root: Path, line: bytes) -> None:
    path = write_index(root, b"#\n\n" + line + b"\n" + GENERIC)
    table = ModuleIndex(root, RELEASE).table()
    assert table.resolve(MLX5).winner == "vfio_pci"
    assert (table.skipped.count, table.skipped.origins) == (1, (f"{path}:3",))


def test_of_many_malformed_lines_the_first_few_are_shown(root: Path) -> None:
    path = write_index(root, b"nonsense\n" * 1000 + ALIAS)
    skipped = ModuleIndex(root, RELEASE).table().skipped
    assert skipped.count == 1000
    assert skipped.origins == tuple(f"{path}:{number}" for number in range(1, 6))
    write_conf(root, "etc/modprobe.d/a.conf", "bad line\n")
    skipped = ModuleIndex(root, RELEASE).table().skipped
    assert skipped.count == 1001
    assert skipped.origins == (
        f"{root}/etc/modprobe.d/a.conf:1",
        *(f"{path}:{number}" for number in range(1, 5)),
    )


def test_a_comment_is_neither_an_alias_nor_malformed(root: Path) -> None:
    write_index(root, b"# " + ALIAS + b"  #" + ALIAS + GENERIC)
    table = ModuleIndex(root, RELEASE).table()
    assert (table.resolve(MLX5).winner, table.skipped.count) == ("vfio_pci", 0)


def test_a_hundred_thousand_variants_are_ranked_in_good_time(root: Path) -> None:
    lines = b"".join(
        b"alias vfio_pci:v%08Xd%08Xsv*sd*bc*sc*i* m%d\n" % (0x15B3, device, device)
        for device in range(100_000)
    )
    path = write_index(root, lines)
    started = time.monotonic()
    resolution = ModuleIndex(root, RELEASE).table().resolve(MLX5)
    assert resolution.winner == f"m{0x101E}"
    assert resolution.candidates[0].origin == str(path)
    assert time.monotonic() - started < 5


def test_a_word_that_runs_across_lines_is_not_an_alias(root: Path) -> None:
    write_index(root, b"alias\n" + PATTERN + b"\nmlx5_vfio_pci\n" + GENERIC)
    assert winner(root) == "vfio_pci"


# --- an index that is not there


def fallback_with_warning(root: Path) -> bool:
    resolution = ModuleIndex(root, RELEASE).table().resolve(MLX5)
    return (
        [candidate.module for candidate in resolution.candidates] == ["vfio_pci"]
        and resolution.winner == "vfio_pci"
        and any("modules.alias" in warning for warning in resolution.warnings)
        and any("no vfio_pci: alias" in warning for warning in resolution.warnings)
    )


def test_a_missing_tree_leaves_the_fallback(tmp_path: Path) -> None:
    assert fallback_with_warning(tmp_path)


def test_a_missing_index_leaves_the_fallback(root: Path) -> None:
    assert fallback_with_warning(root)


def test_an_empty_index_leaves_the_fallback(root: Path) -> None:
    write_index(root, b"")
    assert fallback_with_warning(root)


def test_an_index_of_zeros_leaves_the_fallback(root: Path) -> None:
    write_index(root, b"\0" * 8192)
    assert fallback_with_warning(root)


def test_an_unreadable_index_leaves_the_fallback(root: Path) -> None:
    (root / "lib/modules" / RELEASE / "modules.alias").symlink_to("modules.alias")
    assert fallback_with_warning(root)


def test_a_directory_or_a_fifo_in_the_index_s_place_leaves_the_fallback(root: Path) -> None:
    path = root / "lib/modules" / RELEASE / "modules.alias"
    path.mkdir()
    assert fallback_with_warning(root)
    path.rmdir()
    os.mkfifo(path)
    assert fallback_with_warning(root)


def test_an_index_cut_off_within_a_name_names_no_module_that_is_not_there(root: Path) -> None:
    write_index(root, GENERIC + ALIAS[:-5])
    write_index(root, b"kernel/mlx5-vfio-pci.ko:\nkernel/vfio-pci.ko:\n", "modules.dep")
    resolution = ModuleIndex(root, RELEASE).table().resolve(MLX5)
    assert resolution.winner == "vfio_pci"
    assert "module file missing" in resolution.candidates[0].reason


@pytest.mark.parametrize("cut", range(1, len(ALIAS), 7))
def test_an_index_cut_off_anywhere_still_answers(root: Path, cut: int) -> None:
    write_index(root, GENERIC + ALIAS[:cut])
    assert ModuleIndex(root, RELEASE).table().resolve(MLX5).candidates[-1].source is Source.FALLBACK


def test_a_tree_below_usr_lib_is_found_where_lib_is_no_link(tmp_path: Path) -> None:
    tree = tmp_path / "usr/lib/modules" / RELEASE
    tree.mkdir(parents=True)
    (tree / "modules.alias").write_bytes(ALIAS)
    assert winner(tmp_path) == "mlx5_vfio_pci"


# --- module files


def test_a_module_whose_file_was_deleted_gives_way(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    write_index(root, b"kernel/mlx5-vfio-pci.ko.zst:\nkernel/vfio-pci.ko.zst:\n", "modules.dep")
    assert winner(root) == "mlx5_vfio_pci"  # an index without its tree says nothing about files
    (root / "lib/modules" / RELEASE / "kernel").mkdir()
    (root / "lib/modules" / RELEASE / "kernel/vfio-pci.ko.zst").touch()
    resolution = ModuleIndex(root, RELEASE).table().resolve(MLX5)
    assert resolution.winner == "vfio_pci"
    assert resolution.candidates[0].reason == "module file missing: kernel/mlx5-vfio-pci.ko.zst"


def test_a_built_in_generic_driver_is_known_by_modules_builtin(root: Path) -> None:
    write_index(root, NATIVE)
    write_index(root, b"kernel/x.ko:\n", "modules.dep")
    assert winner(root) is None
    write_index(root, b"kernel/drivers/vfio/pci/vfio-pci.ko\n", "modules.builtin")
    assert winner(root) == "vfio_pci"


def test_built_in_variants_come_from_the_modinfo(root: Path) -> None:
    write_index(root, NATIVE)
    write_index(root, b"mlx5_vfio_pci.alias=" + PATTERN + b"\0", "modules.builtin.modinfo")
    assert winner(root) == "mlx5_vfio_pci"


# --- modprobe.d


def test_the_first_directory_has_a_files_name(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    for directory in ("lib", "usr/lib", "usr/local/lib", "run", "etc"):
        alias = f"alias vfio_pci:* from_{directory.replace('/', '_')}\n"
        write_conf(root, f"{directory}/modprobe.d/a.conf", alias)
        assert winner(root) == f"from_{directory.replace('/', '_')}"


def test_a_link_to_dev_null_or_nowhere_masks_a_file(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    write_conf(root, "usr/lib/modprobe.d/a.conf", "blacklist mlx5_vfio_pci\n")
    assert winner(root) == "vfio_pci"
    mask = root / "etc/modprobe.d/a.conf"
    mask.parent.mkdir(parents=True)
    for target in ("/dev/null", "nowhere"):
        mask.symlink_to(target)
        assert winner(root) == "mlx5_vfio_pci"
        mask.unlink()


def test_files_are_read_in_the_order_of_their_names_across_directories(root: Path) -> None:
    write_conf(root, "etc/modprobe.d/b.conf", "")
    write_conf(root, "usr/lib/modprobe.d/c.conf", "")
    write_conf(root, "usr/lib/modprobe.d/B.conf", "")
    write_conf(root, "lib/modprobe.d/a.conf", "")
    found = find_conf_files([root / place / "modprobe.d" for place in index.MODPROBE_D])
    assert [path.name for path in found] == ["B.conf", "a.conf", "b.conf", "c.conf"]


@pytest.mark.parametrize("name", ["a.conf~", "a.conf.bak", ".a.conf", "conf", "a.dpkg-old", "d.conf/a.conf"])
def test_other_files_are_not_read(root: Path, name: str) -> None:
    write_index(root, GENERIC + ALIAS)
    write_conf(root, f"etc/modprobe.d/{name}", "blacklist mlx5_vfio_pci\n")
    assert winner(root) == "mlx5_vfio_pci"


def test_a_single_file_can_stand_for_a_directory(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    path = write_conf(root, "some/file", "blacklist mlx5_vfio_pci\n")
    table = read_alias_table(root / "lib/modules" / RELEASE, [path, root / "nothing"], "")
    assert table.resolve(MLX5).winner == "vfio_pci"


def test_a_conf_file_that_can_not_be_read_is_told_about(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    link = root / "etc/modprobe.d/a.conf"
    link.parent.mkdir(parents=True)
    link.symlink_to(link)
    resolution = ModuleIndex(root, RELEASE).table().resolve(MLX5)
    assert resolution.winner == "mlx5_vfio_pci"
    assert any(str(link) in warning and warning.endswith("ignoring") for warning in resolution.warnings)


@pytest.mark.parametrize(
    ("data", "aliases", "blacklist", "skipped"),
    [
        (b"alias a b\n", [("a", "b", "c:1")], {}, 0),
        (b"alias a-b* c-d\n", [("a_b*", "c_d", "c:1")], {}, 0),
        (b"\t alias \t a\tb junk # x\n", [("a", "b", "c:1")], {}, 0),
        (b"alias a \\\n  b\nblacklist x\n", [("a", "b", "c:1")], {"x": "c:3"}, 0),
        (b"ali\\\nas a b", [("a", "b", "c:1")], {}, 0),
        (b"# comment \\\nalias a b\nblacklist x", [], {"x": "c:3"}, 0),
        (b"alias \\a\\* b\\", [("a*", "b", "c:1")], {}, 0),
        (b"alias a\\\\b c\n", [("a\\b", "c", "c:1")], {}, 0),
        (b"  # not a comment for kmod\n", [], {}, 1),
        (b"options x a=1\nremove x y\nsoftdep x pre: y\nweakdep x y\nconfig x\ninclude y\n", [], {}, 0),
        (b"remove x y\nblacklist x\n", [], {"x": "c:2"}, 0),
        (b"alias a\nblacklist\ninstall x\nfoo\nalias a] b\nalias a b#c\n", [], {}, 6),
        (b"alias a\0 b\n\0\nblacklist x\0y\n", [], {"x": "c:3"}, 1),
        (b"blacklist x\nblacklist x\n", [], {"x": "c:1"}, 0),
        (b"alias a b\r\nblacklist x\r\n", [("a", "b", "c:1")], {"x": "c:2"}, 0),
        (b"alias \xff* b\n", [("\xff*", "b", "c:1")], {}, 0),
        (b"\\", [], {}, 0),
        (b"", [], {}, 0),
    ],
)
def test_modprobe_d_is_read_as_kmod_reads_it(
    data: bytes, aliases: list[tuple[str, str, str]], blacklist: dict[str, str], skipped: int
) -> None:
    conf = parse_modprobe_conf(data, "c")
    assert [(alias.pattern, alias.module, alias.origin) for alias in conf.aliases] == aliases
    assert dict(conf.blacklist) == blacklist
    assert conf.skipped.count == skipped


# --- the kernel command line


def test_the_kernel_command_line_is_read(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    (root / "proc/cmdline").write_text("ro module_blacklist=mlx5_vfio_pci\n")
    assert winner(root) == "vfio_pci"


# --- when it is read again


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No stamp is too young, so that a change is what makes the table be read again."""
    monkeypatch.setattr(index, "SETTLED_NS", -(10**18))


@pytest.mark.usefixtures("settled")
def test_the_table_is_read_once_while_nothing_changes(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    modules = ModuleIndex(root, RELEASE)
    table = modules.table()
    assert modules.table() is table
    assert table.resolve(MLX5) is table.resolve(MLX5)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (f"lib/modules/{RELEASE}/modules.alias", "", "vfio_pci"),
        (f"lib/modules/{RELEASE}/modules.dep", "kernel/vfio-pci.ko:\n", "vfio_pci"),
        ("etc/modprobe.d/a.conf", "blacklist mlx5_vfio_pci\n", "vfio_pci"),
        ("etc/modprobe.d/new.conf", "alias vfio_pci:* other\n", "other"),
        ("run/modprobe.d/new.conf", "alias vfio_pci:* other\n", "other"),
    ],
)
def test_a_change_is_seen_by_the_next_look(root: Path, name: str, content: str, expected: str) -> None:
    write_index(root, GENERIC + ALIAS)
    write_conf(root, "etc/modprobe.d/a.conf", "# nothing\n")
    modules = ModuleIndex(root, RELEASE)
    assert modules.table().resolve(MLX5).winner == "mlx5_vfio_pci"
    write_conf(root, name, content)
    assert modules.table().resolve(MLX5).winner == expected


@pytest.mark.usefixtures("settled")
def test_a_batch_has_one_table_and_a_change_is_seen_after_it(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    modules = ModuleIndex(root, RELEASE)
    with modules.held():
        write_conf(root, "etc/modprobe.d/a.conf", "blacklist mlx5_vfio_pci\n")
        assert modules.table().resolve(MLX5).winner == "mlx5_vfio_pci"
    assert modules.table().resolve(MLX5).winner == "vfio_pci"


@pytest.mark.usefixtures("settled")
def test_a_turn_of_the_loop_has_one_table_and_a_change_is_seen_in_the_next(root: Path) -> None:
    write_index(root, GENERIC + ALIAS)
    modules = ModuleIndex(root, RELEASE)

    async def look() -> None:
        for blacklisted in ("mlx5_vfio_pci", "none", "mlx5_vfio_pci"):
            before = modules.table()
            write_conf(root, "etc/modprobe.d/a.conf", f"blacklist {blacklisted}\n")
            assert modules.table() is before
            await asyncio.sleep(0)
            winner = modules.table().resolve(MLX5).winner
            assert winner == ("vfio_pci" if blacklisted == "mlx5_vfio_pci" else "mlx5_vfio_pci")
            await asyncio.sleep(0)

    asyncio.run(look())
    write_conf(root, "etc/modprobe.d/a.conf", "# nothing\n")
    assert modules.table().resolve(MLX5).winner == "mlx5_vfio_pci"


@pytest.mark.usefixtures("settled")
def test_a_tree_that_appears_or_goes_is_seen(tmp_path: Path) -> None:
    modules = ModuleIndex(tmp_path, RELEASE)
    assert modules.table().resolve(MLX5).winner == "vfio_pci"
    tree = tmp_path / "lib/modules" / RELEASE
    tree.mkdir(parents=True)
    (tree / "modules.alias").write_bytes(ALIAS)
    assert modules.table().resolve(MLX5).winner == "mlx5_vfio_pci"
    (tree / "modules.alias").unlink()
    assert modules.table().resolve(MLX5).winner == "vfio_pci"


def test_a_second_change_within_the_same_tick_is_seen(root: Path) -> None:
    path = write_index(root, ALIAS)
    modules = ModuleIndex(root, RELEASE)
    for module in (b"mlx4_vfio_pci", b"mlx5_vfio_pci") * 20:
        path.write_bytes(ALIAS.replace(b"mlx5_vfio_pci", module))
        assert modules.table().resolve(MLX5).winner == module.decode()


@pytest.mark.usefixtures("settled")
def test_another_kernel_release_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_index(root, ALIAS)
    modules = ModuleIndex(root)
    real = os.uname()
    for release, expected in (("other", "vfio_pci"), (RELEASE, "mlx5_vfio_pci"), ("other", "vfio_pci")):
        running = os.uname_result((real.sysname, real.nodename, release, real.version, real.machine))
        monkeypatch.setattr(os, "uname", lambda running=running: running)
        assert modules.table().resolve(MLX5).winner == expected


def test_the_answers_kept_are_bounded() -> None:
    table = AliasTable(ModuleFiles(read_alias=lambda: GENERIC))
    for device in range(10_000):
        table.resolve(f"pci:v000015B3d{device:08X}sv000015B3sd00000010bc02sc00i00")
    assert len(table._memo) <= 4096


def kept(table: AliasTable, look: Callable[[int], object], count: int) -> int:
    """The bytes that are kept of that many look-ups."""
    look(count)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(count):
            look(number)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_what_surrounds_a_modalias_is_not_kept() -> None:
    table = AliasTable(ModuleFiles(read_alias=lambda: GENERIC))

    def look(number: int) -> object:
        blanks = " " * (50_000 + number)
        return table.resolve(f"{blanks}pci:v000015B3d{number:08X}sv000015B3sd00000010bc02sc00i00{blanks}")

    assert kept(table, look, 100) < 1 << 20


def test_the_answers_kept_for_drivers_that_were_named_are_few() -> None:
    table = AliasTable(ModuleFiles(read_alias=lambda: GENERIC))

    def look(number: int) -> object:
        return table.resolve(MLX5, named=tuple(f"driver{number}_{place}" for place in range(16)))

    # All 192 would be 1.4 MB; the most that is kept is half of that. Each takes a hundredth of a second.
    assert kept(table, look, 192) < 1 << 20
    assert look(7) is look(7)
