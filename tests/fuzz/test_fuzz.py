"""What holds of any data holds of the corpus, where every finding stays, and of changes to it."""

import pytest

from .mutate import mutated
from .names import TARGETS, corpus, load


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes_in_is_taken_or_refused_as_promised(target: str) -> None:
    one = load(target)
    seeds = [path.read_bytes() for path in corpus(target)]
    assert seeds
    for data in (b"", *seeds, *mutated(seeds, 2000, target)):
        try:
            one(data)
        except BaseException as error:
            error.add_note(f"{target}: {data!r}")
            raise
