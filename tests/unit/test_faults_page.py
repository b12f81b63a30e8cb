"""The page of promises and faults names tests that exist, and for each fault at least one."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
FOLDERS = ("unit", "guest")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of one of the tables. `tests` are pairs of a file's name and a function's."""

    part: str
    fault: str
    promises: tuple[int, ...]
    happens: str
    tests: tuple[tuple[str, str], ...]
    where: tuple[str, ...]


def read_rows() -> Iterator[Row]:
    part = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            part = line.lstrip("# ")
        if not line.startswith("|") or line.startswith(("|---", "| fault ")):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 5, line
        fault, promises, happens, tests, where = cells
        named = re.findall(r"`([^`]*)`", tests)
        assert re.sub(r"`[^`]*`|<br>|[\s,]", "", tests) == "", f"only names of tests: {line}"
        yield Row(
            part,
            fault,
            tuple(int(number) for number in promises.split(",")),
            happens,
            tuple(split(name) for name in named),
            tuple(where.split(", ")),
        )


def split(name: str) -> tuple[str, str]:
    file, _, function = name.partition("::")
    return file, function


@cache
def find_tests(folder: str) -> frozenset[tuple[str, str]]:
    """What pytest would collect, without importing it: what the guest needs need not be here."""
    return frozenset(
        (path.name, node.name)
        for path in (ROOT / "tests" / folder).glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    )


ROWS = tuple(read_rows())


def test_the_page_has_its_faults_in_the_parts_that_it_is_known_by() -> None:
    parts = {row.part for row in ROWS}
    assert parts == {"Input", "Policy", "Index", "Clients", "Events", "Refusals", "Transition", "State"}
    assert len({(row.part, row.fault) for row in ROWS}) == len(ROWS) >= 90


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.part}: {row.fault}")
def test_a_fault_has_a_test_that_exists_where_the_page_says(row: Row) -> None:
    assert row.happens
    assert row.tests, "no test is named"
    for test in row.tests:
        assert any(test in find_tests(folder) for folder in FOLDERS), f"there is no {'::'.join(test)}"
    where = tuple(folder for folder in FOLDERS if any(test in find_tests(folder) for test in row.tests))
    assert row.where == where
    assert set(row.promises) <= set(range(1, 9))


def test_no_test_could_be_meant_by_the_name_of_another() -> None:
    """A name stands for one test, in whichever folder it is."""
    assert not find_tests("unit") & find_tests("guest")


def test_each_promise_stands_on_the_page_and_has_a_fault_that_tries_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    promised = [int(number) for number in re.findall(r"^(\d)\. ", text, re.MULTILINE)]
    assert promised == list(range(1, 9))
    assert {promise for row in ROWS for promise in row.promises} == set(promised)
