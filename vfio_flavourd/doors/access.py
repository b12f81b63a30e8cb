"""Who may do what: everyone may look, root and the group vfio-flavour may switch; only root may take a device
by force, make a wish last, undo one that lasts, and reload.

The group's members are those whom the control socket's mode lets in.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from ..model.address import PciAddress
from ..model.codes import Code
from ..model.errors import FlavourError
from ..model.message_ids import MessageId, log_fields
from ..model.requester import Requester, name_requester
from .connections import Peer, current_peer

_log = logging.getLogger(__name__)

# Seconds in which one thing that one user is refused is logged once, and then how often it was refused
# besides: nobody can fill the log, and nothing harmless hides what comes after it.
_PAUSE = 10.0

# Users and things that are told apart within that time. It takes as many users to go beyond it, and who comes
# then is counted with the others.
_MOST = 1000
_OTHERS = (-1, "do such things")


class Access:
    """Judges the call that is being served. Each method raises FlavourError (EACCES). `find_unit` gives the
    unit of one who asks: he may be gone when journald looks for it."""

    def __init__(self, find_unit: Callable[[str], str]) -> None:
        self._find_unit = find_unit
        self._left_out: dict[tuple[int, str], int] = {}

    def switch(self, address: PciAddress | None = None) -> Peer:
        peer = current_peer.get()
        if not peer.writes:
            self._refuse(peer, "switch a device by the read-only socket", address)
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
            self._refuse(peer, what, address)
            raise FlavourError(f"only root may {what}", code=Code.NOT_PERMITTED, hint="use sudo")
        return peer

    def name(self, asks: Peer | Requester) -> dict[str, str]:
        """For `extra=` of a log call."""
        who = str(asks)
        return {**name_requester(who), "REQUESTER_UNIT": self._find_unit(who)}

    @contextlib.contextmanager
    def on_record(self, method: str, by_file: Requester | None = None) -> Iterator[None]:
        """Parameters of `method` that make no request are told: of a request the engine keeps an attempt.
        `by_file` is for whom root asks."""
        try:
            yield
        except FlavourError as error:
            if error.code != Code.NOT_PERMITTED:
                peer = current_peer.get()
                asks = Requester(peer.uid, peer.pid)
                if by_file is not None and peer.uid == 0:
                    asks = by_file
                fields = {**log_fields(MessageId.CALL_INVALID), "ERROR_CODE": error.code}
                said = f"refused to let {asks} call {method}: {error}"
                self._log(asks, f"call {method} ({error.code})", said, fields)
            raise

    def _refuse(self, peer: Peer, what: str, address: PciAddress | None) -> None:
        fields = {**log_fields(MessageId.NOT_PERMITTED, address), "ERROR_CODE": str(Code.NOT_PERMITTED)}
        said = f"refused to let {peer} {what}"
        self._log(peer, what, said if address is None else f"{address}: {said}", fields)

    def _log(self, asks: Peer | Requester, what: str, said: str, fields: dict[str, str]) -> None:
        key = (asks.uid, what)
        if key not in self._left_out and len(self._left_out) >= _MOST:
            key = _OTHERS
        if key in self._left_out:
            self._left_out[key] += 1
            return
        self._left_out[key] = 0
        asyncio.get_running_loop().call_later(_PAUSE, self._tell_left_out, key)
        _log.warning("%s", said, extra={**fields, **self.name(asks)})

    def _tell_left_out(self, key: tuple[int, str]) -> None:
        if left_out := self._left_out.pop(key):
            uid, what = key
            number = "" if key == _OTHERS else str(uid)
            who = f"uid {number}" if number else "other users"
            _log.warning(
                "refused to let %s %s: %d times more within %d s, not logged one by one",
                who,
                what,
                left_out,
                _PAUSE,
                extra={**log_fields(MessageId.REFUSALS_LEFT_OUT), "REQUESTER": who, "REQUESTER_UID": number},
            )
