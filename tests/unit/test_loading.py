"""The unit that loads modules: what is asked of it, what it runs, what comes back."""

import asyncio
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vfio_flavourd.kernel.loading import Asked, Loading
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.module_load import ModuleLock, explain_failure

SCRIPT = Path(__file__).parents[2] / "libexec/load-module"


class Unit:
    """As systemd runs it: a process for each connection. `modprobe` is a shell script; `calls` is what it was
    called with, an argument a line."""

    def __init__(self, directory: Path, modprobe: str) -> None:
        self.socket = directory / "modprobe"
        self.log = directory / "calls"
        program = directory / "bin/modprobe"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>{self.log}\n{modprobe}\n', encoding="ascii")
        program.chmod(0o755)
        # The script has a path of its own.
        text = SCRIPT.read_text(encoding="ascii").replace(
            "PATH=/usr/sbin:", f"PATH={program.parent}:/usr/sbin:"
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        self.script = directory / "load-module"
        self.script.write_text(text, encoding="ascii")

    @property
    def calls(self) -> list[str]:
        return self.log.read_text(encoding="ascii").splitlines() if self.log.exists() else []

    @contextmanager
    def served(self) -> Iterator[Loading]:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.socket))
            listening.listen()
            thread = threading.Thread(target=self._accept, args=(listening,), daemon=True)
            thread.start()
            try:
                yield Loading(self.socket)
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join(5)
                for process in self._processes:
                    process.wait(5)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                self._processes.append(
                    subprocess.Popen(
                        ["sh", self.script],
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=connection.fileno(),
                    )
                )


def ask(unit: Unit, asked: Asked, name: str) -> tuple[int, str]:
    with unit.served() as loading:
        return asyncio.run(loading.modprobe(asked, name))


def test_a_module_is_loaded_by_its_name(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "exit 0")
    assert ask(unit, Asked.MODULE, "mlx5_vfio_pci") == (0, "")
    assert unit.calls == ["--", "mlx5_vfio_pci"]


def test_what_a_modalias_stands_for_is_loaded_with_blacklists_respected(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "exit 0")
    modalias = "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00"
    assert ask(unit, Asked.ALIAS, modalias) == (0, "")
    assert unit.calls == ["-q", "-b", "--", modalias]


def test_the_exit_status_and_what_was_said_come_back(tmp_path: Path) -> None:
    unit = Unit(tmp_path, 'echo "modprobe: ERROR: first" >&2; echo "on stdout, second" ; exit 3')
    assert ask(unit, Asked.MODULE, "x") == (3, "modprobe: ERROR: first\non stdout, second")


def test_a_modprobe_that_never_stops_talking_is_cut_short_at_its_beginning(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "seq 1 20000 >&2; echo the end >&2; exit 1")
    status, said = ask(unit, Asked.MODULE, "x")
    assert status == 1
    assert len(said) < 4097
    assert said.endswith("\n20000\nthe end")


def test_a_modprobe_that_was_killed_is_told_by_its_signal(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "kill -9 $$")
    status, _ = ask(unit, Asked.MODULE, "x")
    assert status == 128 + 9


def test_one_that_takes_long_holds_up_no_other(tmp_path: Path) -> None:
    unit = Unit(tmp_path, '[ "$2" = slow ] || exit 0; while [ ! -e "$0.go" ]; do sleep 0.01; done; exit 2')

    async def run(loading: Loading) -> None:
        slow = asyncio.create_task(loading.modprobe(Asked.MODULE, "slow"))
        assert await loading.modprobe(Asked.MODULE, "quick") == (0, "")
        assert not slow.done()
        (tmp_path / "bin/modprobe.go").touch()
        assert await slow == (2, "")

    with unit.served() as loading:
        asyncio.run(run(loading))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "module",
        "module -r",
        "module --remove",
        "module ../../x",
        "module x y",
        "module $(touch${IFS}evil)",
        "module x;y",
        "alias -C",
        "remove x",
        "module \x1b[31m",
    ],
)
def test_what_is_no_module_is_refused_before_anything_is_run(tmp_path: Path, line: str) -> None:
    """The daemon does not ask for such; it is checked where the right to load is."""
    unit = Unit(tmp_path, "exit 0")
    run = subprocess.run(
        ["sh", unit.script], input=f"{line}\n", capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.stdout.splitlines() == ["status 64"]
    assert run.stderr.startswith("load-module: ")
    assert unit.calls == []
    assert not (tmp_path / "evil").exists()


def test_a_unit_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FlavourError) as caught:
        asyncio.run(Loading(tmp_path / "none").modprobe(Asked.MODULE, "x"))
    assert f"{tmp_path / 'none'}: No such file or directory" in str(caught.value)
    assert caught.value.hint == "systemctl start vfio-flavour-modprobe.socket"


def test_a_unit_that_is_killed_is_no_success(tmp_path: Path) -> None:
    unit = Unit(tmp_path, "kill -9 $PPID; sleep 0.1")
    with pytest.raises(FlavourError, match="ended before it was done"):
        ask(unit, Asked.MODULE, "x")


@pytest.mark.parametrize(
    ("said", "lock", "cause"),
    [
        (
            "modprobe: FATAL: Module x not found in directory /lib/modules/6.1",
            ModuleLock(),
            "no such module: ",
        ),
        (
            "modprobe: ERROR: Error running install command '/bin/false' for module x: retcode 1",
            ModuleLock(),
            "modprobe.d has a command of its own for it: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Key was rejected by service",
            ModuleLock(),
            "signature refused: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Required key not available",
            ModuleLock(),
            "signature refused: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Operation not permitted",
            ModuleLock(are_disabled=True),
            "no module can be loaded until the next boot (kernel.modules_disabled): ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Operation not permitted",
            ModuleLock(lockdown="integrity"),
            "the kernel is locked down (integrity), and the module not signed: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Operation not permitted",
            ModuleLock(lockdown="none"),
            "refused by a security module, or by module_blacklist= for it or one that it needs: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Permission denied",
            ModuleLock(lockdown="integrity"),
            "refused by a security module, or by module_blacklist= for it or one that it needs: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Unknown symbol in module, or unknown parameter",
            ModuleLock(),
            "a symbol or parameter of it is not known to the kernel: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Invalid argument",
            ModuleLock(),
            "its init failed, or a parameter or symbol does not fit: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Cannot allocate memory",
            ModuleLock(),
            "out of memory: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': Exec format error",
            ModuleLock(),
            "built for another kernel: ",
        ),
        (
            "modprobe: ERROR: could not insert 'x': No such device",
            ModuleLock(lockdown="integrity"),
            "its init failed: ",
        ),
        ("modprobe: ERROR: something else", ModuleLock(), "something else"),
    ],
)
def test_the_causes_are_told_apart_and_modprobes_own_words_are_kept(
    said: str, lock: ModuleLock, cause: str
) -> None:
    told = explain_failure(1, f"a warning\n{said}\n", lock)
    assert told.startswith(cause)
    assert told.endswith(said.partition(": ")[2].partition(": ")[2])
