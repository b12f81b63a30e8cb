"""A file of modprobe.d, and after a NUL a kernel command line."""

import re

from vfio_flavourd.model.alias_pattern import normalised
from vfio_flavourd.model.aliases import AliasTable
from vfio_flavourd.model.modprobe_conf import joined, parse_cmdline, parse_modprobe_conf, split_parameters
from vfio_flavourd.model.module_files import ModuleFiles

from .modules_alias import MODALIAS

_MODULE = re.compile(r"[A-Za-z0-9_]{1,64}")


def one(data: bytes) -> None:
    text, _, command_line = data.partition(b"\0")
    conf = parse_modprobe_conf(text, "/etc/modprobe.d/a.conf")
    lines = _read_character_by_character(text)
    for alias in conf.aliases:
        assert normalised(alias.pattern) == alias.pattern
        _check_place(alias.origin, "alias", lines)
    for install in conf.installs:
        assert normalised(install.modules) == install.modules
        assert install.command
        _check_place(install.origin, "install", lines)
    for option in conf.options:
        _check_place(option.origin, "options", lines)
    for place in conf.blacklist.values():
        _check_place(place, "blacklist", lines)
    assert all(int(place.rpartition(":")[2]) in lines for place in conf.skipped.origins)
    told = (conf.aliases, conf.installs, conf.options, conf.softdeps)
    written = sum(bool(line.strip(" \t")) for line in lines.values())
    assert sum(map(len, told)) + conf.skipped.count <= written

    by_kernel = parse_cmdline(command_line.decode("utf-8", "replace"))
    split_parameters(command_line.decode("utf-8", "replace"))
    both = joined([conf, by_kernel])
    assert set(both.blacklist) == set(conf.blacklist) | set(by_kernel.blacklist)
    modules = {*both.blacklist}
    modules |= {each.module for each in both.aliases} | {each.module for each in both.options}
    assert all(_MODULE.fullmatch(module) for module in modules | {each.module for each in both.softdeps})
    resolution = AliasTable(ModuleFiles(), both).resolve(MODALIAS)
    assert resolution.candidates[-1].module == "vfio_pci"


def _check_place(origin: str, verb: str, lines: dict[int, str]) -> None:
    """It is said where it stands."""
    assert lines[int(origin.rpartition(":")[2])].split()[0] == verb, origin


def _read_character_by_character(data: bytes) -> dict[int, str]:
    """The logical lines by the number of their first one, as freadline_wrapped() (kmod: shared/util.c)
    goes through a file."""
    lines: dict[int, str] = {}
    first = number = 1
    line = bytearray()
    at = 0
    while at < len(data):
        character = data[at : at + 1]
        at += 1
        if character == b"\\":
            escaped = data[at : at + 1]
            at += 1
            number += escaped == b"\n"
            line += escaped if escaped != b"\n" else b""
        elif character == b"\n":
            lines[first] = line.decode("latin-1")
            number += 1
            first, line = number, bytearray()
        else:
            line += character
    lines[first] = line.decode("latin-1")
    return lines
