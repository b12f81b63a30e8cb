"""Who may do what, and that it is on record who tried."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asyncvarlink import LastResult
from fake_kernel import FakeKernel, make_engine, no_reload
from virtual_time import run_at_once

from vfio_flavourd.doors.access import Access
from vfio_flavourd.doors.interface import Failed
from vfio_flavourd.doors.peer import Peer, current_peer, find_peer, wants_steps
from vfio_flavourd.doors.refusals import Refusals
from vfio_flavourd.doors.varlink import ManagerService
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.message_ids import MessageId
from vfio_flavourd.model.requester import Requester, find_requester, name_requester, parse_unit

ROOT, MEMBER, LOOKING = Peer(1, 0, True), Peer(7, 1000, True), Peer(8, 1001, False)
SERVICE = Peer(9, 110, True)  # a user of the system's, as most services run as
DEVICE = "0000:01:00.0"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_who_is_on_the_other_side_is_told_by_the_user_and_not_by_the_group(tmp_path: Path) -> None:
    """Root's group is no root."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(30)
        listening.bind(f"\0{tmp_path}")  # a name that no directory keeps anybody from
        listening.listen()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setresgid(0, 0, 0)
                os.setresuid(4321, 4321, 4321)
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(f"\0{tmp_path}")
                sock.recv(1)
            finally:
                os._exit(0)
        try:
            with listening.accept()[0] as sock:
                assert find_peer(sock, writes=True) == Peer(child, 4321, True)
        finally:
            listening.close()  # without it one that was never let in waits for ever
            os.waitpid(child, 0)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    kernel = FakeKernel(tmp_path)
    for pid in (1, 7, 8, 9, 77):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/cgroup").write_text(
            f"0::/system.slice/asks-{pid}.service\n", encoding="ascii"
        )
    kernel.add_native(kernel.add_device())
    return make_engine(kernel)


async def call(engine: Engine, peer: Peer, method: str, **parameters: Any) -> Any:
    """The last reply. Raises the error of the interface."""
    current_peer.set(peer)
    wants_steps.set(False)
    service = ManagerService(engine, lambda device: "", no_reload)
    found = getattr(service, method)(**parameters)
    if not isinstance(found, AsyncIterator):
        return await found
    try:
        async for _ in found:
            pass
    except LastResult as last:
        return last.value
    return None


def refused(engine: Engine, peer: Peer, method: str, **parameters: Any) -> str:
    with pytest.raises(Exception, match=r".*") as caught:
        asyncio.run(call(engine, peer, method, **parameters))
    error: Any = caught.value
    assert type(error).__name__ == "NotPermitted", error
    return str(error.parameters["message"])


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("SetFlavour", {"device": DEVICE, "flavour": "vfio", "force": True}),
        ("SetFlavour", {"device": DEVICE, "flavour": "vfio", "persist": True}),
        ("SetFlavour", {"device": DEVICE, "flavour": "vfio", "uid": 0, "pid": 1}),
        ("Reset", {"device": DEVICE, "force": True}),
        ("Reload", {}),
    ],
)
@pytest.mark.parametrize("peer", [MEMBER, SERVICE], ids=["a member", "a user of the system's"])
def test_what_is_root_s_is_refused_to_the_group_and_nothing_is_touched(
    engine: Engine, peer: Peer, method: str, parameters: dict[str, Any]
) -> None:
    assert refused(engine, peer, method, **parameters).startswith("only root may ")
    assert len(engine.attempts.history) == 0


def test_a_refusal_is_on_record_with_the_unit_of_who_asked(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    refused(engine, MEMBER, "SetFlavour", device=DEVICE, flavour="vfio", force=True)
    (record,) = caplog.records
    assert vars(record)["REQUESTER_UNIT"] == "asks-7.service"


@pytest.mark.parametrize("method", ["SetFlavour", "Reset"])
def test_who_may_look_may_not_switch(engine: Engine, method: str) -> None:
    more = {"flavour": "vfio"} if method == "SetFlavour" else {}
    assert "read-only" in refused(engine, LOOKING, method, device=DEVICE, **more)


def test_the_group_may_switch_and_undo_that(engine: Engine) -> None:
    async def run() -> None:
        await call(engine, MEMBER, "SetFlavour", device=DEVICE, flavour="vfio")
        await call(engine, MEMBER, "Reset", device=DEVICE)

    asyncio.run(run())
    assert [attempt.requester for attempt in engine.attempts.history] == ["uid 1000 pid 7"] * 2


@pytest.mark.parametrize("group", [None, "ignore"])
def test_what_root_made_to_last_only_root_undoes(engine: Engine, group: str | None) -> None:
    asyncio.run(call(engine, ROOT, "SetFlavour", device=DEVICE, flavour="vfio", persist=True))
    assert "undo what was asked for to last" in refused(engine, MEMBER, "Reset", device=DEVICE, group=group)
    asyncio.run(call(engine, ROOT, "Reset", device=DEVICE, group=group))
    asyncio.run(call(engine, MEMBER, "Reset", device=DEVICE))


def test_nor_does_a_member_undo_it_by_way_of_another_device_of_the_group(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    for address in (DEVICE, "0000:01:00.1"):
        kernel.add_native(kernel.add_device(address))
    engine = make_engine(kernel)
    asyncio.run(call(engine, ROOT, "SetFlavour", device=DEVICE, flavour="vfio", persist=True, group="ignore"))
    other = {"device": "0000:01:00.1"}
    assert "only root may undo" in refused(engine, MEMBER, "Reset", group="together", **other)
    asyncio.run(call(engine, MEMBER, "Reset", group="ignore", **other))


def test_the_file_system_says_whom_it_asks_for(engine: Engine) -> None:
    asyncio.run(call(engine, ROOT, "SetFlavour", device=DEVICE, flavour="vfio", uid=1000, pid=77))
    assert [attempt.requester for attempt in engine.attempts.history] == ["uid 1000 pid 77 by file"]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.endswith(".refusals")]


def test_refusals_are_logged_by_user_but_nobody_can_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    access = Access(Refusals(lambda requester: ""))

    async def run() -> None:
        for _ in range(2):
            for _ in range(100):
                for peer in (MEMBER, LOOKING):
                    current_peer.set(peer)
                    with pytest.raises(FlavourError):
                        access.as_root("reload the policy")
            await asyncio.sleep(60)

    run_at_once(run())
    switch, often = (
        "switch a device by the read-only socket",
        "99 times more within 10 s, not logged one by one",
    )
    first = [
        "refused to let uid 1000 pid 7 reload the policy",
        f"refused to let uid 1001 pid 8 {switch}",
        f"refused to let uid 1000 reload the policy: {often}",
        f"refused to let uid 1001 {switch}: {often}",
    ]
    assert told(caplog) == first * 2
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert [vars(record)["REQUESTER_UID"] for record in caplog.records[:4]] == ["1000", "1001"] * 2
    assert vars(caplog.records[0])["OBJECT_PID"] == "7"


def test_one_refusal_hides_no_other_of_the_same_user(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    switch: dict[str, Any] = {"device": DEVICE, "flavour": "vfio"}

    async def run() -> None:
        current_peer.set(MEMBER)
        service = ManagerService(engine, lambda device: "", no_reload)
        for more in ({"device": "x"}, {"flavour": "viof"}, {"force": True}, {"persist": True}):
            with pytest.raises(Exception, match=r".*"):
                await anext(aiter(service.SetFlavour(**(switch | more))))
        with pytest.raises(Exception, match=r".*"):
            await service.Reload()

    run_at_once(run())
    assert told(caplog) == [
        "refused to let uid 1000 pid 7 call SetFlavour: 'x' is not a PCI address",
        "refused to let uid 1000 pid 7 call SetFlavour: no flavour is called 'viof'",
        f"{DEVICE}: refused to let uid 1000 pid 7 take a device by force",
        f"{DEVICE}: refused to let uid 1000 pid 7 make a wish last beyond this boot",
        "refused to let uid 1000 pid 7 reload the policy",
    ]


def test_a_refusal_for_another_device_is_another_and_what_is_left_out_is_told_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals = Refusals(lambda requester: "")
    first, second = parse_address(DEVICE), parse_address("0000:02:00.0")

    async def run() -> None:
        for pid, address in ((7, first), (8, second), (9, second)):
            current_peer.set(Peer(pid, 1000, True))
            with pytest.raises(FlavourError):
                Access(refusals).as_root("take a device by force", address)
        refusals.close()

    asyncio.run(run())
    what = "take a device by force"
    assert told(caplog) == [
        f"{first}: refused to let uid 1000 pid 7 {what}",
        f"{second}: refused to let uid 1000 pid 8 {what}",
        f"{second}: refused to let uid 1000 {what}: once more within 10 s, not logged one by one",
    ]
    last = vars(caplog.records[-1])
    assert (last["PCI_ADDRESS"], last["OBJECT_PID"]) == (str(second), "9")
    assert last["ERROR_CODE"] == "not-permitted"


def test_many_users_can_not_fill_the_log_either(caplog: pytest.LogCaptureFixture) -> None:
    access = Access(Refusals(lambda requester: ""))

    async def run() -> None:
        for uid in range(3000):
            current_peer.set(Peer(7, uid, False))
            with pytest.raises(FlavourError):
                access.switch()
        assert len(caplog.records) == 1001
        await asyncio.sleep(60)

    run_at_once(run())
    assert told(caplog)[1001:] == [
        "refused to let other users do such things: 1999 times more within 10 s, not logged one by one"
    ]


def test_whatever_one_user_is_refused_others_are_told_of_by_name(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(service: ManagerService, peer: Peer, **parameters: Any) -> None:
        current_peer.set(peer)
        wants_steps.set(False)
        with pytest.raises(Exception, match=r".*"):
            await anext(aiter(service.SetFlavour(**{"device": DEVICE, "flavour": "vfio"} | parameters)))

    async def run() -> None:
        service = ManagerService(engine, lambda device: "", no_reload)
        for number in range(2000):
            await ask(service, LOOKING, device=f"{number:04x}:00:00.0")
            await ask(service, MEMBER, device=f"{number:04x}:00:00.0", force=True)
        caplog.clear()
        await ask(service, Peer(77, 1002, True), force=True)
        await ask(service, Peer(77, 1002, True), persist=True)
        assert told(caplog) == [
            f"{DEVICE}: refused to let uid 1002 pid 77 take a device by force",
            f"{DEVICE}: refused to let uid 1002 pid 77 make a wish last beyond this boot",
        ]
        caplog.clear()
        service.refusals.close()

    asyncio.run(run())
    more = "times more within 10 s, not logged one by one"
    assert told(caplog) == [
        f"refused to let uid 1001 switch a device by the read-only socket: 1999 {more}",
        f"refused to let uid 1000 do such things: 1979 {more}",
    ]
    for record, unit in zip(caplog.records, ("asks-8.service", "asks-7.service"), strict=True):
        assert vars(record)["REQUESTER_UNIT"] == unit


def test_many_users_with_many_things_each_fill_no_log_and_each_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals = Refusals(lambda requester: "")

    async def run() -> None:
        for uid in range(1000):
            for number in range(30):
                refusals.tell(Requester(uid, 7), f"do {number}", MessageId.NOT_PERMITTED, Code.NOT_PERMITTED)
        refusals.close()

    asyncio.run(run())
    assert len(told(caplog)) < 4000
    users = {vars(record)["REQUESTER_UID"] for record in caplog.records}
    assert users == {str(uid) for uid in range(1000)}


def test_how_often_one_was_refused_is_told_with_his_unit_also_when_he_is_gone_and_read_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[str] = []
    there = {"uid 1000 pid 7": "first.service", "uid 1000 pid 8": "last.service"}

    def find_unit(requester: str) -> str:
        asked.append(requester)
        return there.get(requester, "")

    async def run(*gone: str) -> str:
        caplog.clear()
        asked.clear()
        refusals = Refusals(find_unit)
        for pid in (7, *range(100, 200), 8):
            refusals.tell(Requester(1000, pid), "x", MessageId.NOT_PERMITTED, Code.NOT_PERMITTED)
        for each in gone:
            there.pop(each)
        refusals.close()
        assert len(asked) == 2
        return str(vars(caplog.records[-1])["REQUESTER_UNIT"])

    assert asyncio.run(run()) == "last.service"
    assert asyncio.run(run("uid 1000 pid 8")) == "first.service"


@pytest.mark.parametrize(
    ("method", "parameters", "code", "says"),
    [
        ("SetFlavour", {"device": "x\n", "flavour": "vfio"}, "not-an-address", r"'x\n' is not a PCI address"),
        ("SetFlavour", {"device": DEVICE, "flavour": "viof"}, "no-such-flavour", "'viof'"),
        ("SetFlavour", {"device": DEVICE, "flavour": "vfio", "group": "all"}, "invalid-argument", "'all'"),
        (
            "SetFlavour",
            {"device": DEVICE, "flavour": "native", "drivers": ["vfio_pci"]},
            "invalid-argument",
            "no driver can be named for native",
        ),
        (
            "SetFlavour",
            {"device": DEVICE, "flavour": "vfio", "drivers": ["auto", "vfio_pci"]},
            "invalid-argument",
            "beside other drivers",
        ),
        ("Reset", {"device": "x" * 5000}, "not-an-address", "is not a PCI address"),
        ("Reset", {"device": DEVICE, "group": "\x1b[31m"}, "invalid-argument", r"'\x1b[31m'"),
    ],
)
def test_who_asks_for_what_there_is_not_is_on_record(
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
    method: str,
    parameters: dict[str, Any],
    code: str,
    says: str,
) -> None:
    with pytest.raises(Exception, match=r".*"):
        asyncio.run(call(engine, MEMBER, method, **parameters))
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"refused to let uid 1000 pid 7 call {method}: ")
    assert says in said
    assert said.isprintable()
    assert len(said) < 200
    assert (vars(record)["ERROR_CODE"], vars(record)["OBJECT_PID"]) == (code, "7")
    assert vars(record)["REQUESTER_UNIT"] == "asks-7.service"


@pytest.mark.parametrize(
    ("peer", "asks"),
    [(ROOT, "uid 1002 pid 77 by file"), (MEMBER, "uid 1000 pid 7"), (LOOKING, "uid 1001 pid 8")],
)
def test_a_bad_word_in_a_file_is_its_writer_s_and_nobody_else_can_say_whose_it_is(
    engine: Engine, caplog: pytest.LogCaptureFixture, peer: Peer, asks: str
) -> None:
    with pytest.raises(Exception, match=r".*"):
        asyncio.run(call(engine, peer, "SetFlavour", device="x", flavour="vfio", uid=1002, pid=77))
    (record,) = caplog.records
    assert vars(record)["REQUESTER"] == asks


def test_who_asked_for_a_reload_is_on_record(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asyncio.run(call(engine, ROOT, "Reload"))
    (record,) = caplog.records
    assert record.getMessage() == "uid 0 pid 1 asks for the policy to be read again"
    assert (vars(record)["REQUESTER_UID"], vars(record)["OBJECT_PID"]) == ("0", "1")
    assert vars(record)["REQUESTER_UNIT"] == "asks-1.service"


def test_a_reload_that_puts_nothing_in_force_says_so(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    engine = make_engine(kernel)
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc/cmdline").write_text("ro vfio_flavourd.policy=0\n", encoding="ascii")

    async def reload() -> None:
        engine._host.policy.read(tmp_path, tmp_path / "last-good")

    async def ask() -> None:
        current_peer.set(ROOT)
        await ManagerService(engine, lambda device: "", reload).Reload()

    with pytest.raises(Failed) as caught:
        asyncio.run(ask())
    told = caught.value.parameters
    why = "vfio_flavourd.policy=0 on the kernel command line switches it off"
    assert told["message"] == f"the policy on disk is not in force: {why}"
    assert (told["code"], told["errno"]) == ("failed", errno.EIO)
    assert told["hint"] == "flavourctl doctor says what to do"


@pytest.mark.parametrize("requester", [Requester(0, 4711), Requester(1000, 5, by_file=True)])
def test_who_asked_can_be_read_back_from_what_is_written(requester: Requester) -> None:
    assert find_requester(str(requester)) == requester


@pytest.mark.parametrize("text", ["policy", "uevent 12", "", "uid x pid 1", "uid 1 pid 2 by hand"])
def test_who_is_no_process_has_no_number(text: str) -> None:
    assert name_requester(text) == {"REQUESTER": text, "REQUESTER_UID": ""}


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/libvirtd.service\n", "libvirtd.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/mine.service\n", "user@1000.service"),
        ("0::/machine.slice/machine-qemu\\x2d1.scope/libvirt/emulator\n", "machine-qemu\\x2d1.scope"),
        ("0::/system.slice/gone.service (deleted)\n", "gone.service"),
        ("12:pids:/x.service\n1:name=systemd:/x.service\n0::/init.scope\n", "init.scope"),
        ("0::/\n", ""),
        ("0::/docker/0123abcd\n", ""),
        ("0::/docker/x.service\n", ""),
        ("0::/system.slice/a\x1b[31m.service\n", ""),
        ("0::/system.slice/a b.service\n", ""),
        ("", ""),
    ],
)
def test_a_process_s_unit_is_the_one_that_systemd_named(cgroup: str, unit: str) -> None:
    assert parse_unit(cgroup) == unit
