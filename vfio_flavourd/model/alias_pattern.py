"""Patterns of module aliases, matched as kmod does: fnmatch(3) in the C locale, flags 0, whole string."""

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, Literal, TypeAlias


class Wild(Enum):
    ONE = "?"
    ANY_NUMBER = "*"


ONE: Final = Wild.ONE
STAR: Final = Wild.ANY_NUMBER


@dataclass(frozen=True, slots=True)
class Bracket:
    """`[…]`: one character that is in the set, or isn't."""

    characters: frozenset[str]
    negated: bool

    def accepts(self, character: str) -> bool:
        return (character in self.characters) is not self.negated


Token: TypeAlias = str | Bracket | Literal[Wild.ONE, Wild.ANY_NUMBER]

_NEVER = Bracket(frozenset(), negated=False)
_LITERAL_HEAD = re.compile(r"[^*?\[\\]*")
_BRACKETS = re.compile(r"\[[^\]]*\]|[\[\]]")


def normalised(pattern: str) -> str | None:
    """`-` as `_` outside of brackets; None for unbalanced brackets, which make kmod ignore the alias.

    Both as kmod's underscores() and alias_normalize() do it (shared/util.c): a bracket ends at the
    first `]`, also when that is its first character.
    """
    if "[" not in pattern and "]" not in pattern:
        return pattern.replace("-", "_")
    parts: list[str] = []
    last = 0
    for bracket in _BRACKETS.finditer(pattern):
        if len(bracket.group()) == 1:
            return None
        parts += (pattern[last : bracket.start()].replace("-", "_"), bracket.group())
        last = bracket.end()
    return "".join((*parts, pattern[last:].replace("-", "_")))


def matches(pattern: str, text: str) -> bool:
    """Whether fnmatch(3) would say so.

    Bytes are characters, as in the C locale. Inside brackets `[:`, `[=` and `[.` are plain characters, where
    fnmatch(3) may find the pattern ill-formed: what they begin there ends with two `]`, of which kmod's
    normalisation lets only one pass.
    """
    head = _LITERAL_HEAD.match(pattern)
    if head is not None and not text.startswith(head.group()):
        return False
    glob = tokens(pattern)
    at = position = 0
    star, resume = -1, 0
    while position < len(text):
        token = glob[at] if at < len(glob) else None
        if token is STAR:
            star, resume = at, position
            at += 1
        elif token is not None and _accepts(token, text[position]):
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(token is STAR for token in glob[at:])


def _accepts(token: Token, character: str) -> bool:
    if isinstance(token, Bracket):
        return token.accepts(character)
    return token is ONE or token == character


@lru_cache(maxsize=512)
def tokens(pattern: str) -> tuple[Token, ...]:
    """Never raises: what fnmatch(3) calls ill-formed becomes literal or matches nothing, as there."""
    glob: list[Token] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            glob.append(STAR)
        elif character == "?":
            glob.append(ONE)
        elif character == "\\":
            glob.append(pattern[at] if at < len(pattern) else _NEVER)
            at += 1
        elif character == "[" and (found := _bracket(pattern, at)):
            bracket, at = found
            glob.append(bracket)
        else:
            glob.append(character)
    return tuple(glob)


def _bracket(pattern: str, at: int) -> tuple[Bracket, int] | None:
    """The bracket whose `[` stands before `at`, and where it ends; None when nothing closes it."""
    negated = pattern[at : at + 1] in ("!", "^")
    at += negated
    first = at
    characters: set[str] = set()
    while at < len(pattern):
        if pattern[at] == "]" and at > first:
            return Bracket(frozenset(characters), negated), at + 1
        low, at = _bracket_character(pattern, at)
        if pattern[at : at + 1] == "-" and pattern[at + 1 : at + 2] != "]":
            high, at = _bracket_character(pattern, at + 1)
            if high:
                characters.update(map(chr, range(ord(low), min(ord(high), 0xFF) + 1)))
        else:
            characters.add(low)
        if at > len(pattern):
            return _NEVER, len(pattern)
    return None


def _bracket_character(pattern: str, at: int) -> tuple[str, int]:
    """A character that may be escaped; where there is none, it is empty and the place is beyond the end."""
    if pattern[at : at + 1] != "\\":
        return pattern[at : at + 1], at + 1
    return pattern[at + 1 : at + 2], at + 2
