"""A page's console blocks, as commands with what they print.

# command          what root types; `> ` continues it
(initramfs) word   what is typed into the command while it runs, at that prompt
output             with … for anything on the line, and alone on a line for any lines
"""

import re
from dataclasses import dataclass

PROMPT = "(initramfs) "
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ESCAPE_CODE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[^\[])")


@dataclass(frozen=True, slots=True)
class Exchange:
    command: str
    typed: tuple[str, ...]
    output: tuple[str, ...]
    """As it looks on a terminal, what is typed at a prompt included."""

    def matches(self, output: str) -> bool:
        return re.fullmatch("".join(map(_pattern, self.output)), clean(output)) is not None


def read_transcript(page: str) -> list[Exchange]:
    exchanges = []
    for block in _BLOCK.findall(page):
        for part in re.split(r"^# ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            typing = 1
            while typing < len(lines) and lines[typing].startswith("> "):
                typing += 1
            command = "\n".join([lines[0], *(line.removeprefix("> ") for line in lines[1:typing])])
            output = tuple(lines[typing:])
            typed = tuple(line.removeprefix(PROMPT) for line in output if line.startswith(PROMPT))
            exchanges.append(Exchange(command, typed, output))
    return exchanges


def clean(output: str) -> str:
    """Without what a terminal acts on, and without blanks at the end of lines."""
    lines = _ESCAPE_CODE.sub("", output.replace("\r", "")).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _pattern(line: str) -> str:
    if line == "…":
        return r"(?:.*\n)*?"
    parts = (re.sub(r"(?:\\ ){2,}", " +", re.escape(part)) for part in line.split("…"))
    return r"[^\n]*".join(parts) + r"\n"
