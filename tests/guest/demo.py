"""The main job as a person would see it, in a guest: each command, what it printed, and what it means.

Every step says beforehand what it is going to show, and the demo fails where that does not come.
"""

import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .devices import ROLES
from .errors import RigError
from .image import Image
from .vm import Guest

WIDTH = 100

GOOD, SIBLING, VIRTIO, REFUSE, PERSONALITY = (
    ROLES[name] for name in ("good", "good_sibling", "virtio", "refuse", "personality")
)
FLAVOUR = "/run/vfio-flavour"


class DemoError(RigError):
    pass


@dataclass(frozen=True, slots=True)
class Step:
    """`says` stands before the command; `shows` are what its output must hold, and `rc` its status."""

    says: str
    command: str
    shows: tuple[str, ...] = ()
    rc: int = 0
    silent: bool = field(default=False)
    """Whether it must print nothing."""


def steps(group: str, *, upstream: bool) -> Iterator[Step]:
    """`group` is the first card's IOMMU group, `upstream` whether the kernel's own variants are there."""
    yield Step("This host has a network card that its own driver serves.", f"lspci -nnk -s {GOOD.bdf}",
               ("Kernel driver in use: e1000e",))  # fmt: skip
    yield Step("No VFIO module is loaded.", "lsmod | grep vfio", rc=1, silent=True)
    yield Step(
        "Each PCI device has a file that says whose it is, the host's (native) or VFIO's.",
        f"cat {FLAVOUR}/{GOOD.bdf}/driver_flavour",
        ("[native] vfio",),
    )
    yield Step(
        "One write gives the card to VFIO, and returns when that is done.",
        f"echo vfio > {FLAVOUR}/{GOOD.bdf}/driver_flavour",
        silent=True,
    )
    yield Step(
        "The file reads back what the device is now.",
        f"cat {FLAVOUR}/{GOOD.bdf}/driver_flavour",
        ("native [vfio]",),
    )
    yield Step(
        "Of the drivers that could serve it the variant made for it was chosen, not the generic vfio-pci, "
        "and it was loaded before the card was taken from its old driver.",
        f"flavourctl show {GOOD.bdf}",
        ("driver vft-good-vfio-pci", "vft_good: matches vendor, device", "unbind from e1000e"),
    )
    yield Step(
        "Its IOMMU group has a node, which a virtual machine can open.",
        f"ls -l /dev/vfio/{group}",
        (f"/dev/vfio/{group}",),
    )
    yield Step(
        "The second card with the same ID was not touched: its own driver still has it.",
        f"lspci -nnk -s {SIBLING.bdf}",
        ("Kernel driver in use: e1000e",),
    )
    if upstream:
        yield Step(
            "For a virtio network card that is the Linux kernel's own virtio_vfio_pci.",
            f"echo vfio > {FLAVOUR}/{VIRTIO.bdf}/driver_flavour && lspci -nnk -s {VIRTIO.bdf}",
            ("Kernel driver in use: virtio_vfio_pci",),
        )
    yield Step(
        "Another card's variant driver refuses it. The write succeeds nevertheless.",
        f"echo vfio > {FLAVOUR}/{REFUSE.bdf}/driver_flavour",
        silent=True,
    )
    yield Step(
        "The generic driver has taken its place, and the reason is kept.",
        f"flavourctl show {REFUSE.bdf}",
        ("driver vfio-pci", "vft_refuse refused: Invalid argument"),
    )
    yield Step(
        "A typing error is refused by the write itself.",
        f"echo vfoi > {FLAVOUR}/{GOOD.bdf}/driver_flavour",
        ("Invalid argument",),
        rc=1,
    )
    yield Step(
        "Another file says what was wrong and what is allowed.",
        f"cat {FLAVOUR}/{GOOD.bdf}/last_error",
        ("vfoi", "native or vfio"),
    )
    yield Step(
        "A driver that can become a VFIO driver by itself is asked to.",
        f"echo vfio > {FLAVOUR}/{PERSONALITY.bdf}/driver_flavour",
        silent=True,
    )
    yield Step(
        "It was not unbound: the driver is the same, and the device is a VFIO device.",
        f"flavourctl show {PERSONALITY.bdf}",
        ("vfio, driver vft-native", "it was not unbound"),
    )
    yield Step(
        "This is what the host looks like now.",
        "flavourctl list | cut -c 1-100",
        ("vft-good-vfio-pci",),
    )
    for role in (GOOD, *([VIRTIO] if upstream else []), REFUSE, PERSONALITY):
        yield Step(
            "And back to the host." if role is GOOD else "Likewise.",
            f"echo native > {FLAVOUR}/{role.bdf}/driver_flavour",
            silent=True,
        )
    yield Step(
        "The first card has its very own driver again.",
        f"lspci -nnk -s {GOOD.bdf}",
        ("Kernel driver in use: e1000e",),
    )
    yield Step(
        "Nothing is left behind that could take it away later.",
        f"cat {GOOD.sysfs}/driver_override {REFUSE.sysfs}/driver_override",
        ("(null)\n(null)",),
    )


def show(guest: Guest, step: Step, tell: Callable[[str], None]) -> None:
    """Raises DemoError when the command does not do what was said."""
    tell("\n".join(("", *textwrap.wrap(step.says, WIDTH), f"# {step.command}")))
    # In one stream, as on a terminal; a shell of its own name says what bash would.
    done = guest.run(f"exec 2>&1\n{step.command}", check=False)
    output = done.stdout.replace("bash: line 2: ", "bash: ").rstrip("\n")
    if output:
        tell(output)
    missing = [text for text in step.shows if text not in output]
    if done.rc != step.rc:
        raise DemoError(f"that exited with {done.rc} instead of {step.rc}")
    if missing:
        raise DemoError(f"that should have shown {missing[0]!r}")
    if step.silent and output:
        raise DemoError("that should have printed nothing")


def run_demo(image: Image) -> int:
    def tell(text: str) -> None:
        print(text, flush=True)

    tell(
        f"booting a Debian guest ({image.release.name}) with a virtual IOMMU; that takes a minute without KVM"
    )
    with Guest(image) as guest:
        tell(f"Linux {guest.run('uname -r').stdout.strip()} is up after {guest.boot_seconds:.0f} s")
        group = guest.run(f"basename $(readlink {GOOD.sysfs}/iommu_group)").stdout.strip()
        try:
            for step in steps(group, upstream=bool(image.release.upstream)):
                show(guest, step, tell)
        except DemoError as error:
            print(f"\nthe demo failed: {error}", file=sys.stderr)
            return 1
    tell("\nThat was all: every command did what was said before it.")
    return 0
