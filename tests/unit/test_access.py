"""Who may do what, and that it is on record who tried."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from asyncvarlink import LastResult
from fake_kernel import FakeKernel, make_engine, no_reload

from vfio_flavourd.doors.access import Access
from vfio_flavourd.doors.connections import Peer, current_peer, wants_steps
from vfio_flavourd.doors.varlink import ManagerService
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.requester import Requester, find_requester, name_requester

ROOT, MEMBER, LOOKING = Peer(1, 0, True), Peer(7, 1000, True), Peer(8, 1001, False)
DEVICE = "0000:01:00.0"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    kernel = FakeKernel(tmp_path)
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
def test_what_is_root_s_is_refused_to_the_group_and_nothing_is_touched(
    engine: Engine, method: str, parameters: dict[str, Any]
) -> None:
    assert refused(engine, MEMBER, method, **parameters).startswith("only root may ")
    assert len(engine.attempts.history) == 0


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


def test_refusals_are_logged_by_user_but_nobody_can_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    access = Access()
    for _ in range(100):
        for peer in (MEMBER, LOOKING):
            current_peer.set(peer)
            with pytest.raises(FlavourError):
                access.as_root("reload the policy")
    assert [(record.levelno, vars(record)["REQUESTER_UID"]) for record in caplog.records] == [
        (logging.WARNING, "1000"),
        (logging.WARNING, "1001"),
    ]
    assert vars(caplog.records[0])["OBJECT_PID"] == "7"
    assert caplog.records[0].getMessage() == "refused to let uid 1000 pid 7 reload the policy"


@pytest.mark.parametrize("requester", [Requester(0, 4711), Requester(1000, 5, by_file=True)])
def test_who_asked_can_be_read_back_from_what_is_written(requester: Requester) -> None:
    assert find_requester(str(requester)) == requester


@pytest.mark.parametrize("text", ["policy", "uevent 12", "", "uid x pid 1", "uid 1 pid 2 by hand"])
def test_who_is_no_process_has_no_number(text: str) -> None:
    assert name_requester(text) == {"REQUESTER": text, "REQUESTER_UID": ""}
