"""What a policy rule looks for, in the match language of udev.

A condition becomes one key, `ATTR{vendor}=="0x8086|0x10de"`, or several, any of which will do where one
can't say it. Values are numbers, addresses and patterns of a small alphabet: nothing that a person wrote
reaches a rules file unchecked, since in udev `|` can't be escaped, a quote ends a value and, elsewhere,
`$` and `%` are substituted (udev-rules.c: rule_line_add_token(), udev_rule_parse_value()).
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .policy import NO_DRIVER, Match, is_host

# Of a whole line udev takes 16 KiB (UDEV_LINE_SIZE); a rule has at most a dozen keys.
_LONGEST_VALUE = 1000

# What a glob has to consist of for fnmatch(3), which is what udev calls, to read it as Python does.
_GLOB = re.compile(r"(?:[0-9A-Za-z:_*?-]|\[!?(?:[0-9A-Za-z](?:-[0-9A-Za-z])?)+\])+", re.ASCII)
_RANGE = re.compile(r"([0-9A-Za-z])-([0-9A-Za-z])", re.ASCII)
_CLASS = re.compile(r"[0-9a-f]{1,6}", re.ASCII)
_SLOT = re.compile(
    r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f]\.[0-7])((?:/(?:\+\d+:)?[01][0-9a-f]\.[0-7])*)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Translated:
    """`conditions` have to be met all, each by any of its keys; what meets them and one of `doubtful`
    can't be told. `unknown` says what else would have to be met that can't be told of any device.
    """

    conditions: tuple[tuple[str, ...], ...]
    doubtful: tuple[str, ...]
    unknown: tuple[str, ...]

    def lines(self) -> Iterator[tuple[str, ...]]:
        """The keys of each line; one without any where everything fits."""
        return itertools.product(*self.conditions)

    def doubtful_lines(self) -> Iterator[tuple[str, ...]]:
        return itertools.product(*self.conditions, self.doubtful)

    def count_lines(self) -> int:
        """Those of both kinds, without making them."""
        return _count_combinations(self.conditions) * (1 + len(self.doubtful))


def translate(match: Match, host_name: str, most: int) -> Translated | None:
    """As a device without a driver is matched by it; None where this host is not meant.

    Where that would be more than `most` lines, there are conditions left out, and that is `unknown`.
    """
    if match.host and not any(is_host(host_name, glob) for glob in match.host):
        return None
    unknown: list[str] = []
    if match.serial:
        unknown.append("a serial, which is only known once the native driver has the device")
    if match.driver and NO_DRIVER not in match.driver:
        unknown.append("a driver, which the device has not got yet")
    classes = [text for text in match.device_class if _CLASS.fullmatch(text)]
    slots = [found for text in match.slot if (found := _SLOT.fullmatch(text))]
    globs = [glob for glob in match.modalias if _is_plain_glob(glob)]
    if len(classes) < len(match.device_class):
        unknown.append("a class that udev can't compare")
    if len(globs) < len(match.modalias):
        unknown.append("a modalias that udev can't compare")
    if len(slots) < len(match.slot) or any("+" in slot[0] for slot in slots):
        unknown.append("a slot that udev can't compare")
    places = [place for slot in slots for place in _places(slot)]
    conditions = [
        any_of("KERNEL", map(str, match.address)),
        any_of("DEVPATH", (each for place in places for each in (place, f"{place}/*")))
        if len(slots) == len(match.slot)
        else (),
        any_of("ATTR{vendor}", map(hex_id, match.vendor)),
        any_of("ATTR{device}", map(hex_id, match.device)),
        any_of("ATTR{subsystem_vendor}", map(hex_id, match.subsystem_vendor)),
        any_of("ATTR{subsystem_device}", map(hex_id, match.subsystem_device)),
        # sysfs reads 0x020000.
        any_of("ATTR{class}", (f"0x{digits}" + "*" * (len(digits) < 6) for digits in classes))
        if len(classes) == len(match.device_class)
        else (),
        any_of("ATTR{modalias}", globs) if len(globs) == len(match.modalias) else (),
        # The attribute has several lines; its value is compared whole, line ends and all.
        any_of("ATTR{physfn/uevent}", (f"*PCI_SLOT_NAME={address}*" for address in match.pf)),
        # udev can't read where the link `iommu_group` leads, but the group names its devices.
        tuple(f'TEST=="/sys/kernel/iommu_groups/{group}/devices/$kernel"' for group in match.iommu_group),
    ]
    if match.sriov is not None:
        conditions.append(('TEST=="physfn"' if match.sriov == "vf" else 'TEST=="sriov_totalvfs"',))
    given = tuple(keys for keys in conditions if keys)
    translated = Translated(given, _doubtful(match, places), tuple(unknown))
    if translated.count_lines() <= most:
        return translated
    unknown.append("more combinations than udev should compare")
    return Translated(_easiest(given, most), (), tuple(unknown))


def _easiest(conditions: Iterable[tuple[str, ...]], most: int) -> tuple[tuple[str, ...], ...]:
    """As many of them as combine in no more than `most` ways; what fits all of them fits these."""
    kept: list[tuple[str, ...]] = []
    for keys in sorted(conditions, key=len):
        if _count_combinations([*kept, keys]) <= most:
            kept.append(keys)
    return tuple(kept)


def _count_combinations(conditions: Sequence[tuple[str, ...]]) -> int:
    return math.prod(len(keys) for keys in conditions)


def _doubtful(match: Match, places: list[str]) -> tuple[str, ...]:
    """A VF on another bus than its PF looks like a function in the slot: udev can't compare the two buses."""
    if match.sriov == "pf":
        return ()
    exact = any_of("DEVPATH", (place for place in places if "?" in place))
    return exact if match.sriov == "vf" else tuple(f'{key}, TEST=="physfn"' for key in exact)


def _places(slot: re.Match[str]) -> tuple[str, ...]:
    """The DEVPATH of what is in a slot. The numbers of the buses below the root's are not part of it.

    `0000:00:1c.0/00.0` is `…/pci0000:00/0000:00:1c.0/0000:??:00.0`, or, where 1c.0 is a VMD device, in a
    domain of its own, whose number has five digits (vmd_find_free_domain() in drivers/pci/controller/vmd.c).
    The `*` at the beginning is for hosts whose root buses are platform devices.
    """
    domain, bus, first, rest = slot.groups()
    root = f"*/pci{domain}:{bus}/{domain}:{bus}:{first}"
    parts = [part.rpartition(":")[2] for part in rest.split("/")[1:]]
    if not parts:
        return (root,)
    in_domain = "".join(f"/{domain}:??:{part}" for part in parts)
    behind_vmd = "".join(f"/?????:??:{part}" for part in parts)
    return (root + in_domain, f"{root}/pci?????:??{behind_vmd}")


def find_places(slot: str) -> tuple[str, ...]:
    """The DEVPATH of what is in a slot, whatever the buses are numbered; none where udev can't compare it."""
    found = _SLOT.fullmatch(slot)
    return () if found is None or "+" in slot else _places(found)


def any_of(key: str, values: Iterable[str]) -> tuple[str, ...]:
    """One `key=="a|b"`, or several where that would be too long; none for no values."""
    keys: list[str] = []
    together = ""
    for value in dict.fromkeys(values):
        assert not set(value) & set('|"\\\n'), value
        if together and len(together) + len(value) >= _LONGEST_VALUE:
            keys.append(f'{key}=="{together}"')
            together = ""
        together = f"{together}|{value}" if together else value
    return (*keys, f'{key}=="{together}"') if together else ()


def hex_id(number: int) -> str:
    """As `vendor`, `device` and the like read in sysfs."""
    return f"0x{number:04x}"


def widened(pattern: str, prefix: str) -> str:
    """The devices of a flavoured alias pattern as a glob for `ATTR{modalias}`; rather too many than too few.

    What udev can't say becomes a `?`, and a pattern with a wildcard in its prefix is for every device.
    """
    if not pattern.startswith(f"{prefix}:"):
        return "pci:*"
    parts = re.split(r"(\[!?[0-9A-Za-z]+\])", pattern.removeprefix(f"{prefix}:"))
    for at in range(0, len(parts), 2):
        parts[at] = re.sub(r"\[[^\]]*\]|[^0-9A-Za-z_*?]", "?", parts[at])
    return "pci:" + "".join(parts)


def _is_plain_glob(glob: str) -> bool:
    """An inverted range is an error to one and empty to the other."""
    inverted = any(low > high for low, high in _RANGE.findall(glob) if "[" in glob)
    return _GLOB.fullmatch(glob) is not None and not inverted
