"""Completion for bash, zsh and fish: verbs, options and values from the parser, addresses from sysfs."""

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from vfio_flavourd.cli.listing import COLUMNS
from vfio_flavourd.cli.parser import build_parser
from vfio_flavourd.model.codes import Code

from .command_line import find_options, find_positionals, find_verbs

HERE = Path(__file__).parent
COMPLETIONS = Path("completions")

# What may stand for a metavar: the name of the shells' function that lists it, none where nothing can.
VALUES = {
    "DEV": "devices",
    "DEV|MODALIAS": "devices",
    "ID|DEV": "attempts",
    "FLAVOUR": "flavours",
    "D": "drivers",
    "DIR": "directories",
    "FILE": "files",
    "S": "",
    "N": "",
    "NAME,...": "columns",
}


@dataclass(frozen=True, slots=True)
class Value:
    """`words` are all there are; else `source` lists them."""

    name: str
    source: str
    words: tuple[str, ...] = ()
    many: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    flags: tuple[str, ...]
    help: str
    value: Value | None


@dataclass(frozen=True, slots=True)
class Verb:
    name: str
    help: str
    options: tuple[Option, ...]
    positionals: tuple[Value, ...]


def render_completions() -> dict[Path, str]:
    parser = build_parser()
    verbs = _read_verbs(parser)
    options = tuple(_read_option(action) for action in find_options(parser))
    parts = {"bash": _bash(verbs, options), "zsh": _zsh(verbs, options), "fish": _fish(verbs, options)}
    return {
        COMPLETIONS / f"flavourctl.{shell}": (HERE / f"flavourctl.{shell}.in")
        .read_text(encoding="ascii")
        .replace("@MADE@", made)
        .replace("@COLUMNS@", " ".join(COLUMNS))
        for shell, made in parts.items()
    }


def _read_verbs(parser: argparse.ArgumentParser) -> list[Verb]:
    helps = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: _plain(choice.help) for choice in action._choices_actions}
    return [
        Verb(
            verb,
            helps[verb],
            tuple(_read_option(action) for action in find_options(of_verb)),
            tuple(_read_value(action) for action in find_positionals(of_verb)),
        )
        for verb, of_verb in find_verbs(parser).items()
    ]


def _read_option(action: argparse.Action) -> Option:
    value = None if action.nargs == 0 else _read_value(action)
    return Option(tuple(action.option_strings), _plain(action.help), value)


def _read_value(action: argparse.Action) -> Value:
    """Raises KeyError for a metavar of which nothing is known here."""
    if action.choices is not None:
        return Value(action.dest, "", tuple(map(str, action.choices)))
    metavar = str(action.metavar)
    if metavar == "CODE":
        return Value(metavar, "", tuple(Code))
    return Value(metavar, VALUES[metavar], many=action.nargs in ("*", "+"))


def _plain(text: str | None) -> str:
    return str(text).replace("…", "...")


def _valued(verbs: list[Verb]) -> dict[str, Value]:
    """All options that take a value: an option means the same wherever it stands."""
    found: dict[str, Value] = {}
    for option in (option for verb in verbs for option in verb.options if option.value):
        assert option.value is not None
        for flag in option.flags:
            assert found.setdefault(flag, option.value) == option.value, flag
    return found


def _bash(verbs: list[Verb], options: tuple[Option, ...]) -> str:
    def source(value: Value) -> str:
        if value.words:
            return f"words {' '.join(value.words)}"
        return value.source or "nothing"

    valued = _valued(verbs)
    lines = ["_flavourctl_takes_value() {", f"    [[ $1 == @({'|'.join(valued)}) ]]", "}", ""]
    lines += ["_flavourctl_value() {", "    case $1 in"]
    lines += [f"        {flag}) _flavourctl_{source(value)} ;;" for flag, value in valued.items()]
    lines += ["    esac", "}", "", "_flavourctl_options() {", "    case $1 in"]
    for name, of_verb in [(verb.name, verb.options) for verb in verbs] + [("*", options)]:
        flags = " ".join(flag for option in of_verb for flag in option.flags)
        lines += [f"        {name}) _flavourctl_words {flags} ;;"]
    lines += ["    esac", "}", "", "_flavourctl_argument() {", "    case $1:$2 in"]
    lines += [f"        :1) _flavourctl_words {' '.join(verb.name for verb in verbs)} ;;"]
    for verb in verbs:
        for number, value in enumerate(verb.positionals, 1):
            lines += [f"        {verb.name}:{'*' if value.many else number}) _flavourctl_{source(value)} ;;"]
    return "\n".join([*lines, "    esac", "}"])


def _zsh(verbs: list[Verb], options: tuple[Option, ...]) -> str:
    def action(value: Value) -> str:
        if value.words:
            return f":{value.name}:({' '.join(value.words)})"
        return f":{value.name}:{f'_flavourctl_{value.source}' if value.source else ' '}"

    def spec(option: Option) -> str:
        text = re.sub(r"[][:]", r"\\\g<0>", option.help).replace("'", r"'\''")
        value = action(option.value) if option.value else ""
        return " ".join(f"'*{flag}[{text}]{value}'" for flag in option.flags)

    lines = ["_flavourctl_verbs() {", "    local -a verbs=("]
    lines += [f"        {shlex.quote(f'{verb.name}:{verb.help}')}" for verb in verbs]
    lines += ["    )", "    _describe -t verbs verb verbs", "}", ""]
    lines += ["_flavourctl_of_verb() {", "    case $1 in"]
    for verb in verbs:
        positionals = [f"'{'*' if value.many else ''}{action(value)}'" for value in verb.positionals]
        specs = " ".join([*map(spec, verb.options), *positionals])
        lines += [f"        {verb.name}) _arguments {specs} ;;"]
    specs = " ".join(map(spec, options))
    return "\n".join([*lines, "    esac", "}", "", f"_flavourctl_global=({specs})"])


def _fish(verbs: list[Verb], options: tuple[Option, ...]) -> str:
    def source(value: Value) -> str:
        if value.words:
            return f"-xa '{' '.join(value.words)}'"
        if value.source in ("files", "directories"):
            return "-rF"
        return f"-xa '(__flavourctl_{value.source})'" if value.source else "-x"

    def render(condition: str, option: Option) -> str:
        names = " ".join(
            f"-l {flag.removeprefix('--')}" if flag.startswith("--") else f"-s {flag.removeprefix('-')}"
            for flag in option.flags
        )
        value = f" {source(option.value)}" if option.value else ""
        return f'complete -c flavourctl -n "{condition}" {names}{value} -d {_fish_quote(option.help)}'

    lines = [f"set -g __flavourctl_valued {' '.join(_valued(verbs))}", ""]
    lines += [render("__flavourctl_at '' 1", option) for option in options]
    for verb in verbs:
        text = _fish_quote(verb.help)
        lines += [f"complete -c flavourctl -n \"__flavourctl_at '' 1\" -a {verb.name} -d {text}"]
    for verb in verbs:
        lines.append("")
        lines += [render(f"__flavourctl_in {verb.name}", option) for option in verb.options]
        for number, value in enumerate(verb.positionals, 1):
            condition = f"__flavourctl_at {verb.name} {number}"
            if value.many:
                condition = f"__flavourctl_in {verb.name}"
            lines.append(f"complete -c flavourctl -n '{condition}' {source(value)}")
    return "\n".join(lines)


def _fish_quote(text: str) -> str:
    quoted = re.sub(r"[\\']", r"\\\g<0>", text)
    return f"'{quoted}'"
