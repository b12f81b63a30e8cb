"""The parts of the manual pages that are made from the code."""

import argparse
from pathlib import Path

from vfio_flavourd.cli.listing import COLUMNS
from vfio_flavourd.cli.manual import DESCRIPTION, DESCRIPTIONS, DEVICE, EXAMPLES, EXIT_STATUS
from vfio_flavourd.cli.parser import build_parser
from vfio_flavourd.config.definitions import (
    FILE,
    FLAVOUR,
    MATCH,
    METRICS,
    NODES,
    PERSONALITY,
    RULE,
    SETTINGS,
)
from vfio_flavourd.config.kinds import Choice
from vfio_flavourd.config.tables import Key

from .command_line import find_options, find_positionals, find_verbs
from .mdoc import escape, prose, replace_parts

MAN = Path("man")


def render_pages() -> dict[Path, str]:
    parser = build_parser()
    return {
        path: replace_parts(path.read_text(encoding="ascii"), parts)
        for path, parts in (
            (MAN / "flavourctl.8", _describe_command(parser)),
            (MAN / "vfio-flavourd.policy.5", _describe_policy()),
        )
    }


def _describe_command(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    verbs = find_verbs(parser)
    common = {option for action in find_options(parser) for option in action.option_strings}
    synopsis, sections = [".Nm", *map(_synopsis, find_options(parser))], []
    for verb, of_verb in verbs.items():
        own = [action for action in find_options(of_verb) if not common & set(action.option_strings)]
        positionals = find_positionals(of_verb)
        line = " ".join([".Cm", verb, *map(_argument, positionals)])
        synopsis += [".Nm", line, *map(_synopsis, own)]
        sections += [f".Ss {verb}", *prose(DESCRIPTIONS[verb])]
        entries = [line for action in [*positionals, *own] for line in _entry(action)]
        if entries:
            sections += [".Bl -tag -width Ds", *entries, ".El"]
        sections += _examples(EXAMPLES[verb])
    return {
        "synopsis": synopsis,
        "description": prose(f"{DESCRIPTION}\n\n{DEVICE}"),
        "verbs": sections,
        "options": [
            ".Bl -tag -width Ds",
            *(line for action in find_options(parser) for line in _entry(action)),
            ".El",
        ],
        "exit status": [
            ".Bl -tag -width Ds -compact",
            *(line for code, meaning in EXIT_STATUS for line in (f".It {code}", *prose(meaning))),
            ".El",
        ],
        "examples": _examples(EXAMPLES[""]),
    }


def _argument(action: argparse.Action) -> str:
    if action.choices is not None:
        return f"Cm {' | '.join(map(str, action.choices))}"
    name = f"Ar {action.metavar}".replace("|", " | ")
    if action.nargs == "?":
        return f"Op {name}"
    return {"*": f"Op {name} ...", "+": f"{name} ..."}.get(str(action.nargs), name)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return f" Cm {' | '.join(map(str, action.choices))}"
    return f" Ar {action.metavar}"


def _synopsis(action: argparse.Action) -> str:
    return f".Op Fl -{action.option_strings[-1].removeprefix('--')}{_value(action)}"


def _entry(action: argparse.Action) -> list[str]:
    if action.option_strings:
        names = " , ".join(f"Fl {name.removeprefix('-')}" for name in action.option_strings)
        head = f".It {names}{_value(action)}"
    else:
        head = f".It {_argument(action)}"
    lines = [head, *prose(str(action.help))]
    if action.dest == "columns":
        lines[-1] += ", of:"
        lines.append(", ".join(COLUMNS))
    return lines


def _examples(examples: tuple[tuple[str, str], ...]) -> list[str]:
    lines = [".Bl -tag -width Ds -offset indent"]
    for command, purpose in examples:
        lines += [f".It Li {escape(command)}", escape(purpose)]
    return [*lines, ".El"]


def _describe_policy() -> dict[str, list[str]]:
    tables = {"file": FILE, "rules": RULE, "match": MATCH, "nodes": NODES, "flavours": FLAVOUR,
              "personalities": PERSONALITY, "metrics": METRICS}  # fmt: skip
    settings = {key.name for key in SETTINGS}
    parts = {
        name: _keys([key for key in table.keys if name != "rules" or key.name not in settings])
        for name, table in tables.items()
    }
    return parts | {"settings": _keys(list(SETTINGS))}


def _keys(keys: list[Key]) -> list[str]:
    return [".Bl -tag -width Ds", *(line for key in keys for line in _key(key)), ".El"]


def _key(key: Key) -> list[str]:
    lines = [f".It Cm {key.name}", *prose(key.doc)]
    if isinstance(key.kind, Choice) and len(key.kind.words) > 1:
        lines.append(f"One of {', '.join(key.kind.words)}.")
    if key.default:
        lines.append(f"Default: {key.default}.")
    if key.required:
        lines.append("Required.")
    return lines
