"""check, cat-config and reload, as somebody at a terminal sees them."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from policies import RULE, write
from served import Said

from vfio_flavourd.cli import policy
from vfio_flavourd.cli.main import main
from vfio_flavourd.config.load import load_policy, load_rendered
from vfio_flavourd.doors import blocking_client
from vfio_flavourd.kernel.early_rules import RULES
from vfio_flavourd.model.errors import FlavourError, InvalidPolicyError

GOOD = "version: 1\n" + RULE
BAD = "version: 1\ndefaults:\n  group: togehter\nrulse: []\n"


Say = Callable[..., Said]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    monkeypatch.setattr(policy, "ROOT", str(tmp_path))
    monkeypatch.setattr(policy, "load_policy", lambda root: load_policy(root, owner=os.getuid()))

    def run(*argv: str) -> Said:
        status = main(argv)
        caught = capsys.readouterr()
        return Said(status, caught.out, caught.err)

    return run


def test_a_valid_policy_is_0_and_one_line(say: Say, tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert say("check") == Said(0, "valid: 1 rule in 1 file\n", "")


def test_no_policy_is_a_valid_one(say: Say) -> None:
    said = say("check")
    assert (said.status, said.err) == (0, "")
    assert said.out == "valid: there are no policy files, so no device is touched unasked\n"


@pytest.mark.parametrize("verb", ["check", "cat-config"])
def test_a_policy_that_this_user_may_not_read_is_not_therefore_wrong(
    say: Say, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, GOOD)
    access = os.access
    monkeypatch.setattr(os, "access", lambda at, mode: Path(at) != Path(path) and access(at, mode))
    said = say(verb)
    assert (said.status, said.out) == (77, "")
    first, hint = said.err.splitlines()
    assert first == "flavourctl: /etc/vfio-flavourd/policy.d/10.yaml can't be read by this user"
    assert hint == f"  sudo flavourctl {verb} (flavourctl explain not-permitted)"
    if verb == "check":
        assert say("check", str(path)).err.splitlines()[1].startswith(f"  sudo flavourctl check {path} ")


def test_cat_config_as_json_has_the_built_in_values_as_they_would_be_written(say: Say) -> None:
    defaults = json.loads(say("cat-config", "--json").out)["policy"]["defaults"]
    assert defaults["load_timeout"] == {"value": "10s", "origin": "built in"}


@pytest.mark.parametrize("verb", ["check", "cat-config"])
def test_an_invalid_policy_is_78_with_every_place_and_a_caret(say: Say, tmp_path: Path, verb: str) -> None:
    path = write(tmp_path, BAD)
    said = say(verb)
    assert (said.status, said.out) == (78, "")
    keys = "version, defaults, flavours, personalities, metrics, rules"
    assert said.err.splitlines() == [
        f"{path}:3:10: group: 'togehter' is not one of refuse, together, ignore",
        "    group: togehter",
        "           ^",
        "  did you mean 'together'?",
        f"{path}:4:1: 'rulse' is not a key of a policy, which has {keys}",
        "  rulse: []",
        "  ^",
        "  did you mean 'rules'?",
    ]


@pytest.mark.parametrize("verb", ["check", "cat-config"])
def test_an_invalid_policy_as_json_is_an_object_with_its_problems(
    say: Say, tmp_path: Path, verb: str
) -> None:
    path = write(tmp_path, BAD)
    said = say(verb, "--json")
    assert said.status == 78
    data: dict[str, Any] = json.loads(said.out)
    assert data["version"] == 1
    assert data["files"] == [str(path)]
    assert data["problems"][0] == {
        "file": str(path),
        "line": 3,
        "column": 10,
        "message": "group: 'togehter' is not one of refuse, together, ignore",
        "source_line": "  group: togehter",
        "hint": "did you mean 'together'?",
        "severity": "error",
    }
    assert len(data["problems"]) == 2


def test_a_warning_is_told_and_changes_nothing(say: Say, tmp_path: Path) -> None:
    write(tmp_path, GOOD + "  - {name: again, match: {modalias: '*'}}\n")
    said = say("check")
    assert (said.status, said.out) == (0, "valid: 2 rules in 1 file\n")
    assert "warning: the rule 'again' never applies" in said.err
    (problem,) = json.loads(say("check", "--json").out)["problems"]
    assert problem["severity"] == "warning"
    assert say("cat-config").status == 0


def test_files_that_are_given_are_checked_instead_of_the_installed_ones(say: Say, tmp_path: Path) -> None:
    write(tmp_path, BAD)
    draft = tmp_path / "draft.yaml"
    draft.write_text(GOOD, encoding="ascii")
    assert say("check", str(draft)).status == 0
    draft.write_text(BAD, encoding="ascii")
    said = say("check", str(draft))
    assert said.status == 78
    assert said.err.startswith(f"{draft}:3:10: ")


@pytest.mark.parametrize("what", ["there is no '{}'", "'{}' is a directory"])
def test_a_file_that_is_not_there_is_a_mistyped_argument_and_no_invalid_policy(
    say: Say, tmp_path: Path, what: str
) -> None:
    named = tmp_path / "10.yaml"
    if "directory" in what:
        named.mkdir()
    hint = "check takes files, or none for what is installed (flavourctl explain invalid-argument)"
    for others in ([], [str(write(tmp_path, BAD))]):
        said = say("check", *others, str(named))
        assert (said.status, said.out) == (2, "")
        assert said.err.splitlines() == [f"flavourctl: {what.format(named)}", f"  {hint}"]
    assert json.loads(say("check", "--json", str(named)).out)["error"]["code"] == "invalid-argument"


SERIAL = "version: 1\nrules:\n  - {name: drive, match: {serial: S4EWNX0R}, flavour: vfio}\n"
LATER = (
    "rule 'drive': it names a serial, which is only known once the native driver has the device: "
    "the daemon applies it afterwards"
)


@pytest.mark.parametrize("installed", [True, False])
def test_a_rule_that_the_daemon_applies_only_afterwards_is_told_and_valid(
    say: Say, tmp_path: Path, installed: bool
) -> None:
    """Of a draft too: then is the time to choose another match."""
    path = write(tmp_path, SERIAL) if installed else tmp_path / "draft.yaml"
    path.write_text(SERIAL, encoding="ascii")
    argv = ["check"] if installed else ["check", str(path)]
    assert say(*argv) == Said(0, "valid: 1 rule in 1 file\n", f"flavourctl: {LATER}\n")
    said = say(*argv, "--json")
    assert said.status == 0
    assert json.loads(said.out)["remarks"] == [LATER]


def test_rules_for_early_boot_that_can_not_be_read_keep_no_policy_from_being_checked(
    say: Say, tmp_path: Path
) -> None:
    (tmp_path / RULES).mkdir(parents=True)
    path = write(tmp_path, SERIAL)
    said = say("check", str(path))
    assert said == Said(0, "valid: 1 rule in 1 file\n", f"flavourctl: {LATER}\n")


def test_what_is_in_a_file_does_not_reach_the_terminal_unescaped(say: Say, tmp_path: Path) -> None:
    write(tmp_path, b"version: 1\nx\x1b[31m: 1\n")
    said = say("check")
    assert said.status == 78
    assert all(line.isprintable() for line in said.err.splitlines())
    write(tmp_path, 'version: 1\n"x\\e[31m": 1\n')
    assert all(line.isprintable() for line in say("check").err.splitlines())


def test_cat_config_prints_one_file_with_where_each_thing_was_said(say: Say, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    said = say("cat-config")
    assert (said.status, said.err) == (0, "")
    assert f"  - name: all  # {path}:3\n" in said.out
    again = tmp_path / "again.yaml"
    again.write_text(said.out, encoding="utf-8")
    assert load_rendered(again).policy.rules[0].flavour == "vfio"


def test_cat_config_as_json_has_the_origins(say: Say, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    data = json.loads(say("cat-config", "--json").out)
    assert (data["version"], data["files"]) == (1, [str(path)])
    assert data["policy"]["rules"][0] == {
        "name": "all",
        "match": {"modalias": ["*"]},
        "flavour": "vfio",
        "origin": f"{path}:3",
    }


# reload


class FakeDaemon:
    """Answers Reload."""

    def __init__(self, error: FlavourError | None = None) -> None:
        self.error = error
        self.calls: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("close")

    def call(self, method: str) -> dict[str, Any]:
        self.calls.append(method)
        if self.error is not None:
            raise self.error
        return {}


def served_by(monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon) -> None:
    def connect(*, writes: bool, only_root: str) -> FakeDaemon:
        assert (writes, only_root) == (True, "reload the policy")
        return daemon

    monkeypatch.setattr(blocking_client, "connect", connect)


def test_reload_asks_the_daemon(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = FakeDaemon()
    served_by(monkeypatch, daemon)
    assert say("reload") == Said(0, "reloaded\n", "")
    assert daemon.calls == ["Reload", "close"]
    assert json.loads(say("reload", "--json").out) == {"version": 1, "reloaded": True}


def test_a_reload_that_is_refused_is_78_with_the_place(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "/etc/vfio-flavourd/policy.d/10.yaml:3:10: group: 'x' is not one of refuse, together, ignore"
    daemon = FakeDaemon(InvalidPolicyError(message, hint="did you mean 'ignore'?"))
    served_by(monkeypatch, daemon)
    hint = "did you mean 'ignore'? (flavourctl explain invalid-policy)"
    assert say("reload") == Said(78, "", f"flavourctl: {message}\n  {hint}\n")
    assert daemon.calls == ["Reload", "close"]
    said = say("reload", "--json")
    assert said.status == 78
    assert json.loads(said.out)["error"]["message"] == message


def test_a_reload_that_puts_nothing_in_force_is_1_and_says_why(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "the policy on disk is not in force: it is switched off"
    served_by(monkeypatch, FakeDaemon(FlavourError(message, hint="flavourctl doctor says what to do")))
    hint = "flavourctl doctor says what to do (flavourctl explain failed)"
    assert say("reload") == Said(1, "", f"flavourctl: {message}\n  {hint}\n")


@pytest.mark.parametrize(("number", "status"), [(errno.EACCES, 77), (errno.EIO, 1)])
def test_a_reload_that_fails_otherwise_has_its_own_status(
    say: Say, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    served_by(monkeypatch, FakeDaemon(FlavourError("no", errno=number)))
    assert say("reload").status == status


@pytest.mark.parametrize("argv", [["cat-config", "x"], ["reload", "x"], ["check", "--what"]])
def test_a_wrong_command_line_is_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_the_installed_policy_is_the_hosts() -> None:
    assert policy.ROOT == "/"
