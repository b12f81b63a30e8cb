"""Every message that people can read is worded as docs/messages.md says, as far as a program can tell."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.command_line import find_options, find_positionals, find_verbs
from vfio_flavourd.cli.parser import build_parser
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.explanations import EXPLANATIONS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vfio_flavourd"

# A message may begin with an address, a path or a name: what stands in braces here. Names that the field
# writes in upper case keep that.
BEGINS = re.compile(r"[a-z{'\"`<0-9%/-]|VFIO|IOMMU|PF|VF|DEV|PCI|YAML")
LEVELS = {"debug", "info", "warning", "error", "critical"}

# Nobody can do anything about these but what `flavourctl explain` says.
NO_HINT_NEEDED = {None, Code.FAILED, Code.INTERRUPTED, Code.DAEMON_WENT_AWAY}


@dataclass(frozen=True)
class Message:
    """`text` has {} for what is filled in."""

    where: str
    text: str
    code: str | None = None
    hint: str | None = None


def text_of(node: ast.expr) -> str | None:
    """A template of what an expression says; None where it is put together elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) or "{}" for part in parts)
        case ast.FormattedValue():
            return "{}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (text_of(left) or "{}") + (text_of(right) or "{}")
        case ast.IfExp(body=body):
            return text_of(body)
        case _:
            return None


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def errors() -> list[Message]:
    """Of FlavourError and what is derived from it; a NotLoaded and a ValueError become parts of a message."""
    found = []
    for where, call in calls():
        name = ast.unparse(call.func)
        own = name == "super().__init__" and any(keyword.arg == "code" for keyword in call.keywords)
        if not own and name not in {"FlavourError", "InvalidPolicyError"}:
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        text = text_of(call.args[0]) if call.args else None
        code = ast.unparse(given["code"]) if "code" in given else None
        named = re.search(r"Code\.([A-Z_]+)", code or "")
        value = Code[named[1]] if named else code
        hint = given.get("hint")
        found.append(Message(where, text or "{}", value, None if hint is None else text_of(hint) or "{}"))
    return found


def policy_problems() -> list[Message]:
    found = []
    for where, call in calls():
        name = ast.unparse(call.func)
        if name in {"report.error", "report.warn", "UnreadableError"} and len(call.args) > 1:
            hint = text_of(call.args[2]) if len(call.args) > 2 else None
            found.append(Message(where, text_of(call.args[1]) or "{}", hint=hint))
    return found


def log_lines() -> list[Message]:
    return [
        Message(where, text)
        for where, call in calls()
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LEVELS
        and ast.unparse(call.func.value) == "_log"
        and call.args
        and (text := text_of(call.args[0])) is not None
    ]


def help_texts() -> list[Message]:
    parser = build_parser()
    parsers = {"flavourctl": parser, **find_verbs(parser)}
    return [
        Message(f"{name} {action.dest}", action.help)
        for name, each in parsers.items()
        for action in (*find_options(each), *find_positionals(each))
        if action.help is not None
    ]


def codes_used() -> set[str]:
    """Of all errors; those handed on have it from another."""
    return {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if path.name not in {"codes.py", "explanations.py"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Code"
    }


ALL = {"errors": errors, "policy": policy_problems, "log": log_lines, "help": help_texts}


@pytest.mark.parametrize("kind", ALL)
def test_there_are_some_to_look_at(kind: str) -> None:
    assert len([message for message in ALL[kind]() if message.text != "{}"]) >= 20


@pytest.mark.parametrize("kind", ALL)
def test_a_message_is_one_line(kind: str) -> None:
    assert [message for message in ALL[kind]() if "\n" in message.text + (message.hint or "")] == []


@pytest.mark.parametrize("kind", ALL)
def test_a_message_starts_in_lower_case_or_with_a_name(kind: str) -> None:
    wrong = [message for message in ALL[kind]() if not BEGINS.match(message.text)]
    wrong += [message for message in ALL[kind]() if message.hint and not BEGINS.match(message.hint)]
    assert wrong == []


@pytest.mark.parametrize("kind", ALL)
def test_a_message_has_no_full_stop_at_its_end(kind: str) -> None:
    texts = [(each.where, text) for each in ALL[kind]() for text in (each.text, each.hint or "")]
    wrong = [(where, text) for where, text in texts if text.endswith((".", "!")) or text != text.strip()]
    assert wrong == []


def test_an_error_names_its_code_and_takes_its_errno_from_it() -> None:
    without = [error.where for error in errors() if error.code is None]
    # These say what has no code of its own, and have no next step but what `explain failed` says.
    assert {where.rpartition(":")[0] for where in without} <= {
        "vfio_flavourd/engine/moves.py",
        "vfio_flavourd/engine/together.py",
        "vfio_flavourd/kernel/hands.py",
        "vfio_flavourd/kernel/inventory.py",
    }


def test_an_error_that_one_can_act_on_has_a_hint() -> None:
    assert [error for error in errors() if error.code not in NO_HINT_NEEDED and not error.hint] == []


def test_every_code_is_used() -> None:
    assert codes_used() == {code.name for code in Code}


@pytest.mark.parametrize("code", list(Code))
def test_an_explanation_is_a_clause_and_sentences(code: Code) -> None:
    explanation = EXPLANATIONS[code]
    assert re.fullmatch(r"[a-z][^\n]*[^.\n]", explanation.summary)
    assert len(explanation.summary) <= 90
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
    for text in (*explanation.causes, *explanation.remedies):
        command = text.startswith("systemctl ")
        assert command or re.fullmatch(r"[^\n]+[.?]", text), text


def test_the_codes_and_their_explanations_stand_in_one_order() -> None:
    assert list(EXPLANATIONS) == list(Code)
