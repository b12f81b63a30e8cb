"""QEMU's control protocol over a socket that is already connected."""

import json
import socket
import threading
from collections import deque
from typing import Any

from .errors import RigError

Message = dict[str, Any]


class Qmp:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        self._replies: deque[Message] = deque()
        self._events: list[Message] = []
        self._closed = False
        self._asking = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="qmp", daemon=True)
        self._reader.start()
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Once QEMU is gone, which ends the reader."""
        self._reader.join()
        self._connection.close()

    def execute(self, command: str, arguments: dict[str, object] | None = None, timeout: float = 60) -> Any:
        """What QEMU returns; raises RigError with QEMU's own words when it refuses."""
        order = {"execute": command, "arguments": arguments or {}}
        with self._asking:
            self._connection.sendall(json.dumps(order).encode() + b"\n")
            with self._changed:
                self._changed.wait_for(lambda: self._replies or self._closed, timeout)
                if not self._replies:
                    raise RigError(f"qmp {command}: no answer")
                reply = self._replies.popleft()
        if "error" in reply:
            raise RigError(f"qmp {command}: {reply['error']['desc']}")
        return reply["return"]

    def wait_event(self, name: str, timeout: float, **data: object) -> Message:
        """Takes the first event of that name whose data has all of `data`, past or to come."""

        def find() -> Message | None:
            for event in self._events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    return event
            return None

        with self._changed:
            self._changed.wait_for(lambda: find() or self._closed, timeout)
            event = find()
            if event is None:
                raise RigError(f"qmp: no event {name} {data} within {timeout} s")
            self._events.remove(event)
            return event

    def forget_events(self) -> None:
        with self._changed:
            self._events.clear()

    def _read(self) -> None:
        with self._connection.makefile("rb") as lines:
            for line in lines:
                message: Message = json.loads(line)
                with self._changed:
                    if "event" in message:
                        self._events.append(message)
                    elif "QMP" not in message:
                        self._replies.append(message)
                    self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
