"""Whether what flavourctl prints as JSON is what the shipped schema says, and nothing else."""

from functools import cache
from typing import Any

import jsonschema

from vfio_flavourd.cli.schema import make_schema


@cache
def make_validator(verb: str) -> jsonschema.Draft7Validator:
    """With the schema closed: a field that has no definition is found too."""
    schema = make_schema(closed=True)
    del schema["anyOf"]
    return jsonschema.Draft7Validator({**schema, "$ref": f"#/definitions/{verb}"})


def validate_output(verb: str, data: Any) -> None:
    errors = [_tell(error) for error in make_validator(verb).iter_errors(data)]
    assert not errors, f"flavourctl {verb} --json is not as vfio_flavourd/cli/outputs.py says: {errors}"


def _tell(error: jsonschema.ValidationError) -> str:
    """Of several alternatives the one that it is nearest to."""
    best = jsonschema.exceptions.best_match([error])
    return f"{best.json_path}: {best.message[:300]}"
