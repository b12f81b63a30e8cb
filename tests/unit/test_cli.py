"""flavourctl, in this process, against a served daemon on a fake kernel."""

import asyncio
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import RELEASE, FakeDriver, FakeKernel, make_engine, pending
from served import Said, serve

from vfio_flavourd.cli import resolve
from vfio_flavourd.cli.main import main
from vfio_flavourd.doors import blocking_client, connections
from vfio_flavourd.doors.connection_places import Limits
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.kernel.index import ModuleIndex
from vfio_flavourd.kernel.sysfs import Sysfs
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.printable import printable

ROOT = Path(__file__).parents[2]
DEVICE = "0000:01:00.0"
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
MODALIAS = "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00"


class Host:
    """A daemon, a device with a native driver, and somebody at a terminal."""

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.kernel = FakeKernel(root)
        self.device = self.kernel.add_device(DEVICE)
        self.kernel.add_native(self.device)
        self.name = "Intel Corporation 82574L"
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.timeouts: dict[str, Any] = {"load": 2.0}
        self.before: Callable[[Engine], Any] = lambda engine: None
        self.after: Callable[[Engine], Any] = lambda engine: None

    @property
    def driver(self) -> str | None:
        return self.device.driver.name if self.device.driver else None

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Engine]:
        engine = make_engine(self.kernel, **self.timeouts)
        async with serve(engine, self.kernel.root, lambda device: self.name):
            yield engine

    def offline(self) -> None:
        for attribute in ("CONTROL_SOCKET", "READ_ONLY_SOCKET"):
            self.monkeypatch.setattr(blocking_client, attribute, str(self.kernel.root / "nobody"))

    def say(self, *argv: str) -> Said:
        """Run it against the daemon."""

        async def run() -> int:
            async with self.served() as engine:
                self.before(engine)
                status = await asyncio.to_thread(call, argv)
                self.after(engine)
                await asyncio.sleep(0.02)
                await engine.settle(5)  # what nobody waits for
                return status

        return self._caught(asyncio.run(run()))

    def say_alone(self, *argv: str) -> Said:
        """Run it with no daemon there."""
        self.offline()
        return self._caught(call(argv))

    def _caught(self, status: int) -> Said:
        caught = self.capsys.readouterr()
        return Said(status, caught.out, caught.err)


def call(argv: Sequence[str]) -> int:
    try:
        return main(argv)
    except SystemExit as usage:  # argparse's way
        return int(usage.code or 0)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Host:
    monkeypatch.setattr(blocking_client, "CONTROL_SOCKET", str(tmp_path / "control"))
    monkeypatch.setattr(blocking_client, "READ_ONLY_SOCKET", str(tmp_path / "readonly"))
    monkeypatch.setattr(resolve, "Sysfs", lambda: Sysfs(str(tmp_path)))
    monkeypatch.setattr(resolve, "ModuleIndex", partial(ModuleIndex, tmp_path, RELEASE))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Host(tmp_path, monkeypatch, capsys)


def check_error(said: Said, status: int, start: str) -> None:
    """One line that says what it was about, at most one more with what to do, nothing on stdout."""
    assert said.status == status
    lines = said.err.splitlines()
    assert lines[0].startswith(f"flavourctl: {start}")
    assert len(lines) <= 2
    assert all(line.startswith("  ") for line in lines[1:])
    assert all(line.isprintable() for line in lines)
    assert said.out == ""


# looking


@pytest.mark.parametrize("argv", [[], ["list"]])
def test_list_is_the_default_and_has_a_line_for_each_device(host: Host, argv: list[str]) -> None:
    host.kernel.add_device("0000:02:00.0", group=None)
    said = host.say(*argv)
    assert (said.status, said.err) == (0, "")
    header, first, second = said.out.splitlines()
    assert header.split() == ["DEVICE", "FLAVOUR", "DRIVER", "CANDIDATE", "GROUP", "RULE", "NAME"]
    assert first.split() == [DEVICE, "native", "e1000e", "vfio_pci", "7", "-", *host.name.split()]
    assert second.split()[:5] == ["0000:02:00.0", "native", "-", "vfio_pci", "-"]
    assert host.kernel.writes == []


def test_list_as_json_is_one_object_with_all_devices(host: Host) -> None:
    (device,) = host.say("list", "--json").data["devices"]
    assert device["device"] == DEVICE
    assert (device["name"], device["flavour"], device["driver"]) == (host.name, "native", "e1000e")
    assert device["iommu_group"] == 7
    assert device["resolution"]["winner"] == "vfio_pci"


@pytest.mark.parametrize(
    "argv", [["--json", "list"], ["list", "--json"], ["--json"], ["--json", "list", "--json"]]
)
def test_json_may_stand_before_the_verb_or_after_it(host: Host, argv: list[str]) -> None:
    assert len(host.say(*argv).data["devices"]) == 1


@pytest.mark.parametrize("name", [DEVICE, "01:00.0", DEVICE.upper()])
def test_show_tells_all_about_one_device(host: Host, name: str) -> None:
    said = host.say("show", name)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith(f"○ {DEVICE} {host.name} [8086:10d3]\n")
    for line in ("native, driver e1000e", "vfio_pci: the generic fallback", "group:"):
        assert line in said.out
    assert "last:" not in said.out


def test_show_tells_of_the_last_attempt_with_its_steps_and_what_was_before(host: Host) -> None:
    assert host.say("set", DEVICE, "vfio").status == 0

    async def run() -> tuple[int, int]:
        async with host.served():
            first = await asyncio.to_thread(call, ["set", DEVICE, "vfio", "--driver", "vfio-pci"])
            return first, await asyncio.to_thread(call, ["show", DEVICE])

    assert asyncio.run(run()) == (0, 0)
    out = host.capsys.readouterr().out
    assert re.search(r"before: +e1000e", out)
    assert re.search(r"node: +/dev/vfio/7 \(vfio0\)", out)
    assert "last: to vfio at " in out
    assert f"by uid {os.getuid()} pid {os.getpid()}\n" in out
    assert "came of it: unchanged: vfio-pci has the device already\n" in out


def test_show_tells_why_the_last_attempt_failed(host: Host) -> None:
    host.kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EBUSY

    async def run() -> tuple[int, int]:
        async with host.served():
            first = await asyncio.to_thread(call, ["set", DEVICE, "vfio"])
            return first, await asyncio.to_thread(call, ["show", DEVICE])

    assert asyncio.run(run()) == (75, 0)
    out = host.capsys.readouterr().out
    assert "failed: " in out
    assert "vfio_pci refused: Device or resource busy (EBUSY)" in out
    assert "bind to vfio-pci" in out


def test_show_as_json_has_the_device_and_its_candidates(host: Host) -> None:
    device = host.say("show", DEVICE, "--json").data["device"]
    assert device["device"] == DEVICE
    assert device["resolution"]["candidates"][0]["module"] == "vfio_pci"
    assert device["recorded"] is False
    assert device["stuck"] == ""


def test_show_of_a_stuck_device_says_so_and_by_whom(host: Host) -> None:
    host.timeouts["bind"] = 0.05
    native = host.kernel.drivers["e1000e"]

    async def run() -> list[int]:
        native.remove_blocks = asyncio.Event()
        async with host.served() as engine:
            statuses = [
                await asyncio.to_thread(call, argv)
                for argv in (["set", DEVICE, "vfio"], ["list"], ["show", DEVICE], ["set", DEVICE, "native"])
            ]
            native.remove_blocks.set()
            await asyncio.gather(*pending(engine))
            return statuses

    assert asyncio.run(run()) == [75, 0, 0, 75]
    said = host.capsys.readouterr()
    assert "native (stuck)" in said.out
    assert re.search(r"stuck: 'unbind from e1000e' has not returned for 0.05 s \(process \d+\)", said.out)


# resolving


def test_resolve_needs_no_daemon_for_a_device(host: Host) -> None:
    host.kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)
    said = host.say_alone("resolve", "01:00.0")
    assert (said.status, said.err) == (0, "")
    first, second, third = said.out.splitlines()
    assert first == f"vfio_{MODALIAS}"
    assert second.startswith("  -> 1. good_vfio: matches vendor, device")
    assert third.startswith("     2. vfio_pci: the generic fallback")


@pytest.mark.parametrize("modalias", [MODALIAS, f"vfio_{MODALIAS}"])
def test_resolve_as_json_has_the_keys_that_were_promised(host: Host, modalias: str) -> None:
    host.kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)
    data = host.say_alone("resolve", modalias, "--json").data
    assert data["modalias"] == f"vfio_{MODALIAS}"
    assert data["winner"] == "good_vfio"
    assert [candidate["module"] for candidate in data["candidates"]] == ["good_vfio", "vfio_pci"]
    for candidate in data["candidates"]:
        assert {"module", "pattern", "source", "accepted", "reason"} <= set(candidate)
    assert data["candidates"][0]["pattern"] == ALIAS
    assert data["candidates"][0]["source"] == "modules.alias"
    assert data["candidates"][0]["accepted"] is True


def test_resolve_reads_the_directories_it_is_given_and_no_others(host: Host, tmp_path: Path) -> None:
    modules, first, second = (tmp_path / name for name in ("modules", "first.d", "second.d"))
    for directory in (modules, first, second):
        directory.mkdir()
    (modules / "modules.alias").write_text(f"alias {ALIAS} other_vfio\n", encoding="ascii")
    (first / "a.conf").write_text("blacklist other_vfio\n", encoding="ascii")
    (second / "b.conf").write_text("blacklist vfio_pci\n", encoding="ascii")
    argv = ["resolve", MODALIAS, "--modules-dir", str(modules), "--modprobe-d", str(first)]
    data = host.say_alone(*argv, "--json").data
    assert data["winner"] == "vfio_pci"
    assert [(each["module"], each["accepted"]) for each in data["candidates"]] == [
        ("other_vfio", False),
        ("vfio_pci", True),
    ]
    assert str(first / "a.conf") in data["candidates"][0]["reason"]
    said = host.say_alone(*argv, "--modprobe-d", str(second))
    assert said.status == 1
    assert "every candidate is rejected" in said.out


def test_resolve_without_an_index_says_so_and_falls_back(host: Host, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    directories = ["--modules-dir", str(tmp_path / "none"), "--modprobe-d", str(tmp_path)]
    said = host.say_alone("resolve", MODALIAS, *directories)
    assert said.status == 0
    assert "warning: no aliases from" in said.out
    assert "-> 1. vfio_pci" in said.out


@pytest.mark.parametrize("option", ["--modules-dir", "--modprobe-d"])
def test_a_directory_for_resolve_that_is_not_there_is_an_error(host: Host, option: str) -> None:
    check_error(
        host.say_alone("resolve", MODALIAS, option, "/lib/modules/6.12.l"),
        2,
        "there is no '/lib/modules/6.12.l'",
    )


def test_a_file_for_the_modules_of_resolve_is_an_error_not_an_empty_index(host: Host, tmp_path: Path) -> None:
    (tmp_path / "modules").write_text("", encoding="ascii")
    said = host.say_alone("resolve", MODALIAS, "--modules-dir", str(tmp_path / "modules"))
    check_error(said, 2, f"'{tmp_path / 'modules'}' is not a directory")


def test_resolve_with_another_modprobe_d_is_still_for_the_running_kernel(host: Host, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc/cmdline").write_text("quiet module_blacklist=vfio_pci\n", encoding="ascii")
    (tmp_path / "empty.d").mkdir()
    said = host.say_alone("resolve", MODALIAS, "--modprobe-d", str(tmp_path / "empty.d"))
    assert said.status == 1
    assert "vfio_pci: blacklisted by the kernel command line" in said.out


def test_resolve_of_what_is_loaded_asks_no_file(host: Host) -> None:
    assert host.say_alone("resolve", DEVICE, "--json").data["winner"] == "vfio_pci"


# switching


def test_set_tells_its_steps_on_stderr_and_the_result_on_stdout(host: Host) -> None:
    said = host.say("set", "01:00.0", "vfio")
    assert said.status == 0
    assert re.match(rf"{DEVICE}: e1000e -> vfio-pci in \d+ ms, /dev/vfio/7\n  ", said.out)
    steps = [line.split(" (")[0].strip() for line in said.err.splitlines()]
    assert steps == [
        "load vfio_pci",
        "set driver_override to vfio-pci",
        "unbind from e1000e",
        "bind to vfio-pci",
        "read back what it has",
    ]
    assert host.driver == "vfio-pci"


def test_set_as_json_has_the_keys_that_were_promised_each_time(host: Host) -> None:
    keys = {
        "version",
        "device",
        "flavour",
        "driver",
        "previous_driver",
        "fallback",
        "reason",
        "vfio_device",
        "group_node",
        "steps",
    }
    data = host.say("set", DEVICE, "vfio", "--json").data
    assert keys <= set(data)
    assert (data["device"], data["flavour"], data["driver"]) == (DEVICE, "vfio", "vfio-pci")
    assert (data["previous_driver"], data["vfio_device"]) == ("e1000e", "vfio0")
    assert (data["group_node"], data["fallback"]) == ("/dev/vfio/7", False)
    assert data["reason"]
    assert [step["what"] for step in data["steps"]] == [
        "see whether it may be taken",
        "load vfio_pci",
        "set driver_override to vfio-pci",
        "unbind from e1000e",
        "bind to vfio-pci",
        "read back what it has",
    ]
    assert keys <= set(host.say("set", DEVICE, "vfio", "--json").data)
    data = host.say("--json", "set", DEVICE, "native").data
    assert keys <= set(data)
    assert (data["flavour"], data["driver"], data["previous_driver"]) == ("native", "e1000e", "vfio-pci")
    assert data["vfio_device"] is None
    assert data["group_node"] is None


def test_setting_what_it_is_already_succeeds_and_touches_nothing(host: Host) -> None:
    said = host.say("set", DEVICE, "native")
    assert (said.status, said.err) == (0, "")
    assert said.out == f"{DEVICE}: native by e1000e: the device had this flavour already\n"
    assert host.kernel.writes == []


def test_reset_goes_back_to_what_was_there_before(host: Host) -> None:
    host.say("set", DEVICE, "vfio")
    said = host.say("reset", "01:00.0")
    assert said.status == 0
    assert said.out.startswith(f"{DEVICE}: vfio-pci -> e1000e in ")
    assert host.driver == "e1000e"
    assert host.device.override is None
    said = host.say("reset", DEVICE, "--json")
    assert said.status == 0
    assert said.data["reason"] == "nothing is recorded for this device"


def test_a_named_driver_is_taken_and_a_second_one_is_the_next_to_try(host: Host) -> None:
    host.kernel.add_module(FakeDriver("bad", "bad", vfio=True, probe_errno=errno.EINVAL))
    host.kernel.add_module(FakeDriver("second", "second", vfio=True))
    said = host.say("set", DEVICE, "vfio", "--driver", "bad", "--driver", "second")
    assert said.status == 0
    assert host.driver == "second"
    assert "bad refused" in said.out


def test_a_dry_run_says_what_would_be_done_and_does_nothing(host: Host) -> None:
    said = host.say("set", DEVICE, "vfio", "--dry-run")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == [
        "load vfio_pci",
        "set driver_override to the driver of vfio_pci",
        "unbind from e1000e",
        "bind to the driver of vfio_pci",
    ]
    data = host.say("set", DEVICE, "vfio", "--dry-run", "--json").data
    assert data["steps"] == said.out.splitlines()
    assert (data["device"], data["flavour"]) == (DEVICE, "vfio")
    assert "nothing to do" in host.say("set", DEVICE, "native", "--dry-run").out
    assert host.kernel.writes == []
    assert not (host.kernel.root / "sys/module/vfio_pci").exists()


def test_a_dry_run_of_what_would_be_refused_is_refused(host: Host) -> None:
    host.kernel.add_device("0000:00:1c.0", class_code=0x060400, group=3)
    check_error(host.say("set", "00:1c.0", "vfio", "--dry-run"), 75, "0000:00:1c.0: ")


def test_strict_makes_a_fallback_a_status_of_its_own(host: Host) -> None:
    host.kernel.add_module(name="bad_vfio", alias=ALIAS, status=1, said="modprobe: ERROR: no luck")
    said = host.say("set", DEVICE, "vfio", "--strict", "--json")
    assert said.status == 4
    assert said.data["fallback"] is True
    assert "bad_vfio: no luck" in said.data["reason"]
    assert host.driver == "vfio-pci"
    host.say("set", DEVICE, "native")
    assert host.say("set", DEVICE, "vfio").status == 0


def test_strict_is_content_with_the_generic_driver_where_nothing_better_is_known(host: Host) -> None:
    assert host.say("set", DEVICE, "vfio", "--strict").status == 0


def test_no_wait_returns_once_the_device_is_being_changed_and_the_daemon_goes_on(host: Host) -> None:
    blocks = host.kernel.drivers["e1000e"].remove_blocks = asyncio.Event()
    host.after = lambda engine: blocks.set()
    said = host.say("set", DEVICE, "vfio", "--no-wait")
    assert (said.status, said.out) == (0, "")
    assert said.err.endswith(f"{DEVICE}: under way; flavourctl show {DEVICE} says what becomes of it\n")
    assert host.driver == "vfio-pci"


def test_no_wait_does_not_wait_for_a_first_write_that_hangs(host: Host) -> None:
    vfio = host.kernel.drivers.get("vfio-pci") or host.kernel.modules["vfio_pci"].drivers[0]
    host.kernel.load("vfio_pci")
    host.kernel.release(host.device)
    host.device.override = "vfio-pci"
    host.kernel.probe(vfio, host.device)
    host.device.override = None  # so the way home begins with an unbind
    blocks = vfio.remove_blocks = asyncio.Event()
    host.after = lambda engine: blocks.set()
    said = host.say("set", DEVICE, "native", "--no-wait")
    assert (said.status, said.out) == (0, "")
    assert host.driver == "e1000e"


def test_no_wait_as_json_is_an_object_too(host: Host) -> None:
    said = host.say("set", DEVICE, "vfio", "--no-wait", "--json")
    assert said.status == 0
    assert said.data == {"version": 1, "device": DEVICE, "taken_up": True}


def test_no_wait_waits_for_a_refusal_and_for_what_changes_nothing(host: Host) -> None:
    host.kernel.users[DEVICE] = (User(Use.MOUNT, "/srv on nvme0n1"),)
    check_error(host.say("set", DEVICE, "vfio", "--no-wait"), 75, f"{DEVICE}: in use: /srv on nvme0n1")
    check_error(host.say("reset", "05:00.0", "--no-wait"), 3, "0000:05:00.0")
    said = host.say("set", DEVICE, "native", "--no-wait")
    assert said.out == f"{DEVICE}: native by e1000e: the device had this flavour already\n"


def test_no_wait_does_not_say_that_a_module_which_can_not_be_loaded_is_under_way(host: Host) -> None:
    host.kernel.modules["vfio_pci"].status = 1
    said = host.say("set", DEVICE, "vfio", "--no-wait")
    assert said.status != 0
    assert "no VFIO driver took it" in said.err
    assert host.driver == "e1000e"


def test_a_time_limit_that_is_up_is_75_and_the_device_untouched(host: Host) -> None:
    hang = host.kernel.modules["vfio_pci"].hang = asyncio.Event()
    host.timeouts["load"] = 5.0
    host.after = lambda engine: hang.set()
    said = host.say("set", DEVICE, "vfio", "--timeout", "0.05")
    assert f"\nflavourctl: {DEVICE}: " in said.err
    assert host.driver == "e1000e"
    assert host.kernel.writes == []
    assert said.status == 75


# what goes wrong


def test_a_device_that_is_not_there_is_3(host: Host) -> None:
    for verb, *more in (["show"], ["set", "vfio"], ["reset"], ["resolve"]):
        check_error(host.say(verb, "0f:00.0", *more), 3, "0000:0f:00.0: no such PCI device")


def test_a_failure_is_1_and_tells_the_whole_story(host: Host) -> None:
    host.kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EINVAL
    said = host.say("set", DEVICE, "vfio")
    assert said.status == 1
    assert said.out == ""
    *steps, error, hint = said.err.splitlines()
    assert steps
    assert error.startswith(f"flavourctl: {DEVICE}: ")
    assert "vfio_pci refused: Invalid argument (EINVAL)" in error
    assert "it has e1000e again" in error
    assert hint.startswith("  flavourctl show")
    assert host.driver == "e1000e"


def test_a_bridge_is_75(host: Host) -> None:
    host.kernel.add_device("0000:00:1c.0", class_code=0x060400, group=3)
    check_error(host.say("set", "00:1c.0", "vfio"), 75, "0000:00:1c.0: it is a bridge")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["list"],
        ["show", DEVICE],
        ["set", DEVICE, "vfio"],
        ["set", DEVICE, "vfio", "--dry-run"],
        ["reset", DEVICE],
    ],
)
def test_without_a_daemon_it_is_69_and_says_how_to_start_it(host: Host, argv: list[str]) -> None:
    said = host.say_alone(*argv)
    check_error(said, 69, "the daemon does not answer")
    assert "systemctl start" in said.err


@pytest.mark.parametrize(
    "argv", [["show", "gpu"], ["history", "gpu"], ["set", "gpu", "vfio"], ["reset", "gpu"]]
)
def test_a_mistyped_address_is_told_also_without_a_daemon(host: Host, argv: list[str]) -> None:
    check_error(host.say_alone(*argv), 2, "'gpu' is not a PCI address")


def test_a_daemon_that_hangs_up_is_69(host: Host, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "control"))
        sock.listen()

        async def run() -> int:
            waiting = asyncio.create_task(asyncio.to_thread(call, ["set", DEVICE, "vfio"]))
            conn, _ = await asyncio.to_thread(sock.accept)
            await asyncio.to_thread(conn.recv, 4096)
            conn.close()
            return await waiting

        said = host._caught(asyncio.run(run()))
    check_error(said, 69, "the daemon went away")


@pytest.mark.parametrize("argv", [["list"], ["show", DEVICE], ["set", DEVICE, "vfio"], ["reset", DEVICE]])
def test_one_who_finds_no_place_is_to_try_again(host: Host, argv: list[str]) -> None:
    for limits in ("LOOKING", "SWITCHING"):
        host.monkeypatch.setattr(connections, limits, Limits(0, 0, 0))
    said = host.say(*argv)
    check_error(said, 75, "no connection is free")
    assert "flavourctl explain too-many-requests" in said.err
    assert host.kernel.writes == []


def test_one_who_may_only_look_gets_77(host: Host) -> None:
    host.monkeypatch.setattr(blocking_client, "CONTROL_SOCKET", str(host.kernel.root / "readonly"))
    for argv in (["set", DEVICE, "vfio"], ["reset", DEVICE]):
        check_error(host.say(*argv), 77, "this socket is read-only")
    assert host.kernel.writes == []


def test_one_who_may_not_even_connect_gets_77(host: Host) -> None:
    def refuse(path: str, patience: float | None) -> socket.socket:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    host.monkeypatch.setattr(blocking_client, "_open", refuse)
    said = host._caught(call(["set", DEVICE, "vfio"]))
    check_error(said, 77, "only root and the members of the group vfio-flavour may switch devices")
    assert "sudo" in said.err
    # What is root's alone no group helps to.
    for argv, what in (
        (["reload"], "reload the policy"),
        (["set", DEVICE, "vfio", "--persist"], "make a wish last beyond this boot"),
        (["reset", DEVICE, "--force"], "take a device by force"),
    ):
        said = host._caught(call(argv))
        check_error(said, 77, f"only root may {what}")
        assert "group" not in said.err
    said = host._caught(call(["list"]))
    check_error(said, 77, "")
    assert "can't be opened, which everyone may" in said.err
    assert "systemctl restart vfio-flavourd-readonly.socket" in said.err


def test_an_error_as_json_is_an_object_as_well(host: Host) -> None:
    said = host.say("show", "0f:00.0", "--json")
    assert said.status == 3
    error = said.data["error"]
    assert error["code"] == "no-such-device"
    assert error["errno"] == errno.ENODEV
    assert error["message"] == "0000:0f:00.0: no such PCI device"
    assert "lspci" in error["hint"]
    assert said.err.startswith("flavourctl: 0000:0f:00.0: no such PCI device\n")


@pytest.mark.parametrize(
    "argv",
    [
        ["frobnicate"],
        ["list", "extra"],
        ["show"],
        ["show", DEVICE, DEVICE],
        ["set"],
        ["set", DEVICE],
        ["set", DEVICE, "vfio", "now"],
        ["set", DEVICE, "vfio", "--driver"],
        ["set", DEVICE, "vfio", "--driver", "-C/tmp/evil"],
        ["set", DEVICE, "vfio", "--what"],
        ["set", DEVICE, "vfio", "--f"],
        ["set", DEVICE, "vfio", "--forc", "--persist"],
        ["reset"],
        ["reset", DEVICE, "--strict"],
        ["resolve"],
        *(["reset", DEVICE, "--timeout", text] for text in ("0", "-1", "nan", "inf", "1e9", "soon", "")),
    ],
)
def test_a_wrong_command_line_is_2_and_reaches_nobody(host: Host, argv: list[str]) -> None:
    check_error(host.say_alone(*argv), 2, "")


def test_a_wrong_word_is_told_by_what_help_calls_its_place(host: Host) -> None:
    said = host.say_alone("import", "drivrctl")
    check_error(said, 2, "SOURCE can't be 'drivrctl'")
    assert "did you mean driverctl?" in said.err
    check_error(host.say_alone("reset", DEVICE, "--group", "x"), 2, "--group can't be 'x'")


BAD_DEVICES = [
    "",
    " ",
    "../../x",
    f"{DEVICE}\n",
    f"{DEVICE}\0",
    "0000:01:00.9",
    "e1000e",
    "\x1b[31m",
    "\udcff",
    "0000:01:00.0" * 854,
    "ü",
]


@pytest.mark.parametrize("device", BAD_DEVICES)
@pytest.mark.parametrize("verb", ["show", "set", "reset", "resolve"])
def test_what_is_no_device_is_2_in_one_line(host: Host, verb: str, device: str) -> None:
    argv = [verb, device, *(["vfio"] if verb == "set" else [])]
    said = host.say(*argv)
    check_error(said, 2, "")
    assert len(said.err) < 1000
    assert host.kernel.writes == []


@pytest.mark.parametrize(
    "flavour", ["", "vfoi", "VFIO", "vfio\n", "vfio\0", "\x1b[31m", "\udcff", "vfio" * 2560]
)
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--no-wait"]])
def test_what_is_no_flavour_is_2_and_the_hint_says_what_is(host: Host, flavour: str, more: list[str]) -> None:
    said = host.say("set", DEVICE, flavour, *more)
    check_error(said, 2, "no flavour is called ")
    assert "allowed: native or vfio" in said.err
    assert host.kernel.writes == []


@pytest.mark.parametrize(
    "driver", ["", "../../x", "a b", "vfio-pci\n", "\x1b[31m", "\udcff", "x" * 65, "pci:*"]
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_what_is_no_drivers_name_is_2(host: Host, driver: str, more: list[str]) -> None:
    check_error(host.say("set", DEVICE, "vfio", "--driver", driver, *more), 2, "")
    assert host.kernel.writes == []


@pytest.mark.parametrize(
    "modalias",
    ["pci:", "pci:x", "vfio_pci:\n", "pci:\x1b[31m", "pci:\udcff", f"{MODALIAS}x", f"pci:{'v' * 10240}"],
)
def test_what_is_no_modalias_is_2(host: Host, modalias: str) -> None:
    check_error(host.say_alone("resolve", modalias), 2, "")


# how it looks


def test_control_characters_in_a_name_do_not_reach_the_terminal(host: Host) -> None:
    host.name = "A\x1b[31m NIC\r\n\x07\x9b\u202eevil"
    for argv in (["list"], ["show", DEVICE]):
        said = host.say(*argv)
        assert said.status == 0
        assert all(line.isprintable() for line in said.out.splitlines())
        assert "\\x1b[31m NIC\\x0d\\x0a\\x07\\x9b\\x202eevil" in said.out
    (device,) = host.say("list", "--json").data["devices"]
    assert device["name"] == host.name


def test_control_characters_in_a_drivers_name_do_not_reach_the_terminal(host: Host) -> None:
    host.kernel.release(host.device)
    host.kernel.add_native(host.device, "evil\x1b[31m")
    switch = ["set", DEVICE, "vfio"]
    for argv in (["list"], ["show", DEVICE], ["groups"], [*switch, "--dry-run"], switch):
        said = host.say(*argv)
        assert said.status == 0
        assert "evil\\x1b[31m" in said.out, argv
        assert all(line.isprintable() for line in said.out.splitlines()), argv


def test_what_a_module_said_does_not_reach_the_terminal_either(host: Host) -> None:
    host.kernel.add_module(name="bad_vfio", alias=ALIAS, status=1, said="modprobe: ERROR: \x1b[31mred\x9b")
    said = host.say("set", DEVICE, "vfio")
    for text in (said.out, said.err):
        assert "\\x1b[31mred\\x9b" in text
        assert all(line.isprintable() for line in text.splitlines())


def test_what_goes_wrong_does_not_reach_the_terminal_unescaped(host: Host) -> None:
    host.kernel.modules["vfio_pci"].status = 1
    host.kernel.modules["vfio_pci"].said = "modprobe: ERROR: \x1b[31mred"
    said = host.say("set", DEVICE, "vfio")
    assert said.status == 1
    assert all(line.isprintable() for line in said.err.splitlines())


@pytest.mark.parametrize(
    ("terminal", "no_color", "argv", "coloured"),
    [
        (True, None, [], True),
        (True, "", [], True),
        (True, "1", [], False),
        (True, None, ["--no-color"], False),
        (False, None, [], False),
    ],
)
@pytest.mark.parametrize("verb", [["list"], ["show", DEVICE]])
def test_colours_are_for_terminals_whose_owner_wants_them(
    host: Host, terminal: bool, no_color: str | None, argv: list[str], coloured: bool, verb: list[str]
) -> None:
    host.monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    if no_color is not None:
        host.monkeypatch.setenv("NO_COLOR", no_color)
    for line in ([*argv, *verb], [*verb, *argv]):
        said = host.say(*line)
        assert said.status == 0
        assert ("\x1b[" in said.out) == coloured


def test_json_is_never_coloured(host: Host) -> None:
    host.monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b" not in host.say("list", "--json").out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Grüße", "Grüße"),
        ("\x1b[0m", "\\x1b[0m"),
        ("\n", "\\x0a"),
        ("\u2066x", "\\x2066x"),
        ("\udcff", "\\xdcff"),
    ],
)
def test_only_what_can_be_printed_is(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("argv", [["--help"], ["set", "--help"], ["--version"]])
def test_help_and_version_need_nobody(host: Host, argv: list[str]) -> None:
    said = host.say_alone(*argv)
    assert (said.status, said.err) == (0, "")
    assert "flavourctl" in said.out


def test_one_who_reads_no_further_is_no_reason_to_complain(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vfio_flavourd.cli.main", "resolve", MODALIAS]
    command += ["--modules-dir", str(tmp_path), "--modprobe-d", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
    assert said == ""
    assert process.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("argv", ["check", "resolve " + MODALIAS, "set 01:00 vfio", "--help", "lst"])
def test_a_closed_output_is_no_error_of_its_own(closed: str, argv: str) -> None:
    def run(redirected: str) -> subprocess.CompletedProcess[str]:
        command = f"exec {sys.executable} -m vfio_flavourd.cli.main {argv} {redirected}"
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    whole, part = run(""), run(closed)
    assert part.returncode == whole.returncode
    assert part.stdout == ("" if closed.startswith(">") else whole.stdout)
    assert part.stderr == ("" if "2" in closed else whole.stderr)


def test_help_is_printed_in_any_encoding() -> None:
    command = [sys.executable, "-m", "vfio_flavourd.cli.main", "resolve", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_is_130_without_a_traceback(host: Host) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    host.monkeypatch.setattr(resolve, "ModuleIndex", interrupt)
    said = host.say_alone("resolve", MODALIAS)
    assert said == Said(130, "", "flavourctl: interrupted\n  flavourctl explain interrupted\n")
    said = host.say_alone("resolve", MODALIAS, "--json")
    assert (said.status, said.data["error"]["code"]) == (130, "interrupted")


def test_the_address_in_an_answer_is_the_kernels_form(host: Host) -> None:
    assert host.say("set", "01:00.0", "vfio", "--json").data["device"] == str(parse_address("01:00.0"))


# what a dry run knows of


def test_a_dry_run_tells_the_way_home_as_it_was_recorded(host: Host) -> None:
    host.say("set", DEVICE, "vfio")

    async def run() -> int:
        async with host.served():
            assert await asyncio.to_thread(call, ["set", DEVICE, "vfio", "--driver", "vfio-pci"]) == 0
            return await asyncio.to_thread(call, ["set", DEVICE, "native", "--dry-run"])

    host.kernel.writes.clear()
    assert asyncio.run(run()) == 0
    assert host.capsys.readouterr().out.splitlines()[-4:] == [
        "set driver_override to e1000e",
        "unbind from vfio-pci",
        "bind to e1000e",
        "clear driver_override",
    ]
    assert host.kernel.writes == []


def test_a_dry_run_tells_that_a_driver_with_a_personality_is_asked_and_not_unbound(host: Host) -> None:
    host.kernel.add_personality(host.device)
    said = host.say("set", DEVICE, "vfio", "--dry-run")
    assert said.out == "write 1 to enable_vfio of e1000e, which is not unbound\n"
    assert host.say("set", DEVICE, "vfio").status == 0
    said = host.say("set", DEVICE, "native", "--dry-run")
    assert said.out == "write 0 to enable_vfio of e1000e, which is not unbound\n"


def test_a_dry_run_of_what_needs_an_iommu_is_refused_where_there_is_none(host: Host) -> None:
    host.kernel.add_device("0000:02:00.0", group=None)
    check_error(host.say("set", "02:00.0", "vfio"), 1, "0000:02:00.0: it is in no IOMMU group")
    check_error(host.say("set", "02:00.0", "vfio", "--dry-run"), 1, "0000:02:00.0: it is in no IOMMU")


def test_a_dry_run_of_another_vfio_driver_tells_the_move_that_would_be_made(host: Host) -> None:
    host.kernel.add_module(FakeDriver("good", "good", vfio=True))
    host.say("set", DEVICE, "vfio")
    host.kernel.writes.clear()
    said = host.say("set", DEVICE, "vfio", "--driver", "good", "--dry-run")
    assert "unbind from vfio-pci" in said.out
    assert host.kernel.writes == []
    assert host.say("set", DEVICE, "vfio", "--driver", "good").status == 0
    assert host.driver == "good"


def test_a_native_driver_that_is_gone_for_good_leaves_the_device_on_vfio_and_says_what_to_do(
    host: Host,
) -> None:
    host.say("set", DEVICE, "vfio")
    host.kernel.unload("e1000e")
    del host.kernel.modules["e1000e"]
    host.kernel.writes.clear()
    said = host.say("set", DEVICE, "native")
    assert said.status == 1
    assert "its driver e1000e is gone and e1000e can't be loaded" in said.err
    assert said.err.endswith("  modprobe -v e1000e shows why (flavourctl explain module-not-loaded)\n")
    assert host.driver == "vfio-pci"
    assert host.kernel.writes == []


def test_a_vfio_device_that_nobody_can_ask_back_stays_and_says_why(host: Host) -> None:
    host.kernel.add_vfio_device(host.device)
    said = host.say("set", DEVICE, "native")
    check_error(said, 1, f"{DEVICE}: e1000e made it a VFIO device itself")
    assert host.driver == "e1000e"
    assert host.kernel.writes == []
