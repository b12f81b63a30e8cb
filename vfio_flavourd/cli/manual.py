"""What --help and flavourctl(8) say of each verb besides its options: a description, and examples.

The text is plain ASCII, with an empty line between paragraphs.
"""

import argparse
from collections.abc import Mapping

WIDTH = 80

DESCRIPTION = "See and change whose a PCI device is, the host's (native) or VFIO's."
DEVICE = "DEV is a PCI address, with its domain (0000:01:00.0) or without (01:00.0)."

EXIT_STATUS = (
    (0, "done"),
    (1, "failed"),
    (2, "usage, no such flavour, or what can't be a driver's name"),
    (3, "no such device"),
    (4, "fell back to the generic driver, with --strict"),
    (69, "the daemon is not running"),
    (75, "busy or timed out: try again"),
    (77, "not permitted"),
    (78, "the policy is invalid"),
    (130, "interrupted by Ctrl-C"),
)

# By verb.
DESCRIPTIONS = {
    "list": (
        "All PCI devices: address, flavour, driver, the best candidate for VFIO, IOMMU group, the rule"
        " of the policy that decides (or what was asked for by hand), name. This is the default."
    ),
    "show": (
        "All about one device: its node, what it had before, what the policy says of it, who uses it,"
        " the candidates ranked, what a switch would do, the last attempt step by step."
    ),
    "groups": (
        "The IOMMU groups: what is in each, whether a guest could have it, and what it takes. As text, for"
        " Graphviz, or as a picture, coloured by flavour."
    ),
    "plot": (
        "A timeline of one or more switches, as a picture (SVG): what was waited for, checked and loaded,"
        " each driver that was tried, and how long each step took. ID is an attempt's number, DEV means the"
        " last one of a device."
    ),
    "resolve": (
        "Which drivers could serve a device or a modalias, the best first, each with the reason, and"
        " what was passed over and why. Needs no daemon, and knows nothing of the policy, which can deny"
        " drivers or name one: flavourctl show has the candidates that a switch would try."
    ),
    "set": (
        "Give a device a flavour: native, vfio, or one of the policy's own. The steps are printed on"
        " standard error as they happen, the result on standard output. When no driver takes the device"
        " it is put back as it was. A device that is in use is refused, and who uses it is named.\n\n"
        "What was set by hand stands above the policy until flavourctl reset, at most until the next"
        " boot unless --persist is given.\n\n"
        "With --force a mounted disk loses what is on its way to it, and a guest that holds the device"
        " is waited for in the kernel. The root file system, a PF with VFs and a bridge are not even"
        " taken so.\n\n"
        "A group can be used by a guest only when none of its devices has a host driver: --group says"
        " what to do with the others. Without it the policy's word counts, which is refuse where there"
        " is none."
    ),
    "reset": (
        "Drop what was set by hand: back to what the policy says, or else to the driver and the"
        " driver_override that were there before the first switch."
    ),
    "check": (
        "Is the policy valid, see vfio-flavourd.policy(5); what is wrong with it is printed on"
        " standard error, with the place and what is allowed there. With FILE these files are looked at"
        " instead, as if they were all there is, and no matter whose they are. Needs no daemon.\n\n"
        "It also says which rules the daemon applies only after the native driver has the device, and which"
        " devices the rules for early boot leave to the host. Without FILE it says besides where the host is"
        " not yet what the policy says: files that were changed since the last reload, an initramfs that is"
        " older than the rules. None of this changes the exit status."
    ),
    "cat-config": (
        "The policy that all files come to, as one file, with where each thing was said. Needs no daemon."
    ),
    "reload": (
        "Have the daemon read the policy and the module index again, and apply what differs. For root. Where"
        " vfio_flavourd.policy=0 on the kernel command line switches the policy off it is not read: that is"
        " said, and the exit status is 1. So it is where the policy is in force, but the rules for early boot"
        " can't be written."
    ),
    "monitor": (
        "Each step of each switch, and what came of it, one line each, until Ctrl-C or until the daemon goes."
        " With --json a line is one object."
    ),
    "history": (
        "What has been tried since the boot, the last 256 attempts, the latest last: its number (for"
        " flavourctl plot), when, which device, what came of it and why not, how long it took, who asked."
        " What the policy is refused again and again is there once, as of the first time."
    ),
    "doctor": (
        "Is this host ready, what stands in the way, and what to do about it. The exit status is 0 when"
        " nothing stands in the way, with notes and warnings too, and 1 when there is a problem. What this"
        " user may not read is said. Needs no daemon."
    ),
    "import": (
        "Print a policy that gives the same devices to the same VFIO drivers as driverctl's saved overrides"
        " or vfio-pci's ids= do, and say what to do with it; nothing is changed. What a policy can't say goes"
        " to standard error as well. The exit status is 1, with nothing printed, when there is nothing to"
        " make a policy of. Needs no daemon."
    ),
    "explain": (
        "What an error code means, why it happens and what to do about it. Every error but a mistyped command"
        ' and the problems of a policy names its code in its second line, and as "code" with --json. An exit'
        " status or the name of an errno lists the codes that lead to it; without any, all codes are listed."
        " Needs no daemon."
    ),
}

# By verb, a command and what it is for; with no verb those of the program.
EXAMPLES = {
    "": (
        ("flavourctl", "what each device is"),
        ("flavourctl set 01:00.0 vfio", "give it to VFIO, by the best driver"),
        ("flavourctl set 01:00.0 vfio --dry-run", "what that would do"),
        ("flavourctl set 01:00.0 native", "give it back to the host"),
        ("flavourctl resolve 01:00.0", "which drivers could serve it, and why"),
        ("flavourctl doctor", "is this host ready for it"),
    ),
    "list": (
        ("flavourctl", "all devices"),
        ("flavourctl list --columns device,driver --noheadings", "for a script"),
        ("flavourctl list --json | jq -r '.devices[].device'", "their addresses"),
    ),
    "show": (("flavourctl show 01:00.0", "why it has the driver that it has"),),
    "groups": (
        ("flavourctl groups", "what belongs together"),
        ("flavourctl groups --svg > groups.svg", "the same as a picture"),
        ("flavourctl groups --dot | dot -Tpdf > groups.pdf", "by Graphviz"),
    ),
    "plot": (
        ("flavourctl plot 01:00.0 -o switch.svg", "the last switch of a device"),
        ("flavourctl plot 3 4 > both.svg", "two, one below the other"),
    ),
    "resolve": (
        ("flavourctl resolve 01:00.0", "for a device of this host"),
        (
            "flavourctl resolve pci:v000015B3d0000101Esv000015B3sd00000000bc02sc00i00",
            "for one that is not here",
        ),
        ("flavourctl resolve 01:00.0 --modules-dir /lib/modules/6.12.1", "by another kernel's index"),
    ),
    "set": (
        ("flavourctl set 01:00.0 vfio", "give it to VFIO"),
        ("flavourctl set 01:00.0 native", "give it back to the host"),
        ("flavourctl set 01:00.0 vfio --group together", "with the rest of its group"),
        ("flavourctl set 01:00.0 vfio --dry-run", "what that would do"),
        ("flavourctl set 01:00.0 vfio --driver vfio-pci", "by this driver, not the best"),
    ),
    "reset": (("flavourctl reset 01:00.0", "as if nobody had touched it"),),
    "check": (
        ("flavourctl check", "what is installed"),
        ("flavourctl check ./20-guests.yaml", "a file, before it is installed"),
    ),
    "cat-config": (("flavourctl cat-config", "the policy in full"),),
    "reload": (("flavourctl reload", "after a change of the policy that flavourctl check finds valid"),),
    "monitor": (("flavourctl monitor", "watch what a reload of the policy sets going"),),
    "history": (
        ("flavourctl history", "what has been tried, and what came of it"),
        ("flavourctl history 01:00.0 -n 5", "the last five times for one device"),
    ),
    "doctor": (("flavourctl doctor", "before the first passthrough, or when one fails"),),
    "import": (
        ("flavourctl import driverctl > 10-guests.yaml", "from driverctl's overrides"),
        ("flavourctl import modprobe > 10-guests.yaml", "from vfio-pci.ids="),
    ),
    "explain": (
        ("flavourctl explain in-use", "what to do about it"),
        ("flavourctl explain 75", "what a script may have run into"),
        ("flavourctl explain", "all there are"),
    ),
}


def add_pages(parser: argparse.ArgumentParser, verbs: Mapping[str, argparse.ArgumentParser]) -> None:
    status = [f"{code:<3} {meaning}" for code, meaning in EXIT_STATUS]
    parser.description = f"{DESCRIPTION}\n\n{DEVICE}"
    parser.epilog = "\n".join(
        [*_render_examples(EXAMPLES[""]), "", "exit status:", *(f"  {line}" for line in status)]
    )
    parser.formatter_class = _Formatter
    for verb, description in DESCRIPTIONS.items():
        verbs[verb].description = description
        verbs[verb].epilog = "\n".join(_render_examples(EXAMPLES[verb]))
        verbs[verb].formatter_class = _Formatter


class _Formatter(argparse.HelpFormatter):
    """No wider than a page. What is set out in lines stays as it is, paragraphs are filled."""

    def __init__(self, prog: str, width: int = WIDTH) -> None:
        super().__init__(prog, max_help_position=24, width=min(width, WIDTH))
        # What argparse itself finds to be the longest leaves out by how much the verbs are indented.
        self._action_max_length = 14

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap

        fill = textwrap.TextWrapper(width, initial_indent=indent, subsequent_indent=indent).fill
        return "\n\n".join(part if "\n" in part else fill(part) for part in text.split("\n\n"))


def _render_examples(examples: tuple[tuple[str, str], ...]) -> list[str]:
    """A command too long to have its purpose beside it has that below it."""
    lengths = [len(command) for command, purpose in examples if len(command) + len(purpose) + 4 <= WIDTH]
    width = max(lengths, default=4)
    lines = ["examples:"]
    for command, purpose in examples:
        if len(command) <= width and width + len(purpose) + 4 <= WIDTH:
            lines.append(f"  {command:<{width}}  {purpose}")
        else:
            lines += [f"  {command}", f"      {purpose}"]
    return lines
