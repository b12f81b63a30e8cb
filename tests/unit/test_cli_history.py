"""flavourctl history, against a served daemon on a fake kernel."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import DEVICE, Host, host  # noqa: F401 - the fixture

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.history import MOST
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.flavour import Attempt, Ending, Flavour, StepAction, StepReport
from vfio_flavourd.model.transition import Phase

HEADER = ["ID", "WHEN", "DEVICE", "WHAT", "OUTCOME", "DURATION", "REQUESTER"]


def add(engine: Engine, ending: Ending = Ending.DONE, device: str = DEVICE, **more: Any) -> None:
    values: dict[str, Any] = {
        "flavour": Flavour.VFIO,
        "requester": "uid 0 pid 4711",
        "unit": "",
        "when": 1_764_000_000.0,
        "duration": 0.4123,
        "driver": "vfio-pci",
        "previous_driver": "e1000e",
        "fallback": False,
        "forced": (),
        "rule": "",
        "reason": "",
        "error": "",
        "hint": "",
        "code": "",
        "steps": (StepReport(Phase.LOADING, StepAction.LOAD, "load vfio_pci", 0.1, 0.2),),
    }
    engine.attempts.history.add(
        Attempt(
            id=engine.attempts.history.next_id(),
            address=parse_address(device),
            ending=ending,
            **{**values, **more},
        )
    )


def add_each_kind(engine: Engine) -> None:
    add(engine)
    add(engine, fallback=True, forced=("QEMU",), duration=12.34)
    add(engine, Ending.UNCHANGED, "0000:02:00.0")
    add(engine, Ending.REFUSED, error=f"{DEVICE}: in use", code="in-use", driver=None)
    add(engine, Ending.GIVEN_UP, error=f"{DEVICE}: given up", code="interrupted", previous_driver=None)
    add(engine, Ending.STUCK, error=f"{DEVICE}: stuck", code="stuck", requester="\x1b[31mme")


@pytest.fixture
def tried(host: Host) -> Host:  # noqa: F811 - the fixture
    host.before = add_each_kind
    return host


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(width: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
        monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((width, 24)))

    return make


def cells(line: str) -> list[str]:
    return re.split(r"  +", line)


def test_each_attempt_is_a_line_and_the_last_one_comes_last(tried: Host) -> None:
    said = tried.say("history")
    header, *lines = said.out.splitlines()
    assert cells(header) == HEADER
    rows = [cells(line) for line in lines]
    when = rows[0][1]
    assert re.fullmatch(r"2025-11-2\d \d\d:\d\d:\d\d", when)
    assert [[row[0], *row[2:]] for row in rows] == [
        ["1", DEVICE, "to vfio (e1000e -> vfio-pci)", "done", "412 ms", "uid 0 pid 4711"],
        [
            "2",
            DEVICE,
            "to vfio (e1000e -> vfio-pci)",
            "done, fell back, by force",
            "12.3 s",
            "uid 0 pid 4711",
        ],
        ["3", "0000:02:00.0", "to vfio", "unchanged", "412 ms", "uid 0 pid 4711"],
        ["4", DEVICE, "to vfio", "refused: in-use", "412 ms", "uid 0 pid 4711"],
        ["5", DEVICE, "to vfio", "given-up", "412 ms", "uid 0 pid 4711"],
        ["6", DEVICE, "to vfio", "stuck", "412 ms", "\\x1b[31mme"],
    ]
    assert "\x1b" not in said.out
    assert said.status == 0


def test_one_device_and_the_last_ones_only(tried: Host) -> None:
    said = tried.say("history", "02:00.0")
    assert [cells(line)[0] for line in said.out.splitlines()[1:]] == ["3"]
    said = tried.say("history", "-n", "2")
    assert [cells(line)[0] for line in said.out.splitlines()[1:]] == ["5", "6"]
    said = tried.say("history", DEVICE, "-n", "1", "--json")
    assert [attempt["id"] for attempt in said.data["attempts"]] == [6]


def test_json_has_all_that_is_known(tried: Host) -> None:
    first, *_, last = tried.say("history", "--json").data["attempts"]
    assert (first["outcome"], first["driver"], first["previous_driver"]) == ("done", "vfio-pci", "e1000e")
    assert first["steps"][0]["what"] == "load vfio_pci"
    assert (last["outcome"], last["code"], last["error"]) == ("stuck", "stuck", f"{DEVICE}: stuck")


def test_nothing_tried_is_said_and_no_failure(host: Host) -> None:  # noqa: F811
    said = host.say("history")
    assert (said.status, said.out) == (0, "")
    assert said.err == "flavourctl: nothing has been tried since the boot\n"
    assert host.say("history", "--json").data["attempts"] == []


def test_where_only_others_were_tried_the_device_is_named(tried: Host) -> None:
    said = tried.say("history", "03:00.0")
    assert (said.status, said.out) == (0, "")
    assert said.err == "flavourctl: nothing has been tried for 0000:03:00.0 since the boot\n"


@pytest.mark.parametrize(
    "arguments", [("-n", "0"), ("-n", "-1"), ("-n", "x"), ("-n", "9" * 30), ("nowhere",)]
)
def test_what_makes_no_sense_is_2(tried: Host, arguments: tuple[str, ...]) -> None:
    assert tried.say("history", *arguments).status == 2


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (200, set()),
        (118, {"REQUESTER"}),
        (95, {"REQUESTER", "WHEN"}),
        (40, {"REQUESTER", "WHEN", "DURATION"}),
    ],
)
def test_a_narrow_terminal_shows_less_and_wraps_nothing(
    tried: Host, terminal: Any, width: int, left_out: set[str]
) -> None:
    terminal(width)
    lines = re.sub("\x1b\\[\\d*m", "", tried.say("history").out).splitlines()
    assert len(lines) == 7
    assert max(map(len, lines)) <= width
    if width > 40:
        assert set(HEADER) - set(cells(lines[0])) == left_out


def test_a_full_history_is_no_trouble(host: Host) -> None:  # noqa: F811
    step = StepReport(Phase.LOADING, StepAction.LOAD, "load vfio_pci", 0.1, 0.2, "x" * 200)

    def fill(engine: Engine) -> None:
        for _ in range(MOST + 10):
            add(engine, steps=(step,) * 20, reason="y" * 500)

    host.before = fill
    attempts = host.say("history", "--json").data["attempts"]
    assert (len(attempts), attempts[-1]["id"]) == (MOST, MOST + 10)


def test_a_real_switch_is_there_with_the_number_that_set_told(host: Host, tmp_path: Path) -> None:  # noqa: F811
    host.after = lambda engine: engine.attempts.log()
    number = host.say("set", DEVICE, "vfio", "--json").data["attempt"]
    (line,) = (tmp_path / "run/history.jsonl").read_text(encoding="ascii").splitlines()
    assert json.loads(line)["id"] == number == 1
