"""The real worker processes, on plain files."""

import asyncio
import errno
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vfio_flavourd.kernel import hand, hands, places
from vfio_flavourd.kernel.hands import SPARE, Blocked, Hands, Operation, Result
from vfio_flavourd.model.errors import FlavourError

# Seconds within which a busy host does what it does at once otherwise.
SOON = 20.0


class Watched:
    """Workers whose processes are known."""

    def __init__(self, root: Path) -> None:
        self.hands = Hands(root=str(root))
        self.pids: list[int] = []

    async def do(self, *operations: Operation, timeout: float = SOON, **more: Any) -> list[Result]:
        return await self.hands.carry_out(operations, timeout=timeout, begun=self.pids.append, **more)

    async def block(self, *operations: Operation, **more: Any) -> Blocked:
        with pytest.raises(Blocked) as caught:
            await self.do(*operations, timeout=0.2, **more)
        return caught.value


@asynccontextmanager
async def workers(root: Path) -> AsyncIterator[Watched]:
    watched = Watched(root)
    try:
        yield watched
    finally:
        watched.hands.close()
        for pid in watched.pids:
            await gone(pid)


async def until(is_so: Callable[[], bool]) -> None:
    """What has happened in the kernel reaches the loop in a round or two of its own."""
    async with asyncio.timeout(SOON):
        while not is_so():  # noqa: ASYNC110 - the loop itself is waited for
            await asyncio.sleep(0)


async def gone(pid: int) -> None:
    """Ended, and taken note of by its parent."""
    async with asyncio.timeout(SOON):
        await Hands.await_exit(pid)
        await until(lambda: not Path(f"/proc/{pid}").exists())


def with_workers(root: Path, talk: Callable[[Watched], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with workers(root) as watched:
            return await talk(watched)

    return asyncio.run(run())


def do(root: Path, *operations: Operation, **more: Any) -> list[Result]:
    results: list[Result] = with_workers(root, lambda watched: watched.do(*operations, **more))
    return results


def release(path: Path, data: bytes = b"") -> None:
    """Let go of who opens the FIFO for reading."""
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, data)
    os.close(descriptor)


def test_a_write_goes_to_the_attribute_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "attribute").write_text("before", encoding="ascii")
    (result,) = do(tmp_path, ("write", "/attribute", "vfio-pci\n"))
    assert (result.index, result.errno, result.value) == (0, 0, None)
    assert 0 < result.start <= result.end <= time.monotonic()
    assert (tmp_path / "attribute").read_text(encoding="ascii").startswith("vfio-pci\n")


def test_a_mistyped_attribute_fails_and_is_not_created(tmp_path: Path) -> None:
    (result,) = do(tmp_path, ("write", "/driver_overide", "x"))
    assert result.errno == errno.ENOENT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["0000:01:00.0", "\n", "x" * 4000])
def test_a_command_is_one_write_whatever_its_length(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "attribute").touch()
    written: list[bytes] = []
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        written.append(data)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    hand.write(str(tmp_path / "attribute"), text)
    assert written == [text.encode()]


def test_a_read_gives_the_text_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "driver_override").write_bytes(b"(null)\n")
    (tmp_path / "raw").write_bytes(b"\xff\n")
    first, second, third = do(tmp_path, ("read", "/driver_override"), ("read", "/raw"), ("read", "/none"))
    assert (first.errno, first.value) == (0, "(null)")
    assert second.value == "�"
    assert (third.errno, third.value) == (errno.ENOENT, None)


def test_a_link_gives_the_last_part_of_its_target_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "driver").symlink_to("../../bus/pci/drivers/e1000e")
    first, second = do(tmp_path, ("link", "/driver"), ("link", "/none"))
    assert (first.errno, first.value) == (0, "e1000e")
    assert (second.errno, second.value) == (0, None)


def test_names_are_sorted_and_none_where_there_is_no_directory(tmp_path: Path) -> None:
    for name in ("vfio1", "vfio0"):
        (tmp_path / "vfio-dev" / name).mkdir(parents=True)
    first, second = do(tmp_path, ("names", "/vfio-dev"), ("names", "/none"))
    assert first.value == ["vfio0", "vfio1"]
    assert (second.errno, second.value) == (0, [])


def test_a_batch_goes_on_where_it_finds_what_it_expects_and_stops_where_not(tmp_path: Path) -> None:
    for name in ("driver_override", "one", "two"):
        (tmp_path / name).write_text("(null)\n", encoding="ascii")
    results = do(tmp_path, ("expect", "/driver_override", "(null)"), ("write", "/one", "1"))
    assert [result.errno for result in results] == [0, 0]
    results = do(tmp_path, ("expect", "/driver_override", "mine"), ("write", "/two", "1"))
    assert [result.errno for result in results] == [errno.ESTALE]
    assert (tmp_path / "two").read_text(encoding="ascii") == "(null)\n"


def test_a_commands_status_and_what_it_said_come_back(tmp_path: Path) -> None:
    script = 'echo "to nobody"; echo "modprobe: FATAL: $1" >&2; exit 3'
    (result,) = do(tmp_path, ("run", "sh", "-c", script, "sh", "no; such $(luck)"))
    assert (result.errno, result.value) == (0, [3, "modprobe: FATAL: no; such $(luck)"])


def test_a_command_that_a_signal_ended_is_told_from_one_that_failed(tmp_path: Path) -> None:
    (result,) = do(tmp_path, ("run", "sh", "-c", "kill -KILL $$"))
    assert result.value == [-signal.SIGKILL, ""]


def test_of_what_a_command_said_the_end_is_kept(tmp_path: Path) -> None:
    (result,) = do(tmp_path, ("run", "sh", "-c", "seq 1000000 1020000 >&2; echo last >&2"))
    assert isinstance(result.value, list)
    status, said = result.value
    assert status == 0
    assert said.endswith("\n1020000\nlast")
    assert len(said) <= 4096


def test_a_program_that_does_not_exist_is_an_error_of_that_batch_alone(tmp_path: Path) -> None:
    async def talk(watched: Watched) -> None:
        (result,) = await watched.do(("run", "no-such-program"))
        assert result.errno == errno.ENOENT
        (result,) = await watched.do(("run", "true"))
        assert result.value == [0, ""]
        assert watched.pids[0] == watched.pids[1]

    with_workers(tmp_path, talk)


def test_a_batch_stops_at_the_first_operation_that_fails(tmp_path: Path) -> None:
    for name in ("one", "three"):
        (tmp_path / name).touch()
    results = do(tmp_path, ("write", "/one", "1"), ("write", "/two", "2"), ("write", "/three", "3"))
    assert [(result.index, result.errno) for result in results] == [(0, 0), (1, errno.ENOENT)]
    assert (tmp_path / "one").read_text(encoding="ascii") == "1"
    assert (tmp_path / "three").read_text(encoding="ascii") == ""


def test_the_results_are_told_in_their_order_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "first").write_text("1", encoding="ascii")
    os.mkfifo(tmp_path / "second")

    async def talk(watched: Watched) -> None:
        told: list[Result] = []
        operations = (("read", "/first"), ("read", "/second"), ("read", "/first"))
        blocked = await watched.block(*operations, watch=told.append)
        await until(lambda: bool(told))  # a worker that has only just been started takes its time
        assert [result.index for result in told] == [0]
        await asyncio.to_thread(release, tmp_path / "second", b"2\n")
        results = await asyncio.wait_for(blocked.finished, SOON)
        assert [result.value for result in results] == ["1", "2", "1"]
        assert told == results
        assert [result.index for result in told] == [0, 1, 2]
        assert all(one.end <= following.start for one, following in pairwise(told))

    with_workers(tmp_path, talk)


def test_another_device_at_the_same_address_is_not_written_to(tmp_path: Path) -> None:
    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "driver_override").write_text("(null)\n", encoding="ascii")
    inode = device.stat().st_ino
    write = ("write", "/0000:01:00.0/driver_override", "vfio-pci\n")
    (result,) = do(tmp_path, write, guard=("/0000:01:00.0", inode + 1))
    assert (result.errno, result.value) == (errno.ENODEV, None)
    assert (device / "driver_override").read_text(encoding="ascii") == "(null)\n"
    (result,) = do(tmp_path, write, guard=("/0000:01:00.0", inode))
    assert result.errno == 0


def test_a_device_that_goes_in_the_middle_of_a_batch_gets_no_more_writes(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    os.mkfifo(device / "unbind")
    (device / "bind").touch()
    inode = device.stat().st_ino

    async def talk(watched: Watched) -> None:
        operations = (("read", "/device/unbind"), ("write", "/device/bind", "x"))
        blocked = await watched.block(*operations, guard=("/device", inode))
        device.rename(tmp_path / "gone")
        await asyncio.to_thread(release, tmp_path / "gone/unbind")
        results = await asyncio.wait_for(blocked.finished, SOON)
        assert [result.errno for result in results] == [0, errno.ENODEV]
        assert (tmp_path / "gone/bind").read_text(encoding="ascii") == ""

    with_workers(tmp_path, talk)


def test_what_does_not_come_back_in_time_is_blocked_and_finished_later(tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    (tmp_path / "after").touch()
    os.mkfifo(tmp_path / "held")

    async def talk(watched: Watched) -> None:
        began = time.monotonic()
        blocked = await watched.block(("write", "/before", "1"), ("read", "/held"), ("write", "/after", "1"))
        assert time.monotonic() - began < SOON
        assert blocked.pid == watched.pids[0]
        assert [result.index for result in blocked.results] == [0]
        assert not blocked.finished.done()
        assert (tmp_path / "after").read_text(encoding="ascii") == ""
        await asyncio.to_thread(release, tmp_path / "held", b"free\n")
        results = await asyncio.wait_for(blocked.finished, SOON)
        assert [(result.index, result.errno) for result in results] == [(0, 0), (1, 0), (2, 0)]
        assert (tmp_path / "after").read_text(encoding="ascii") == "1"

    with_workers(tmp_path, talk)


def test_other_batches_go_on_while_one_is_blocked(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    (tmp_path / "other").write_text("fine", encoding="ascii")

    async def talk(watched: Watched) -> None:
        blocked = await watched.block(("read", "/held"))
        for _ in range(10):
            (result,) = await watched.do(("read", "/other"))
            assert result.value == "fine"
        assert blocked.pid not in watched.pids[1:]
        assert not blocked.finished.done()
        await asyncio.to_thread(release, tmp_path / "held")
        await asyncio.wait_for(blocked.finished, SOON)

    with_workers(tmp_path, talk)


def test_no_more_than_so_many_are_at_work_at_one_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands, "MOST", 2)
    monkeypatch.setattr(places, "LONG", 10 * SOON)
    for number in range(3):
        os.mkfifo(tmp_path / f"held{number}")

    async def talk(watched: Watched) -> None:
        reads = [asyncio.create_task(watched.do(("read", f"/held{number}"))) for number in range(3)]
        await until(lambda: len(watched.pids) == 2)
        for number, read in enumerate(reads):
            await asyncio.to_thread(release, tmp_path / f"held{number}")
            await asyncio.wait_for(read, SOON)
        assert len(watched.pids) == 3

    with_workers(tmp_path, talk)


def test_others_do_not_wait_for_those_that_hang_until_they_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands, "MOST", 1)
    monkeypatch.setattr(places, "LONG", 0.05)
    os.mkfifo(tmp_path / "held")
    (tmp_path / "other").write_text("fine", encoding="ascii")

    async def talk(watched: Watched) -> None:
        hanging = asyncio.create_task(watched.do(("read", "/held"), timeout=3600.0))
        await until(lambda: bool(watched.pids))
        (result,) = await asyncio.wait_for(watched.do(("read", "/other")), SOON)
        assert result.value == "fine"
        assert not hanging.done()
        await asyncio.to_thread(release, tmp_path / "held")
        await asyncio.wait_for(hanging, SOON)

    with_workers(tmp_path, talk)


def test_a_worker_that_came_back_late_is_used_again(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    (tmp_path / "other").write_text("fine", encoding="ascii")

    async def talk(watched: Watched) -> None:
        blocked = await watched.block(("read", "/held"))
        await asyncio.to_thread(release, tmp_path / "held", b"late")
        late = await asyncio.wait_for(blocked.finished, SOON)
        (result,) = await watched.do(("read", "/other"))
        assert watched.pids == [blocked.pid, blocked.pid]
        assert result.value == "fine"
        assert [each.value for each in late] == ["late"]

    with_workers(tmp_path, talk)


def test_a_worker_that_is_killed_is_an_error_and_the_next_batch_gets_another(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")

    async def talk(watched: Watched) -> None:
        task = asyncio.create_task(watched.do(("read", "/held")))
        await until(lambda: bool(watched.pids))
        os.kill(watched.pids[0], signal.SIGKILL)
        with pytest.raises(FlavourError, match="died") as caught:
            await task
        assert caught.value.errno == errno.EIO
        assert str(watched.pids[0]) in str(caught.value)
        (result,) = await watched.do(("names", "/"))
        assert result.value == ["held"]
        assert watched.pids[1] != watched.pids[0]

    with_workers(tmp_path, talk)


def test_a_blocked_worker_that_is_killed_has_let_go(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")

    async def talk(watched: Watched) -> None:
        blocked = await watched.block(("read", "/held"))
        os.kill(blocked.pid, signal.SIGKILL)
        with pytest.raises(FlavourError, match="died"):
            await asyncio.wait_for(blocked.finished, SOON)

    with_workers(tmp_path, talk)


def test_a_spare_worker_that_was_killed_fails_no_switch_with_anything_but_its_error(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("fine", encoding="ascii")

    async def talk(watched: Watched) -> None:
        await watched.do(("read", "/other"))
        killed = watched.pids[0]
        descriptor = os.pidfd_open(killed)
        os.kill(killed, signal.SIGKILL)
        select.select([descriptor], [], [], SOON)  # it has ended, and the loop has not been told yet
        os.close(descriptor)
        try:
            (result,) = await watched.do(("read", "/other"))
        except FlavourError as error:
            assert error.errno == errno.EIO  # noqa: PT017 - either is fine
            (result,) = await watched.do(("read", "/other"))
        assert result.value == "fine"

    with_workers(tmp_path, talk)


def test_spare_workers_are_kept_and_no_more_than_that(tmp_path: Path) -> None:
    fifos = [f"held{number}" for number in range(SPARE + 2)]
    for name in fifos:
        os.mkfifo(tmp_path / name)

    async def talk(watched: Watched) -> None:
        watched.hands.prepare()
        ready = {hand.process.pid for hand in watched.hands._idle}
        assert len(ready) == SPARE
        blocked = [await watched.block(("read", f"/{name}")) for name in fifos]
        assert len({each.pid for each in blocked}) == SPARE + 2
        assert ready < {each.pid for each in blocked}
        for name in fifos:
            await asyncio.to_thread(release, tmp_path / name)
        await asyncio.wait_for(asyncio.gather(*(each.finished for each in blocked)), SOON)
        await until(lambda: sum(Path(f"/proc/{each.pid}").exists() for each in blocked) == SPARE)
        assert len(watched.hands._idle) == SPARE
        assert not watched.hands._busy

    with_workers(tmp_path, talk)


def test_preparing_twice_starts_no_more_workers(tmp_path: Path) -> None:
    async def talk(watched: Watched) -> None:
        watched.hands.prepare()
        first = [hand.process.pid for hand in watched.hands._idle]
        watched.hands.prepare()
        watched.pids = [hand.process.pid for hand in watched.hands._idle]
        assert watched.pids == first

    with_workers(tmp_path, talk)


def test_closing_leaves_no_idle_process_behind(tmp_path: Path) -> None:
    async def run() -> None:
        hands = Hands(root=str(tmp_path))
        hands.prepare()
        pids = [hand.process.pid for hand in hands._idle]
        hands.close()
        for pid in pids:
            await gone(pid)

    asyncio.run(run())


def test_a_batch_is_carried_to_its_end_when_the_daemon_goes_away_in_the_middle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    for name in ("unbind", "bind"):
        (tmp_path / name).touch()

    async def run() -> None:
        watched = Watched(tmp_path)
        operations = (("write", "/unbind", "x"), ("read", "/held"), ("write", "/bind", "x"), ("names", "/"))
        await watched.block(*operations)
        watched.hands.close()
        assert Path(f"/proc/{watched.pids[0]}").exists()
        await asyncio.to_thread(release, tmp_path / "held")
        await gone(watched.pids[0])

    asyncio.run(run())
    assert (tmp_path / "bind").read_text(encoding="ascii") == "x"


def test_a_batch_that_is_called_off_before_it_begins_leaks_no_worker(tmp_path: Path) -> None:
    (tmp_path / "attribute").touch()

    def refuse(pid: int) -> None:
        pids.append(pid)
        raise FlavourError("it can't be recorded", errno=errno.EIO)

    pids: list[int] = []

    async def talk(watched: Watched) -> None:
        for _ in range(SPARE + 2):
            with pytest.raises(FlavourError, match="recorded"):
                await watched.hands.carry_out([("write", "/attribute", "x")], timeout=SOON, begun=refuse)
        watched.pids += pids
        assert len(watched.hands._busy) == 0
        assert (tmp_path / "attribute").read_text(encoding="ascii") == ""

    with_workers(tmp_path, talk)


def test_one_who_stops_waiting_does_not_stop_the_batch(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    (tmp_path / "after").touch()

    async def talk(watched: Watched) -> None:
        done = asyncio.Event()

        def watch(result: Result) -> None:
            if result.index == 1:
                done.set()

        task = asyncio.create_task(watched.do(("read", "/held"), ("write", "/after", "x"), watch=watch))
        await until(lambda: bool(watched.pids))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(release, tmp_path / "held")
        await asyncio.wait_for(done.wait(), SOON)
        assert (tmp_path / "after").read_text(encoding="ascii") == "x"

    with_workers(tmp_path, talk)


def test_the_end_of_a_process_that_is_no_more_is_known_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()
        await asyncio.wait_for(Hands.await_exit(process.pid), SOON)

    asyncio.run(run())
