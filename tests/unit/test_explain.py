"""explain, and the codes it explains."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vfio_flavourd.cli.main import main
from vfio_flavourd.cli.manual import DESCRIPTIONS
from vfio_flavourd.doors.connection_places import LOOKING, SWITCHING
from vfio_flavourd.doors.fs.asking import WAITING_OF_ROOT, WRITES_OF_ALL, WRITES_OF_ONE
from vfio_flavourd.doors.interface import render_error
from vfio_flavourd.doors.protocol import parse_error
from vfio_flavourd.model.codes import ERRNOS, Code, find_exit_status, find_exit_statuses
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.explanations import EXPLANATIONS

ROOT = Path(__file__).parents[2]

# Those of the exit statuses that a failure can have; 0 is none.
STATUSES = {1, 2, 3, 4, 69, 75, 77, 78, 130}


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> "Say":
    return Say(capsys)


class Say:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        status = main(["explain", *argv])
        caught = self._capsys.readouterr()
        return status, caught.out, caught.err


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_explained_with_cause_remedy_and_numbers(say: Say, code: Code) -> None:
    status, out, err = say(code)
    assert (status, err) == (0, "")
    first = out.splitlines()[0]
    assert first == f"{code}: {EXPLANATIONS[code].summary}"
    why, what, scripts = (out.index(title) for title in ("why it happens", "what to do", "for scripts"))
    assert 0 < why < what < scripts
    assert "  - " in out[why:what]
    assert "  - " in out[what:scripts]
    assert f"exit status {find_exit_statuses(code)[0]}" in out[scripts:]
    for number in ERRNOS[code]:
        assert errno.errorcode[number] in out[scripts:]


def test_what_is_said_of_too_many_are_the_numbers_that_there_may_be() -> None:
    said = " ".join(EXPLANATIONS[Code.TOO_MANY_REQUESTS].causes)
    assert f"{WRITES_OF_ONE} writes wait at most, {WRITES_OF_ALL} of all users but root" in said
    assert f"and {WAITING_OF_ROOT} of root" in said
    switching, looking = SWITCHING, LOOKING
    assert f"one user has {switching.user}, all but root {switching.total}, and root {switching.root}" in said
    assert f"to look {looking.user}, {looking.total} and {looking.root}." in said


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_an_explanation_fits_the_terminal(say: Say, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("vfio_flavourd.cli.explain.find_width", lambda _: columns)
    for code in Code:
        _, *rest = say(code)[1].splitlines()
        assert [line for line in rest if len(line) > min(columns, 100) and " - " in line] == []


def test_without_a_code_all_are_listed(say: Say) -> None:
    status, out, err = say()
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["CODE", *Code]


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_on_a_narrow_terminal_each_meaning_is_there_in_full(
    say: Say, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("vfio_flavourd.cli.explain.find_width", lambda _: columns)
    lines = say()[1].splitlines()
    assert [line for line in lines if len(line) > columns] == []
    at = lines[0].index("MEANING")
    told = " ".join(line[at:] for line in lines)
    assert [code for code in Code if EXPLANATIONS[code].summary not in told] == []


@pytest.mark.parametrize(
    ("asked", "some", "other"),
    [
        ("75", Code.IN_USE, Code.NO_SUCH_DEVICE),
        ("EBUSY", Code.STUCK, Code.TIMED_OUT),
        ("enodev", Code.DEVICE_GONE, Code.IN_USE),
        ("4", Code.FELL_BACK, Code.FAILED),
        ("130", Code.INTERRUPTED, Code.TIMED_OUT),
    ],
)
def test_an_exit_status_or_an_errno_lists_its_codes(say: Say, asked: str, some: Code, other: Code) -> None:
    status, out, _ = say(asked)
    codes = {line.split()[0] for line in out.splitlines()[1:]}
    assert status == 0
    assert some in codes
    assert other not in codes


@pytest.mark.parametrize(
    ("typed", "meant"), [("inuse", "in-use"), ("No_IOMMU", "no-iommu"), ("is-abridge", "is-a-bridge")]
)
def test_a_mistyped_code_is_2_and_the_nearest_is_named(say: Say, typed: str, meant: str) -> None:
    status, out, err = say(typed)
    assert (status, out) == (2, "")
    first, hint = err.splitlines()
    assert first == f"flavourctl: no error code is called {typed!r}"
    assert f"did you mean {meant}?" in hint


def test_json_has_the_same(say: Say) -> None:
    status, out, err = say("in-use", "--json")
    data = json.loads(out)
    assert (status, err, data["version"]) == (0, "", 1)
    assert (data["code"], data["errnos"], data["exit_statuses"]) == ("in-use", ["EBUSY"], [75])
    assert data["causes"]
    assert data["remedies"]
    listed = json.loads(say("--json")[1])
    assert [each["code"] for each in listed["codes"]] == list(Code)


def test_every_exit_status_has_its_codes_and_no_code_has_another() -> None:
    assert {status for code in Code for status in find_exit_statuses(code)} == STATUSES


def test_an_error_has_the_errno_of_its_code_unless_it_brings_the_kernels() -> None:
    for code in Code:
        if ERRNOS[code]:
            assert FlavourError("x", code=code).errno == ERRNOS[code][0]
    assert FlavourError("x", code=Code.NO_DRIVER_TOOK_IT, errno=errno.EBUSY).errno == errno.EBUSY


@pytest.mark.parametrize("code", [code for code in Code if ERRNOS[code]])
def test_a_code_comes_through_varlink_as_it_was(code: Code) -> None:
    for number in ERRNOS[code]:
        sent = render_error(FlavourError("x: y", code=code, errno=number, hint="z"))
        got = parse_error(sent.name, json.loads(json.dumps(sent.parameters)))
        assert (got.code, got.errno, str(got), got.hint) == (code, number, "x: y", "z")


def test_a_code_of_a_newer_daemon_is_shown_and_its_errno_counts() -> None:
    parameters: dict[str, object] = {"code": "of-tomorrow", "errno": errno.ENODEV, "message": "x", "hint": ""}
    error = parse_error("io.vfioflavour.Manager.NoSuchDevice", parameters)
    assert error.advice == "flavourctl explain of-tomorrow"
    assert find_exit_status(error.code, error.errno) == 3


def test_explain_loads_neither_the_client_nor_yaml() -> None:
    program = (
        "import sys; from vfio_flavourd.cli.main import main; main(['explain', 'in-use']);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert not loaded & {"asyncio", "asyncvarlink", "yaml", "difflib"}


@pytest.mark.parametrize("argv", [["explain"], ["--help"], ["set", "--help"], ["--version"]])
def test_whoever_has_read_enough_is_told_nothing(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = [sys.executable, "-m", "vfio_flavourd.cli.main", *argv]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_what_works_without_the_daemon_is_told_where_that_is_not_running() -> None:
    told = " ".join(EXPLANATIONS[Code.DAEMON_NOT_RUNNING].remedies)
    alone = [verb for verb, text in DESCRIPTIONS.items() if "Needs no daemon." in text]
    assert [verb for verb in alone if verb not in told] == []
