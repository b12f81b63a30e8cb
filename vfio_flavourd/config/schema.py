"""The JSON Schema of a policy file, for editors; `python3 -m vfio_flavourd.config.schema` prints it."""

import json
import sys

from .definitions import FILE
from .kinds import Schema


def make_schema() -> Schema:
    """Draft 7, the one that editors' YAML support knows best.

    What it refuses the loader refuses too, but for what YAML itself makes of an unquoted text: a serial
    number that looks like a date.
    """
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "vfio-flavourd policy",
        "description": "Which PCI devices belong to guests: see vfio-flavourd.policy(5).",
        **FILE.schema(),
    }


def render_schema() -> str:
    return json.dumps(make_schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render_schema())
