"""flavourctl's own client, and answers of every shape."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from vfio_flavourd.doors import blocking_client
from vfio_flavourd.doors.blocking_client import Connection
from vfio_flavourd.doors.replies import NO_PLACE
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError


def answering(*parts: bytes, pause: float = 0.0) -> Connection:
    """A connection to one that says this, part by part, and hangs up."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs, suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
            theirs.recv(65536)
            for part in parts:
                time.sleep(pause)
                theirs.sendall(part)

    threading.Thread(target=answer, daemon=True).start()
    return Connection(ours)


def replies(found: Iterator[dict[str, object]]) -> list[object]:
    return [reply["n"] for reply in found]


@pytest.mark.parametrize(
    "parts",
    [
        [b'{"parameters": {"n": 1}}\0'],
        [b'{"parameters"', b': {"n": 1}}', b"\0"],
        [b'{"parameters": {"n": 1}}\0{"parameters": {"n": 2}}\0'],
    ],
)
def test_an_answer_may_come_in_pieces_or_with_the_next_one(parts: Sequence[bytes]) -> None:
    with answering(*parts, pause=0.01) as daemon:
        assert daemon.call("List") == {"n": 1}


def test_an_answer_may_be_longer_than_a_socket_holds() -> None:
    long = b"x" * 10_000_000
    with answering(b'{"parameters": {"n": "' + long + b'"}}\0') as daemon:
        assert len(str(daemon.call("List")["n"])) == len(long)


def test_replies_are_followed_until_the_last_one() -> None:
    parts = (b'{"parameters": {"n": 1}, "continues": true}\0', b'{"parameters": {"n": 2}}\0', b"rubbish")
    with answering(*parts) as daemon:
        assert replies(daemon.follow("Monitor")) == [1, 2]


def test_while_no_reply_comes_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking_client, "_TICK", 0.01)
    ticks: list[None] = []
    with answering(b'{"parameters": {"n": 1}}\0', pause=0.1) as daemon:
        assert replies(daemon.follow("SetFlavour", tick=lambda: ticks.append(None))) == [1]
    assert len(ticks) > 2


@pytest.mark.parametrize("said", [b"rubbish\0", b"[1]\0", b"\xff\xfe\0", b"\0"])
def test_an_answer_that_is_none_is_told_in_one_line(said: bytes) -> None:
    with answering(said) as daemon, pytest.raises(FlavourError, match="can't be read") as caught:
        daemon.call("List")
    assert "systemctl restart" in caught.value.hint


@pytest.mark.parametrize("parts", [[], [b'{"parameters": {'], [b'{"parameters": {}, "continues": true}\0']])
def test_one_that_hangs_up_has_gone(parts: Sequence[bytes]) -> None:
    with answering(*parts) as daemon, pytest.raises(FlavourError) as caught:
        list(daemon.follow("Monitor"))
    assert caught.value.code == Code.DAEMON_WENT_AWAY


def test_what_was_said_before_a_call_could_be_sent_is_the_answer_to_it() -> None:
    for said, code in ((NO_PLACE, Code.TOO_MANY_REQUESTS), (b"", Code.DAEMON_WENT_AWAY)):
        ours, theirs = socket.socketpair()
        theirs.sendall(said)
        theirs.close()
        with Connection(ours) as daemon, pytest.raises(FlavourError) as caught:
            daemon.call("List")
        assert caught.value.code == code


def test_an_error_has_its_code_its_errno_and_its_hint() -> None:
    parameters = {"code": "in-use", "errno": 16, "message": "m", "hint": "h"}
    error = json.dumps({"error": "io.vfioflavour.Manager.Busy", "parameters": parameters})
    with answering(error.encode() + b"\0") as daemon, pytest.raises(FlavourError) as caught:
        daemon.call("Get")
    told = caught.value
    assert (told.code, told.errno, str(told), told.hint) == ("in-use", 16, "m", "h")
