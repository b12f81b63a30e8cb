"""doctor as somebody at a terminal sees it: readable in a minute, the worst first."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from fake_kernel import RELEASE, FakeKernel
from policies import write
from served import Said
from test_doctor import apply, host, put, rule, switch_off

from vfio_flavourd.cli import doctor
from vfio_flavourd.cli.main import main
from vfio_flavourd.doors import blocking_client
from vfio_flavourd.model.codes import Code
from vfio_flavourd.model.errors import FlavourError

__all__ = ["host"]

CONNECT = blocking_client.connect
MOUNT = "200 26 0:50 / /run/vfio-flavour rw,relatime shared:9 - fuse vfio-flavour rw,user_id=0\n"


Say = Callable[..., Said]


class FakeDaemon:
    """Answers List."""

    def __init__(self, **answer: Any) -> None:
        self.answer = {"devices": [], "policy_trouble": "", **answer}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def call(self, method: str) -> dict[str, Any]:
        assert method == "List"
        return self.answer


def answers(monkeypatch: pytest.MonkeyPatch, with_what: FakeDaemon | FlavourError) -> None:
    def connect(*, writes: bool, patience: float) -> FakeDaemon:
        assert not writes
        assert patience
        if isinstance(with_what, FlavourError):
            raise with_what
        return with_what

    monkeypatch.setattr(blocking_client, "connect", connect)


@pytest.fixture
def say(host: FakeKernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    monkeypatch.setattr(doctor, "ROOT", str(host.root))
    monkeypatch.setattr(doctor, "OWNER", os.getuid())
    uname = os.uname()
    fake = type(uname)((uname.sysname, uname.nodename, RELEASE, uname.version, "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: fake)
    put(host, "proc/self/mountinfo", MOUNT)
    answers(monkeypatch, FakeDaemon())

    def run(*argv: str) -> Said:
        status = main(["doctor", *argv])
        caught = capsys.readouterr()
        return Said(status, caught.out, caught.err)

    return run


def test_a_host_in_good_order_is_two_lines_and_0(say: Say) -> None:
    assert say() == Said(
        0,
        "ready: nothing stands in the way\n"
        "fine: there are no policy rules; the IOMMU is on, with 1 group; the module index is in order; "
        "vfio-pci is available; the daemon answers\n",
        "",
    )


def test_a_host_with_many_problems_tells_the_worst_first_each_with_what_to_do(
    say: Say, host: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = "the daemon can't be reached at /run/x: No such file or directory"
    answers(
        monkeypatch,
        FlavourError(trouble, code=Code.DAEMON_NOT_RUNNING, hint="systemctl start vfio-flavourd.socket"),
    )
    switch_off(host, "GenuineIntel", table="DMAR")
    put(host, "usr/sbin/grubby", "")
    put(host, "etc/modprobe.d/a.conf", "softdep nouveau pre: vfio-pci\noptions vfio-pci ids=8086:10d3\n")
    put(host, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    put(host, "proc/self/mountinfo", "")
    put(host, "sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    path = write(host.root, rule("mine", "vendor: 8086", "native"))
    conf = host.root / "etc/modprobe.d/a.conf"
    said = say()
    assert (said.status, said.err) == (1, "")
    assert (
        said.out
        == f"""\
not ready: 4 problems, 1 warning, 2 notes
problem: the IOMMU is off: no device is in an IOMMU group, so VFIO can isolate none; the kernel command \
line lacks intel_iommu=on
  -> grubby --update-kernel=ALL --args=intel_iommu=on && reboot
problem: vfio-pci's ids= in {conf}:2 claims 0000:01:00.0, although rule 'mine' ({path}:3) says native of \
0000:01:00.0
  -> remove it from {conf}:2
problem: 0000:01:00.0: driverctl has vfio-pci saved for it, so it is left to that although rule 'mine' \
({path}:3) says native
  -> driverctl unset-override 0000:01:00.0
problem: {trouble}
  -> systemctl start vfio-flavourd.socket
warning: the file system on /run/vfio-flavour is not mounted
  -> systemctl start vfio-flavour-fs.service
note: the kernel is locked down (integrity): a variant driver built on this host does not load unless it is \
signed
  -> mokutil --list-enrolled shows whose signatures count; kmodsign, or dkms, signs a module
note: modprobe.d affects when VFIO drivers are loaded: softdep nouveau pre: vfio-pci ({conf}:1)
  -> with a policy it is not needed: its rules for early boot keep native drivers away
fine: the policy is valid; the module index is in order; vfio-pci is available
"""
    )


def test_warnings_and_notes_alone_are_0(say: Say, host: FakeKernel) -> None:
    put(host, "proc/self/mountinfo", "")
    put(host, "etc/modprobe.d/a.conf", "nonsense\n")
    said = say()
    assert said.status == 0
    assert said.out.startswith("ready: 1 warning, 1 note\n")


def test_as_json_each_finding_is_an_object_with_the_same_words(say: Say, host: FakeKernel) -> None:
    put(host, "etc/modprobe.d/a.conf", "blacklist vfio_pci\n")
    said = say("--json")
    assert said.status == 1
    data = json.loads(said.out)
    assert (data["version"], data["ready"]) == (1, False)
    assert data["findings"][0] == {
        "name": "vfio-pci",
        "state": "problem",
        "what": f"vfio-pci is not available: blacklisted by {host.root}/etc/modprobe.d/a.conf:1",
        "advice": "remove that line, and run flavourctl reload",
    }
    assert {finding["state"] for finding in data["findings"]} == {"problem", "ok"}


def test_what_the_daemon_tells_is_part_of_it(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = {"device": "0000:01:00.0", "stuck": "unbinding since 40 s, held by qemu", "policy_reason": "x"}
    free = {"device": "0000:01:00.1", "stuck": "", "policy_reason": "x"}
    answers(monkeypatch, FakeDaemon(devices=[stuck, free], policy_trouble="x.yaml:1:1: \x1b[31mno"))
    said = say()
    assert said.status == 1
    assert "problem: 0000:01:00.0: unbinding since 40 s, held by qemu\n" in said.out
    assert "-> flavourctl show 0000:01:00.0\n" in said.out
    assert "problem: the policy on disk is not in force: x.yaml:1:1: \\x1b[31mno\n" in said.out


def test_a_policy_that_the_daemon_has_not_read_yet_is_a_warning(
    say: Say, host: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(host.root, rule("mine", "vendor: 8086", "native"))
    device = {"device": "0000:01:00.0", "stuck": "", "policy_reason": "no rule matches"}
    answers(monkeypatch, FakeDaemon(devices=[device]))
    said = say()
    assert said.out.startswith(
        "ready: 1 warning\n"
        f"warning: the policy on disk is not in force yet: of 0000:01:00.0 it says rule 'mine' ({path}:3), "
        "and the daemon goes by: no rule matches\n"
        "  -> flavourctl reload\n"
    )
    device["policy_reason"] = f"rule 'mine' ({path}:3)"
    assert say().out.startswith("ready: nothing stands in the way\n")


BY_WHAT_WAS = [
    "serial: S4EWNX0R",  # that VFIO does not let anybody read
    "driver: nvme",  # that the device had before
]


@pytest.mark.parametrize("match", BY_WHAT_WAS)
def test_a_rule_by_what_a_device_on_vfio_does_not_show_any_more_is_in_force_all_the_same(
    say: Say, host: FakeKernel, monkeypatch: pytest.MonkeyPatch, match: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = apply(host, rule("mine", match))
    device = {"device": "0000:01:00.0", "stuck": "", "policy_reason": f"rule 'mine' ({path}:3)"}
    answers(monkeypatch, FakeDaemon(devices=[device]))
    assert say().out.startswith("ready: nothing stands in the way\n")
    below = "  - {name: all others, match: {vendor: 8086}, flavour: native}\n"
    apply(host, rule("mine", match) + below)
    assert say().out.startswith("ready: nothing stands in the way\n")


@pytest.mark.parametrize("match", BY_WHAT_WAS)
def test_another_rule_above_the_one_that_the_daemon_goes_by_is_not_in_force(
    say: Say, host: FakeKernel, monkeypatch: pytest.MonkeyPatch, match: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = apply(host, rule("first", "vendor: 8086", "native") + rule("mine", match).splitlines()[2] + "\n")
    device = {"device": "0000:01:00.0", "stuck": "", "policy_reason": f"rule 'mine' ({path}:4)"}
    answers(monkeypatch, FakeDaemon(devices=[device]))
    assert f"is not in force yet: of 0000:01:00.0 it says rule 'first' ({path}:3)" in say().out


@pytest.mark.parametrize("why", ["invalid", "switched off"])
def test_why_the_policy_is_not_in_force_is_told_once(
    say: Say, host: FakeKernel, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    write(host.root, "version: 2\n" if why == "invalid" else rule("mine", "vendor: 8086"))
    if why == "switched off":
        put(host, "proc/cmdline", "ro intel_iommu=on vfio_flavourd.policy=0\n")
    answers(monkeypatch, FakeDaemon(policy_trouble="told by the daemon too"))
    out = say().out
    assert "told by the daemon too" not in out
    assert out.count("the policy is ") == 1


def test_a_daemon_that_says_nothing_is_not_waited_for(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking_client, "connect", CONNECT)
    monkeypatch.setattr(blocking_client, "READ_ONLY_SOCKET", str(tmp_path / "s"))
    monkeypatch.setattr(doctor, "_PATIENCE", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        said = say()
    assert said.status == 1
    assert "problem: the daemon has not answered for 0.01 s\n" in said.out


def test_nothing_from_outside_reaches_the_terminal_unescaped(say: Say, host: FakeKernel) -> None:
    put(host, "etc/driverctl.d/pci-0000:01:00.0", "vfio\x1b[31m-pci\n")
    put(
        host, "etc/modprobe.d/a\x1b.conf", b"options vfio-pci ids=\x1b[31m,\xff:x\ninstall vfio\x1b \x1b[0m\n"
    )
    put(host, "proc/cmdline", b"ro vfio-pci.ids=8086:10d3\x1b[31m,\x9b1 intel_iommu=off\n")
    write(host.root, b"version: 1\n\x1b: 1\n")
    switch_off(host, "Genuine\x1bIntel", "ro \x1b[31m intel_iommu=off")
    assert all(line.isprintable() for line in say().out.splitlines())


def test_colours_are_for_a_terminal_only(say: Say, host: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    put(host, "etc/modprobe.d/a.conf", "nonsense\n")
    assert "\x1b" not in say().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mready" in say().out
    assert "\x1b" not in say("--no-color").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in say().out


def test_the_host_that_is_looked_at_is_this_one() -> None:
    assert (doctor.ROOT, doctor.OWNER) == ("/", 0)
    assert Path(doctor.ROOT).is_dir()
