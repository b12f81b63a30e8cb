"""As much of udev's rule language as the compiled rules use, after systemd's udev-rules.c.

Tokens of a line are looked at in the order of their kinds, not as written (sort_tokens()); a missing
attribute meets neither `==` nor `!=` (token_match_attr()); `|` separates before anything else; patterns are
for the C library's own fnmatch().
"""

import ctypes
import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""\s*(?P<key>[A-Z_]+)(?:\{(?P<attribute>[^}]*)\})?(?P<operator>==|!=|\+=|=)"(?P<value>(?:\\"|[^"])*)",?"""
)
# enum UdevRuleTokenType, as far as it goes.
ORDER = ["ACTION", "DEVPATH", "KERNEL", "ENV", "SUBSYSTEM", "ATTR", "TEST", "IMPORT"]
LONGEST_LINE = 16384

_fnmatch = ctypes.CDLL(None).fnmatch


@dataclass(frozen=True)
class Token:
    key: str
    attribute: str | None
    operator: str
    value: str

    @property
    def place(self) -> int:
        matching = self.operator in ("==", "!=") or self.key == "IMPORT"
        return ORDER.index(self.key) if matching else len(ORDER)


@dataclass
class FakeUdevDevice:
    """`attributes` and `paths` are below the device unless absolute."""

    kernel: str
    devpath: str
    attributes: dict[str, str] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)
    cmdline: dict[str, str] = field(default_factory=dict)
    database: dict[str, str] = field(default_factory=dict)
    subsystem: str = "pci"
    action: str = "add"


@dataclass
class Event:
    """What came of it: attributes written, in order, and commands to run."""

    written: list[tuple[str, str]] = field(default_factory=list)
    run: list[str] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> list[list[Token]]:
    """Raises AssertionError for what udev would complain about."""
    lines = []
    for line in text.split("\n"):
        if not line or line.startswith("#"):
            continue
        assert len(line) < LONGEST_LINE
        tokens, at = [], 0
        while at < len(line):
            found = TOKEN.match(line, at)
            assert found, f"not a token: {line[at:]}"
            tokens.append(Token(found["key"], found["attribute"], found["operator"], found["value"]))
            at = found.end()
        assert len(set(tokens)) == len(tokens), f"duplicate expressions: {line}"
        opposite = {"==": "!=", "!=": "=="}
        for token in tokens:
            turned = Token(token.key, token.attribute, opposite.get(token.operator, ""), token.value)
            assert turned not in tokens, f"conflicting expressions: {line}"
        lines.append(sorted(tokens, key=lambda token: token.place))
    labels = [token.value for tokens in lines for token in tokens if token.key == "LABEL"]
    gotos = {token.value for tokens in lines for token in tokens if token.key == "GOTO"}
    assert len(set(labels)) == len(labels)
    assert set(labels) == gotos, set(labels) ^ gotos
    return lines


def apply(lines: list[list[Token]], device: FakeUdevDevice) -> Event:
    event = Event()
    at = 0
    while at < len(lines):
        tokens = lines[at]
        at += 1
        goto = ""
        for token in tokens:
            if token.place < len(ORDER):
                if not _is_met(token, device, event):
                    break
            elif token.key == "GOTO":
                goto = token.value
            else:
                _assign(token, device, event)
        else:
            if goto:
                (at,) = [
                    number
                    for number, line in enumerate(lines)
                    if any(token.key == "LABEL" and token.value == goto for token in line) and number >= at
                ]
    return event


def _is_met(token: Token, device: FakeUdevDevice, event: Event) -> bool:
    name = token.attribute or ""
    if token.key == "IMPORT":
        found = {"db": device.database, "cmdline": device.cmdline}[name].get(token.value)
        if found is not None:
            event.properties[token.value] = found
        return found is not None
    if token.key == "TEST":
        return (_substituted(token.value, device) in device.paths) == (token.operator == "==")
    if token.key == "ATTR":
        if name not in device.attributes:
            return False
        text = device.attributes[name].rstrip()
    elif token.key == "ENV":
        text = event.properties.get(name, "")
    else:
        text = getattr(device, token.key.lower())
    return _matches(token.value, text) == (token.operator == "==")


def _matches(value: str, text: str) -> bool:
    alternatives = value.split("|")
    if "" in alternatives and not text:
        return True
    if set(value) & set("*?["):
        return any(_fnmatch(each.encode(), text.encode(), 0) == 0 for each in alternatives if each)
    return text in alternatives


def _assign(token: Token, device: FakeUdevDevice, event: Event) -> None:
    if token.key == "ATTR":
        assert token.attribute is not None
        value = _substituted(token.value, device)
        event.written.append((token.attribute, value))
        device.attributes[token.attribute] = value
    elif token.key == "ENV":
        event.properties[token.attribute or ""] = token.value
    elif token.key == "RUN":
        assert token.attribute == "builtin", "a program"
        event.run.append(token.value)
    else:
        assert token.key in ("LABEL", "OPTIONS"), token


def _substituted(text: str, device: FakeUdevDevice) -> str:
    text = text.replace("$kernel", device.kernel)
    assert "$" not in text
    assert "%" not in text
    return text
