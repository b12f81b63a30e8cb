"""Who may do what: everyone may look, root and the group vfio-flavour may switch; only root may take a device
by force, make a wish last, undo one that lasts, and reload.

The group's members are those whom the control socket's mode lets in.
"""

import contextlib
from collections.abc import Iterator

from ..model.address import PciAddress
from ..model.codes import Code
from ..model.errors import FlavourError
from ..model.message_ids import MessageId
from ..model.requester import Requester
from .peer import Peer, current_peer
from .refusals import Refusals


class Access:
    """Judges the call that is being served. Each method raises FlavourError (EACCES)."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def switch(self) -> Peer:
        peer = current_peer.get()
        if not peer.writes:
            self._refuse(peer, "switch a device by the read-only socket", None)  # whatever the device
            raise FlavourError(
                "this socket is read-only",
                code=Code.NOT_PERMITTED,
                hint="use the control socket, as root or a member of the group vfio-flavour",
            )
        return peer

    def as_root(self, what: str, address: PciAddress | None = None) -> Peer:
        """`what` only root may."""
        peer = self.switch()
        if peer.uid != 0:
            self._refuse(peer, what, address)
            raise FlavourError(f"only root may {what}", code=Code.NOT_PERMITTED, hint="use sudo")
        return peer

    @contextlib.contextmanager
    def on_record(self, method: str, by_file: Requester | None = None) -> Iterator[None]:
        """Parameters of `method` that make no request are told: of a request the engine keeps an attempt.
        `by_file` is for whom root asks."""
        try:
            yield
        except FlavourError as error:
            if error.code != Code.NOT_PERMITTED:
                asks = current_peer.get().requester
                if by_file is not None and asks.uid == 0:
                    asks = by_file
                self._refusals.tell(
                    asks, f"call {method}", MessageId.CALL_INVALID, error.code, why=str(error)
                )
            raise

    def _refuse(self, peer: Peer, what: str, address: PciAddress | None) -> None:
        self._refusals.tell(peer.requester, what, MessageId.NOT_PERMITTED, Code.NOT_PERMITTED, address)
