"""uevents; the only importer of pyudev.

Events are hints, sysfs is the truth: after an overflow, when thousands may be lost at once, the reader
is told to look at everything again.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pyudev

from ..model.address import parse_address
from ..model.errors import FlavourError
from ..model.message_ids import MessageId, log_fields
from .udev_database import Uevent

_log = logging.getLogger(__name__)

# Asked for; without CAP_NET_ADMIN the kernel gives `net.core.rmem_max`, 208 KiB where nobody has raised it.
_RECEIVE_BUFFER = 128 * 1024 * 1024

# Seconds for which events may wait: some 250 fit into the buffer of 208 KiB.
_PAUSE = 0.05


class Uevents:
    """udev's events for PCI devices and their VFIO children."""

    def __init__(self) -> None:
        self._context = pyudev.Context()
        self._monitor = pyudev.Monitor.from_netlink(self._context, source="udev")
        self._monitor.filter_by("pci")
        self._monitor.filter_by("vfio-dev")
        self._pause: asyncio.TimerHandle | None = None
        with suppress(PermissionError):  # more than that is root's; what overflows is looked at again
            self._monitor.set_receive_buffer_size(_RECEIVE_BUFFER)

    def listen(
        self,
        receive: Callable[[Uevent], None],
        resync: Callable[[], None],
        may_wait: Callable[[], bool],
    ) -> None:
        """Call `receive` for each event from now on, `resync` when some have been lost.

        A switch makes some eight events of its own, and reading them at once would take a good part of
        its time; where `may_wait` says so they stay in the kernel's buffer for a moment.
        """
        self._monitor.start()
        drain = partial(self._drain, receive, resync)
        loop, descriptor = asyncio.get_running_loop(), self._monitor.fileno()

        def readable() -> None:
            if not may_wait():
                drain()
                return
            loop.remove_reader(descriptor)
            self._pause = loop.call_later(_PAUSE, resume)

        def resume() -> None:
            loop.add_reader(descriptor, readable)
            drain()

        loop.add_reader(descriptor, readable)

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._monitor.fileno())

    def _drain(self, receive: Callable[[Uevent], None], resync: Callable[[], None]) -> None:
        while True:
            try:
                device = self._monitor.poll(timeout=0)
            except OSError as error:
                # pyudev sees that the socket has an error before it reads, and doesn't say which (errno is
                # None then). As long as nobody has taken it, the next look finds it again.
                if (error.errno or self._take_error()) not in (0, errno.ENOBUFS):
                    raise
                _log.warning(
                    "uevents were lost, looking at all devices again",
                    extra=log_fields(MessageId.EVENTS_LOST),
                )
                resync()
                continue
            if device is None:
                return
            event = _parse_event(device)
            if event is not None:
                receive(event)

    def _take_error(self) -> int:
        with socket.socket(fileno=os.dup(self._monitor.fileno())) as same:
            return same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _parse_event(device: pyudev.Device) -> Uevent | None:
    name = device.sys_name
    if device.subsystem == "vfio-dev":
        # …/0000:00:03.0/vfio-dev/vfio0
        name = device.sys_path.split("/")[-3]
    try:
        address = parse_address(name)
    except FlavourError:
        return None
    return Uevent(device.action or "", address, _find_wish(device), device.sequence_number)


def _find_wish(device: pyudev.Device) -> str | None:
    if device.action != "change":
        return None
    properties = device.properties
    # A kernel with the attribute would say so itself; `echo change <uuid> FLAVOUR=vfio > uevent`
    # arrives with the kernel's prefix.
    wish: str | None = properties.get("DRIVER_FLAVOUR") or properties.get("SYNTH_ARG_FLAVOUR")
    return wish
