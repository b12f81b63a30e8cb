"""The head of the compiled rules: comments, in which they say what they were made from.

At boot this is read back: by a shell script, to see whether anything has to be compiled at all, and by the
compiler, since what the host needs can't be seen while next to nothing is mounted.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .address import PciAddress, parse_address
from .device import Identity
from .errors import FlavourError

Ids = tuple[int, int, int, int]

_MADE_BY = (
    "# Made by vfio-flavourd of its policy, do not edit: change the policy, then run `flavourctl reload`."
)
_DEVICE = re.compile(r"(\S+) ((?:[0-9a-f]{4,5}:?){4}) (\S+) ?(.*)", re.ASCII)
_SLOT = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7](?:/[0-9a-f+:.]+)*", re.ASCII)
# A name's other bytes are written as they are: the shell script compares them with what stat(1) prints.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_NEEDED, _USED = "needed", "used"
_FREE, _UNUSED = "free", "unused"


@dataclass(frozen=True, slots=True)
class Spared:
    """A device that the host uses. `ids` are vendor, device and those of its subsystem, `why` is for people.
    Its address is another one once a card more has the buses numbered anew; its `slot` (see `Facts`) stays.

    `needed` is what the host can't come up without (root, what is mounted, swap): no rule gets it. Anything
    else is spared by rules that would not take it away from a running host either (`in_use: refuse`).
    """

    address: PciAddress
    ids: Ids
    needed: bool
    why: str
    slot: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A wish by hand that outlives the boot: it stands above the rules."""

    address: PciAddress
    ids: Ids
    flavour: str
    drivers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Free:
    """A device that the running host was seen to do without."""

    address: PciAddress
    ids: Ids


@dataclass(frozen=True, slots=True)
class Header:
    """`sources` are the files it was made from, as `path size mtime`, with the bytes of a name that are no
    text as `os.fsdecode()` has them; `host` is the host's name where a rule asks for it. `only_free` says
    that no daemon has had the policy in force yet: its rules are for the devices in `free` alone."""

    version: str = ""
    sources: tuple[str, ...] = ()
    host: str = ""
    spared: tuple[Spared, ...] = ()
    kept: tuple[Kept, ...] = ()
    free: tuple[Free, ...] = ()
    only_free: bool = False


def find_ids(identity: Identity) -> Ids:
    return (identity.vendor, identity.device, identity.subsystem_vendor, identity.subsystem_device)


def render_header(header: Header) -> list[str]:
    lines = [_MADE_BY, comment(f"version: {header.version}")]
    lines += [f"# source: {_CONTROLS.sub('?', source)}" for source in header.sources]
    if header.host:
        lines.append(comment(f"host: {header.host}"))
    for each in header.spared:
        word, slot = _NEEDED if each.needed else _USED, f"{each.slot} " if each.slot else ""
        lines.append(comment(f"spared: {each.address} {_ids(each.ids)} {word} {slot}{each.why}"))
    lines += [
        comment(f"kept: {' '.join((str(each.address), _ids(each.ids), each.flavour, *each.drivers))}")
        for each in header.kept
    ]
    if header.only_free:
        lines.append(f"# only: {_FREE}")
    lines += [f"# {_FREE}: {each.address} {_ids(each.ids)} {_UNUSED}" for each in header.free]
    return lines


def parse_header(text: str) -> Header:
    """Never raises: what makes no sense is left out."""
    values: dict[str, list[str]] = {}
    for line in text.split("\n"):
        name, colon, value = line.removeprefix("# ").partition(": ")
        if line.startswith("# ") and colon:
            values.setdefault(name, []).append(value)
    spared, kept = [], []
    for address, ids, word, rest in _devices(values.get("spared", ())):
        if word in (_NEEDED, _USED):
            slot, _, why = rest.partition(" ")
            if not _SLOT.fullmatch(slot):
                slot, why = "", rest
            spared.append(Spared(address, ids, word == _NEEDED, why, slot))
    for address, ids, word, rest in _devices(values.get("kept", ())):
        kept.append(Kept(address, ids, word, tuple(rest.split())))
    return Header(
        version="".join(values.get("version", ())),
        sources=tuple(values.get("source", ())),
        host="".join(values.get("host", ())),
        spared=tuple(spared),
        kept=tuple(kept),
        free=tuple(
            Free(address, ids) for address, ids, word, _ in _devices(values.get(_FREE, ())) if word == _UNUSED
        ),
        only_free=_FREE in values.get("only", ()),
    )


def comment(text: str) -> str:
    """One line, whatever a person, a file system or a device has put into it."""
    printable = "".join(char if " " <= char <= "~" and char != "\\" else "?" for char in text)
    return f"# {printable}".rstrip()


def _devices(values: Iterable[str]) -> list[tuple[PciAddress, Ids, str, str]]:
    devices = []
    for value in values:
        found = _DEVICE.fullmatch(value)
        if found is None:
            continue
        try:
            address = parse_address(found[1])
            first, second, third, fourth = [int(part, 16) for part in found[2].split(":")]
        except (FlavourError, ValueError):
            continue
        devices.append((address, (first, second, third, fourth), found[3], found[4]))
    return devices


def _ids(ids: Ids) -> str:
    return ":".join(f"{number:04x}" for number in ids)
