"""Has modules loaded by a unit of its own (vfio-flavour-modprobe@.service), so that the daemon can do without
CAP_SYS_MODULE."""

import asyncio
from enum import StrEnum
from pathlib import Path

from ..model.codes import Code
from ..model.errors import FlavourError

_SOCKET = Path("/run/vfio-flavourd/modprobe")

_UNIT = "vfio-flavour-modprobe"

# Bytes of what modprobe says that are kept: the last ones, where the reason is.
_LIMIT = 4096


class Asked(StrEnum):
    """What a module is asked for by: its name, or a modalias, with blacklists respected."""

    MODULE = "module"
    ALIAS = "alias"


class Loading:
    """`socket` is the unit's."""

    def __init__(self, socket: Path = _SOCKET) -> None:
        self._socket = socket

    async def modprobe(self, asked: Asked, name: str) -> tuple[int, str]:
        """modprobe's exit status and what it said, when it has ended: that may take for ever.

        Raises FlavourError where it can't be started.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError as error:
            raise FlavourError(
                f"modprobe can't be started: {self._socket}: {error.strerror}",
                code=Code.MODULE_NOT_LOADED,
                hint=f"systemctl start {_UNIT}.socket",
            ) from error
        try:
            writer.write(f"{asked} {name}\n".encode())
            writer.write_eof()
            said = await _read_end(reader)
        except OSError:
            said = ""  # it has died
        finally:
            writer.close()
        *lines, last = said.split("\n") if said else [""]
        word, _, status = last.partition(" ")
        if word != "status" or not status.isdecimal():
            raise FlavourError(
                "modprobe was ended before it was done",
                code=Code.MODULE_NOT_LOADED,
                hint=f"journalctl -u '{_UNIT}@*' shows why",
            )
        return int(status), "\n".join(lines)


async def _read_end(reader: asyncio.StreamReader) -> str:
    said = b""
    while chunk := await reader.read(65536):
        said = (said + chunk)[-_LIMIT:]
    return said.decode("utf-8", "replace").rstrip("\n")
