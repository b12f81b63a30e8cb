"""A policy file: a policy, or problems that each stand at a place of the file."""

from contextlib import suppress
from dataclasses import replace

import yaml

from vfio_flavourd.config.files import PolicyFile
from vfio_flavourd.config.load import Loaded, _load
from vfio_flavourd.config.nodes import Mapping, Node, Scalar, decode, parse_nodes
from vfio_flavourd.config.problems import PolicyError, Problem, Report, split_lines
from vfio_flavourd.config.render import render_data, render_yaml
from vfio_flavourd.model.policy import Policy

_FILE = "/etc/vfio-flavourd/policy.d/10.yaml"


def one(data: bytes) -> None:
    try:
        loaded = _read(data)
    except PolicyError as error:
        _check_said(str(error), error.advice)
        _check(error.problems, data)
        return
    _check(loaded.warnings, data)
    _check_rendered(loaded)
    render_data(loaded.merged)
    text = decode(data, _FILE)
    # PyYAML's own parser, where it takes the file too, finds the same texts at the same places as libyaml.
    with suppress(yaml.YAMLError):
        _compare(parse_nodes(text, _FILE), yaml.compose(text, Loader=yaml.SafeLoader))


def _read(data: bytes) -> Loaded:
    return _load(lambda: [PolicyFile(_FILE, data)], Report())


def _check(problems: tuple[Problem, ...], data: bytes) -> None:
    lines = split_lines(data.decode("utf-8-sig", "replace"))
    for problem in problems:
        assert problem.file == _FILE
        assert 0 <= problem.line <= len(lines)
        if problem.line:
            line = lines[problem.line - 1]
            assert problem.source_line == line
            assert 1 <= problem.column <= len(line) + 1, (problem.column, line)
        _check_said(*problem.render())


def _check_said(*lines: str) -> None:
    assert all(line.isprintable() for line in lines), lines


def _check_rendered(loaded: Loaded) -> None:
    text = render_yaml(loaded.merged)
    again = _read(text.encode())
    assert _without_places(again.policy) == _without_places(loaded.policy), text


def _without_places(policy: Policy) -> Policy:
    return replace(policy, rules=tuple(replace(rule, origin="") for rule in policy.rules))


def _compare(node: Node, composed: yaml.Node | None) -> None:
    assert composed is not None
    mark = composed.start_mark
    assert (node.place.line, node.place.column) == (mark.line + 1, mark.column + 1)
    if isinstance(node, Scalar):
        assert node.text == composed.value
        return
    children = [each for pair in node.pairs for each in pair] if isinstance(node, Mapping) else node.items
    others = (
        [each for pair in composed.value for each in pair] if isinstance(node, Mapping) else composed.value
    )
    for one_child, other in zip(children, others, strict=True):
        _compare(one_child, other)
