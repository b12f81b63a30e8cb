"""What the package is made of is pinned, and said truthfully."""

import hashlib
import json
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tools.sbom import BILL, render_bill
from vfio_flavourd import __version__

ROOT = Path(__file__).parents[2]
PRIVATE = "usr/share/vfio-flavourd"


def bill() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / BILL).read_text(encoding="ascii"))
    return data


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it was built last; `make check` does so before this."""
    package = ROOT / f"dist/vfio-flavourd_{__version__}_all.deb"
    if not package.exists():
        pytest.skip("no package has been built")
    directory = tmp_path_factory.mktemp("package")
    subprocess.run(["dpkg-deb", "--raw-extract", package, directory], check=True)
    return directory


def test_the_bill_of_materials_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert {path: path.read_text(encoding="ascii") for path in render_bill()} == render_bill(), (
        "make reference"
    )


def test_the_bill_names_the_wheel_that_is_carried_and_each_of_its_files_is_in_the_package(
    unpacked: Path,
) -> None:
    carried = {each["name"]: each for each in bill()["components"] if "hashes" in each}
    inside = {path.name for path in (unpacked / PRIVATE).iterdir() if (path / "__init__.py").exists()}
    assert inside == {"vfio_flavourd", *carried}
    for name, component in carried.items():
        (wheel,) = (ROOT / ".build/vendored").glob(f"{name}-{component['version']}-*.whl")
        assert component["hashes"] == [
            {"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}
        ]
        with zipfile.ZipFile(wheel) as archive:
            files = [each for each in archive.namelist() if not each.startswith(f"{name}-")]
            assert files
            for file in files:
                assert (unpacked / PRIVATE / file).read_bytes() == archive.read(file)


def test_the_bill_names_what_the_package_depends_on(unpacked: Path) -> None:
    control = (unpacked / "DEBIAN/control").read_text(encoding="utf-8")
    (depends,) = re.findall("^Depends: (.*)$", control, re.MULTILINE)
    wanted = {name.partition(":")[0] for name in re.findall(r"(?:^|, )([^ ,]+)", depends)}
    assert wanted == {each["name"] for each in bill()["components"] if "hashes" not in each}


def test_the_package_carries_its_bill_and_who_may_do_what(unpacked: Path) -> None:
    documents = unpacked / "usr/share/doc/vfio-flavourd"
    shipped = [path.name for path in documents.iterdir()]
    assert {"SECURITY.md", "sbom.cdx.json"} <= set(shipped)


@pytest.mark.parametrize("there", ["as it is named", "another one", "one beside it"])
def test_nothing_is_unpacked_into_the_package_but_what_is_pinned(tmp_path: Path, there: str) -> None:
    pinned = b"a wheel"
    (tmp_path / "debian/vendored").mkdir(parents=True)
    (tmp_path / "debian/vendored/a-1-py3-none-any.whl").write_bytes(
        pinned if there != "another one" else b"another"
    )
    if there == "one beside it":
        (tmp_path / "debian/vendored/b-1-py3-none-any.whl").write_bytes(b"another")
    (tmp_path / "debian/vendored-requirements.txt").write_text(
        f"a==1 \\\n    --hash=sha256:{hashlib.sha256(pinned).hexdigest()}\n", encoding="ascii"
    )
    done = subprocess.run(
        ["make", "-C", tmp_path, "-f", ROOT / "debian/rules", "check-vendored"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is (there == "as it is named")
    assert ("not in debian/vendored-requirements.txt" in done.stderr) is (done.returncode != 0)
    rules = (ROOT / "debian/rules").read_text(encoding="utf-8")
    assert "\noverride_dh_auto_install: check-vendored\n" in rules


def test_make_installs_only_what_is_pinned_by_hash() -> None:
    installs = re.findall(r"pip (?:install|download) .*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(installs) >= 4
    assert [line for line in installs if "--require-hashes" not in line] == []


@pytest.mark.parametrize("tool", ["fuzz", "lock", "mutation"])
def test_what_only_a_long_run_needs_is_pinned_by_hash_too(tool: str) -> None:
    text = (ROOT / f"requirements-{tool}.txt").read_text(encoding="ascii").replace("\\\n", " ")
    assert text.splitlines()
    assert [line for line in text.splitlines() if "==" not in line or "--hash=sha256:" not in line] == []
