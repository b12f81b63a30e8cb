"""driver_flavour, use_vfio and last_error, one directory a device, as sysfs would have them."""

from __future__ import annotations  # not all of these types have names in pyfuse3 3.2

import errno
import grp
import os
import stat
import time
from collections import Counter
from dataclasses import dataclass

import pyfuse3

from ...kernel.inventory import DEVICES
from ...kernel.sysfs import Sysfs
from ...model.address import PciAddress, parse_address
from ...model.codes import Code
from ...model.errors import FlavourError
from ...model.flavour import Flavour
from ...model.requester import Requester
from .asking import Asking
from .interrupts import Interrupts
from .tree import FILES, ROOT, SERIALS, Node, Place, find_place, with_serial

GROUP = "vfio-flavour"

# What a sysfs attribute shows for its size; reads are direct, so it does not matter.
_SIZE = 4096

# Characters of a word that are passed on: more than any flavour's name has, so what is longer stays none. A
# write can be longer than a call may be.
_LONGEST_WORD = 100

# Before a word that `use_vfio` can't have.
_NO_DIGIT = "use_vfio="

# Seconds for which the kernel may keep what never changes.
_FOR_GOOD = 86400.0


@dataclass(slots=True)
class _HandedOut:
    """An inode that a look-up has found. Until it has been opened, and closed again, nobody else finds it."""

    inode: int
    files: int = 0
    is_expected: bool = True

    @property
    def is_free(self) -> bool:
        return not self.files and not self.is_expected


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """`opener` is the thread that opened it, taken for the one that writes: pyfuse3 tells of no other."""

    place: Place
    opener: int
    uid: int
    handed_out: _HandedOut | None
    written_to: int | None  # its inode, where it was opened for writing


class FlavourFs(pyfuse3.Operations):
    """Asks the daemon for every read and write; keeps only what the last write to a device failed with."""

    supports_dot_lookup = False

    def __init__(self, sysfs: Sysfs, interrupts: Interrupts) -> None:
        super().__init__()
        self._sysfs = sysfs
        self._interrupts = interrupts
        self._asking = Asking(sysfs)
        self._open: dict[int, _OpenFile] = {}
        self._last_handle = 0
        self._lookups = 0
        self._handed_out: dict[Place, _HandedOut] = {}
        self._written_to: Counter[int] = Counter()  # inodes that are open for writing
        # With the sysfs inode of the device that it is about: the next one at the address has another.
        self._errors: dict[PciAddress, tuple[int, str]] = {}
        self._started = time.time_ns()
        try:
            self._gid = grp.getgrnam(GROUP).gr_gid
        except KeyError:
            self._gid = 0

    def close(self) -> None:
        self._asking.refusals.close()

    # the tree

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if parent_inode == ROOT:
            try:
                address = parse_address(os.fsdecode(name))
            except FlavourError:
                raise pyfuse3.FUSEError(errno.ENOENT) from None
            if str(address) != os.fsdecode(name):
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self._attributes(Place(address, Node.DIRECTORY).inode)
        if name not in FILES:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(self._hand_out(Place(find_place(parent_inode).address, FILES[name])))

    def _hand_out(self, place: Place) -> int:
        """An inode of the file that nobody else has; that of one who writes at no price, since the next one
        would wait for him, and no signal end that. Where it can be the last one the kernel needs no second
        look-up, as it does where a name leads elsewhere now."""
        last = self._handed_out.get(place)
        if last is not None and last.is_free:
            last.is_expected = True
            return last.inode
        for _ in range(SERIALS):
            self._lookups += 1
            inode = with_serial(place.inode, self._lookups)
            if inode not in self._written_to:
                break
        self._handed_out[place] = _HandedOut(inode)
        return inode

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        # A shell's `>` truncates before it writes; nothing else can be changed, as in sysfs.
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise pyfuse3.FUSEError(errno.EPERM)
        return self._attributes(inode)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh == ROOT:
            places = {
                name.encode(): Place(parse_address(name), Node.DIRECTORY)
                for name in self._sysfs.list(DEVICES)
            }
        else:
            address = find_place(fh).address
            places = {name: Place(address, node) for name, node in FILES.items()}
        # The inode is the place in the list, too: what comes or goes meanwhile moves no other entry.
        for name, place in sorted(places.items(), key=lambda entry: entry[1].inode):
            if place.inode <= start_id:
                continue
            try:
                attributes = self._attributes(place.inode)
            except pyfuse3.FUSEError:
                continue  # went away meanwhile
            if not pyfuse3.readdir_reply(token, name, attributes, place.inode):
                return

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_uid = 0
        entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = self._started
        # Devices come and go, so the kernel keeps no names; what an inode is never changes.
        entry.entry_timeout = 0
        entry.attr_timeout = _FOR_GOOD
        if inode == ROOT:
            entry.st_mode = stat.S_IFDIR | 0o755
            return entry
        place = find_place(inode)
        if not self._sysfs.exists(f"{DEVICES}/{place.address}"):
            raise pyfuse3.FUSEError(errno.ENOENT)
        if place.node is Node.DIRECTORY:
            entry.st_mode = stat.S_IFDIR | 0o755
            entry.st_nlink = 2
            return entry
        entry.st_gid = self._gid
        entry.st_size = _SIZE
        entry.st_mode = stat.S_IFREG | (0o444 if place.node is Node.LAST_ERROR else 0o664)
        return entry

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Of no size, as sysfs is: `df` leaves it out, and fails on one that does not say."""
        about = pyfuse3.StatvfsData()
        about.f_bsize = about.f_frsize = _SIZE
        about.f_namemax = 255
        return about

    # the files

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self._last_handle += 1
        place = find_place(inode)
        handed_out = self._handed_out.get(place)
        if handed_out is not None and handed_out.inode == inode:
            handed_out.files += 1
            handed_out.is_expected = False
        else:
            handed_out = None  # by now the file has another one
        written_to = None if flags & os.O_ACCMODE == os.O_RDONLY else inode
        if written_to is not None:
            self._written_to[inode] += 1
        self._open[self._last_handle] = _OpenFile(place, ctx.pid, ctx.uid, handed_out, written_to)
        return pyfuse3.FileInfo(fh=self._last_handle, direct_io=True)

    async def release(self, fh: int) -> None:
        file = self._open.pop(fh)
        if (inode := file.written_to) is not None:
            self._written_to[inode] -= 1
            if not self._written_to[inode]:
                del self._written_to[inode]
        if file.handed_out is not None:
            file.handed_out.files -= 1

    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self._open[fh]
        place = file.place
        if place.node is Node.LAST_ERROR:
            text = self._find_error(place.address)
        else:
            try:
                asks = Requester(file.uid, file.opener, by_file=True)
                flavour, flavours = await self._asking.read_flavour(place.address, asks)
            except FlavourError as error:
                raise pyfuse3.FUSEError(error.errno) from error
            if place.node is Node.USE_VFIO:
                text = "1" if flavour == Flavour.VFIO else "0"
            else:
                text = " ".join(f"[{each}]" if each == flavour else each for each in flavours)
        return f"{text}\n".encode()[off : off + size] if text else b""

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._open[fh]
        place = file.place
        inode = self._find_device(place.address)
        flavour = _parse_written(place.node, bytes(buf))
        asks = Requester(file.uid, file.opener, by_file=True)
        try:
            asking = self._asking.set_flavour(place.address, flavour, asks)
            await self._interrupts.run(file.opener, asking)
        except FlavourError as error:
            if flavour.startswith(_NO_DIGIT) and error.code == Code.NO_SUCH_FLAVOUR:
                told = f"use_vfio can't be {flavour.removeprefix(_NO_DIGIT)!r}"
                error = FlavourError(told, code=Code.INVALID_ARGUMENT, hint="allowed: 0 or 1")
            self._errors[place.address] = inode, f"{error}; {error.advice}"
            raise pyfuse3.FUSEError(error.errno) from error
        except InterruptedError:
            told = (
                f"{place.address}: the write was interrupted; "
                f"flavourctl show {place.address} says what became of it (flavourctl explain interrupted)"
            )
            self._errors[place.address] = inode, told
            raise pyfuse3.FUSEError(errno.EINTR) from None
        self._errors.pop(place.address, None)
        return len(buf)

    def _find_error(self, address: PciAddress) -> str:
        """What the last write to the device that is there now failed with; empty where it did not."""
        inode, text = self._errors.get(address, (0, ""))
        if text and inode != self._find_device(address):
            del self._errors[address]
            return ""
        return text

    def _find_device(self, address: PciAddress) -> int:
        """The inode of its directory; 0 where there is none."""
        try:
            return self._sysfs.read_inode(f"{DEVICES}/{address}")
        except FlavourError:
            return 0


def _parse_written(node: Node, data: bytes) -> str:
    """The name of a flavour, which may be of the policy's own: the daemon knows them. Where it is no digit it
    gives a name that no flavour has: the daemon refuses that, and has it on record."""
    text = data.decode("utf-8", "replace").strip("\n\0")[:_LONGEST_WORD]
    if node is Node.DRIVER_FLAVOUR:
        return text
    match text:
        case "0":
            return Flavour.NATIVE
        case "1":
            return Flavour.VFIO
        case _:
            return _NO_DIGIT + text
