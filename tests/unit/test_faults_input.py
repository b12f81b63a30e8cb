"""What comes in by the doors, from modules, names and the index, at its worst."""

import asyncio
import errno
import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_host import DD, FakeHost
from fake_kernel import (
    GENERIC_ALIAS,
    RELEASE,
    FakeDriver,
    FakeHands,
    FakeKernel,
    make_engine,
    make_host,
)

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.kernel.loading import Asked
from vfio_flavourd.kernel.modules import Modules
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request, parse_flavour
from vfio_flavourd.model.occupancy import Use, User

ADDRESS = parse_address("0000:01:00.0")
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
HOSTILE = "\x1b[31m\r\x07\x9b\u202e"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = FakeKernel(tmp_path)
    kernel.add_native(kernel.add_device())
    return kernel


def switch(kernel: FakeKernel, *drivers: str) -> Outcome:
    async def run() -> Outcome:
        engine = make_engine(kernel)
        try:
            return await engine.set_flavour(Request(ADDRESS, Flavour.VFIO, drivers), lambda _: None)
        finally:
            engine.attempts.log()

    return asyncio.run(run())


# names


@pytest.mark.parametrize(
    "name",
    ["-C/tmp/evil", "-C=x", "../../x", "x/y", "x y", "x\ny", "x\0y", "", "x" * 65, "ü", "x;y", "x.ko"],
)
def test_a_driver_that_no_module_can_be_called_is_refused_before_anything_is_started(
    kernel: FakeKernel, name: str
) -> None:
    with pytest.raises(FlavourError) as caught:
        switch(kernel, name)
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert kernel.writes == []
    assert list((kernel.root / "proc").glob("*")) == []  # no worker, and so no modprobe


@pytest.mark.parametrize("name", ["-r", "--", "--remove", "-"])
def test_a_name_that_looks_like_an_option_never_is_one(kernel: FakeKernel, name: str) -> None:
    started: list[tuple[Asked, str]] = []

    async def modprobe(asked: Asked, name: str) -> tuple[int, str]:
        started.append((asked, name))
        return await FakeHands(kernel).modprobe(asked, name)

    host = make_host(kernel)
    engine = Engine(replace(host, modules=Modules(host.sysfs, modprobe)))
    asyncio.run(engine.set_flavour(Request(ADDRESS, Flavour.VFIO, (name,)), lambda _: None))
    assert started
    for asked, module in started:
        assert asked is Asked.MODULE
        assert not module.startswith("-")


@pytest.mark.parametrize("name", ["-C/tmp/evil", "../../x", "x\ny"])
def test_a_dry_run_refuses_a_name_that_the_switch_would_refuse(kernel: FakeKernel, name: str) -> None:
    engine = make_engine(kernel)
    with pytest.raises(FlavourError) as caught:
        asyncio.run(engine.plan(Request(ADDRESS, Flavour.VFIO, (name,))))
    assert caught.value.errno == errno.EINVAL


def test_a_flavour_of_10_kib_is_refused_in_a_line_that_can_be_read() -> None:
    with pytest.raises(FlavourError) as caught:
        parse_flavour("v" * 10240)
    assert caught.value.errno == errno.EINVAL
    assert len(f"{caught.value} {caught.value.hint}") < 400


# what others say, and is passed on


def test_what_a_module_said_is_told_and_logged_without_its_control_characters(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.add_module(name="bad_vfio", alias=ALIAS, status=1, said=f"modprobe: ERROR: no {HOSTILE} luck")
    with caplog.at_level(logging.INFO):
        outcome = switch(kernel)
    assert outcome.driver == "vfio-pci"
    assert "luck" in outcome.reason
    assert outcome.reason.isprintable()
    assert all(step.error.isprintable() for step in outcome.steps)
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("said", ["", "\x1b[0m", "modprobe: ERROR: "])
def test_a_module_that_says_nothing_that_can_be_read_is_told_by_its_status(
    kernel: FakeKernel, said: str
) -> None:
    kernel.add_module(name="bad_vfio", alias=ALIAS, status=1, said=said)
    outcome = switch(kernel)
    assert outcome.driver == "vfio-pci"
    assert outcome.reason.split("bad_vfio: ")[1].strip()


def test_who_uses_a_device_is_named_without_control_characters_whatever_he_calls_himself(
    tmp_path: Path,
) -> None:
    """Any user may call his processes and mount points as he likes."""
    host = FakeHost(tmp_path)
    host.add_disk("nvme0n1", "259:0")
    host.mount("259:0", f"/mnt/{HOSTILE}x")
    host.add_process(DD, f"d{HOSTILE}d", ["/dev/nvme0n1"])
    users = host.users()
    assert [user.use for user in users] == [Use.MOUNT, Use.OPEN]
    assert all(user.what.isprintable() for user in users)


def test_a_refusal_names_the_user_in_one_line_that_can_be_read(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.users["0000:01:00.0"] = (User(Use.MOUNT, f"/mnt/data on nvme0n1p2 {'x' * 150}"),) * 8
    with pytest.raises(FlavourError) as caught:
        switch(kernel)
    assert "/mnt/data on nvme0n1p2" in str(caught.value)
    assert str(caught.value).isprintable()
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "/mnt/data on nvme0n1p2" in record.getMessage()


# the index


def write_index(kernel: FakeKernel, data: bytes) -> None:
    (kernel.root / f"lib/modules/{RELEASE}/modules.alias").write_bytes(data)


def test_a_million_lines_are_looked_through_in_good_time_and_once(kernel: FakeKernel) -> None:
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))
    line = b"alias pci:v00008086d00001533sv*sd*bc*sc*i* igb\n"
    write_index(kernel, line * 999_998 + f"alias {ALIAS} good_vfio\n{GENERIC_ALIAS}\n".encode())
    started = time.monotonic()
    host = make_host(kernel)
    device = host.read_device(ADDRESS)
    kind = host.policy.policy.flavours["vfio"]
    assert host.resolve(device.modalias, kind).winner == "good_vfio"
    assert time.monotonic() - started < 3
    time.sleep(0.06)  # until a second change can't be within the same tick of the clock
    host.index.table()
    started = time.monotonic()
    for _ in range(100):
        assert host.resolve(device.modalias, kind).winner == "good_vfio"
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    "data",
    [None, b"", b"\0" * 4096, f"alias {ALIAS} goo".encode(), GENERIC_ALIAS.encode() + b"\n"],
    ids=["missing", "empty", "zeros", "cut short", "only the catch-all"],
)
def test_without_a_whole_index_the_generic_driver_still_gets_the_device(
    kernel: FakeKernel, data: bytes | None
) -> None:
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))
    if data is None:
        (kernel.root / f"lib/modules/{RELEASE}/modules.alias").unlink()
    else:
        write_index(kernel, data)
    outcome = switch(kernel)
    assert (outcome.driver, outcome.vfio_device) == ("vfio-pci", "vfio0")
    assert kernel.modules["good_vfio"].loads == 0


def test_of_two_equal_variants_the_same_one_gets_the_device_each_time(kernel: FakeKernel) -> None:
    for name in ("first", "second"):
        kernel.add_module(FakeDriver(name, f"{name}_vfio", vfio=True), alias=ALIAS)
    engine = make_engine(kernel)
    told = engine.device(ADDRESS).resolution
    assert told.winner == "first_vfio"
    assert any("first_vfio and second_vfio match equally narrowly" in each for each in told.warnings)

    async def run() -> None:
        for _ in range(3):
            outcome = await engine.set_flavour(Request(ADDRESS, Flavour.VFIO), lambda _: None)
            assert outcome.driver == "first"
            assert not outcome.fallback
            await engine.set_flavour(Request(ADDRESS, Flavour.NATIVE), lambda _: None)

    asyncio.run(run())
    assert kernel.modules["second_vfio"].loads == 0
