"""Files that clients send along (SCM_RIGHTS), though no call takes one.

Whoever drops a file's last reference closes it, and that can sleep: a TCP socket lingers for as long as its
owner has set (SO_LINGER in socket(7)), and a file's server may be dead. The kernel drops it where such a file
is read past, or stands unread in what is closed (net/core/scm.c: __scm_destroy). The loop does neither.
"""

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable

# From Linux 6.16 on; Python has no name for it. A connection has what its listening socket had at connect(2).
_SO_PASSRIGHTS = 83

_CHUNK = 65_536

# Seconds until a thread is asked for again where none could be had.
_PAUSE = 1.0


def refuse_files(listening: socket.socket) -> None:
    """As far as the kernel can: who sends one along has EPERM."""
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


def accept(listening: socket.socket) -> socket.socket:
    """Raises OSError."""
    sock, _ = listening.accept()
    sock.setblocking(False)
    # Otherwise a byte out of band is not seen by a peek, and a read drops it with its file.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return sock


def peek(sock: socket.socket, most: int) -> tuple[bytes, bool]:
    """What there is to read, up to the first file, and whether one is with it. Raises OSError."""
    data, _, flags, _ = sock.recvmsg(most, 0, socket.MSG_PEEK)
    return data, bool(flags & socket.MSG_CTRUNC)


def close(sock: socket.socket, closed: Callable[[], None]) -> None:
    """Hang up. `closed` is called when that is done, which is at once where no file came."""
    sock.shutdown(socket.SHUT_RDWR)  # no more comes, and the other side sees the end now
    if _read_rest(sock):
        sock.close()
        closed()
    else:
        close_aside(sock, closed)


def close_aside(sock: socket.socket, closed: Callable[[], None]) -> None:
    """In a thread of its own, that is lost where the close does not come back. The end of the process waits
    for no thread, and the kernel lets nothing linger then (net/ipv4/af_inet.c: inet_release)."""
    loop = asyncio.get_running_loop()

    def work() -> None:
        sock.close()
        with contextlib.suppress(RuntimeError):  # the loop is at its end
            loop.call_soon_threadsafe(closed)

    try:
        threading.Thread(target=work, name="closing", daemon=True).start()
    except RuntimeError:
        loop.call_later(_PAUSE, close_aside, sock, closed)


def _read_rest(sock: socket.socket) -> bool:
    """Whether nothing is left to be read, and no file was in the way."""
    try:
        data, has_file = peek(sock, _CHUNK)
        while data and not has_file:
            sock.recv(len(data))
            data, has_file = peek(sock, _CHUNK)
    except ConnectionResetError:
        return True  # it is told after all that was said
    return not data
