"""The texts that stand in a policy, each read as it was written."""

import re

from ..model.address import parse_address
from .kinds import Text

_FACTORS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_ADDRESS = "(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F][.][0-7]"
_BEHIND = "(?:[+][1-9][0-9]{0,2}:)?[01][0-9a-fA-F][.][0-7]"
_NAME = "[A-Za-z0-9_][A-Za-z0-9_-]{0,63}"


def _seconds(text: str) -> float:
    seconds = sum(float(number) * _FACTORS[unit] for number, unit in re.findall("([0-9]+)(ms|[hms])", text))
    if not 0 < seconds <= 3600:
        raise ValueError("is not between 1ms and 1h")
    return seconds


def _mode(text: str) -> int:
    mode = int(text, 8)
    if mode & ~0o666:
        raise ValueError("allows more than reading and writing, 0666")
    return mode


def _slot(text: str) -> str:
    root, *behind = text.lower().split("/")
    return "/".join((str(parse_address(root)), *behind))


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("starts or ends with a blank, or has unprintable characters")
    return text


def _path(text: str) -> str:
    if not {".", ".."}.isdisjoint(text.split("/")):
        raise ValueError("has a part . or .., which would lead elsewhere")
    return text


ID = Text(
    "an ID: up to four hexadecimal digits, such as 0x15b3 or 15b3",
    "(?:0[xX])?[0-9a-fA-F]{1,4}",
    lambda text: int(text, 16),
    types=("string", "number"),
)
CLASS = Text(
    "a class: two, four or six hexadecimal digits, such as 0x0300",
    "(?:0[xX])?(?:[0-9a-fA-F]{2}){1,3}",
    lambda text: text.lower().removeprefix("0x"),
    types=("string", "number"),
)
ADDRESS = Text("an address, such as 0000:01:00.0", _ADDRESS, parse_address, types=("string", "number"))
SLOT = Text(
    "a path of device numbers from the root bus, such as 0000:00:1c.0/00.0",
    f"{_ADDRESS}(?:/{_BEHIND}){{0,15}}",
    _slot,
    types=("string", "number"),
)
MODALIAS = Text("a glob for a modalias, such as pci:v000015B3d*", "(?:pci:|[*?\\[])[!-~]{0,255}")
IOMMU_GROUP = Text("the number of an IOMMU group", "0|[1-9][0-9]{0,5}", int, types=("string", "integer"))
HOST = Text("a glob for a host's name", "[A-Za-z0-9._*?!\\[\\]-]{1,253}")
SERIAL = Text("a serial number: up to 64 printable characters", "[!-~](?:[ -~]{0,62}[!-~])?")
DRIVER = Text("a driver's name: up to 64 letters, digits, _ and -", _NAME)
MODULE = Text(
    "a module's name: up to 64 letters, digits, _ and -", _NAME, lambda text: text.replace("-", "_")
)
ALIAS_PREFIX = Text("the beginning of an alias, such as vfio_pci, or none", _NAME)
FLAVOUR = Text("the name of a flavour", _NAME)
OWN_FLAVOUR = Text("a flavour's name: small letters, digits, _ and -", "[a-z][a-z0-9_-]{0,31}")
NAME = Text("a line of up to 100 characters", ".{1,100}", _printable)
METRICS_FILE = Text(
    "an absolute path that ends in .prom, such as /var/lib/prometheus/node-exporter/vfio-flavourd.prom",
    "(?:/[A-Za-z0-9_.@+-]{1,64}){1,15}[.]prom",
    _path,
)
ATTRIBUTE = Text(
    "a path below the device's directory, such as nvidia/current_vgpu_type",
    "[A-Za-z0-9_.-]{1,64}(?:/[A-Za-z0-9_.-]{1,64}){0,7}",
    _path,
)
WRITTEN = Text("a text of up to 64 printable characters", "[!-~](?:[ -~]{0,62}[!-~])?")
DURATION = Text(
    "a duration, such as 10s, 1m30s or 500ms",
    "(?:[0-9]{1,7}h)?(?:[0-9]{1,7}m)?(?:[0-9]{1,7}s)?(?:[0-9]{1,7}ms)?",
    _seconds,
    types=("string",),
)
ACCOUNT = Text("a user or group: a name or a number", "[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
MODE = Text("an octal mode, such as 0660", "[0-7]{3,4}", _mode, types=("string", "integer"))
