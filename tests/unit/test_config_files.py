"""Which files count, and which can't be trusted."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from policies import ETC, RULE, load, problem_of, problems_of, write

from vfio_flavourd.config.load import load_files, load_policy, load_rendered
from vfio_flavourd.config.problems import PolicyError
from vfio_flavourd.model.policy import Policy

RUN = "run/vfio-flavourd/policy.d"
LOCAL = "usr/local/lib/vfio-flavourd/policy.d"
LIB = "usr/lib/vfio-flavourd/policy.d"


def rule(name: str) -> str:
    return f"version: 1\nrules: [{{name: {name}, match: {{vendor: {len(name)}}}}}]\n"


def names(root: Path) -> list[str]:
    return [each.name for each in load(root).policy.rules]


# which files


def test_without_any_file_the_policy_is_empty(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.policy == Policy()
    assert (loaded.files, loaded.warnings) == ((), ())
    (tmp_path / ETC).mkdir(parents=True)
    assert load(tmp_path) == loaded


def test_files_of_all_directories_count_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, directory in {"40.yaml": ETC, "10.yaml": LIB, "30.yaml": RUN, "20.yaml": LOCAL}.items():
        write(tmp_path, rule("r" + name[:2]), name, directory)
    assert names(tmp_path) == ["r10", "r20", "r30", "r40"]
    assert [Path(file).name for file in load(tmp_path).files] == ["10.yaml", "20.yaml", "30.yaml", "40.yaml"]


def test_the_first_directory_wins_a_name(tmp_path: Path) -> None:
    for directory, name in {LIB: "lib", LOCAL: "local", RUN: "run", ETC: "etc"}.items():
        write(tmp_path, rule(name), "10.yaml", directory)
        assert names(tmp_path) == [name]


def test_a_link_to_dev_null_masks_a_name(tmp_path: Path) -> None:
    write(tmp_path, rule("lib"), "10.yaml", LIB)
    write(tmp_path, rule("other"), "20.yaml", LIB)
    (tmp_path / RUN).mkdir(parents=True)
    (tmp_path / RUN / "10.yaml").symlink_to("/dev/null")
    assert names(tmp_path) == ["other"]
    write(tmp_path, rule("etc"), "10.yaml", ETC)
    assert names(tmp_path) == ["etc", "other"]


def test_what_is_masked_is_not_even_looked_at(tmp_path: Path) -> None:
    write(tmp_path, "broken: [", "10.yaml", LIB).chmod(0o666)
    (tmp_path / ETC).mkdir(parents=True)
    (tmp_path / ETC / "10.yaml").symlink_to("/dev/null")
    assert load(tmp_path).policy == Policy()


def test_other_names_do_not_count_and_a_likely_mistake_is_told(tmp_path: Path) -> None:
    for name in ("10.yml", "10.yaml~", ".10.yaml", "10.yaml.dpkg-old", "README"):
        write(tmp_path, "nonsense", name)
    loaded = load(tmp_path)
    assert loaded.policy == Policy()
    (warning,) = loaded.warnings
    assert warning.file.endswith("10.yml")
    assert warning.message == "not named *.yaml, ignoring"


# whom to trust


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o664])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, rule("a"))
    path.chmod(mode)
    problem = problem_of(tmp_path)
    assert (problem.file, problem.line) == (str(path), 0)
    assert problem.message == f"its group or others can write to it, its mode is {mode:04o}"
    assert problem.hint == f"chmod go-w {path}"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
@pytest.mark.parametrize("directory", ["", "etc", "etc/vfio-flavourd", ETC])
def test_a_directory_on_the_way_that_others_can_write_is_refused(
    tmp_path: Path, directory: str, mode: int
) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o755)
    write(root, rule("a"))
    (root / directory).chmod(mode)
    problem = problem_of(root)
    assert problem.file == str(root / directory)
    assert problem.message.startswith("its group or others can write to it")


def test_a_directory_without_policy_need_not_be_trusted(tmp_path: Path) -> None:
    write(tmp_path, rule("a"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o1777)
    assert names(tmp_path) == ["a"]


def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path, rule("a"))
    with pytest.raises(PolicyError) as caught:
        load_policy(tmp_path, owner=os.getuid() + 1)
    (problem,) = caught.value.problems
    assert problem.file == str(tmp_path)
    assert problem.message == f"belongs to user {os.getuid()}, not to user {os.getuid() + 1}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["etc", ETC, f"{ETC}/10.yaml"])
def test_a_file_or_parent_that_is_not_roots_is_refused(tmp_path: Path, what: str) -> None:
    write(tmp_path, rule("a"))
    os.chown(tmp_path / what, 65534, 0)
    problem = problem_of(tmp_path)
    assert problem.file == str(tmp_path / what)
    assert problem.message == "belongs to user 65534, not to root"
    assert problem.hint == f"chown 0 {tmp_path / what}"


@pytest.mark.parametrize("target", ["../elsewhere.yaml", "/etc/passwd", "/dev/zero", "nowhere"])
def test_a_symbolic_link_is_refused_wherever_it_leads(tmp_path: Path, target: str) -> None:
    (tmp_path / ETC).mkdir(parents=True)
    (tmp_path / ETC / "../elsewhere.yaml").write_text(rule("a"), encoding="utf-8")
    (tmp_path / ETC / "10.yaml").symlink_to(target)
    problem = problem_of(tmp_path)
    assert problem.message == "is a symbolic link, which is not followed"
    assert "/dev/null" in problem.hint


@pytest.mark.parametrize("part", ["etc", "etc/vfio-flavourd", ETC])
def test_a_directory_that_is_a_link_is_refused(tmp_path: Path, part: str) -> None:
    write(tmp_path, rule("a"))
    (tmp_path / part).rename(tmp_path / "elsewhere")
    (tmp_path / part).symlink_to(tmp_path / "elsewhere")
    problem = problem_of(tmp_path)
    assert problem.file == str(tmp_path / part)
    assert problem.message == "is a symbolic link, which is not followed"


@pytest.mark.parametrize("part", ["usr", "usr/local", "usr/local/lib"])
@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_with_no_policy_behind_it_keeps_no_other_policy_back(
    tmp_path: Path, part: str, target: str
) -> None:
    """As /usr/local is one with ostree."""
    write(tmp_path, rule("a"))
    (tmp_path / "elsewhere/lib").mkdir(parents=True)
    (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / part).symlink_to(tmp_path / target)
    assert names(tmp_path) == ["a"]


def test_a_link_with_a_policy_behind_it_is_refused_beside_another_policy(tmp_path: Path) -> None:
    write(tmp_path, rule("a"))
    write(tmp_path, rule("b"), "20.yaml", LOCAL)
    (tmp_path / "usr/local").rename(tmp_path / "elsewhere")
    (tmp_path / "usr/local").symlink_to("../elsewhere")
    problem = problem_of(tmp_path)
    assert problem.file == str(tmp_path / "usr/local")
    assert problem.message == "is a symbolic link, which is not followed"


@pytest.mark.parametrize("place", [ETC, LOCAL])
def test_a_policy_directory_that_is_a_link_to_nothing_is_refused(tmp_path: Path, place: str) -> None:
    """Somebody meant a policy to be there."""
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).symlink_to("nowhere")
    assert problem_of(tmp_path).file == str(tmp_path / place)


def test_a_file_where_a_directory_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc/vfio-flavourd").mkdir(parents=True)
    (tmp_path / ETC).write_text("", encoding="ascii")
    assert problem_of(tmp_path).message == "can't be read: Not a directory"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / ETC).mkdir(parents=True)
    path = tmp_path / ETC / "10.yaml"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    assert problem_of(tmp_path).message == "is not a regular file"


@pytest.mark.parametrize(("size", "fits"), [(65535, True), (65536, False), (65537, False), (1 << 22, False)])
def test_a_file_of_64_kib_and_more_is_refused(tmp_path: Path, size: int, fits: bool) -> None:
    text = rule("a")
    path = write(tmp_path, text + "#" * (size - len(text)))
    if fits:
        assert names(tmp_path) == ["a"]
        return
    assert problem_of(tmp_path).message == "is 64 KiB or larger"
    with pytest.raises(PolicyError, match="is 64 KiB or larger"):
        load_files([path])


def test_all_files_together_have_a_limit(tmp_path: Path) -> None:
    for number in range(17):
        text = rule(f"r{number}")
        write(tmp_path, text + "#" * (65535 - len(text)), f"{number}.yaml")
    assert [each.message for each in problems_of(tmp_path)][-1].startswith(
        "all files together are larger than"
    )


def test_no_more_than_the_limit_is_read_into_memory(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path, "#" * 65535, f"{number}.yaml")
    with pytest.raises(PolicyError) as caught:
        load(tmp_path)
    assert len(caught.value.files) == 17


def test_what_was_rendered_may_be_larger(tmp_path: Path) -> None:
    path = tmp_path / "last-good"
    path.write_text(rule("a") + "#" * 200_000, encoding="ascii")
    assert [each.name for each in load_rendered(path).policy.rules] == ["a"]


# changed meanwhile


def on_reading(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Do something between the look at a file and its last read."""
    read = os.read

    def read_and_change(file: int, size: int) -> bytes:
        data = read(file, size)
        if not data:
            change()
        return data

    monkeypatch.setattr(os, "read", read_and_change)


def check_changed(root: Path) -> None:
    problem = problem_of(root)
    assert problem.message == "changed while it was being read"
    assert problem.hint == "reload when it has been written"


def test_a_file_replaced_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, rule("a"))
    other = write(tmp_path, rule("a"), "other")
    on_reading(monkeypatch, lambda: other.exists() and other.rename(path))
    check_changed(tmp_path)


def test_a_file_written_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, rule("a"))
    on_reading(monkeypatch, lambda: path.write_text(rule("b"), encoding="ascii"))
    check_changed(tmp_path)


def test_a_file_that_is_written_and_given_its_old_time_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, rule("a"))
    was = path.stat()

    def change() -> None:
        path.write_text(rule("b"), encoding="ascii")
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))

    on_reading(monkeypatch, change)
    check_changed(tmp_path)


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, rule("a"))

    def grow() -> None:
        with path.open("a") as file:
            file.write("#\n")

    on_reading(monkeypatch, grow)
    check_changed(tmp_path)


def test_a_file_that_vanishes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, rule("a"))
    on_reading(monkeypatch, lambda: path.unlink(missing_ok=True))
    assert problem_of(tmp_path).message == "can't be read: No such file or directory"


def test_a_file_whose_rights_change_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, rule("a"))
    on_reading(monkeypatch, lambda: path.chmod(0o666))
    check_changed(tmp_path)


# drafts


def test_a_draft_may_be_anybodys(tmp_path: Path) -> None:
    path = write(tmp_path, RULE.replace("rules", "version: 1\nrules"))
    path.chmod(0o666)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    assert [each.name for each in load_files([link]).policy.rules] == ["all"]


def test_drafts_are_one_policy(tmp_path: Path) -> None:
    paths = [write(tmp_path, rule(name), f"{name}.yaml") for name in ("b", "a")]
    with pytest.raises(PolicyError, match="a rule 'a' is already defined"):
        load_files([*paths, paths[1]])


def test_a_draft_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nowhere.yaml: can't be read: No such file or directory"):
        load_files([tmp_path / "nowhere.yaml"])


def test_a_name_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ETC).mkdir(parents=True)
    path = os.fsencode(tmp_path / ETC) + b"/\xff\n.yaml"
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123 - a Path can't be made of bytes
        file.write(rule("a"))
    os.chmod(path, 0o644)  # noqa: PTH101
    assert names(tmp_path) == ["a"]
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("x")
    assert problem_of(tmp_path).message.startswith("the file: found 'x'")
