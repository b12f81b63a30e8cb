"""What udev says of an event, and what it has stored of a device: a hint or nothing.

The data is lines `KEY=VALUE`, also for what pyudev tells in attributes of its own. After a NUL it is
the file in udev's database.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from vfio_flavourd.kernel.udev_database import UdevDatabase, Uevent
from vfio_flavourd.kernel.uevents import _parse_event
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import parse_flavour

from .said import check_error

_ADDRESS = parse_address("0000:01:00.0")
# In memory: it is written each time.
_directory = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
_root = Path(_directory.name)
(_root / "run/udev/tags/vfio-flavour").mkdir(parents=True)
(_root / "run/udev/tags/vfio-flavour" / f"+pci:{_ADDRESS}").touch()
(_root / "run/udev/data").mkdir()
_stored = _root / "run/udev/data" / f"+pci:{_ADDRESS}"


def one(data: bytes) -> None:
    said, _, stored = data.partition(b"\0")
    # pyudev decodes names as Python does those of files.
    properties = dict(
        line.split("=", 1) for line in said.decode("utf-8", "surrogateescape").split("\n") if "=" in line
    )
    device: Any = SimpleNamespace(
        subsystem=properties.get("SUBSYSTEM", "pci"),
        sys_name=properties.get("SYSNAME", str(_ADDRESS)),
        sys_path=f"/sys/devices/{properties.get('DEVPATH', '')}",
        action=properties.get("ACTION"),
        properties=properties,
        sequence_number=7,
    )
    event = _parse_event(device)
    if event is not None:
        assert event.seqnum == 7
        _check(event)
    _stored.write_bytes(stored)
    database = UdevDatabase(_root)
    for event in database.wishes():
        assert event.address == _ADDRESS
        assert event.seqnum >= 0
        assert event.wish
        _check(event)
    assert cast("object", database.find_name(_ADDRESS)) is not None


def _check(event: Uevent) -> None:
    assert parse_address(str(event.address)) == event.address
    if event.wish is None:
        return
    assert event.action == "change"
    try:
        assert parse_flavour(event.wish) in ("native", "vfio")
    except FlavourError as error:
        check_error(error)
