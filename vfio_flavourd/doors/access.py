"""Who may do what: everyone may look, root and the group vfio-flavour may switch; only root may take a device
by force, make a wish last, undo one that lasts, and reload.

The group's members are those whom the control socket's mode lets in.
"""

import logging
import time

from ..model.address import PciAddress
from ..model.codes import Code
from ..model.errors import FlavourError
from ..model.message_ids import MessageId, log_fields
from ..model.requester import name_requester
from .connections import Peer, current_peer

_log = logging.getLogger(__name__)

# Seconds in which what one user is refused is logged once: nobody can fill the log.
_PAUSE = 10.0

# Users that are remembered for it.
_USERS = 1000


class Access:
    """Judges the call that is being served. Each method raises FlavourError (EACCES)."""

    def __init__(self) -> None:
        self._logged: dict[int, float] = {}

    def switch(self, address: PciAddress | None = None) -> Peer:
        peer = current_peer.get()
        if not peer.writes:
            self._log(peer, "switch a device by the read-only socket", address)
            raise FlavourError(
                "this socket is read-only",
                code=Code.NOT_PERMITTED,
                hint="use the control socket, as root or a member of the group vfio-flavour",
            )
        return peer

    def as_root(self, what: str, address: PciAddress | None = None) -> Peer:
        """`what` only root may."""
        peer = self.switch(address)
        if peer.uid != 0:
            self._log(peer, what, address)
            raise FlavourError(f"only root may {what}", code=Code.NOT_PERMITTED, hint="use sudo")
        return peer

    def _log(self, peer: Peer, what: str, address: PciAddress | None) -> None:
        now = time.monotonic()
        if now - self._logged.get(peer.uid, -_PAUSE) < _PAUSE:
            return
        if len(self._logged) >= _USERS:
            self._logged.clear()
        self._logged[peer.uid] = now
        _log.warning(
            "%srefused to let %s %s",
            "" if address is None else f"{address}: ",
            peer,
            what,
            extra={
                **log_fields(MessageId.NOT_PERMITTED, address),
                **name_requester(str(peer)),
                "ERROR_CODE": str(Code.NOT_PERMITTED),
            },
        )
