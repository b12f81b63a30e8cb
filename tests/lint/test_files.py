"""What no linter of Python knows: shell, YAML, versions, and words that must not be in the tree."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import vfio_flavourd

ROOT = Path(__file__).parents[2]
WRITTEN_BY_TOOLS = {".build", ".git", ".hypothesis", ".venv", "__pycache__", "dist", "vendored"}
# With a bracket in each, so that the search doesn't find this file.
FORBIDDEN = {
    "a path of the machine it was written on": r"(?<![\w.~])/[w]ork/",
    "a package registry's host": r"[p]ypi\.org|[p]ythonhosted\.org",
    "a mirror's host": r"[d]eb\.debian\.org|[s]ecurity\.debian\.org",
}


def find_files() -> list[Path]:
    found: list[Path] = []
    for directory, folders, names in os.walk(ROOT):
        folders[:] = sorted(
            folder for folder in folders if folder not in WRITTEN_BY_TOOLS and not folder.endswith("_cache")
        )
        # In a worktree .git is a file.
        found += (Path(directory, name) for name in sorted(names) if name not in WRITTEN_BY_TOOLS)
    return [path for path in found if path.is_file() and not path.is_symlink()]


def read_text(path: Path) -> str | None:
    """None for what isn't text, such as a kernel module."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def is_shell(path: Path) -> bool:
    if path.suffix in {".bash", ".sh"} or path.name in {"postinst", "postrm", "preinst", "prerm"}:
        return True
    if path.parent == ROOT / "debian" and path.suffix in {".postinst", ".postrm", ".preinst", ".prerm"}:
        return True
    with path.open("rb") as file:
        return re.match(rb"#! ?/(usr/)?bin/(env )?(ba|da)?sh\b", file.readline(80)) is not None


def relative(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_shellcheck_finds_nothing() -> None:
    scripts = [path for path in find_files() if is_shell(path)]
    assert scripts
    command = ["shellcheck", "--external-sources", *relative(scripts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_link_in_the_documentation_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_yaml_file_parses() -> None:
    broken = {}
    for path in find_files():
        if path.suffix in {".yaml", ".yml"}:
            try:
                list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
            except yaml.YAMLError as error:
                broken[str(path.relative_to(ROOT))] = str(error)
    assert broken == {}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in find_files()
        if (text := read_text(path)) is not None and re.search(FORBIDDEN[what], text)
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert found == []


def test_the_debian_changelog_has_the_version_of_the_code() -> None:
    first_line = (ROOT / "debian/changelog").read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith(f"vfio-flavourd ({vfio_flavourd.__version__})")
    assert f"## [{vfio_flavourd.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_carried_library_is_the_one_that_is_tested() -> None:
    pins = [
        re.findall(r"^asyncvarlink==(\S+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        for file in ("requirements-dev.txt", "debian/vendored-requirements.txt")
    ]
    assert pins[0] == pins[1]
    assert len(pins[0]) == 1


def test_every_requirement_is_pinned_by_hash() -> None:
    for file in ("requirements-dev.txt", "debian/vendored-requirements.txt"):
        text = (ROOT / file).read_text(encoding="utf-8").replace("\\\n", " ")
        requirements = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert requirements
        assert [line for line in requirements if "==" not in line or "--hash=sha256:" not in line] == []


def test_the_manual_pages_are_clean() -> None:
    pages = sorted((ROOT / "man").iterdir())
    assert [page.stem for page in pages] == [
        "flavourctl",
        "vfio-flavour-fs",
        "vfio-flavourd",
        "vfio-flavourd.policy",
    ]
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *relative(pages)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_that_are_run_are_executable() -> None:
    scripts = [ROOT / ".ci/run", ROOT / ".ci/install-packages", ROOT / "debian/rules"]
    scripts += sorted((ROOT / "debian/launchers").iterdir())
    assert [str(path) for path in scripts if not os.access(path, os.X_OK)] == []


def test_the_linters_that_are_programs_are_there() -> None:
    programs = ("fish", "mandoc", "shellcheck", "systemd-analyze", "zsh")
    assert [name for name in programs if not shutil.which(name)] == []
