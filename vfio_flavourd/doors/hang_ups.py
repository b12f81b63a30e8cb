"""Clients that hang up while nothing is read from them."""

import asyncio
import select
import socket
from collections.abc import Callable


class HangUps:
    """Tells of a connection's end where unread bytes stand before it: the loop's own readers see only that
    there is something to read, and would be called for it again and again."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll, self._tell)

    def close(self) -> None:
        """Nobody is told of anything any more."""
        asyncio.get_running_loop().remove_reader(self._epoll)
        self._epoll.close()
        self._watched.clear()

    def watch(self, sock: socket.socket, tell: Callable[[], None]) -> None:
        """`tell` is called until the socket is let go of."""
        if not self._epoll.closed and sock.fileno() not in self._watched:
            self._epoll.register(sock, select.EPOLLRDHUP)
            self._watched[sock.fileno()] = tell

    def let_go(self, sock: socket.socket) -> None:
        if self._watched.pop(sock.fileno(), None):
            self._epoll.unregister(sock)

    def _tell(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            self._watched[descriptor]()
