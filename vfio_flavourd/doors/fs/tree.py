"""Inode numbers of the file system: computed from the address, so nothing has to be kept or forgotten."""

from dataclasses import dataclass
from enum import IntEnum

from ...model.address import PciAddress

ROOT = 1
_FIRST = 16  # leaves room below for the root

# A place takes 50 bits of an inode's number at most; above them is the serial number of the look-up.
_SERIAL_SHIFT = 52
SERIALS = 2048


class Node(IntEnum):
    """What an inode is; the value is the low bits of its number."""

    DIRECTORY = 0
    DRIVER_FLAVOUR = 1
    USE_VFIO = 2
    LAST_ERROR = 3


FILES = {
    b"driver_flavour": Node.DRIVER_FLAVOUR,
    b"use_vfio": Node.USE_VFIO,
    b"last_error": Node.LAST_ERROR,
}


@dataclass(frozen=True, slots=True)
class Place:
    address: PciAddress
    node: Node

    @property
    def inode(self) -> int:
        a = self.address
        return _FIRST + (((a.domain << 16 | a.bus << 8 | a.device << 3 | a.function) << 2) | self.node)


def with_serial(inode: int, serial: int) -> int:
    """Another inode of the same place.

    The kernel lets one write at a time into an inode, and holds up a reader's close(2) as well until it
    is over (fs/fuse/file.c: fuse_flush); so each look-up of a file finds an inode of its own.
    """
    return inode | serial % SERIALS << _SERIAL_SHIFT


def find_place(inode: int) -> Place:
    number = (inode & ((1 << _SERIAL_SHIFT) - 1)) - _FIRST
    key = number >> 2
    return Place(
        PciAddress(key >> 16, key >> 8 & 0xFF, key >> 3 & 0x1F, key & 0x7),
        Node(number & 3),
    )
