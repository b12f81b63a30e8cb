"""The file system's inodes, files and interrupts, without a mount."""

import asyncio
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
from fake_kernel import FakeKernel
from hypothesis import given
from hypothesis import strategies as st
from test_address import addresses

from vfio_flavourd.doors.connection_places import SWITCHING
from vfio_flavourd.doors.fs import asking, interrupts
from vfio_flavourd.doors.fs.asking import (
    READS_OF_ONE,
    WAITING_OF_ROOT,
    WRITES_OF_ALL,
    WRITES_OF_ONE,
    WRITES_OF_ROOT,
)
from vfio_flavourd.doors.fs.interrupts import Interrupts, has_signal
from vfio_flavourd.doors.fs.main import MOST_REQUESTS
from vfio_flavourd.doors.fs.operations import FlavourFs
from vfio_flavourd.doors.fs.tree import FILES, ROOT, SERIALS, Node, Place, find_place
from vfio_flavourd.doors.protocol import lost
from vfio_flavourd.kernel.sysfs import Sysfs
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import parse_flavour

DEVICE = "0000:01:00.0"
CONTEXT = SimpleNamespace(pid=os.getpid(), uid=0, gid=0, umask=0)

# inodes


places = st.builds(Place, addresses, st.sampled_from(Node))


@given(place=places)
def test_an_inodes_number_tells_what_it_is(place: Place) -> None:
    assert find_place(place.inode) == place
    assert ROOT < place.inode < 1 << 64


@given(one=places, other=places)
def test_no_two_places_share_an_inode(one: Place, other: Place) -> None:
    assert (one.inode == other.inode) == (one == other)


# files


class FakeDaemon:
    """Answers for one device; `calls` are what it was asked, `open` the connections to it."""

    def __init__(self) -> None:
        self.flavour = "native"
        self.error: FlavourError | None = None
        self.hang: asyncio.Event | None = None
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.open: set[FakeClient] = set()
        self.connections = 0
        self.refusal: FlavourError | None = None

    async def connect(self, *, writes: bool) -> "FakeClient":
        if self.refusal is not None:
            raise self.refusal
        self.connections += 1
        client = FakeClient(self, writes=writes)
        self.open.add(client)
        return client


class FakeClient:
    def __init__(self, daemon: FakeDaemon, *, writes: bool) -> None:
        self._daemon = daemon
        self.writes = writes

    @property
    def is_open(self) -> bool:
        return self in self._daemon.open

    def close(self) -> None:
        self._daemon.open.discard(self)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        daemon = self._daemon
        daemon.calls.append((method, parameters))
        assert self.writes == (method == "SetFlavour")  # a read takes none of root's places for switching
        if daemon.hang is not None:
            await daemon.hang.wait()
        if daemon.error is not None:
            raise daemon.error
        if len(json.dumps(parameters)) > 64 * 1024:
            raise lost("it hung up")  # as it does on a frame that is longer
        if method == "SetFlavour":
            parse_flavour(parameters["flavour"])
            daemon.flavour = parameters["flavour"]
            return {"outcome": {}}
        return {"device": {"flavour": daemon.flavour}, "flavours": ["native", "vfio"]}


class Mounted:
    """The operations, as the kernel would call them."""

    def __init__(self, root: Path, daemon: FakeDaemon) -> None:
        self.kernel = FakeKernel(root)
        self.kernel.add_device(DEVICE)
        self.daemon = daemon
        self.fs = FlavourFs(Sysfs(str(root)), Interrupts())

    def place(self, name: str, device: str = DEVICE) -> int:
        return Place(parse_address(device), FILES[name.encode()]).inode

    async def open(
        self, name: str, device: str = DEVICE, flags: int = os.O_RDWR, context: SimpleNamespace = CONTEXT
    ) -> int:
        info: Any = await self.fs.open(self.place(name, device), flags, context)  # type: ignore[arg-type]
        assert info.direct_io
        return int(info.fh)

    async def cat(self, name: str, device: str = DEVICE) -> str:
        handle = await self.open(name, device)
        try:
            text = await self.fs.read(handle, 0, 4096)
            assert await self.fs.read(handle, len(text), 4096) == b""
            return text.decode()
        finally:
            await self.fs.release(handle)

    async def echo(self, text: bytes, name: str = "driver_flavour", device: str = DEVICE) -> int:
        handle = await self.open(name, device)
        try:
            return await self.fs.write(handle, 0, text)
        finally:
            await self.fs.release(handle)

    async def refused(self, text: bytes, name: str = "driver_flavour", device: str = DEVICE) -> int:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await self.echo(text, name, device)
        return caught.value.errno

    async def look_up(self, parent: int, name: str) -> Any:
        return await self.fs.lookup(parent, name.encode(), CONTEXT)  # type: ignore[arg-type]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    daemon = FakeDaemon()
    monkeypatch.setattr(asking, "connect", daemon.connect)
    return daemon


@pytest.fixture
def mounted(tmp_path: Path, daemon: FakeDaemon) -> Mounted:
    return Mounted(tmp_path, daemon)


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


@pytest.mark.parametrize(("flavour", "text"), [("native", "[native] vfio\n"), ("vfio", "native [vfio]\n")])
def test_driver_flavour_brackets_the_one_it_is(mounted: Mounted, flavour: str, text: str) -> None:
    mounted.daemon.flavour = flavour
    assert run(mounted.cat("driver_flavour")) == text
    assert mounted.daemon.calls[0] == ("Get", {"device": DEVICE})


@pytest.mark.parametrize(("flavour", "text"), [("native", "0\n"), ("vfio", "1\n")])
def test_use_vfio_says_the_same_as_a_digit(mounted: Mounted, flavour: str, text: str) -> None:
    mounted.daemon.flavour = flavour
    assert run(mounted.cat("use_vfio")) == text


def test_last_error_is_empty_and_asks_nobody(mounted: Mounted) -> None:
    assert run(mounted.cat("last_error")) == ""
    assert mounted.daemon.calls == []


def test_a_read_gives_the_part_that_was_asked_for(mounted: Mounted) -> None:
    async def talk() -> None:
        handle = await mounted.open("driver_flavour")
        assert await mounted.fs.read(handle, 0, 3) == b"[na"
        assert await mounted.fs.read(handle, 9, 100) == b"vfio\n"
        assert await mounted.fs.read(handle, 100, 100) == b""

    run(talk())


@pytest.mark.parametrize(
    ("name", "text", "flavour"),
    [
        ("driver_flavour", b"vfio\n", "vfio"),
        ("driver_flavour", b"vfio", "vfio"),
        ("driver_flavour", b"vfio\0", "vfio"),
        ("driver_flavour", b"native\n", "native"),
        ("use_vfio", b"1\n", "vfio"),
        ("use_vfio", b"1", "vfio"),
        ("use_vfio", b"0\n", "native"),
    ],
)
def test_a_write_returns_when_the_device_has_the_flavour(
    mounted: Mounted, name: str, text: bytes, flavour: str
) -> None:
    mounted.daemon.flavour = "neither"
    assert run(mounted.echo(text, name)) == len(text)
    [(method, parameters)] = mounted.daemon.calls
    assert (method, parameters["device"], parameters["flavour"]) == ("SetFlavour", DEVICE, flavour)
    assert (parameters["uid"], parameters["pid"]) == (0, os.getpid())  # who has opened the file
    assert mounted.daemon.flavour == flavour


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("driver_flavour", b"vfoi\n"),
        ("driver_flavour", b"VFIO\n"),
        ("driver_flavour", b""),
        ("driver_flavour", b"\n"),
        ("driver_flavour", b"1\n"),
        ("driver_flavour", b"native [vfio]\n"),
        ("driver_flavour", b"vfio native\n"),
        ("driver_flavour", b"vfio\nnative\n"),
        ("driver_flavour", b"\xff\xfe\n"),
        ("driver_flavour", b"vfio" * 1024),
        ("driver_flavour", b"\xff" * 11_000),
        ("use_vfio", b"2\n"),
        ("use_vfio", b"vfio\n"),
        ("use_vfio", b"yes\n"),
        ("use_vfio", b""),
        ("use_vfio", b"\x1b[31m"),
    ],
)
def test_a_write_of_anything_else_is_einval_and_last_error_says_what_is_allowed(
    mounted: Mounted, name: str, text: bytes
) -> None:
    async def talk() -> str:
        assert await mounted.refused(text, name) == errno.EINVAL
        return await mounted.cat("last_error")

    told = run(talk())
    assert mounted.daemon.flavour == "native"
    assert told.endswith("\n")
    line = told.removesuffix("\n")
    assert line.isprintable()
    assert len(line) < 400
    assert f"; allowed: {'0 or 1' if name == 'use_vfio' else 'native or vfio'}" in line


def test_what_is_no_digit_reaches_the_daemon_as_a_name_that_no_flavour_can_have(mounted: Mounted) -> None:
    assert run(mounted.refused(b"native\n", "use_vfio")) == errno.EINVAL
    [(method, parameters)] = mounted.daemon.calls  # which keeps a record of the refusal
    assert (method, parameters["flavour"]) == ("SetFlavour", "use_vfio=native")
    assert (parameters["uid"], parameters["pid"]) == (0, os.getpid())


def test_the_longest_name_that_a_flavour_may_have_is_passed_on_whole(mounted: Mounted) -> None:
    name = "f" * 64
    assert run(mounted.refused(name.encode())) == errno.EINVAL
    assert mounted.daemon.calls[0][1]["flavour"] == name


@pytest.mark.parametrize(
    "code", [errno.EBUSY, errno.ENODEV, errno.ETIMEDOUT, errno.EAGAIN, errno.EACCES, errno.EIO]
)
def test_the_daemons_errno_is_the_writers_and_its_words_are_kept(mounted: Mounted, code: int) -> None:
    async def talk() -> str:
        mounted.daemon.error = FlavourError(f"{DEVICE}: no luck", errno=code, hint="try harder")
        assert await mounted.refused(b"vfio\n") == code
        return await mounted.cat("last_error")

    assert run(talk()) == f"{DEVICE}: no luck; try harder (flavourctl explain failed)\n"


def test_an_error_without_a_hint_says_where_to_read_more(mounted: Mounted) -> None:
    async def talk() -> str:
        mounted.daemon.error = FlavourError(f"{DEVICE}: no luck", errno=errno.EIO)
        await mounted.refused(b"vfio\n")
        return await mounted.cat("last_error")

    assert run(talk()) == f"{DEVICE}: no luck; flavourctl explain failed\n"


def test_last_error_is_empty_after_a_success(mounted: Mounted) -> None:
    async def talk() -> None:
        await mounted.refused(b"vfoi")
        assert await mounted.cat("last_error") != ""
        await mounted.echo(b"vfio")
        assert await mounted.cat("last_error") == ""

    run(talk())


def test_each_device_has_a_last_error_of_its_own(mounted: Mounted) -> None:
    other = "0000:02:00.0"
    mounted.kernel.add_device(other)

    async def talk() -> None:
        await mounted.refused(b"vfoi")
        assert await mounted.cat("last_error", other) == ""
        await mounted.echo(b"vfio", device=other)
        assert await mounted.cat("last_error") != ""

    run(talk())


def test_the_next_device_at_an_address_has_a_last_error_of_its_own(mounted: Mounted) -> None:
    async def talk() -> None:
        await mounted.refused(b"vfoi")
        handle = await mounted.open("last_error")
        mounted.kernel.remove_device(mounted.kernel.devices[DEVICE])
        mounted.kernel.add_device(DEVICE)
        assert await mounted.fs.read(handle, 0, 4096) == b""
        await mounted.refused(b"vfoi")
        assert await mounted.cat("last_error") != ""

    run(talk())


def test_what_a_write_fails_with_while_its_device_is_replaced_is_not_the_next_ones(mounted: Mounted) -> None:
    class Replacement(asyncio.Event):
        async def wait(self) -> bool:  # type: ignore[override]
            mounted.kernel.remove_device(mounted.kernel.devices[DEVICE])
            mounted.kernel.add_device(DEVICE)
            return True

    async def talk() -> None:
        mounted.daemon.hang = Replacement()
        mounted.daemon.error = FlavourError(f"{DEVICE}: went away", code=Code.DEVICE_GONE)
        assert await mounted.refused(b"vfio") == errno.ENODEV
        mounted.daemon.hang = None
        assert await mounted.cat("last_error") == ""

    run(talk())


def test_a_daemon_that_is_not_there_is_eio_and_said_so(mounted: Mounted) -> None:
    async def talk() -> None:
        mounted.daemon.refusal = FlavourError(
            "the daemon does not answer", code=Code.DAEMON_NOT_RUNNING, hint="start it"
        )
        assert await mounted.refused(b"vfio") == errno.EIO
        said = "the daemon does not answer; start it (flavourctl explain daemon-not-running)\n"
        assert await mounted.cat("last_error") == said
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await mounted.cat("driver_flavour")
        assert caught.value.errno == errno.EIO

    run(talk())


def test_a_connection_is_used_again_and_replaced_when_it_is_lost(mounted: Mounted) -> None:
    async def talk() -> None:
        for _ in range(3):
            await mounted.cat("driver_flavour")
            await mounted.echo(b"vfio")
        assert mounted.daemon.connections == 2  # one to look, one to switch
        mounted.daemon.open.clear()  # the daemon was started again
        await mounted.cat("driver_flavour")
        assert mounted.daemon.connections == 3
        assert len(mounted.daemon.open) == 1

    run(talk())


@pytest.mark.parametrize("work", ["read", "write"])
def test_what_fails_leaks_no_connection(mounted: Mounted, work: str) -> None:
    async def talk() -> None:
        mounted.daemon.error = FlavourError("no luck", errno=errno.EIO)
        for _ in range(5):
            with pytest.raises(pyfuse3.FUSEError):
                await (mounted.cat("driver_flavour") if work == "read" else mounted.echo(b"vfio"))
        assert len(mounted.daemon.open) <= 1

    run(talk())


def test_a_write_that_waits_holds_up_no_other_file(mounted: Mounted) -> None:
    mounted.kernel.add_device("0000:02:00.0")

    async def talk() -> None:
        mounted.daemon.hang = asyncio.Event()
        waiting = asyncio.create_task(mounted.echo(b"vfio"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        hang, mounted.daemon.hang = mounted.daemon.hang, None
        assert await mounted.cat("driver_flavour", "0000:02:00.0") == "[native] vfio\n"
        assert await mounted.cat("last_error") == ""
        assert not waiting.done()
        hang.set()
        assert await waiting == 4

    run(talk())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def write_as(mounted: Mounted, uid: int) -> int:
    context = SimpleNamespace(pid=os.getpid(), uid=uid, gid=0, umask=0)
    return await mounted.fs.write(await mounted.open("use_vfio", context=context), 0, b"1")


async def refused_as(mounted: Mounted, uid: int) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await write_as(mounted, uid)
    assert caught.value.errno == errno.EAGAIN


def test_a_user_with_many_writes_that_wait_is_refused_more_and_nobody_else_is(
    mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    cgroup = mounted.kernel.root / f"proc/{os.getpid()}/cgroup"
    cgroup.parent.mkdir(parents=True)
    cgroup.write_text("0::/system.slice/tries.service\n", encoding="ascii")

    async def talk() -> None:
        mounted.daemon.hang = hang = asyncio.Event()
        waiting = [asyncio.create_task(write_as(mounted, 1000)) for _ in range(WRITES_OF_ONE)]
        await settle()
        for _ in range(3):
            await refused_as(mounted, 1000)
        assert len(mounted.daemon.calls) == len(mounted.daemon.open) == WRITES_OF_ONE
        said = f"{DEVICE}: {WRITES_OF_ONE} writes of uid 1000 and 0 of other users wait for their devices"
        told = await mounted.cat("last_error")
        assert told.startswith(f"{said}; try again ")
        assert told.endswith("(flavourctl explain too-many-requests)\n")
        # Once, and then how often: however often he tries.
        (record,) = caplog.records
        why = said.removeprefix(f"{DEVICE}: ")
        asks = f"uid 1000 pid {os.getpid()} by file"
        assert record.getMessage() == f"{DEVICE}: refused to let {asks} write: {why}"
        mounted.fs.close()
        assert "write: 2 times more" in caplog.records[1].getMessage()
        fields = vars(record)
        assert (fields["PCI_ADDRESS"], fields["ERROR_CODE"]) == (DEVICE, "too-many-requests")
        assert (fields["REQUESTER_UID"], fields["OBJECT_PID"]) == ("1000", str(os.getpid()))
        assert fields["REQUESTER_UNIT"] == "tries.service"
        waiting.append(asyncio.create_task(write_as(mounted, 1001)))
        await settle()
        hang.set()
        assert await asyncio.gather(*waiting) == [1] * (WRITES_OF_ONE + 1)
        assert await write_as(mounted, 1000) == 1

    run(talk())


def test_root_s_writes_wait_for_one_another_before_he_has_no_place_left_at_the_daemon(
    mounted: Mounted,
) -> None:
    async def talk() -> None:
        mounted.daemon.hang = hang = asyncio.Event()
        waiting = [asyncio.create_task(write_as(mounted, 0)) for _ in range(WAITING_OF_ROOT)]
        await settle()
        assert len(mounted.daemon.calls) == len(mounted.daemon.open) == WRITES_OF_ROOT
        await refused_as(mounted, 0)
        waiting.append(asyncio.create_task(write_as(mounted, 1000)))
        await settle()
        assert len(mounted.daemon.open) == WRITES_OF_ROOT + 1
        mounted.fs._interrupts.end_all()  # also those that wait for others can be given up
        ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert {end.errno for end in ends if isinstance(end, pyfuse3.FUSEError)} == {errno.EINTR}
        assert len(ends) == WAITING_OF_ROOT + 1
        hang.set()
        assert await write_as(mounted, 0) == 1

    run(talk())


def test_what_waits_leaves_places_at_the_daemon_and_at_the_kernel() -> None:
    assert SWITCHING.total > WRITES_OF_ROOT + WRITES_OF_ALL
    assert WAITING_OF_ROOT + WRITES_OF_ALL < MOST_REQUESTS


def test_it_has_no_size_to_those_that_ask(mounted: Mounted) -> None:
    about: Any = run(mounted.fs.statfs(CONTEXT))  # type: ignore[arg-type]
    assert (about.f_blocks, about.f_bfree, about.f_bsize, about.f_namemax) == (0, 0, 4096, 255)


def test_many_users_with_writes_that_wait_leave_root_its_places_and_reads_to_everyone(
    mounted: Mounted,
) -> None:
    async def talk() -> None:
        mounted.daemon.hang = hang = asyncio.Event()
        waiting = [asyncio.create_task(write_as(mounted, 1000 + uid)) for uid in range(WRITES_OF_ALL)]
        await settle()
        await refused_as(mounted, 5000)
        waiting += [asyncio.create_task(write_as(mounted, 0)) for _ in range(WRITES_OF_ALL)]
        await settle()
        assert len(mounted.daemon.calls) == 2 * WRITES_OF_ALL
        mounted.daemon.hang = None
        assert await mounted.cat("use_vfio") == "0\n"
        hang.set()
        await asyncio.gather(*waiting)

    run(talk())


@pytest.mark.parametrize("ends", ["fails", "is interrupted"])
def test_a_write_that_has_ended_counts_no_more_however_it_ended(mounted: Mounted, ends: str) -> None:
    async def talk() -> None:
        for _ in range(2 * WRITES_OF_ALL):
            mounted.daemon.hang = asyncio.Event()
            mounted.daemon.error = FlavourError("no luck", errno=errno.EBUSY)
            writing = asyncio.create_task(write_as(mounted, 1000))
            await settle()
            if ends == "fails":
                mounted.daemon.hang.set()
            else:
                writing.cancel()
            with pytest.raises(pyfuse3.FUSEError) as caught:
                await writing
            assert caught.value.errno in (errno.EBUSY, errno.EINTR)

    run(talk())


async def read_as(mounted: Mounted, uid: int, device: str = DEVICE) -> bytes:
    context = SimpleNamespace(pid=os.getpid(), uid=uid, gid=0, umask=0)
    return await mounted.fs.read(await mounted.open("use_vfio", device, os.O_RDONLY, context), 0, 100)


def test_a_user_with_many_reads_under_way_is_refused_more_and_nobody_else_is(
    mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        mounted.daemon.hang = hang = asyncio.Event()
        reading = [asyncio.create_task(read_as(mounted, 1000)) for _ in range(READS_OF_ONE)]
        await settle()
        for _ in range(3):
            with pytest.raises(pyfuse3.FUSEError) as caught:
                await read_as(mounted, 1000)
            assert caught.value.errno == errno.EAGAIN
        (record,) = caplog.records
        why = f"read: {READS_OF_ONE} reads of uid 1000 are under way"
        assert record.getMessage().endswith(f"refused to let uid 1000 pid {os.getpid()} by file {why}")
        reading += [asyncio.create_task(read_as(mounted, 1001))]
        reading += [asyncio.create_task(read_as(mounted, 0)) for _ in range(2 * READS_OF_ONE)]
        await settle()
        hang.set()
        assert set(await asyncio.gather(*reading)) == {b"0\n"}
        assert await read_as(mounted, 1000) == b"0\n"

    run(talk())


def test_reads_of_one_device_share_a_call_but_none_that_was_sent_before_they_began(mounted: Mounted) -> None:
    async def talk() -> None:
        mounted.daemon.hang = hang = asyncio.Event()
        first = [asyncio.create_task(read_as(mounted, 0)) for _ in range(100)]
        await settle()
        assert len(mounted.daemon.calls) == 1
        mounted.daemon.hang = None
        await mounted.echo(b"vfio")
        assert await mounted.cat("use_vfio") == "1\n"
        assert len(mounted.daemon.calls) == 4  # one read more, which sees its end
        hang.set()
        await asyncio.gather(*first)

    run(talk())


def test_reads_without_end_of_one_device_do_not_hold_up_one_of_another(mounted: Mounted) -> None:
    other = "0000:02:00.0"
    mounted.kernel.add_device(other)

    async def talk() -> None:
        mounted.daemon.hang = hang = asyncio.Event()
        reading = []
        for _ in range(30):
            reading.append(asyncio.create_task(read_as(mounted, 1000)))
            await settle()
        reading.append(asyncio.create_task(read_as(mounted, 0, other)))
        await settle()
        assert len(mounted.daemon.calls) == 8
        hang.set()
        await asyncio.gather(*reading)
        assert len(mounted.daemon.calls) == 10  # what waited shared one

    run(talk())


def test_a_read_that_fails_fails_for_those_who_share_it_and_for_no_later_one(mounted: Mounted) -> None:
    async def talk() -> None:
        mounted.daemon.error = FlavourError("no luck", errno=errno.EIO)
        ends = await asyncio.gather(*(read_as(mounted, 0) for _ in range(3)), return_exceptions=True)
        assert [end.errno for end in ends if isinstance(end, pyfuse3.FUSEError)] == [errno.EIO] * 3
        assert len(mounted.daemon.calls) == 1
        mounted.daemon.error = None
        assert await read_as(mounted, 0) == b"0\n"

    run(talk())


def test_reads_without_end_take_a_few_connections_and_are_all_answered(mounted: Mounted) -> None:
    devices = [f"0000:{bus:02x}:00.0" for bus in range(2, 52)]
    for device in devices:
        mounted.kernel.add_device(device)

    async def talk() -> None:
        mounted.daemon.hang = asyncio.Event()
        reading = [asyncio.create_task(mounted.cat("use_vfio", device)) for device in devices * 10]
        await settle()
        assert 1 < mounted.daemon.connections < 10
        mounted.daemon.hang.set()
        assert set(await asyncio.gather(*reading)) == {"0\n"}
        assert mounted.daemon.connections < 10

    run(talk())


# the tree


def test_a_device_is_a_directory_with_three_files(mounted: Mounted) -> None:
    async def talk() -> None:
        directory = await mounted.look_up(ROOT, DEVICE)
        assert stat.S_ISDIR(directory.st_mode)
        # Devices come and go: what their names lead to is asked each time.
        assert directory.entry_timeout == 0
        assert directory.st_ino == Place(parse_address(DEVICE), Node.DIRECTORY).inode
        for name, mode in (("driver_flavour", 0o664), ("use_vfio", 0o664), ("last_error", 0o444)):
            entry = await mounted.look_up(directory.st_ino, name)
            assert entry.st_mode == stat.S_IFREG | mode
            assert entry.st_uid == 0
            assert find_place(entry.st_ino) == find_place(mounted.place(name))
            # The kernel lets one write into an inode at a time, and no reader's close meanwhile.
            assert entry.st_ino != (await mounted.look_up(directory.st_ino, name)).st_ino

    run(talk())


def test_an_inode_is_found_again_only_when_whoever_found_it_has_closed_it(mounted: Mounted) -> None:
    directory = Place(parse_address(DEVICE), Node.DIRECTORY).inode

    async def find() -> int:
        return int((await mounted.look_up(directory, "driver_flavour")).st_ino)

    async def open_it(inode: int) -> int:
        return int((await mounted.fs.open(inode, os.O_RDWR, CONTEXT)).fh)  # type: ignore[arg-type]

    async def talk() -> None:
        first = await find()
        second = await find()  # the first one may be opened any moment
        assert second != first
        old, files = await open_it(first), [await open_it(second), await open_it(second)]
        third = await find()
        assert third not in (first, second)
        await mounted.fs.release(old)
        fourth = await find()
        assert fourth not in (first, second, third)
        last = await open_it(fourth)
        assert await find() != fourth
        for file in (*files, last):
            await mounted.fs.release(file)

    async def alone() -> None:
        inode = await find()
        for _ in range(3):
            files = [await open_it(inode), await open_it(inode)]
            await mounted.fs.release(files[0])
            assert inode not in (other := await find(), await find())
            await mounted.fs.release(files[1])
            inode = await find()
            assert inode != other

    async def one_after_the_other() -> None:
        inode = await find()
        for _ in range(3):
            await mounted.fs.release(await open_it(inode))
            assert await find() == inode

    for each in (talk, alone, one_after_the_other):
        run(each())


def test_an_inode_that_is_open_for_writing_is_nobody_else_s_however_many_look_ups_there_are(
    mounted: Mounted,
) -> None:
    directory = Place(parse_address(DEVICE), Node.DIRECTORY).inode

    async def find() -> int:
        return int((await mounted.look_up(directory, "driver_flavour")).st_ino)

    async def open_it(inode: int, flags: int) -> int:
        return int((await mounted.fs.open(inode, flags, CONTEXT)).fh)  # type: ignore[arg-type]

    async def talk() -> None:
        writing = await find()
        files = [await open_it(writing, os.O_WRONLY) for _ in range(2)]
        others = [await find() for _ in range(SERIALS)]
        assert writing not in others
        # Who may only read can't use them up.
        readers = [await open_it(inode, os.O_RDONLY) for inode in others]
        assert writing not in [await find() for _ in range(SERIALS)]
        await mounted.fs.release(files[0])
        assert writing not in [await find() for _ in range(SERIALS)]
        await mounted.fs.release(files[1])
        assert writing in [await find() for _ in range(SERIALS)]
        for file in readers:
            await mounted.fs.release(file)
        assert not mounted.fs._written_to
        everything = [await open_it(await find(), os.O_RDWR) for _ in range(SERIALS)]
        assert await find()  # it comes to an end
        for file in everything:
            await mounted.fs.release(file)

    run(talk())


@pytest.mark.parametrize(
    "name",
    ["0000:0f:00.0", "01:00.0", f"{DEVICE}\n", "00000:01:00.0", "..", "../../x", "", "use_vfio", "x" * 255],
)
def test_nothing_else_is_in_the_root(mounted: Mounted, name: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        run(mounted.look_up(ROOT, name))
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("name", ["driver_override", "driver_flavour\n", "", "..", DEVICE])
def test_nothing_else_is_in_a_device(mounted: Mounted, name: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        run(mounted.look_up(Place(parse_address(DEVICE), Node.DIRECTORY).inode, name))
    assert caught.value.errno == errno.ENOENT


def test_a_device_that_went_away_is_gone_with_its_files(mounted: Mounted) -> None:
    async def talk() -> None:
        mounted.kernel.remove_device(mounted.kernel.devices[DEVICE])
        for work in (
            mounted.look_up(ROOT, DEVICE),
            mounted.look_up(Place(parse_address(DEVICE), Node.DIRECTORY).inode, "use_vfio"),
            mounted.fs.getattr(mounted.place("use_vfio"), CONTEXT),  # type: ignore[arg-type]
        ):
            with pytest.raises(pyfuse3.FUSEError) as caught:
                await work
            assert caught.value.errno == errno.ENOENT

    run(talk())


def list_directory(mounted: Mounted, monkeypatch: pytest.MonkeyPatch, inode: int, room: int) -> list[str]:
    """As the kernel reads it: so many names at a time."""
    found: list[tuple[str, int]] = []
    left = 0

    def reply(token: object, name: bytes, attributes: Any, next_id: int) -> bool:
        nonlocal left
        if not left:
            return False
        left -= 1
        found.append((name.decode(), next_id))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)

    async def talk() -> list[str]:
        nonlocal left
        handle = await mounted.fs.opendir(inode, CONTEXT)  # type: ignore[arg-type]
        before = -1
        while len(found) > before:
            before, left = len(found), room
            await mounted.fs.readdir(handle, found[-1][1] if found else 0, None)  # type: ignore[arg-type]
        return [name for name, _ in found]

    names: list[str] = run(talk())
    return names


@pytest.mark.parametrize("room", [1, 2, 100])
def test_a_directory_is_listed_whole_whatever_fits_at_a_time(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    others = ["0000:02:00.0", "0000:a0:00.1", "10000:00:00.0"]
    for address in others:
        mounted.kernel.add_device(address)
    assert sorted(list_directory(mounted, monkeypatch, ROOT, room)) == sorted([DEVICE, *others])
    names = list_directory(mounted, monkeypatch, Place(parse_address(DEVICE), Node.DIRECTORY).inode, room)
    assert sorted(names) == ["driver_flavour", "last_error", "use_vfio"]


def set_attributes(mounted: Mounted, **updates: bool) -> Any:
    fields = dict.fromkeys(("update_mode", "update_uid", "update_gid", "update_size"), False) | updates
    arguments: Any = (mounted.place("driver_flavour"), None, SimpleNamespace(**fields), None, CONTEXT)
    return run(mounted.fs.setattr(*arguments))


def test_a_shell_may_truncate_before_it_writes(mounted: Mounted) -> None:
    entry = set_attributes(mounted, update_size=True)
    assert entry.st_mode == stat.S_IFREG | 0o664
    assert mounted.daemon.calls == []


@pytest.mark.parametrize("field", ["update_mode", "update_uid", "update_gid"])
def test_mode_and_owner_stay_as_they_are(mounted: Mounted, field: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        set_attributes(mounted, **{field: True})
    assert caught.value.errno == errno.EPERM


# interrupts


@pytest.fixture
def start() -> Iterator[Callable[[str], int]]:
    """Start a process that prepares itself, and stop it: what comes for it then stays pending."""
    started: list[subprocess.Popen[bytes]] = []

    def start(prepare: str) -> int:
        program = f"import signal, sys, time\n{prepare}\nprint(flush=True)\ntime.sleep(600)"
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        child.stdout.read(1)
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        return child.pid

    yield start
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGRTMAX])
def test_a_signal_that_is_pending_is_seen(start: Callable[[str], int], number: int) -> None:
    pid = start("")
    assert not has_signal(pid)
    os.kill(pid, number)
    assert has_signal(pid)


def test_a_signal_that_is_blocked_is_none(start: Callable[[str], int]) -> None:
    pid = start("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])")
    os.kill(pid, signal.SIGUSR1)
    assert not has_signal(pid)
    os.kill(pid, signal.SIGUSR2)
    assert has_signal(pid)


def test_a_signal_that_is_ignored_is_none(start: Callable[[str], int]) -> None:
    # A blocked one that is ignored stays pending all the same.
    pid = start(
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)"
    )
    os.kill(pid, signal.SIGUSR1)
    assert not has_signal(pid)


@pytest.mark.parametrize("number", [signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG])
def test_a_signal_that_does_nothing_by_default_is_none(start: Callable[[str], int], number: int) -> None:
    pid = start(f"signal.signal({int(number)}, lambda *_: None)")
    os.kill(pid, number)
    assert not has_signal(pid)


def test_a_process_that_goes_while_it_is_looked_at_has_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "100"])
    with Path(f"/proc/{child.pid}/status").open(encoding="ascii") as opened:
        child.kill()
        child.wait()
        monkeypatch.setattr(Path, "open", lambda *_, **__: opened)
        assert not has_signal(child.pid)


def test_a_process_that_is_gone_has_no_signal() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert not has_signal(child.pid)


def test_a_signal_for_the_writer_ends_its_write_and_no_other(
    mounted: Mounted, start: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted.kernel.add_device("0000:02:00.0")
    interrupted, patient = start(""), start("")

    async def write_as(pid: int, device: str) -> int:
        context: Any = SimpleNamespace(pid=pid, uid=0, gid=0, umask=0)
        info: Any = await mounted.fs.open(mounted.place("driver_flavour", device), os.O_WRONLY, context)
        return await mounted.fs.write(int(info.fh), 0, b"vfio")

    async def talk() -> None:
        mounted.daemon.hang = asyncio.Event()
        tasks = [
            asyncio.create_task(write_as(pid, device))
            for pid, device in ((interrupted, DEVICE), (patient, "0000:02:00.0"))
        ]
        while len(mounted.daemon.calls) < 2:  # noqa: ASYNC110 - the loop itself is waited for
            await asyncio.sleep(0)
        mounted.fs._interrupts.look()
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        os.kill(interrupted, signal.SIGINT)
        mounted.fs._interrupts.look()
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await asyncio.wait_for(tasks[0], 5)
        assert caught.value.errno == errno.EINTR
        assert "interrupted" in await mounted.cat("last_error")
        # Hanging up is how the daemon learns of it.
        assert len(mounted.daemon.open) == 1
        assert not tasks[1].done()
        mounted.daemon.hang.set()
        assert await tasks[1] == 4
        assert await mounted.cat("last_error", "0000:02:00.0") == ""

    run(talk())


def test_the_end_of_the_file_system_interrupts_the_writes_that_wait(mounted: Mounted) -> None:
    async def talk() -> None:
        mounted.daemon.hang = asyncio.Event()
        writing = [asyncio.create_task(mounted.refused(b"vfio")) for _ in range(2)]
        await settle()
        mounted.fs._interrupts.end_all()
        assert await asyncio.wait_for(asyncio.gather(*writing), 5) == [errno.EINTR] * 2
        assert not mounted.daemon.open  # the daemon knows

    run(talk())


class Device:
    """A pipe, in place of the FUSE device; a byte is a message."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import pyfuse3.asyncio

        for name in ("wait_readable", "notify_closing"):
            monkeypatch.setattr(pyfuse3.asyncio, name, None)
        self.interrupts = Interrupts()
        self.interrupts.install()
        self.pyfuse3 = pyfuse3.asyncio
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK)

    def say(self) -> None:
        os.write(self._writing, b"m")

    async def hear(self) -> None:
        await self.pyfuse3.wait_readable(self._reading)
        assert os.read(self._reading, 1)

    @property
    def is_watched(self) -> bool:
        return asyncio.get_running_loop().remove_reader(self._reading)

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device(monkeypatch)
    yield device
    device.close()


def test_every_message_from_the_kernel_has_the_waiting_writers_looked_at(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    async def talk() -> None:
        monkeypatch.setattr(device.interrupts, "look", look)
        device.say()
        await device.hear()
        await asyncio.sleep(0)
        assert looks == 0  # nobody waits
        hang = asyncio.Event()

        async def wait() -> None:
            await hang.wait()

        waiting = asyncio.create_task(device.interrupts.run(os.getpid(), wait()))
        await asyncio.sleep(0)
        device.say()
        await device.hear()
        async with asyncio.timeout(10):
            while looks < 1:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        hang.set()
        await waiting

    run(talk())


async def hear_while_one_waits(device: Device, messages: int) -> None:
    """Task 7 waits meanwhile."""
    hang = asyncio.Event()

    async def wait() -> None:
        await hang.wait()

    waiting = asyncio.create_task(device.interrupts.run(7, wait()))
    await asyncio.sleep(0)
    for _ in range(messages):
        device.say()
        await device.hear()
        await asyncio.sleep(0.001)
    hang.set()
    await waiting


def test_however_many_messages_come_those_who_wait_are_looked_through_now_and_then_only(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hundred who wait each of them costs a file to read."""
    looked: list[int] = []
    monkeypatch.setattr(interrupts, "_PAUSE", 3600.0)
    monkeypatch.setattr(interrupts, "has_signal", looked.append)

    run(hear_while_one_waits(device, messages=20))
    assert looked == [7]


def test_a_look_that_takes_long_leaves_most_of_the_time_to_all_else(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow machine a look at a hundred takes longer than the pause between two."""
    looked: list[int] = []

    def look_slowly(task_id: int) -> bool:
        looked.append(task_id)
        time.sleep(0.1)
        return False

    monkeypatch.setattr(interrupts, "_PAUSE", 0.0)
    monkeypatch.setattr(interrupts, "_SHARE", 36_000)
    monkeypatch.setattr(interrupts, "has_signal", look_slowly)

    run(hear_while_one_waits(device, messages=5))
    assert looked == [7]


def test_messages_that_come_while_all_are_at_work_wait_and_are_heard_later(device: Device) -> None:
    async def talk() -> None:
        for _ in range(3):
            device.say()
        await device.hear()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not device.is_watched, "a loop that nobody waits in would go round and round"
        await device.hear()
        await device.hear()

    run(talk())


def test_a_message_that_another_has_read_is_not_told_of_again(device: Device) -> None:
    async def talk() -> None:
        device.say()
        await device.hear()  # in this turn of the loop the device is known as readable still
        waiting = asyncio.create_task(device.hear())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        device.say()
        await waiting

    run(talk())


def test_who_waits_for_a_message_is_told_of_the_end(device: Device) -> None:
    async def talk() -> None:
        device.pyfuse3.notify_closing(0)  # nobody waits
        waiting = asyncio.create_task(device.hear())
        await asyncio.sleep(0)
        device.pyfuse3.notify_closing(0)
        with pytest.raises(device.pyfuse3.ClosedResourceError):
            await waiting

    run(talk())


def test_its_process_has_neither_trio_nor_tls_in_its_memory() -> None:
    program = (
        "import sys; from vfio_flavourd.doors.fs import main; "
        "print([name for name in sys.modules if name.split('.')[0] in ('outcome', '_ssl') "
        "or name.startswith('trio.')])"
    )
    said = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    assert said.stdout == "[]\n"
