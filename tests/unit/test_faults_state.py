"""State directories that are full, read-only or spoilt: nothing is touched that can't be recorded, nothing
that is on record is done to the wrong device, and the daemon starts."""

import asyncio
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from fake_kernel import Crash, FakeDevice, FakeKernel, PassingLedger, has, make_engine, pending

from vfio_flavourd.config.files import DIRECTORIES
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.policy import PolicyInForce
from vfio_flavourd.engine.whole_file import write_whole_file
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request
from vfio_flavourd.model.policy import Match, Policy, Rule, Settings

ADDRESS, OTHER = parse_address("0000:01:00.0"), parse_address("0000:02:00.0")
NATIVE, VFIO = ("e1000e", None), ("vfio-pci", "vfio-pci")
QUICK = Settings(load_timeout=1.0, bind_timeout=1.0)
TO_VFIO = Policy(
    defaults=QUICK,
    rules=(Rule("a rule", Match(device=(0x10D3,)), "vfio", (), QUICK, None, "50-test.yaml:3"),),
)


@pytest.fixture
def device(kernel: FakeKernel) -> FakeDevice:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_device(str(OTHER), device=0x1533, group=8)
    return device


async def ask(engine: Engine, flavour: Flavour = Flavour.VFIO, **more: Any) -> Outcome:
    return await engine.set_flavour(Request(ADDRESS, flavour, **more), lambda _: None)


async def start(kernel: FakeKernel, policy: Policy | None = None) -> Engine:
    engine = make_engine(kernel, policy)
    engine.recover()
    await engine.reconciler.start()
    while pending(engine):
        for task in await asyncio.wait(pending(engine)):
            for done in task:
                assert done.cancelled() or done.exception() is None
    return engine


@contextmanager
def unwritable(monkeypatch: pytest.MonkeyPatch, directory: Path, code: int) -> Iterator[None]:
    """No file in there can be opened for writing, made, renamed or removed; root is no exception."""
    real_open, real_replace, real_unlink, real_mkdir = os.open, os.replace, os.unlink, os.mkdir

    def check(path: Any) -> None:
        if str(directory) in str(path):
            raise OSError(code, os.strerror(code), str(path))

    def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            check(path)
        return real_open(path, flags, *rest, **named)

    def replaced(source: Any, target: Any, **named: Any) -> None:
        check(target)
        real_replace(source, target, **named)

    def unlinked(path: Any, **named: Any) -> None:
        check(path)
        real_unlink(path, **named)

    def made(path: Any, *rest: Any, **named: Any) -> None:
        if not Path(path).exists():
            check(path)
        real_mkdir(path, *rest, **named)

    real_path_open = Path.open

    def path_open(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            check(self)
        return real_path_open(self, mode, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        patch.setattr(os, "replace", replaced)
        patch.setattr(os, "unlink", unlinked)
        patch.setattr(os, "mkdir", made)
        patch.setattr(Path, "open", path_open)
        yield


# full, read-only


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_where_nothing_can_be_recorded_nothing_is_touched_and_it_is_said_why(
    kernel: FakeKernel, device: FakeDevice, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    engine = make_engine(kernel)
    with unwritable(monkeypatch, kernel.root / "run", code):
        with pytest.raises(FlavourError) as caught:
            asyncio.run(ask(engine))
        assert "can't be recorded" in str(caught.value)
        assert os.strerror(code) in str(caught.value)
        assert caught.value.code == Code.NOT_SAVED
        assert "/run" in caught.value.hint
        assert kernel.writes == []
        assert has(device) == NATIVE
        assert not engine.device(ADDRESS).held
    assert asyncio.run(ask(engine)).driver == "vfio-pci"
    asyncio.run(ask(engine, Flavour.NATIVE))
    assert has(device) == NATIVE


def test_a_record_that_is_written_only_in_part_is_none(
    kernel: FakeKernel, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(kernel)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[: len(data) // 2]))
        with pytest.raises(FlavourError, match="No space left"):
            asyncio.run(ask(engine))
    assert kernel.writes == []
    assert list((kernel.root / "run/devices").glob("*.json")) == []
    asyncio.run(start(kernel))
    assert has(device) == NATIVE


def test_a_directory_that_turns_read_only_leaves_what_is_on_vfio_there_and_can_be_made_native_later(
    kernel: FakeKernel, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(kernel)
    asyncio.run(ask(engine))
    kernel.writes.clear()
    with unwritable(monkeypatch, kernel.root / "run", errno.EROFS):
        with pytest.raises(FlavourError, match="Read-only file system"):
            asyncio.run(ask(engine, Flavour.NATIVE))
        assert kernel.writes == []
        assert has(device) == VFIO
    asyncio.run(ask(engine, Flavour.NATIVE))
    assert has(device) == NATIVE


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_daemon_starts_and_shows_devices_with_its_state_read_only_or_full(
    kernel: FakeKernel, device: FakeDevice, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    asyncio.run(ask(make_engine(kernel)))
    kernel.writes.clear()

    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        assert engine.device(ADDRESS).held
        assert [str(status.flavour) for status in engine.devices()] == ["vfio", "native"]
        engine.reconciler.stop()

    with unwritable(monkeypatch, kernel.root, code):
        asyncio.run(run())
    assert kernel.writes == []
    assert has(device) == VFIO


def test_a_wish_that_lasts_is_not_said_to_be_kept_where_it_is_not(
    kernel: FakeKernel, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(kernel)
    with (
        unwritable(monkeypatch, kernel.root / "var/lib", errno.EROFS),
        pytest.raises(FlavourError, match="for this boot only") as caught,
    ):
        asyncio.run(ask(engine, persist=True))
    assert "it has the flavour" in str(caught.value)
    assert has(device) == VFIO
    assert engine.reconciler.wishes.find_kept() == ()


# spoilt


FIELDS = (
    "address",
    "identity",
    "origin",
    "origin_flavour",
    "origin_module",
    "flavour",
    "before",
    "written",
    "binding",
    "personality",
    "switching",
    "worker",
    "together",
    "asked",
)
SPOILT: tuple[Any, ...] = (
    5,
    "../../x",
    ["../../x"],
    [[]],
    {"driver": 5, "override": None},
    {"driver": None, "override": {}},
    {"driver": "../../x", "override": "../../x"},
    {"pid": "self", "started": "x"},
    {"pid": 10**30, "started": None},
    {"driver": "e1000e", "attribute": "../../x", "on": "1", "off": "0", "ready": ".."},
    {"driver": 5, "attribute": 5, "on": 5, "off": 5, "ready": 5},
)


@pytest.mark.parametrize("field", FIELDS)
def test_a_record_with_any_field_spoilt_keeps_the_daemon_from_nothing_and_leads_to_no_wrong_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    failures = []
    whole: dict[str, Any] = {}
    for number, value in enumerate(SPOILT):
        if whole and is_set_aside(whole | {field: value}):
            continue  # the first of them shows what is done then
        kernel = FakeKernel(tmp_path / str(number))
        kernel.add_native(kernel.add_device())
        kernel.add_device(str(OTHER), device=0x1533, group=8)
        cut_off(kernel)
        path = kernel.root / f"run/devices/{ADDRESS}.json"
        whole = json.loads(path.read_bytes())
        path.write_text(json.dumps(whole | {field: value}), encoding="ascii")
        kernel.writes.clear()
        try:
            asyncio.run(check_start(kernel))
        except (Exception, ExceptionGroup) as error:  # noqa: BLE001 - each is told, not only the first
            failures.append(f"{field}={value!r}: {type(error).__name__}: {str(error).splitlines()[:1]}")
        wrong = [write for write in kernel.writes if ".." in write or "[" in write or "{" in write]
        failures += [f"{field}={value!r}: it wrote {write}" for write in wrong]
    assert failures == []


def is_set_aside(data: dict[str, Any]) -> bool:
    with TemporaryDirectory() as directory:
        (Path(directory) / f"{ADDRESS}.json").write_text(json.dumps(data), encoding="ascii")
        return bool(PassingLedger(Path(directory)).load())


def cut_off(kernel: FakeKernel) -> None:
    """The daemon is killed in the middle of a switch."""
    engine = make_engine(kernel)
    kernel.crash_after = 4
    with pytest.raises(Crash):
        asyncio.run(ask(engine))
    kernel.crash_after = None


async def check_start(kernel: FakeKernel) -> None:
    bugs: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    engine = await start(kernel)
    for address in (ADDRESS, OTHER):
        assert engine.device(address).stuck == ""
    outcome = await engine.set_flavour(Request(OTHER, Flavour.VFIO), lambda _: None)
    assert outcome.driver == "vfio-pci"
    assert bugs == []


@pytest.mark.parametrize("name", ["applied.json", "wishes.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 400,
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"17",
        b'"x"',
        b'{"0000:01:00.0": null}',
        b'{"../../x": []}',
        b'{"01:00.0": {"flavour": "../../x", "drivers": ["-C/tmp/evil"], "ids": [1, 2, 3, 4], "inode": 1}}',
        b'{"0000:01:00.0": [1, "x y z", true, ["\\u001b[31m"]]}',
    ],
    ids=range(11),
)
def test_a_spoilt_file_of_the_state_keeps_the_daemon_from_nothing(
    kernel: FakeKernel, device: FakeDevice, name: str, data: bytes
) -> None:
    for directory in ("run", "var/lib"):
        (kernel.root / directory / name).write_bytes(data)

    async def run() -> None:
        engine = await start(kernel)
        assert (await ask(engine)).driver == "vfio-pci"
        await ask(engine, Flavour.NATIVE)
        engine.reconciler.stop()

    asyncio.run(run())
    assert has(device) == NATIVE


# the policy


def test_policy_files_that_are_gone_at_a_reload_are_no_policy_and_change_no_device(
    kernel: FakeKernel, device: FakeDevice
) -> None:
    async def run() -> None:
        engine = await start(kernel, TO_VFIO)
        assert has(device) == VFIO
        kernel.writes.clear()
        last_good = kernel.root / "var/lib/last-good-policy.yaml"
        last_good.write_text("version: 1\n", encoding="ascii")
        engine._host.policy.read(kernel.root, last_good)
        engine.reconciler.reload()
        await asyncio.sleep(0.2)
        assert engine._host.policy.policy.rules == ()
        assert not last_good.exists()
        assert kernel.writes == []
        assert has(device) == VFIO
        await engine.reset(Request(ADDRESS, Flavour.NATIVE), lambda _: None)
        assert has(device) == NATIVE
        engine.reconciler.stop()

    asyncio.run(run())


@pytest.mark.parametrize("spoilt", [b"rules: [\n", b"\xff", b"version: 1\nrulse: []\n"])
def test_a_policy_that_is_invalid_at_a_reload_leaves_the_last_good_one_in_force_and_says_so(
    tmp_path: Path, spoilt: bytes
) -> None:
    in_force = PolicyInForce(TO_VFIO)
    directory = tmp_path / DIRECTORIES[0]
    directory.mkdir(parents=True)
    (directory / "50-mine.yaml").write_bytes(spoilt)
    last_good = tmp_path / "last-good-policy.yaml"
    with pytest.raises(FlavourError):
        in_force.read(tmp_path, last_good)
    assert in_force.policy is TO_VFIO
    assert in_force.trouble
    assert not last_good.exists()


POLICIES = [
    f"version: 1\nrules:\n  - {{ name: {name}, match: {{ vendor: 8086 }} }}\n" for name in ("old", "new")
]


def install(root: Path, text: str) -> None:
    directory = root / DIRECTORIES[0]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "50-mine.yaml").write_text(text, encoding="ascii")


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_policy_that_can_not_be_kept_leaves_the_one_that_was_kept_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """It may be needed at the next start, and half of one would be none."""
    last_good = tmp_path / "last-good-policy.yaml"
    install(tmp_path, POLICIES[0])
    PolicyInForce().read(tmp_path, last_good)
    install(tmp_path, POLICIES[1])

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "replace":
            patch.setattr(Path, "replace", no_space)
        elif call == "fsync":
            patch.setattr(os, "fsync", no_space)
        else:
            patch.setattr("vfio_flavourd.engine.policy.write_whole_file", no_space)
        in_force = PolicyInForce()
        in_force.read(tmp_path, last_good)
    assert [rule.name for rule in in_force.policy.rules] == ["new"]
    assert "can't be saved" in caplog.text
    in_force.read_last_good(last_good)
    assert [rule.name for rule in in_force.policy.rules] == ["old"]


@pytest.mark.parametrize("kept", [False, True])
def test_without_a_policy_a_daemon_starts_where_what_outlives_the_boot_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, kept: bool
) -> None:
    """The kernel says EROFS of a file that isn't there as well."""
    last_good = tmp_path / "var/lib/last-good-policy.yaml"
    last_good.parent.mkdir(parents=True)
    if kept:
        last_good.write_text(POLICIES[0], encoding="ascii")
    in_force = PolicyInForce(TO_VFIO)
    with unwritable(monkeypatch, tmp_path / "var/lib", errno.EROFS):
        in_force.read(tmp_path, last_good)
    assert in_force.policy.rules == ()
    assert ("can't be forgotten" in caplog.text) == kept


def test_what_is_to_outlive_the_boot_is_synced_before_it_has_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def replace_file(source: Path, target: Path) -> Path:
        seen.append(f"rename {source.name} {target.name}")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace_file)
    (tmp_path / "var").mkdir()
    write_whole_file(tmp_path / "var/wishes.json", "{}")
    assert seen == ["sync wishes.new", "rename wishes.new wishes.json", "sync var"]
