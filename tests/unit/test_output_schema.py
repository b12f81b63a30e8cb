"""The schema of what --json prints. That every output is as it says is seen to in conftest.py."""

from pathlib import Path

import jsonschema
import pytest

from tests.outputs import validate_output
from vfio_flavourd.cli.outputs import OUTPUTS
from vfio_flavourd.cli.parser import build_parser
from vfio_flavourd.cli.schema import make_schema, render_schema

ROOT = Path(__file__).parents[2]


def find_verbs() -> dict[str, bool]:
    """Each verb, and whether it takes --json."""
    subparsers = build_parser()._subparsers
    assert subparsers is not None
    choices = subparsers._group_actions[0].choices
    assert choices
    return {verb: "--json" in parser._option_string_actions for verb, parser in dict(choices).items()}


def test_the_shipped_schema_is_up_to_date() -> None:
    shipped = ROOT / "schemas/flavourctl.schema.json"
    make = "python3 -m vfio_flavourd.cli.schema > schemas/flavourctl.schema.json"
    assert shipped.read_text(encoding="ascii") == render_schema(), make


@pytest.mark.parametrize("closed", [False, True])
def test_the_schema_is_one(closed: bool) -> None:
    jsonschema.Draft7Validator.check_schema(make_schema(closed=closed))


def test_the_schema_has_every_verb_that_prints_json() -> None:
    assert set(OUTPUTS) == {verb for verb, has_json in find_verbs().items() if has_json}


def test_what_is_printed_is_explained() -> None:
    definitions = make_schema()["definitions"]
    printed = {name: each for name, each in definitions.items() if name.startswith("Printed")}
    assert printed
    assert {name for name, each in printed.items() if not each.get("description", "").endswith(".")} == set()


def test_a_user_may_find_more_than_the_schema_has() -> None:
    """Fields can be added, none goes away."""
    validator = jsonschema.Draft7Validator(make_schema())
    assert validator.is_valid({"version": 1, "reloaded": True, "new": 1})
    assert not validator.is_valid({"version": 1, "reloadd": True})
    assert not validator.is_valid({"version": 2, "reloaded": True})


def test_the_tests_find_a_field_that_was_forgotten() -> None:
    validate_output("reload", {"version": 1, "reloaded": True})
    with pytest.raises(AssertionError, match="is not as"):
        validate_output("reload", {"version": 1, "reloaded": True, "new": 1})
