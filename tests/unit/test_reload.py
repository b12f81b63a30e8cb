"""A reload, as the daemon does it, on a host of its own: what it says is what has come of it."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from test_early_rules import RELEASE, FakeHost, unused, write_policy

from vfio_flavourd import daemon, journal
from vfio_flavourd.config import load
from vfio_flavourd.kernel.early_rules import RULES
from vfio_flavourd.kernel.index import ModuleIndex
from vfio_flavourd.kernel.sysfs import Sysfs
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError


class FakeHands:
    """Nothing is started."""

    async def carry_out(self, steps: list[Any], *, timeout: float) -> list[Any]:
        return []


class FakeLooker:
    """Nobody uses a device."""

    find_users = staticmethod(unused)


class FakeUevents:
    """There are none."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The daemon's own, with a policy."""
    host = FakeHost(tmp_path / "host")
    state, lasting = tmp_path / "run", tmp_path / "var"
    lasting.mkdir()
    load_policy = load.load_policy
    monkeypatch.setattr(load, "load_policy", lambda root: load_policy(root, owner=os.getuid()))
    monkeypatch.setattr(journal, "notify", lambda state: None)
    monkeypatch.setattr(daemon, "_ROOT", host.root)
    monkeypatch.setattr(daemon, "_LAST_GOOD", lasting / "last-good-policy.yaml")
    monkeypatch.setattr(daemon, "STATE", state)
    monkeypatch.setattr(daemon, "LASTING_STATE", lasting)
    monkeypatch.setattr(daemon, "Sysfs", lambda: Sysfs(str(host.root)))
    monkeypatch.setattr(daemon, "ModuleIndex", lambda: ModuleIndex(host.root, RELEASE))
    monkeypatch.setattr(daemon, "Hands", FakeHands)
    monkeypatch.setattr(daemon, "Looker", FakeLooker)
    monkeypatch.setattr(daemon, "Uevents", FakeUevents)
    write_policy(host)
    return host


def test_a_reload_is_over_when_the_rules_for_early_boot_are_written(host: FakeHost) -> None:
    async def run() -> None:
        await daemon.Daemon()._reload()

    asyncio.run(run())
    assert host.override() == "vfio-pci"


def test_a_reload_whose_rules_for_early_boot_can_not_be_written_says_so_and_what_is_in_force(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.write(host.rules.parent, "not a directory\n")

    async def run() -> None:
        service = daemon.Daemon()
        with pytest.raises(FlavourError) as caught:
            await service._reload()
        assert caught.value.code == Code.NOT_SAVED
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(
            "the policy is in force, but the rules for early boot stay as they are: "
        )
        assert f"{str(host.root / RULES)!r} failed: Not a directory" in str(caught.value)
        assert "at boot" in caught.value.hint
        assert [rule.name for rule in service._host.policy.policy.rules] == ["NICs"]

    asyncio.run(run())
    assert [record.levelname for record in caplog.records if "stay as they are" in record.getMessage()] == [
        "ERROR"
    ]


def test_a_reload_that_nobody_waits_for_fails_in_the_log_alone(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.write(host.rules.parent, "not a directory\n")

    async def run() -> None:
        await daemon.Daemon()._reload_unheard()

    asyncio.run(run())
    assert "the rules for early boot stay as they are" in caplog.text


def test_rules_that_can_not_be_written_unasked_fail_in_the_log_alone(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.write(host.rules.parent, "not a directory\n")

    async def run() -> None:
        service = daemon.Daemon()
        service._read_policy_at_start()
        await service._compile_wishes()

    asyncio.run(run())
    assert "the rules for early boot stay as they are" in caplog.text
