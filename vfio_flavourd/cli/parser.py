"""flavourctl's verbs and options; the manual page's options and the completions are made from these."""

from __future__ import annotations

import argparse

from .. import __version__
from .manual import add_pages
from .usage import Parser

# `pathlib` takes longer to import than this module, and most verbs have no paths.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """One block a verb, in the order in which --help shows them."""
    common = Parser(add_help=False)
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object"
    )
    common.add_argument(
        "--no-color", action="store_true", default=argparse.SUPPRESS, help="no colours (as NO_COLOR)"
    )
    parser = Parser(
        prog="flavourctl",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"flavourctl {__version__}")
    parser.set_defaults(columns=None, noheadings=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    listing = verbs.add_parser("list", parents=[common], help="all devices (the default)")
    listing.add_argument("--columns", metavar="NAME,...", help="these columns, in this order")
    listing.add_argument("--noheadings", action="store_true", help="no line with the columns' names")

    show = verbs.add_parser("show", parents=[common], help="all about one device")
    show.add_argument("device", metavar="DEV", help="its address, e.g. 01:00.0")

    verbs.add_parser("monitor", parents=[common], help="what is being switched, as it happens, until Ctrl-C")

    groups = verbs.add_parser(
        "groups", parents=[common], help="the IOMMU groups: could a guest have them, and what it takes"
    )
    groups.set_defaults(form="tree")
    forms = groups.add_mutually_exclusive_group()
    for form, what in (("tree", "as text (the default)"), ("dot", "for Graphviz"), ("svg", "as a picture")):
        forms.add_argument(f"--{form}", action="store_const", dest="form", const=form, help=what)

    plot = verbs.add_parser(
        "plot", parents=[common], help="a timeline of one or more switches, as a picture (SVG)"
    )
    plot.add_argument(
        "attempts",
        nargs="+",
        metavar="ID|DEV",
        help="an attempt's number (flavourctl history), or a device for its last one",
    )
    plot.add_argument(
        "-o", "--output", type=_parse_path, metavar="FILE", help="write it there instead of to stdout"
    )

    history = verbs.add_parser("history", parents=[common], help="what has been tried since the boot")
    history.add_argument("device", metavar="DEV", nargs="?", help="only this one, e.g. 01:00.0")
    history.add_argument(
        "-n", "--number", type=_parse_number, metavar="N", help="show the last N attempts only"
    )

    resolve = verbs.add_parser(
        "resolve", parents=[common], help="which drivers could serve it; needs no daemon"
    )
    resolve.add_argument(
        "device", metavar="DEV|MODALIAS", help="an address, or a modalias (pci:… or vfio_pci:…)"
    )
    resolve.add_argument(
        "--modules-dir", type=_parse_path, metavar="DIR", help="read this instead of /lib/modules/RELEASE"
    )
    resolve.add_argument(
        "--modprobe-d",
        type=_parse_path,
        metavar="DIR",
        action="append",
        help="read this instead of the system's modprobe.d",
    )

    switch = verbs.add_parser("set", parents=[common], help="give a device a flavour")
    switch.add_argument("device", metavar="DEV", help="its address, e.g. 01:00.0")
    switch.add_argument("flavour", metavar="FLAVOUR", help="native, vfio, or one of the policy's own")
    switch.add_argument(
        "--driver",
        action="append",
        metavar="D",
        help="this driver or module instead of the best; repeat it to name the next to try",
    )
    switch.add_argument("--dry-run", action="store_true", help="say what would be done, step by step")
    switch.add_argument(
        "--strict", action="store_true", help="exit with 4 if only the generic driver took it"
    )
    switch.add_argument("--persist", action="store_true", help="keep it across reboots, until reset (root)")
    _add_waiting(switch)

    reset = verbs.add_parser(
        "reset", parents=[common], help="back to what the policy says, or to what was there before"
    )
    reset.add_argument("device", metavar="DEV", help="its address, e.g. 01:00.0")
    _add_waiting(reset)

    check = verbs.add_parser(
        "check", parents=[common], help="is the policy valid, and what is wrong with it; needs no daemon"
    )
    check.add_argument(
        "files",
        type=_parse_path,
        nargs="*",
        metavar="FILE",
        help="check these, not the installed files",
    )
    verbs.add_parser(
        "cat-config", parents=[common], help="the merged policy and where it comes from; needs no daemon"
    )
    verbs.add_parser("reload", parents=[common], help="have the daemon read the policy and the index again")
    verbs.add_parser(
        "doctor",
        parents=[common],
        help="is this host ready, and what stands in the way; needs no daemon",
    )
    importing = verbs.add_parser(
        "import",
        parents=[common],
        help="print a policy made of what driverctl or modprobe.d say; needs no daemon",
    )
    importing.add_argument(
        "source",
        metavar="SOURCE",
        choices=("driverctl", "modprobe"),
        help="the overrides that driverctl has saved, or vfio-pci's ids= in modprobe.d and on the kernel's"
        " command line",
    )
    explain = verbs.add_parser(
        "explain", parents=[common], help="what an error code means, and what to do; needs no daemon"
    )
    explain.add_argument(
        "code", metavar="CODE", nargs="?", help="such as in-use; an exit status or an errno finds its codes"
    )
    add_pages(parser, verbs.choices)
    return parser


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="take it even though it is in use (root)")
    parser.add_argument(
        "--group",
        choices=("refuse", "together", "ignore"),
        help="when others in its IOMMU group aren't on VFIO: refuse, switch all together, or ignore them",
    )
    parser.add_argument("--timeout", type=_parse_seconds, metavar="S", help="give up after S seconds")
    parser.add_argument("--no-wait", action="store_true", help="return once the device is being changed")


def _parse_path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


def _parse_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 9 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds between 0 and 86400")
    return seconds
