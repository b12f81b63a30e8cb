"""Who is on the other side of a connection, and what is known of the call that is being served for him."""

import socket
import struct
from contextvars import ContextVar
from dataclasses import dataclass

from ..model.requester import Requester


@dataclass(frozen=True, slots=True)
class Peer:
    """From SO_PEERCRED; `writes` tells the control socket."""

    pid: int
    uid: int
    writes: bool

    @property
    def requester(self) -> Requester:
        return Requester(self.uid, self.pid)

    def __str__(self) -> str:
        return str(self.requester)


# Of the call that is being served.
current_peer: ContextVar[Peer] = ContextVar("current_peer")
wants_steps: ContextVar[bool] = ContextVar("wants_steps")


def find_peer(sock: socket.socket, *, writes: bool) -> Peer:
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, writes)
