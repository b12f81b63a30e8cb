"""The schema, the samples and the merged policy agree with the loader."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policies import RULE

from vfio_flavourd.config.definitions import FILE
from vfio_flavourd.config.load import load_files, load_rendered
from vfio_flavourd.config.problems import PolicyError
from vfio_flavourd.config.render import render_data, render_yaml
from vfio_flavourd.config.schema import make_schema, render_schema
from vfio_flavourd.config.tables import Key, Named, Table
from vfio_flavourd.model.policy import Policy

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "samples/policy.d").iterdir())
FIRST_LINE = "# yaml-language-server: $schema=/usr/share/vfio-flavourd/policy.schema.json"
VALIDATOR = jsonschema.Draft7Validator(make_schema())


class EditorsLoader(yaml.SafeLoader):
    """What an editor makes of YAML: the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's way


for tag, pattern, first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    EditorsLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), first)
EditorsLoader.add_constructor(
    "tag:yaml.org,2002:int", lambda _, node: int(node.value, 16 if node.value.startswith("0x") else 10)
)
EditorsLoader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))


def schema_accepts(text: str) -> bool:
    return bool(VALIDATOR.is_valid(yaml.load(text, EditorsLoader)))


def loader_accepts(tmp_path: Path, text: str) -> bool:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        return load_files([path]).policy is not None
    except PolicyError:
        return False


def test_the_shipped_schema_is_up_to_date() -> None:
    shipped = ROOT / "schemas/policy.schema.json"
    make = "python3 -m vfio_flavourd.config.schema > schemas/policy.schema.json"
    assert shipped.read_text(encoding="ascii") == render_schema(), make


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(make_schema())


def find_keys(table: Table) -> list[Key]:
    keys = list(table.keys)
    for key in table.keys:
        kind: Any = getattr(key.kind, "item", key.kind)
        kind = kind.value if isinstance(kind, Named) else kind
        keys += find_keys(kind) if isinstance(kind, Table) else []
    return keys


def test_every_key_is_explained() -> None:
    for key in find_keys(FILE):
        assert key.doc.endswith("."), key.name


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: str(path.name))
def test_a_sample_is_valid_by_itself_and_says_what_its_schema_is(sample: Path) -> None:
    text = sample.read_text(encoding="ascii")
    assert text.splitlines()[0] == FIRST_LINE
    assert [error.message for error in VALIDATOR.iter_errors(yaml.load(text, EditorsLoader))] == []
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))] == []
    assert load_files([sample]).warnings == ()


def test_the_samples_can_all_be_installed_at_once() -> None:
    loaded = load_files(SAMPLES)
    assert loaded.warnings == ()
    assert len(loaded.policy.rules) >= len(SAMPLES)


def test_the_samples_are_what_the_package_ships() -> None:
    examples = (ROOT / "debian/vfio-flavourd.examples").read_text(encoding="ascii")
    assert "samples/policy.d\n" in examples
    install = (ROOT / "debian/vfio-flavourd.install").read_text(encoding="ascii")
    assert "schemas/*.schema.json usr/share/vfio-flavourd\n" in install


RULES = "version: 1\nrules:\n  - name: x\n    match: {vendor: 0x15b3}\n"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "rules: []",
        "version: 2",
        "version: 1\nrulse: []",
        "version: 1\nrules: {}",
        "version: 1\nrules: [x]",
        "version: 1\nrules: [{name: x}]",
        "version: 1\nrules: [{match: {vendor: 1}}]",
        "version: 1\nrules: [{name: x, match: {}}]",
        "version: 1\nrules: [{name: x, match: {device: 1}}]",
        "version: 1\nrules: [{name: x, match: {subsystem_device: 1}}]",
        "version: 1\nrules: [{name: x, match: {vendr: 1}}]",
        "version: 1\nrules: [{name: x, match: {vendor: 0x15b33x}}]",
        "version: 1\nrules: [{name: x, match: {vendor: []}}]",
        "version: 1\nrules: [{name: x, match: {sriov: maybe}}]",
        "version: 1\nrules: [{name: x, match: {slot: 1c.0}}]",
        "version: 1\nrules: [{name: x, match: {modalias: 'vfio_pci:*'}}]",
        "version: 1\nrules: [{name: x, match: {iommu_group: first}}]",
        RULES + "    drivr: x",
        RULES + "    driver: a b",
        RULES + "    driver: []",
        RULES + "    load_timeout: 10",
        RULES + "    load_timeout: soon",
        RULES + "    group: both",
        RULES + "    in_use: yes",
        RULES + "    nodes: {}",
        RULES + "    nodes: {mode: rw}",
        RULES + "    nodes: {owner: a:b}",
        "version: 1\ndefaults: {flavour: vfio}",
        "version: 1\ndefaults: {}",
        "version: 1\nflavours: {UIO: {alias_prefix: x, fallback: y}}",
        "version: 1\nflavours: {uio: {alias_prefix: x}}",
        "version: 1\nflavours: {uio: {fallback: x}}",
        "version: 1\npersonalities: [{driver: x}]",
        "version: 1\npersonalities: [{driver: x, attribute: /sys}]",
    ],
)
def test_what_the_schema_refuses_the_loader_refuses(tmp_path: Path, text: str) -> None:
    assert not schema_accepts(text)
    assert not loader_accepts(tmp_path, text)


VALUES = {
    "vendor": ["0x15b3", "15b3", "0101", "1e10", "[1, 8086]", "'1'"],
    "address": ["0000:01:00.0", "01:00.0", "[00:02.0, '00:03.0']"],
    "class": ["0300", "03", "0x030000"],
    "slot": ["0000:00:1c.0", "00:1c.0/00.0"],
    "serial": ["0123", "true", "1.5", "S4EW"],
    "driver": ["none", "true", "8139cp"],
    "iommu_group": ["0", "[1, 2]"],
    "host": ["node*", "'17'", "17"],
    "sriov": ["pf"],
    "modalias": ["'*'", "'[pv]ci:*'"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in VALUES.items() for value in values]
)
def test_what_the_loader_takes_an_editor_does_not_complain_of(tmp_path: Path, key: str, value: str) -> None:
    text = f"version: 1\nrules: [{{name: 17, match: {{{key}: {value}}}, nodes: {{mode: 0660, group: 36}}}}]\n"
    assert loader_accepts(tmp_path, text)
    assert schema_accepts(text)


# the merged policy


def without_origins(policy: Policy) -> tuple[object, ...]:
    rules = [replace(rule, origin="") for rule in policy.rules]
    return policy.defaults, rules, policy.flavours, policy.personalities


def check_rendered(tmp_path: Path, paths: list[Path]) -> str:
    loaded = load_files(paths)
    text = render_yaml(loaded.merged)
    rendered = tmp_path / "rendered"
    rendered.write_text(text, encoding="utf-8")
    again = load_rendered(rendered)
    assert without_origins(again.policy) == without_origins(loaded.policy)
    return text


EVERYTHING = """\
version: 1
defaults: {load_timeout: 1m30s, group: together, deny: [a-b, c]}
flavours: {on: {alias_prefix: none, fallback: uio_pci_generic}, uio: {alias_prefix: x, fallback: y}}
personalities:
  - {driver: nvidia, attribute: nvidia/current_vgpu_type, on: 558, off: no, ready: vfio-dev}
rules:
  - name: 'a "quoted" name: \\ with # and 💾'
    match:
      address: [0000:01:00.0, 02:00.1]
      slot: 00:1c.0/00.0
      vendor: [0x15b3, 0101]
      device: 1e10
      class: 02
      modalias: 'pci:v*'
      driver: [none, no]
      iommu_group: 0
      sriov: vf
      serial: [0123, 'A B']
      host: node[0-9]
    flavour: on
    driver: [x-y, z]
    load_timeout: 500ms
    deny: d
    nodes: {owner: root, group: 36, mode: 0660}
  - {name: no, match: {vendor: 8086}, driver: auto, in_use: force, noiommu: allow}
"""


def test_the_merged_policy_says_the_same_as_its_files(tmp_path: Path) -> None:
    first, second = tmp_path / "10.yaml", tmp_path / "20.yaml"
    first.write_text(EVERYTHING, encoding="utf-8")
    second.write_text("version: 1\ndefaults: {load_timeout: 2s}\n" + RULE, encoding="utf-8")
    text = check_rendered(tmp_path, [first, second])
    assert text.startswith("version: 1\ndefaults:\n")
    assert f'  load_timeout: "2s"  # {second}:2\n' in text
    assert '  bind_timeout: "30s"  # built in\n' in text
    assert f"  deny: [a-b, c]  # {first}:2\n" in text
    assert f"  - name: all  # {second}:4\n" in text
    assert schema_accepts(text)
    check_rendered(tmp_path, SAMPLES)


def test_the_merged_policy_of_nothing_is_the_defaults(tmp_path: Path) -> None:
    text = check_rendered(tmp_path, [])
    assert text.count("# built in") == len(text.splitlines()) - 2


def test_the_built_in_defaults_are_those_of_the_model(tmp_path: Path) -> None:
    rendered = tmp_path / "rendered"
    rendered.write_text(check_rendered(tmp_path, []), encoding="utf-8")
    assert load_rendered(rendered).policy == Policy()


def test_the_merged_policy_as_data_has_values_and_origins(tmp_path: Path) -> None:
    path = tmp_path / "10.yaml"
    path.write_text(EVERYTHING, encoding="utf-8")
    data = json.loads(json.dumps(render_data(load_files([path]).merged)))
    assert data["defaults"]["load_timeout"] == {"value": "1m30s", "origin": f"{path}:2"}
    assert data["defaults"]["in_use"] == {"value": "refuse", "origin": "built in"}
    assert data["flavours"]["uio"] == {"alias_prefix": "x", "fallback": "y", "origin": f"{path}:3"}
    assert data["rules"][1]["match"] == {"vendor": ["8086"]}
    assert data["rules"][1]["origin"] == f"{path}:25"
    assert data["personalities"][0]["on"] == "558"


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=100).filter(
    lambda text: text.isprintable() and text == text.strip()
)


@given(name=names, serial=st.from_regex("[!-~]([ -~]{0,62}[!-~])?", fullmatch=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_that_is_taken_survives_rendering(tmp_path: Path, name: str, serial: str) -> None:
    path = tmp_path / "10.yaml"
    match = {"name": name, "match": {"serial": serial}}
    path.write_text(f"version: 1\nrules: [{json.dumps(match, ensure_ascii=False)}]\n", encoding="utf-8")
    (rule,) = load_files([path]).policy.rules
    assert (rule.name, rule.match.serial) == (name, (serial,))
    check_rendered(tmp_path, [path])
