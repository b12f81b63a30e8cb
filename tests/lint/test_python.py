"""The Python linters, run as a person would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def run(*command: str | Path) -> tuple[int, str]:
    done = subprocess.run(command, cwd=ROOT, text=True, check=False, capture_output=True)
    return done.returncode, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    where = ("vfio_flavourd", "bench", "tests", "tools", "docs")
    status, output = run(BIN / "ruff", "check", "--output-format=concise", *where)
    assert status == 0, output


@pytest.mark.timeout(300)
def test_the_package_passes_mypy_strict() -> None:
    status, output = run(BIN / "mypy", "--strict", "vfio_flavourd")
    assert status == 0, output


@pytest.mark.timeout(300)
def test_the_benches_tests_and_tools_pass_mypy_strict() -> None:
    status, output = run(BIN / "mypy", "--strict", "bench", "tests", "tools")
    assert status == 0, output


def test_imports_point_one_way() -> None:
    status, output = run(BIN / "lint-imports", "--no-cache")
    assert status == 0, output
