"""A page's console blocks as the guest's test reads them."""

import pytest

from tests.guest.transcript import Exchange, read_transcript

PAGE = """
Text with `code`.

```console
# first
one … three
# second \\
>     and on
…
(initramfs) typed
last
```

```sh
# not run
```

```console
# third
```
"""


def test_commands_what_is_typed_and_what_is_printed_are_told_apart() -> None:
    assert read_transcript(PAGE) == [
        Exchange("first", (), ("one … three",)),
        Exchange("second \\\n    and on", ("typed",), ("…", "(initramfs) typed", "last")),
        Exchange("third", (), ()),
    ]


@pytest.mark.parametrize(
    ("page", "output", "matches"),
    [
        (("one … three",), "one two three\n", True),
        (("one … three",), "one two four\n", False),
        (("one … three",), "one\nthree\n", False),
        (("one",), "one\ntwo\n", False),
        (("one", "…"), "one\ntwo\nthree\n", True),
        (("one", "…"), "one\n", True),
        (("…", "last"), "first\nlast\n", True),
        (("a  b  c",), "a     b  c\n", True),
        (("a b",), "a  b\n", False),
        (("ids [8086:10d3] (1.2)",), "ids [8086:10d3] (1.2)\n", True),
        (("typed",), "\x1b[?7l\x1b[2Jtyped\r\n", True),
        ((), "", True),
        ((), "something\n", False),
    ],
)
def test_output_is_what_the_page_says(page: tuple[str, ...], output: str, matches: bool) -> None:
    assert Exchange("command", (), page).matches(output) == matches
