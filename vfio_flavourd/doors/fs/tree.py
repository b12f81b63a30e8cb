"""Inode numbers of the file system: computed from the address, so nothing has to be kept or forgotten."""

from dataclasses import dataclass
from enum import IntEnum

from ...model.address import PciAddress

ROOT = 1
_FIRST = 16  # leaves room below for the root


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


def find_place(inode: int) -> Place:
    number = inode - _FIRST
    key = number >> 2
    return Place(
        PciAddress(key >> 16, key >> 8 & 0xFF, key >> 3 & 0x1F, key & 0x7),
        Node(number & 3),
    )
