"""The manual page of the policy names what there is."""

import re
from pathlib import Path

from vfio_flavourd.config.files import DIRECTORIES
from vfio_flavourd.config.schema import make_schema

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "man/vfio-flavourd.policy.5"


def find_properties(schema: object) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(find_properties, schema))
    if not isinstance(schema, dict):
        return set()
    found = set(schema.get("properties", {}))
    return found.union(*map(find_properties, schema.values()))


def test_the_page_names_every_key_and_no_other() -> None:
    text = PAGE.read_text(encoding="ascii")
    listed = {
        name.strip() for line in re.findall(r"^\.It Cm (.*)$", text, re.MULTILINE) for name in line.split(",")
    }
    assert listed == find_properties(make_schema())


def test_the_page_tells_the_directories() -> None:
    text = PAGE.read_text(encoding="ascii")
    for directory in DIRECTORIES:
        assert f".Pa /{directory}/*.yaml" in text
