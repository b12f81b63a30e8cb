"""Runs in the guest: carries out what the host asks for over a virtio port, JSON a line each.

host  {"id": 1, "op": "run", "command": "…"}       with bash, as many at once as are asked for
      {"id": 1, "op": "kill", "signal": 9}         the command's whole process group
      {"id": 2, "op": "write", "path": "…", "data": base64, "append": false, "mode": 420}
      {"id": 3, "op": "read", "path": "…", "offset": 0, "size": 65536}
guest {"hello": 1}
      {"id": 1, "stream": "stdout", "data": "…"}   as it comes
      {"id": 1, "rc": 0, "duration": 0.1}          seconds from the start to the exit
      {"id": 2, "rc": 0}                           or the errno of the write
      {"id": 3, "rc": 0, "data": base64}           likewise; shorter than asked for at the end
"""

import base64
import codecs
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from typing import Any

CHUNK = 65536


class Agent:
    def __init__(self, port: int) -> None:
        self._port = port
        self._sending = threading.Lock()
        self._running: dict[int, int] = {}

    def serve(self) -> None:
        self._send(hello=1)
        pending = b""
        while data := os.read(self._port, CHUNK):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._obey(json.loads(line))

    def _obey(self, order: dict[str, Any]) -> None:
        match order.pop("op"):
            case "run":
                threading.Thread(target=self._run, kwargs=order, daemon=True).start()
            case "write":
                self._write(**order)
            case "read":
                self._read(**order)
            case "kill":
                self._kill(**order)

    def _run(self, id: int, command: str) -> None:
        started = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._running[id] = process.pid
        self._relay(id, process)
        duration = time.monotonic() - started
        del self._running[id]
        self._send(id=id, rc=process.wait(), duration=duration)

    def _relay(self, id: int, process: "subprocess.Popen[bytes]") -> None:
        """Until the command itself has ended: what it left in the background may keep the pipes."""
        assert process.stdout is not None
        assert process.stderr is not None
        exited = os.pidfd_open(process.pid)
        decoder = codecs.getincrementaldecoder("utf-8")
        streams = {
            process.stdout.fileno(): ("stdout", decoder("replace")),
            process.stderr.fileno(): ("stderr", decoder("replace")),
        }
        with selectors.DefaultSelector() as selector:
            selector.register(exited, selectors.EVENT_READ)
            for stream in streams:
                os.set_blocking(stream, False)
                selector.register(stream, selectors.EVENT_READ)
            alive = True
            while alive or streams:
                ready = [key.fd for key, _ in selector.select(None if alive else 0)]
                if not alive and not ready:
                    break
                for fd in ready:
                    if fd == exited:
                        alive = False
                        selector.unregister(exited)
                        continue
                    name, decode = streams[fd]
                    data = os.read(fd, CHUNK)
                    if text := decode.decode(data, final=not data):
                        self._send(id=id, stream=name, data=text)
                    if not data:
                        selector.unregister(fd)
                        del streams[fd]
        os.close(exited)
        process.stdout.close()
        process.stderr.close()

    def _kill(self, id: int, signal: int) -> None:
        if pid := self._running.get(id):
            try:
                os.killpg(pid, signal)
            except ProcessLookupError:
                pass

    def _write(self, id: int, path: str, data: str, append: bool, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
        try:
            fd = os.open(path, flags, mode)
            with os.fdopen(fd, "wb") as file:
                file.write(base64.b64decode(data))
        except OSError as error:
            self._send(id=id, rc=error.errno)
        else:
            self._send(id=id, rc=0)

    def _read(self, id: int, path: str, offset: int, size: int) -> None:
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            self._send(id=id, rc=error.errno)
        else:
            self._send(id=id, rc=0, data=base64.b64encode(data).decode())

    def _send(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            # A virtio port takes 32 KiB at a time.
            while data:
                data = data[os.write(self._port, data) :]


if __name__ == "__main__":
    Agent(os.open(sys.argv[1], os.O_RDWR | os.O_CLOEXEC)).serve()
