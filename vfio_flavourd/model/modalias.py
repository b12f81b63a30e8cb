"""A PCI device's modalias, its flavoured form, and how narrowly a pattern describes it."""

import re
from dataclasses import dataclass

from .alias_pattern import STAR, Bracket, Token, matches, normalised, tokens
from .codes import Code
from .errors import FlavourError

__all__ = [
    "FLAVOUR_PREFIX",
    "Modalias",
    "flavoured",
    "matches",
    "normalised",
    "parse_modalias",
    "specificity",
]

FLAVOUR_PREFIX = "vfio_pci"

_FIELDS = (("v", 8), ("d", 8), ("sv", 8), ("sd", 8), ("bc", 2), ("sc", 2), ("i", 2))
# As the kernel writes it: modalias_show() in drivers/pci/pci-sysfs.c.
_MODALIAS = re.compile("pci:" + "".join(f"{name}([0-9A-Fa-f]{{{width}}})" for name, width in _FIELDS))


@dataclass(frozen=True, slots=True)
class Modalias:
    """The fields as the hex text they were read as: IDs have eight digits, the class's parts two."""

    vendor: str
    device: str
    subvendor: str
    subdevice: str
    base_class: str
    subclass: str
    interface: str
    text: str


def parse_modalias(text: str) -> Modalias:
    """Takes what sysfs reads, newline or not. Raises FlavourError (EINVAL).

    Lower-case digits are taken as they are: the kernel writes none, and matching is case sensitive.
    """
    stripped = text.strip()
    match = _MODALIAS.fullmatch(stripped)
    if match is None:
        raise FlavourError(
            f"{_shown(text)} is not the modalias of a PCI device",
            code=Code.INVALID_ARGUMENT,
            hint="one looks like pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00",
        )
    vendor, device, subvendor, subdevice, base_class, subclass, interface = match.groups()
    return Modalias(vendor, device, subvendor, subdevice, base_class, subclass, interface, stripped)


def flavoured(modalias: str, prefix: str = FLAVOUR_PREFIX) -> str:
    """The modalias with `pci:` replaced by the flavour's prefix; one that has it already stays as it is.

    Raises FlavourError (EINVAL).
    """
    if re.fullmatch(r"[\w-]{1,64}", prefix, re.ASCII) is None:
        raise FlavourError(
            f"{_shown(prefix)} can't be an alias prefix",
            code=Code.INVALID_ARGUMENT,
            hint="allowed: letters, digits, _ and -, at most 64 of them",
        )
    scheme = prefix.replace("-", "_")
    stripped = modalias.strip()
    rest = stripped.removeprefix(f"{scheme}:")
    parsed = parse_modalias(stripped if rest == stripped else f"pci:{rest}")
    return scheme + parsed.text[len("pci") :]


def specificity(pattern: str) -> tuple[int, ...]:
    """How narrow a pattern is, field by field from vendor to interface; the greater tuple is the narrower.

    2: the field is literal; 1: part of it is constrained; 0: anything goes, also where the pattern
    ends before the field. A `*` after all of a field's digits takes nothing from it: modpost ends
    patterns like that (scripts/mod/file2alias.c, do_pci_entry()).
    """
    glob = tokens(pattern)
    ranks = [0] * len(_FIELDS)
    field, width = -1, 0
    value: list[Token] = []
    at = _after_prefix(glob)
    while at < len(glob):
        following = _field_at(glob, at, field) if STAR in value or len(value) >= width else None
        if following is None:
            value.append(glob[at])
            at += 1
            continue
        if field >= 0:
            ranks[field] = _rank(value, width)
        field = following
        name, width = _FIELDS[field]
        value = []
        at += len(name)
    if field >= 0:
        ranks[field] = _rank(value, width)
    return tuple(ranks)


def _after_prefix(glob: tuple[Token, ...]) -> int:
    if ":" in glob:
        return glob.index(":") + 1
    return glob.index(STAR) if STAR in glob else len(glob)


def _field_at(glob: tuple[Token, ...], at: int, after: int) -> int | None:
    for field in range(after + 1, len(_FIELDS)):
        name = _FIELDS[field][0]
        if glob[at : at + len(name)] == tuple(name):
            return field
    return None


def _rank(value: list[Token], width: int) -> int:
    digits, rest = value[:width], value[width:]
    if len(digits) == width and all(isinstance(token, str) for token in digits):
        return 2 if all(token is STAR for token in rest) else 1
    return int(any(isinstance(token, str | Bracket) for token in value))


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:77] + "...")
