"""Text as mdoc(7), and the parts of a manual page that are made."""

import re

_PART = re.compile(
    r'(?P<begin>^\.\\" made from the code: (?P<name>.+)\n)(?:.*\n)*?(?P<end>^\.\\" end of what is made\n)',
    re.MULTILINE,
)


def replace_parts(page: str, parts: dict[str, list[str]]) -> str:
    """Raises KeyError where the page has a part that isn't given."""

    def fill(found: re.Match[str]) -> str:
        lines = "".join(f"{line}\n" for line in parts[found["name"]])
        return f"{found['begin']}{lines}{found['end']}"

    return _PART.sub(fill, page)


def escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("…", "...")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def prose(text: str) -> list[str]:
    """A line a sentence, as mdoc has it; paragraphs are separated by an empty line."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        if lines:
            lines.append(".Pp")
        lines += [_mark(escape(sentence)) for sentence in re.split(r"(?<=[.:;?]) (?=[A-Z])", paragraph)]
    return lines


def _mark(text: str) -> str:
    """Options in bold, as macros would have them."""
    return re.sub(
        r"(?<![\w-])--[a-z][a-z-]*", lambda found: "\\fB" + found[0].replace("-", "\\-") + "\\fR", text
    )
