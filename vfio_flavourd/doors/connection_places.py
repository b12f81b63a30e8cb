"""Places for connections: how many a socket has, for whom, and who gives way."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..model.codes import Code
from .peer import Peer
from .replies import NO_PLACE


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections a socket has for all users but root, how many of them one user, and how many there
    are for root beside them."""

    total: int
    user: int
    root: int


# A service has 1,024 files unless its unit says otherwise: 600 connections, and 100 that are refused and not
# closed yet, leave more than 300 for the daemon's own work. Each socket has its own, so that looking, which
# anyone may, never keeps anyone from switching; no user can have all of a socket, and all of them together
# can't have root's places.
LOOKING = Limits(total=300, user=128, root=100)
SWITCHING = Limits(total=100, user=50, root=100)


class Holder(Protocol):
    """A connection that has a place. `hang_up` frees it where nothing goes on that keeps it."""

    peer: Peer

    @property
    def idle(self) -> bool: ...

    def hang_up(self, why: str, code: Code, last: bytes) -> None: ...


_Holder = TypeVar("_Holder", bound=Holder)


class Places(Generic[_Holder]):
    """`taken` has who came first first; each for as long as its call goes on, and until it is closed, so that
    hanging up makes room for no more than was asked for before."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.taken: dict[_Holder, None] = {}

    def make_room(self, uid: int) -> bool:
        """For one more of that user, at the cost of the one that was idle first."""
        own = [each for each in self.taken if each.peer.uid == uid]
        others = [each for each in self.taken if each.peer.uid != 0]
        if len(own) >= (self._limits.root if uid == 0 else self._limits.user):
            candidates = own
        elif uid != 0 and len(others) >= self._limits.total:
            candidates = others
        else:
            return True
        for each in candidates:
            if each.idle:
                each.hang_up("too many connections", Code.TOO_MANY_REQUESTS, NO_PLACE)
                if each not in self.taken:
                    return True
        return False
