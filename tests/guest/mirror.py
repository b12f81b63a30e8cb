"""Where this machine gets Debian from, turned into apt sources for a guest's release.

Whoever runs the rig may sit behind a mirror of their own; the machine's apt sources name it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import RigError

SOURCES = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")
DEFAULT_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)")


@dataclass(frozen=True, slots=True)
class Source:
    uri: str
    suite: str
    signed_by: str = DEFAULT_KEYRING

    def __str__(self) -> str:
        return f"deb [signed-by={self.signed_by}] {self.uri} {self.suite} main"


def read_sources(release: str) -> list[Source]:
    """The Debian archives this machine uses, each with `release` in place of its own release."""
    host = read_host_release()
    sources = {
        replace(source, suite=release + source.suite.removeprefix(host)): None
        for source in _read_machine_sources()
        if re.fullmatch(rf"{host}(-updates|-security)?", source.suite)
    }
    if not sources:
        raise RigError(f"'{SOURCES}' names no source of Debian {host}: no mirror to build a guest from")
    return list(sources)


def read_host_release() -> str:
    match = re.search(r"^VERSION_CODENAME=(\w+)", OS_RELEASE.read_text(), re.MULTILINE)
    if match is None:
        raise RigError(f"'{OS_RELEASE}' has no VERSION_CODENAME: is this machine Debian?")
    return match[1]


def _read_machine_sources() -> Iterator[Source]:
    directory = SOURCES / "sources.list.d"
    for path in [SOURCES / "sources.list", *sorted(directory.glob("*.list"))]:
        if path.exists():
            yield from parse_one_line(path.read_text())
    for path in sorted(directory.glob("*.sources")):
        yield from parse_deb822(path.read_text())


def parse_one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        if match := ONE_LINE.match(line.strip()):
            keyring = re.search(r"signed-by=(\S+)", match["options"] or "")
            yield Source(match["uri"], match["suite"], keyring[1] if keyring else DEFAULT_KEYRING)


def parse_deb822(text: str) -> Iterator[Source]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            name.strip().lower(): value.split()
            for name, separator, value in (line.partition(":") for line in stanza.splitlines())
            if separator and not name.startswith(" ")
        }
        if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
            continue
        # An armoured key may stand in the field itself instead of a path.
        keyring = next((key for key in fields.get("signed-by", []) if key.startswith("/")), DEFAULT_KEYRING)
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield Source(uri, suite, keyring)
