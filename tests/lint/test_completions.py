"""Completion as a person has it: in each shell on a terminal, with the tabulator key, on a made-up sysfs."""

import os
import pty
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A command's words, as the shell hands them over, once the line is entered.
TOLD = re.compile(r"<<(.*?)>>", re.DOTALL)
TIMEOUT = 20
# What has the shell list what may follow. fish draws that over the line, but can be asked for it.
LISTS = {
    "bash": "flavourctl set \t\t\t",
    "zsh": "flavourctl set \t\t",
    "fish": "complete -C 'flavourctl set '; flavourctl set",
}
STARTS = {
    "bash": ["bash", "--noprofile", "--rcfile", "{rc}", "-i"],
    "zsh": ["zsh", "-d", "-i"],
    "fish": ["fish", "--no-config", "-i", "-C", "source {rc}"],
}
RC = {
    "bash": """
        bind 'set enable-bracketed-paste off'; bind 'set bell-style none'
        . /usr/share/bash-completion/bash_completion; . {script}
        flavourctl() {{ local IFS='|'; echo "<<$*>>"; }}
        PS1='ready> '
    """,
    "zsh": """
        unset zle_bracketed_paste; unsetopt prompt_cr prompt_sp beep
        fpath=({directory} $fpath); autoload -Uz compinit; compinit -u -D
        flavourctl() {{ local IFS='|'; print -r -- "<<$*>>"; }}
        PS1='ready> '
    """,
    "fish": """
        function fish_prompt; echo -n 'ready> '; end
        set -g fish_autosuggestion_enabled 0
        function flavourctl; echo '<<'(string join '|' -- $argv)'>>'; end
        source {script}
    """,
}


class Terminal:
    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self._fd = fd

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def read_until(self, done: Callable[[str], bool]) -> str:
        seen, until = "", time.monotonic() + TIMEOUT
        while not done(seen):
            if not select.select([self._fd], [], [], max(0, until - time.monotonic()))[0]:
                raise AssertionError(f"not seen in {TIMEOUT} s: {seen!r}")
            seen += os.read(self._fd, 65536).decode(errors="replace")
        return seen

    def enter(self, line: str) -> tuple[str, list[str]]:
        """What is seen until the next prompt, and the words of the line that was there at its end."""
        self.type(f"{line}\n")
        seen = self.read_until(lambda seen: "ready> " in seen.partition(">>")[2])
        found = TOLD.search(seen)
        assert found is not None
        return seen, found[1].split("|")


@contextmanager
def terminal(shell: str, script: Path) -> Iterator[Terminal]:
    rc = script.parent / ".zshrc"
    rc.write_text(RC[shell].format(script=script, directory=script.parent))
    command = [word.format(rc=rc) for word in STARTS[shell]]
    pid, fd = pty.fork()
    if pid == 0:
        home = {"HOME": str(script.parent), "ZDOTDIR": str(script.parent)}
        environment = {"PATH": "/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "C.UTF-8", **home}
        os.execvpe(command[0], command, environment)
    try:
        this = Terminal(shell, fd)
        this.read_until(lambda seen: "ready> " in seen)
        yield this
    finally:
        os.close(fd)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(params=LISTS, scope="module")
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    tmp_path = tmp_path_factory.mktemp(request.param)
    sysfs, mounted = tmp_path / "pci", tmp_path / "vfio-flavour"
    for driver in ("e1000e", "nvme"):
        (sysfs / "drivers" / driver).mkdir(parents=True)
    for address, driver in (("0000:01:00.0", "e1000e"), ("0000:02:00.0", "nvme"), ("0000:02:00.1", "")):
        device = sysfs / "devices" / address
        device.mkdir(parents=True)
        if driver:
            (device / "driver").symlink_to(f"../../drivers/{driver}")
        (mounted / address).mkdir(parents=True)
        (mounted / address / "driver_flavour").write_text("[native] vfio uio\n")
    text = (ROOT / f"completions/flavourctl.{request.param}").read_text(encoding="ascii")
    (tmp_path / "history.jsonl").write_text('{"id": 1, "address": "0000:01:00.0"}\n{"id": 27}\n')
    text = text.replace("/sys/bus/pci", str(sysfs)).replace("/run/vfio-flavourd", str(tmp_path))
    text = text.replace("/run/vfio-flavour", str(mounted))
    script = tmp_path / ("_flavourctl" if request.param == "zsh" else "flavourctl")
    script.write_text(text)
    with terminal(request.param, script) as this:
        yield this


def test_a_verb_is_completed(shell: Terminal) -> None:
    assert shell.enter("flavourctl resol\t")[1] == ["resolve"]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("show 0000:01", ["show", "0000:01:00.0"]),
        ("show 01", ["show", "01:00.0"]),
        ("show 02:00.1", ["show", "02:00.1"]),
        ("--json show 01", ["--json", "show", "01:00.0"]),
        ("set --timeout 5 0000:01", ["set", "--timeout", "5", "0000:01:00.0"]),
        ("set 01:00.0 v", ["set", "01:00.0", "vfio"]),
        ("set 0000:01:00.0 u", ["set", "0000:01:00.0", "uio"]),
        ("set 01:00.0 vfio --dry", ["set", "01:00.0", "vfio", "--dry-run"]),
        ("set --group to", ["set", "--group", "together"]),
        ("plot 2", ["plot", "27"]),
        ("list --columns dri", ["list", "--columns", "driver"]),
        ("list --columns device,dri", ["list", "--columns", "device,driver"]),
        ("plot 27 0000:01", ["plot", "27", "0000:01:00.0"]),
        ("history -n 5 0000:01", ["history", "-n", "5", "0000:01:00.0"]),
        ("plot -o /etc/os-rel", ["plot", "-o", "/etc/os-release"]),
        ("explain in-u", ["explain", "in-use"]),
        ("set 01:00.0 vfio --driver nv", ["set", "01:00.0", "vfio", "--driver", "nvme"]),
    ],
)
def test_what_can_only_be_one_thing_is_completed(shell: Terminal, typed: str, told: list[str]) -> None:
    assert shell.enter(f"flavourctl {typed}\t")[1] == told


def test_the_devices_of_the_host_are_offered(shell: Terminal) -> None:
    seen, _ = shell.enter(LISTS[shell.name])
    assert "01:00.0" in seen
    assert "02:00.1" in seen
    if shell.name != "bash":
        assert re.search(r"0000:02:00\.0\s+nvme", seen)
