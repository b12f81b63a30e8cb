"""The native benches on a small scale, so that they can't rot, and what is made of their figures.

No time is asserted.
"""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import __main__ as program
from bench import docs, many_devices, resolution, start_up
from bench.chart import draw
from bench.measure import QUICK, Row, Scale, run_rounds
from bench.subjects import NAMES, NATIVE, Native
from bench.table import HEADER, lay_out, render_markdown

# Ours beside two others and a limit; one of the others is not there.
ROW = Row(
    "a thing",
    "ms",
    "ours",
    {"ours": [2.0, 4.0, 3.0], "theirs": [4.0, 4.0, 12.0]},
    {"theirs": 0.4, "absent": 1.0},
    3.5,
)


def find_cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines()]


def test_a_ratio_is_taken_within_a_round() -> None:
    theirs, absent, limit = ROW.comparisons()
    assert theirs.ratio is not None
    # Of 2/4, 4/4 and 3/12. Ours' median divided by theirs' would be 0.75.
    assert (theirs.ratio.median, theirs.ratio.low, theirs.ratio.high) == (0.5, 0.25, 1.0)
    assert (theirs.is_met, absent.is_met, limit.is_met) == (False, None, True)
    assert absent.theirs is None


def test_each_round_begins_with_another_side_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def make(name: str) -> dict[str, float]:
        order.append(name)
        return {"time": float(len(order))}

    samples = run_rounds({"a": lambda: make("a"), "b": lambda: make("b")}, 2, warm_up=True)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert samples == {"time": {"a": [3.0, 6.0], "b": [4.0, 5.0]}}


def test_the_table_has_each_side_with_its_spread_and_says_whether_the_aim_is_met() -> None:
    head, _, *lines = find_cells(render_markdown([ROW]))
    assert head == list(HEADER)
    assert lines == [
        ["a thing", "ours: 3 (2..4) ms", "theirs", "4 (4..12) ms", "0.50 (0.25..1)", "≤ 0.4", "**no**"],
        ["", "", "absent", "not there", "", "≤ 1", ""],
        ["", "", "", "", "", "≤ 3.50 ms", "yes"],
    ]
    assert len(lay_out([ROW]).splitlines()) == 4


def test_a_limit_of_nothing_is_met_by_nothing_alone() -> None:
    for lost, met in ((0.0, True), (1.0, False)):
        (limit,) = Row("lost", "events", "ours", {"ours": [lost]}, limit=0.0).comparisons()
        assert (limit.ratio, limit.is_met) == (None, met)


def test_the_chart_has_a_line_for_each_ratio_a_hollow_dot_where_an_aim_is_missed_and_no_colour() -> None:
    root = ET.fromstring(draw("A <title>", [ROW]))
    space = "{http://www.w3.org/2000/svg}"
    lines = {group.findtext(f"{space}title"): group for group in root.iter(f"{space}g")}
    assert list(lines) == ["a thing: ours / theirs", "a thing: ours ≤ 3.50 ms"]
    dots = [group.find(f"{space}path").get("fill") for group in lines.values()]  # type: ignore[union-attr]
    assert dots == ["#ffffff", "#222222"]
    colours = {element.get(name) for element in root.iter() for name in ("fill", "stroke")} - {None}
    assert all(colour is not None and colour[1:3] == colour[3:5] == colour[5:7] for colour in colours)


def test_the_documentation_gets_what_stands_between_the_marks_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- bench: x -->\nold\n<!-- end of bench -->\n"
        "after\n<!-- bench: y -->\n<!-- end of bench -->\n"
    )
    for _ in range(2):
        docs.write_docs("x", "Title", "here", [ROW], page, tmp_path / "pictures")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- bench: x -->\n\nhere\n\n| what |")
    assert text.endswith("<!-- end of bench -->\nafter\n<!-- bench: y -->\n<!-- end of bench -->\n")
    assert "old" not in text
    assert text.count("(pictures/bench-x.svg)") == 1
    assert (tmp_path / "pictures/bench-x.svg").exists()
    with pytest.raises(ValueError, match="z: the page has 0 places"):
        docs.write_docs("z", "Title", "here", [ROW], page, tmp_path / "pictures")


def test_the_documentation_has_a_place_for_each_subject() -> None:
    text = docs.PAGE.read_text(encoding="utf-8")
    for name in NAMES:
        docs.replace(text, name, "")


@pytest.mark.parametrize(
    ("subject", "rows"),
    [(resolution, 4), (start_up, 2), (many_devices, 3)],
    ids=["resolution", "start-up", "many"],
)
def test_a_native_bench_measures_each_side_in_each_round(subject: Native, rows: int) -> None:
    measured = subject.measure(QUICK)
    assert len(measured) == rows
    for row in measured:
        assert row.ours in row.samples
        lengths = {len(figures) for figures in row.samples.values()}
        assert len(lengths) == 1, row.what
        assert min(min(figures) for figures in row.samples.values()) > 0


def test_a_subject_that_fails_does_not_lose_the_others_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Scale) -> list[Row]:
        raise OSError("nothing works")

    first, last = NATIVE[0], NATIVE[-1]
    monkeypatch.setattr(
        program, "NATIVE", (Native(first.name, "", fail), Native(last.name, "Last", lambda _: [ROW]))
    )
    argv = ["--quick", "--out", str(tmp_path), "--only", first.name, "--only", last.name]
    assert program.main(argv) == 1
    said = capsys.readouterr().err
    assert "nothing works" in said
    assert said.rstrip().endswith(f"failed: {first.name}")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")).keys() == {last.name}
    assert "## Last" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert (tmp_path / f"{last.name}.svg").exists()
