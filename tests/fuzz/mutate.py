"""Blind changes to what is in the corpus: what a run of seconds has instead of the fuzzer, which not every
machine can have."""

import random
from collections.abc import Iterator, Sequence

_ODD = (
    b"\0",
    b"\n",
    b"\\",
    b'"',
    b"\xff",
    b"\xc3",
    b"\x1b",
    b"*",
    b"[",
    b"]",
    b"{",
    b":",
    b"-",
    b"#",
    b"1e999",
    b"9" * 20,
)


def mutated(seeds: Sequence[bytes], count: int, random_seed: str) -> Iterator[bytes]:
    """The same ones each time."""
    choice = random.Random(random_seed)
    for _ in range(count):
        data = choice.choice(seeds)
        for _ in range(choice.randint(1, 4)):
            data = _change(data, choice.choice(seeds), choice)
        yield data


def _change(data: bytes, other: bytes, choice: random.Random) -> bytes:
    start, end = sorted(choice.choices(range(len(data) + 1), k=2))
    end = min(end, start + 16)
    match choice.randrange(5):
        case 0:
            return data[:start] + data[end:]
        case 1:
            return data[:start] + choice.choice(_ODD) + data[start:]
        case 2:
            return data[:end] + data[start:]
        case 3:
            return data[:start] + bytes([choice.randrange(256)]) + data[start + 1 :]
        case _:
            at = choice.randrange(len(other) + 1)
            return data[:start] + other[at : at + 16] + data[end:]
