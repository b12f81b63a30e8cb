"""A worker process: makes the writes that may block, one batch at a time.

Run as a script by `hands`, with its standard input a socket. It imports nothing of this package, so
that it starts in a few milliseconds and stays small. A write to `unbind` sleeps uninterruptibly for as
long as the device is held; a process of its own is the only thing that can be left behind then.

A batch is a line of JSON, `{"guard": [path, inode] | null, "ops": [[kind, ...], ...]}`. Each
operation is answered with a line `[index, start, end, errno, value]`, the times being
`CLOCK_MONOTONIC` in nanoseconds. The batch ends with the first operation that fails. When the
reader has gone away the batch is still carried out to its end: half of it would leave a device
without a driver.
"""

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

# Bytes of a command's standard error that are kept.
_STDERR_LIMIT = 4096


def write(path: str, text: str) -> None:
    # One write(2) is one command to a sysfs store; without O_CREAT a mistyped attribute fails.
    data = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096).decode("utf-8", "replace").rstrip("\n\0")
    finally:
        os.close(descriptor)


def expect(path: str, text: str) -> None:
    """Fails with ESTALE when the attribute reads otherwise: what was planned on that does not hold."""
    if read(path) != text:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def link(path: str) -> str | None:
    try:
        return os.path.basename(os.readlink(path))
    except FileNotFoundError:
        return None


def names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def run(*argv: str) -> tuple[int, str]:
    """The exit status (negative: the signal) and the end of what was said on standard error."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.posix_spawnp(
            argv[0],
            argv,
            {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, writing, 2),
            ],
            setsigdef=[signal.SIGPIPE],  # which Python ignores
        )
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    said = b""
    while chunk := os.read(reading, 65536):
        said = (said + chunk)[-_STDERR_LIMIT:]
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.decode("utf-8", "replace").strip()


OPERATIONS: dict[str, Callable[..., object]] = {
    "write": write,
    "read": read,
    "expect": expect,
    "link": link,
    "names": names,
    "run": run,
}


def check_guard(path: str, inode: int) -> None:
    """A device's directory with another inode is another device at the same address."""
    try:
        found = os.stat(path).st_ino
    except FileNotFoundError:
        found = -1
    if found != inode:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def carry_out(batch: dict[str, Any], answer: Callable[[list[list[object]]], None]) -> None:
    # Each answer wakes the daemon, so they are kept together; but what is known goes out before
    # anything that may block.
    results: list[list[object]] = []
    for index, (kind, *arguments) in enumerate(batch["ops"]):
        start = time.monotonic_ns()
        if kind not in ("link", "names") and results:
            answer(results)
            results = []
        code = 0
        value: object = None
        try:
            if batch["guard"] is not None:
                check_guard(*batch["guard"])
            value = OPERATIONS[kind](*arguments)
        except OSError as error:
            code = error.errno or errno.EIO
        results.append([index, start, time.monotonic_ns(), code, value])
        if code:
            break
    answer(results)


def render(result: list[object]) -> str:
    # A write that went well says nothing but when, and is on its way to the next one.
    if result[-1] is None:
        return "[{},{},{},{},null]\n".format(*result[:-1])
    return json.dumps(result) + "\n"


def main() -> None:
    descriptor = 0
    buffer = b""

    def answer(results: list[list[object]]) -> None:
        try:
            os.write(descriptor, "".join(map(render, results)).encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone; the batch goes on (see above), the next read ends this process

    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except ConnectionResetError:
            return
        if not chunk:
            return
        buffer += chunk
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            carry_out(json.loads(line), answer)


if __name__ == "__main__":
    main()
