"""plot: switches on a time axis."""

import asyncio
import errno
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import test_cli
from fake_kernel import FakeDriver, pending
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import SVG, check_golden, check_picture, find_labels
from served import Said
from test_cli import ALIAS, DEVICE, Host, call, check_error

from vfio_flavourd.cli.glyphs import measure, wrap
from vfio_flavourd.cli.plot_svg import render_plot
from vfio_flavourd.cli.timescale import Scale, label_time, tell_duration
from vfio_flavourd.model.printable import printable

host = test_cli.host  # the fixture

EVIL = '<b>&amp; "Ünïcödé" \\N 日本語 \x1b[31m\u202e]]> '
TURN = ("turn", "wait for the turn of its IOMMU group", 0.0001)
GUARD = ("guard", "see whether it may be taken", 0.0123)


def make_attempt(
    *steps: tuple[Any, ...], error: str = "", outcome: str = "failed", **more: Any
) -> dict[str, Any]:
    """Of (action, what, duration, error, candidate, phase), one after the other."""
    made, now = [], 0.0
    for step in steps:
        action, what, duration, *rest = step
        failed, candidate, phase = rest + ["", "", "switching"][len(rest) :]
        made.append(
            {
                "phase": phase,
                "action": action,
                "candidate": candidate,
                "what": what,
                "started": now,
                "duration": duration,
                "error": failed,
            }
        )
        now += duration + 0.0004
    head = {"title": "0000:01:00.0 Intel Corporation 82574L", "lines": ["attempt 12 at 2026-11-25 19:01:02"]}
    return {"steps": made, "duration": now, "error": error, "outcome": outcome, **head, **more}


def make_tries(candidate: str, **errors: str) -> list[tuple[Any, ...]]:
    """Up to the first that failed."""
    steps: list[tuple[Any, ...]] = []
    for action, what, duration in (
        ("load", f"load {candidate}", 0.021),
        ("override", f"driver_override = {candidate}", 0.0003),
        ("unbind", "unbind from e1000e", 0.0434),
        ("bind", f"bind to {candidate}", 0.0081),
        ("verify", "read back what it has", 0.0004),
    ):
        steps.append((action, what, duration, errors.get(action, ""), candidate))
        if action in errors:
            break
    return steps


ONE = make_attempt(TURN, GUARD, *make_tries("vfio_pci"))
THREE = make_attempt(
    TURN,
    GUARD,
    ("load", "load vft_hang", 0.5, "not there within 0.5 s", "vft_hang"),
    *make_tries("vft_refuse", bind="Invalid argument (EINVAL)"),
    *make_tries("vfio_pci"),
)
STUCK = make_attempt(
    TURN,
    GUARD,
    ("load", "load vfio_pci", 0.003, "", "vfio_pci"),
    ("unbind", "unbind from e1000e", 30.0, "has not returned for 30 s (process 812)", "vfio_pci"),
    error="0000:01:00.0: 'unbind from e1000e' has not returned for 30 s (process 812)",
    outcome="stuck",
)
REFUSED = make_attempt(
    ("guard", "see whether it may be taken", 0.002, "refused"),
    error="0000:01:00.0: in use: /mnt on nvme0n1p2",
    outcome="refused",
)


def render(*attempts: dict[str, Any]) -> str:
    return render_plot(attempts, "0000:01:00.0 to vfio: done", "on here, Linux 6.12.0")


def find_bars(root: ET.Element) -> list[tuple[float, float]]:
    """Where each begins, and how wide it is."""
    bars = [each for each in root.iter(f"{SVG}rect") if each.attrib.get("height") == "12"]
    return [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in bars]


@pytest.mark.parametrize(
    ("name", "attempts"),
    [
        ("plot-one", [ONE]),
        ("plot-three-candidates", [THREE]),
        ("plot-stuck", [STUCK]),
        ("plot-refused", [REFUSED]),
        ("plot-several", [ONE, THREE, STUCK]),
    ],
)
def test_a_plot_has_a_bar_for_each_step_and_no_label_over_another(
    name: str, attempts: list[dict[str, Any]]
) -> None:
    picture = render(*attempts)
    check_golden(f"{name}.svg", picture)
    root = check_picture(picture)
    assert len(find_bars(root)) == sum(len(attempt["steps"]) + 1 for attempt in attempts)
    labels = find_labels(root)
    for attempt in attempts:
        assert attempt["title"] in labels
        assert {step["action"] for step in attempt["steps"]} <= set(labels)
        assert {step["what"] for step in attempt["steps"]} <= set(labels)


def test_each_candidate_is_told_with_what_came_of_it() -> None:
    labels = find_labels(check_picture(render(THREE)))
    results = [label for label in labels if label.startswith("candidate")]
    assert results == [
        "candidate 1, vft_hang: failed",
        "candidate 2, vft_refuse: failed",
        "candidate 3, vfio_pci: took the device",
    ]
    assert "failed: Invalid argument (EINVAL)" in labels


def test_a_failure_has_a_cross_and_a_pattern_and_says_why() -> None:
    assert 'fill="url(#failed)"' not in render(ONE)
    picture = render(THREE)
    assert picture.count('fill="url(#failed)"') == 2
    assert len(re.findall(r'<path d="M[\d. ]+l10 10m0 -10l-10 10" stroke="#a03a00"', picture)) == 2


def test_the_way_back_is_told_apart_from_the_candidates() -> None:
    undone = make_attempt(
        *make_tries("vfio_pci", bind="Invalid argument (EINVAL)"),
        ("bind", "bind to e1000e", 0.01, "", "", "undoing"),
        error="no VFIO driver could be had",
    )
    labels = find_labels(check_picture(render(undone)))
    assert labels.index("back to what it had") < labels.index("bind to e1000e")


def test_a_step_of_a_millisecond_can_be_seen_beside_one_of_half_a_minute() -> None:
    root = check_picture(render(STUCK))
    guard = find_bars(root)[2]
    load, unbind = find_bars(root)[3:5]
    assert guard[1] > 100
    assert load[1] > 20
    assert unbind[1] >= 70
    assert "30.0 s" in find_labels(root)


def test_what_is_alone_is_not_cut_short() -> None:
    assert "are cut short here" in render(STUCK)
    assert "are cut short here" not in render(make_attempt(("guard", "look", 30.0, "refused")))


def test_several_switches_share_one_scale() -> None:
    root = check_picture(render(ONE, STUCK))
    bars = find_bars(root)
    guards = bars[2], bars[len(ONE["steps"]) + 1 + 2]
    assert guards[0] == guards[1]


def test_the_smallest_step_is_wide_enough_to_be_seen() -> None:
    attempt = make_attempt(("guard", "look", 0.0), ("load", "load x", 1.0), ("bind", "bind to x", 0.0))
    assert min(width for _, width in find_bars(check_picture(render(attempt)))) >= 3


def test_whatever_names_there_are_no_label_is_cut_or_over_another() -> None:
    attempt = make_attempt(
        ("load", "load " + EVIL * 4, 0.2, EVIL * 9, "y" * 64),
        ("unbind", "unbind from x", 30.0, "x" * 300, EVIL),
        error=EVIL * 5,
        title=EVIL * 6,
        lines=[EVIL * 9, "x" * 300],
    )
    picture = render(attempt, ONE)
    check_golden("plot-evil.svg", picture)
    check_picture(picture)
    assert "\x1b" not in picture


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.floats(0, 1e6, allow_subnormal=False) | st.floats(0, 1e-3), min_size=1, max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_whatever_the_steps_take_the_picture_stays_readable(durations: list[list[float]]) -> None:
    attempts = [make_attempt(*(("load", "load x", each) for each in steps)) for steps in durations]
    root = check_picture(render(*attempts))
    width = float(root.attrib["width"])
    for left, bar in find_bars(root):
        assert bar >= 3
        assert left + bar <= width - 24
    assert len(ET.tostring(root)) < 200_000


@settings(max_examples=200)
@given(st.lists(st.floats(0, 1e6, allow_subnormal=False) | st.floats(0, 1e-2), max_size=12))
def test_a_scale_keeps_the_order_and_has_round_ticks_that_do_not_overlap(times: list[float]) -> None:
    scale = Scale(pairwise(sorted(times)), 660, 11)
    places = [scale.place(time) for time in sorted(times)]
    assert places == sorted(places)
    assert all(0 <= place <= 660.01 for place in places)
    ticks = scale.ticks()
    assert ticks
    assert len(ticks) <= 60
    for one, next_one in pairwise(ticks):
        room = next_one.x - one.x
        assert room >= (measure(one.label, 11) + measure(next_one.label, 11)) / 2
        assert one.label != next_one.label


@pytest.mark.parametrize(
    ("longest", "labels"),
    [
        (0.004, ["0.0 ms", "0.5 ms", "1.0 ms"]),
        (0.25, ["0 ms", "50 ms", "100 ms"]),
        (0.6, ["0 ms", "100 ms", "200 ms"]),
        (9.0, ["0 s", "1 s", "2 s"]),
        (31.0, ["0 s", "2 s", "4 s"]),
    ],
)
def test_ticks_are_at_1_2_or_5_of_a_unit_that_fits(longest: float, labels: list[str]) -> None:
    assert [tick.label for tick in Scale([(0, longest)], 660, 11).ticks()][:3] == labels


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0.000 ms"), (0.00012, "0.120 ms"), (0.0123, "12.3 ms"), (0.412, "412 ms"), (30.02, "30.0 s")],
)
def test_a_duration_is_told_in_three_digits(seconds: float, told: str) -> None:
    assert tell_duration(seconds) == told


def test_a_time_has_the_digits_that_tell_it_from_its_neighbours() -> None:
    assert label_time(30.018, 0.002) == "30.018 s"
    assert label_time(0.018, 0.002) == "18 ms"


@given(st.text(max_size=80), st.integers(40, 400))
def test_no_wrapped_line_is_too_wide_and_nothing_is_lost(text: str, width: int) -> None:
    lines = wrap(text, width, 11)
    assert all(measure(line, 11) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == printable(text).replace(" ", "")


# as somebody at a terminal sees it


def say(host: Host, *calls: list[str]) -> Said:
    """One after the other, to one daemon; what the last one said."""

    async def run() -> int:
        async with host.served():
            for argv in calls[:-1]:
                await asyncio.to_thread(call, argv)
            host.capsys.readouterr()
            return await asyncio.to_thread(call, calls[-1])

    status = asyncio.run(run())
    caught = host.capsys.readouterr()
    return Said(status, caught.out, caught.err)


def test_plot_of_a_device_is_its_last_switch_with_each_candidate(host: Host) -> None:
    refusing = FakeDriver("better", "better_vfio", vfio=True, probe_errno=errno.EINVAL)
    host.kernel.add_module(refusing, alias=ALIAS)
    said = say(host, ["set", DEVICE, "vfio"], ["plot", "01:00.0"])
    assert (said.status, said.err) == (0, "")
    labels = find_labels(check_picture(said.out))
    assert f"{DEVICE} to vfio: done" in labels
    assert f"{DEVICE} {host.name}" in labels
    assert "candidate 1, better_vfio: failed" in labels
    assert "failed: Invalid argument (EINVAL)" in labels
    assert "candidate 2, vfio_pci: took the device" in labels
    lanes = [label for label in labels if label in ("guard", "load", "override", "unbind", "bind", "verify")]
    assert lanes == ["guard", "load", "override", "unbind", "bind", "load", "override", "bind", "verify"]


def test_plot_of_a_stuck_switch_shows_what_has_not_come_back(host: Host) -> None:
    host.timeouts["bind"] = 0.05
    native = host.kernel.drivers["e1000e"]

    async def run() -> int:
        native.remove_blocks = asyncio.Event()
        async with host.served() as engine:
            await asyncio.to_thread(call, ["set", DEVICE, "vfio"])
            host.capsys.readouterr()
            status = await asyncio.to_thread(call, ["plot", DEVICE])
            native.remove_blocks.set()
            await asyncio.gather(*pending(engine))
            return status

    assert asyncio.run(run()) == 0
    labels = find_labels(check_picture(host.capsys.readouterr().out))
    assert f"{DEVICE} to vfio: stuck" in labels
    assert any(label.startswith("failed: has not returned for 0.05 s (process ") for label in labels)


def test_plot_takes_several_by_their_numbers_and_writes_a_file(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "plot.svg"
    switches = (["set", DEVICE, "vfio"], ["set", DEVICE, "native"])
    said = say(host, *switches, ["plot", "1", "2", "-o", str(file)])
    assert (said.status, said.out, said.err) == (0, "", "")
    labels = find_labels(check_picture(file.read_text(encoding="utf-8")))
    assert "2 switches" in labels
    heads = [label for label in labels if label.startswith("attempt ")]
    assert [head.split()[1] for head in heads] == ["1", "2"]
    assert all(label in labels for label in ("bind to vfio-pci", "bind to e1000e"))


@pytest.mark.parametrize(
    ("wanted", "status", "start"),
    [
        ("7", 1, "no switch 7 is remembered"),
        ("02:00.0", 1, "0000:02:00.0: no switch is remembered"),
        ("9" * 5000, 1, "no switch 99999999999999999999 is remembered"),
        ("gpu", 2, "'gpu' is not a PCI address"),
    ],
)
def test_a_switch_that_is_not_known_is_an_error_of_one_line(
    host: Host, wanted: str, status: int, start: str
) -> None:
    check_error(host.say("plot", wanted), status, start)


def test_a_file_that_can_not_be_written_is_an_error_of_one_line(host: Host) -> None:
    said = say(host, ["set", DEVICE, "vfio"], ["plot", "1", "-o", "/nowhere/plot.svg"])
    check_error(said, 2, "the picture can't be written to '/nowhere/plot.svg': No such file or directory")


def test_a_plot_is_not_written_to_a_terminal(host: Host) -> None:
    host.monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    said = host.say_alone("plot", DEVICE)
    check_error(said, 2, "a terminal can't show a picture")
    assert "-o" in said.err
