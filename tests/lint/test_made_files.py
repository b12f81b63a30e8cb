"""What is made from the code and committed is what the code says now."""

import argparse
import re
from pathlib import Path

import pytest

from tools.command_line import find_verbs
from tools.completions import render_completions
from tools.manual_pages import render_pages
from tools.messages_page import render_messages
from tools.watching_page import render_watching
from vfio_flavourd.cli.manual import DESCRIPTIONS, EXAMPLES, WIDTH
from vfio_flavourd.cli.parser import build_parser
from vfio_flavourd.model.modalias import parse_modalias

ROOT = Path(__file__).parents[2]


def parsers() -> dict[str, argparse.ArgumentParser]:
    parser = build_parser()
    return {"": parser} | find_verbs(parser)


@pytest.mark.parametrize("render", [render_pages, render_completions, render_messages, render_watching])
def test_what_is_made_from_the_code_is_up_to_date(render: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(render)
    monkeypatch.chdir(ROOT)
    stale = [str(path) for path, text in render().items() if path.read_text(encoding="ascii") != text]
    assert stale == [], "make reference"


def test_every_verb_is_described_and_has_an_example() -> None:
    assert DESCRIPTIONS.keys() == EXAMPLES.keys() - {""} == find_verbs(build_parser()).keys()
    assert [verb for verb, examples in EXAMPLES.items() if not examples] == []


def test_every_example_is_a_command_that_there_is() -> None:
    for verb, examples in EXAMPLES.items():
        for command, _ in examples:
            name, *arguments = re.split(r" [|>]", command)[0].split()
            assert name == "flavourctl", command
            parsed = build_parser().parse_args(arguments)
            assert verb in ("", parsed.verb or "list"), command
            if parsed.verb == "resolve" and parsed.device.startswith("pci:"):
                parse_modalias(parsed.device)


@pytest.mark.parametrize("verb", parsers())
def test_the_help_of_a_verb_has_examples_and_fits_a_terminal(verb: str) -> None:
    text = parsers()[verb].format_help()
    assert "\nexamples:\n  flavourctl" in text
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
