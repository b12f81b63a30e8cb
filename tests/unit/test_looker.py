"""Who uses a device, asked of another process."""

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fake_host import QEMU, FakeHost

from vfio_flavourd.kernel.find_users import answer
from vfio_flavourd.kernel.looker import Looker
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.occupancy import Described, Use, User

ROOT = Path(__file__).parents[2]
DEVICE = Described("/sys/devices/pci0000:00/0000:00:02.0", 0x020000, "e1000e")
USERS = (User(Use.ADDRESS, "192.0.2.1/24 on eth0"), User(Use.OPEN, "dd (pid 7) has /dev/x open", 7))


class Unit:
    """As systemd runs it, but by a thread of its own for each connection. `lines` are the questions."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "users"
        self.answers = [json.dumps([[user.use, user.what, user.pid] for user in USERS])]
        self.lines: list[str] = []
        self.connections: list[socket.socket] = []
        self.waiting: threading.Event | None = None

    @contextmanager
    def served(self) -> Iterator[None]:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.path))
            listening.listen()
            thread = threading.Thread(target=self._accept, args=(listening,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join(5)
                for connection in self.connections:
                    connection.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection.makefile("rw") as stream:
            for line in stream:
                self.lines.append(line)
                if self.waiting is not None:
                    self.waiting.wait(5)
                for text in self.answers:
                    stream.write(f"{text}\n")
                stream.flush()
                if not self.answers:
                    connection.shutdown(socket.SHUT_RDWR)
                    return


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    return Unit(tmp_path)


def test_the_answer_is_that_of_the_other_process(unit: Unit) -> None:
    with unit.served():
        looker = Looker(unit.path)
        assert looker.find_users(DEVICE) == USERS
        assert looker.find_group_holders(14) == USERS
        looker.close()
    assert [json.loads(line) for line in unit.lines] == [
        ["device", DEVICE.path, DEVICE.class_code, DEVICE.driver],
        ["group", 14],
    ]
    assert len(unit.connections) == 1  # the first one's process answers the second one, too


def see(looker: Looker) -> tuple[User, ...]:
    return asyncio.run(looker.see_users(DEVICE))


def wait_for_the_spare(unit: Unit) -> socket.socket:
    while not unit.connections:
        time.sleep(0.01)
    return unit.connections[0]


def test_within_the_loop_the_spare_process_answers_without_a_thread(
    unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unit.served():
        looker = Looker(unit.path)
        assert see(looker) == USERS  # there is none yet: a thread starts it
        monkeypatch.setattr(asyncio, "to_thread", None)
        assert see(looker) == USERS
        assert looker.find_users(DEVICE) == USERS
        looker.close()
    assert len(unit.connections) == 1
    assert len(unit.lines) == 3


def test_within_the_loop_a_spare_process_that_somebody_stopped_is_replaced(unit: Unit) -> None:
    with unit.served():
        looker = Looker(unit.path)
        looker.prepare()
        wait_for_the_spare(unit).shutdown(socket.SHUT_RDWR)
        assert see(looker) == USERS
        looker.close()
    assert len(unit.connections) == 2


def test_within_the_loop_one_that_does_not_answer_is_not_waited_for_for_ever(unit: Unit) -> None:
    unit.waiting = threading.Event()
    with unit.served():
        looker = Looker(unit.path, timeout=0.05)
        looker.prepare()
        with pytest.raises(FlavourError, match="timed out"):
            see(looker)
        unit.waiting.set()


def test_the_answer_to_one_who_has_given_up_is_not_the_next_ones(unit: Unit) -> None:
    unit.waiting = threading.Event()

    async def give_up(looker: Looker) -> None:
        task = asyncio.create_task(looker.see_users(DEVICE))
        while not unit.lines:  # noqa: ASYNC110 - nothing tells of a question
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with unit.served():
        looker = Looker(unit.path)
        looker.prepare()
        asyncio.run(give_up(looker))
        unit.answers = [json.dumps([["guest", "qemu", 8]])]
        unit.waiting.set()
        assert see(looker) == (User(Use.GUEST, "qemu", 8),)
        looker.close()
    assert len(unit.connections) == 2


def test_two_who_ask_at_once_do_not_wait_for_each_other(unit: Unit) -> None:
    unit.waiting = threading.Event()
    with unit.served():
        looker = Looker(unit.path)
        found: list[tuple[User, ...]] = []
        threads = [threading.Thread(target=lambda: found.append(looker.find_users(DEVICE))) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(unit.lines) < 2:
            assert any(thread.is_alive() for thread in threads)
        unit.waiting.set()
        for thread in threads:
            thread.join(5)
        looker.close()
    assert found == [USERS, USERS]


def test_a_spare_process_that_somebody_stopped_is_replaced(unit: Unit) -> None:
    with unit.served():
        looker = Looker(unit.path)
        looker.prepare()
        while not unit.connections:
            pass
        unit.connections[0].shutdown(socket.SHUT_RDWR)
        assert looker.find_users(DEVICE) == USERS
        looker.close()


def test_one_that_dies_of_the_question_is_no_answer(unit: Unit) -> None:
    unit.answers = []
    with unit.served():
        looker = Looker(unit.path)
        with pytest.raises(
            FlavourError, match=r"can't be told: vfio-flavour-users@\.service: it ended"
        ) as caught:
            looker.find_users(DEVICE)
    assert "journalctl -u 'vfio-flavour-users@*'" in caught.value.hint


def test_one_that_does_not_answer_is_not_waited_for_for_ever(unit: Unit) -> None:
    unit.waiting = threading.Event()
    with unit.served():
        with pytest.raises(FlavourError, match="timed out"):
            Looker(unit.path, timeout=0.05).find_users(DEVICE)
        unit.waiting.set()


def test_a_unit_that_is_not_there_lets_nobody_take_the_device(tmp_path: Path) -> None:
    looker = Looker(tmp_path / "none")
    looker.prepare()
    with pytest.raises(FlavourError, match="No such file or directory") as caught:
        looker.find_users(DEVICE)
    assert "systemctl start vfio-flavour-users.socket" in caught.value.hint


def wait_for_questions(unit: Unit, number: int) -> None:
    while len(unit.lines) < number:
        time.sleep(0.01)


@pytest.mark.parametrize("spare", [False, True])
def test_at_the_end_a_question_that_is_under_way_ends_and_nobody_else_is_asked(
    unit: Unit, spare: bool
) -> None:
    """Its process looks through millions of files, say; the next question would take as long."""
    unit.waiting = threading.Event()
    told: list[str] = []

    def ask(looker: Looker) -> None:
        for _ in range(2):
            try:
                looker.find_users(DEVICE)
            except FlavourError as error:
                told.append(str(error))

    with unit.served():
        looker = Looker(unit.path)
        if spare:
            looker.prepare()
        thread = threading.Thread(target=ask, args=(looker,), daemon=True)
        thread.start()
        wait_for_questions(unit, 1)
        looker.close()
        thread.join(20)
        assert not thread.is_alive()
        unit.waiting.set()
    assert len(told) == 2
    assert all("who uses the device can't be told" in each for each in told)
    assert (len(unit.connections), len(unit.lines)) == (1, 1)


def test_at_the_end_a_question_within_the_loop_ends_and_nobody_else_is_asked(unit: Unit) -> None:
    unit.waiting = threading.Event()

    async def ask(looker: Looker) -> None:
        task = asyncio.create_task(looker.see_users(DEVICE))
        while not unit.lines:  # noqa: ASYNC110 - nothing tells of a question
            await asyncio.sleep(0.01)
        looker.close()
        with pytest.raises(FlavourError, match="can't be told: the service is stopping"):
            await asyncio.wait_for(task, 20)

    with unit.served():
        looker = Looker(unit.path)
        looker.prepare()
        asyncio.run(ask(looker))
        unit.waiting.set()
    assert (len(unit.connections), len(unit.lines)) == (1, 1)


def test_an_answer_that_comes_before_the_end_is_one_and_its_process_is_not_kept(unit: Unit) -> None:
    with unit.served():
        looker = Looker(unit.path)
        keep = looker._keep

        def close_first(sock: socket.socket) -> None:
            looker.close()
            keep(sock)

        looker._keep = close_first  # type: ignore[method-assign]
        assert looker.find_users(DEVICE) == USERS
        assert (looker._idle, looker._busy) == ([], set())


def test_what_the_other_process_finds_is_what_is_found_without_it(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.add_disk("nvme0n1", "259:0")
    host.add_process(QEMU, "dd", ["/dev/nvme0n1"])
    device = host.device()
    answers = io.StringIO()
    question = ["device", device.path, device.class_code, device.driver]
    answer(host.occupancy(), io.StringIO(json.dumps(question) + "\n"), answers)
    assert [User(Use(use), what, pid) for use, what, pid in json.loads(answers.getvalue())] == list(
        host.users()
    )


@pytest.mark.parametrize(
    "line", ["{}", '["device", 1, 2, 3]', '["group", "x"]', '["read", "/etc/shadow"]', "["]
)
def test_anything_else_than_a_question_is_not_answered(tmp_path: Path, line: str) -> None:
    answers = io.StringIO()
    with pytest.raises(ValueError, match=r"no question|Expecting"):
        answer(FakeHost(tmp_path).occupancy(), io.StringIO(line + "\n"), answers)
    assert answers.getvalue() == ""


def test_the_process_ends_with_its_connection_and_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import vfio_flavourd.kernel.find_users as it; it.main()"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code, str(ROOT)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            env={**os.environ},
        )
        theirs.close()
        ours.sendall(b'["group", 99999999]\n')
        assert ours.recv(100) == b"[]\n"
        ours.shutdown(socket.SHUT_RDWR)
        assert process.wait(10) == 0


@pytest.mark.parametrize("questions", [1, 2])
@pytest.mark.parametrize("answered", [False, True])
def test_one_whose_asker_has_hung_up_ends_without_a_word(questions: int, answered: bool) -> None:
    """Whether it comes to write or to read that, and with an answer in the buffer that nobody has taken."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import vfio_flavourd.kernel.find_users as it;"
        " sys.exit(it.main())"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code, str(ROOT)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
        )
        theirs.close()
        ours.sendall(b'["group", 99999999]\n' * questions)
        if answered:
            assert ours.recv(3, socket.MSG_PEEK) == b"[]\n"
    _, said = process.communicate(timeout=30)
    assert (said, process.returncode) == (b"", 0)
