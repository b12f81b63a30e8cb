"""What it costs to start flavourctl, as a program that ends when it has its answer.

Everything runs on this machine. `list` has its answer, 300 devices, from a stand-in that has it ready;
driverctl and virsh, where they are installed, list the devices that this machine has, which are fewer.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_kernel import make_engine
from large_host import LargeHost
from served import serve

from vfio_flavourd.doors.blocking_client import Connection

from . import ROOT
from .measure import Row, Scale, Side, run_rounds, timed
from .resolution import DEVICE, WHERE_PROGRAMS_ARE, WINNER, Tree

# As the package's launcher starts it: without `site`.
PYTHON = [sys.executable, "-I", "-S", "-c"]
RUN = """\
import sys
sys.path.insert(0, sys.argv[1])
from vfio_flavourd.doors import blocking_client
blocking_client.READ_ONLY_SOCKET = sys.argv[2]
from vfio_flavourd.cli.main import main
sys.exit(main(sys.argv[3:]))
"""
LIST, RESOLVE, NOTHING = "flavourctl list", "flavourctl resolve", "python3 -IS -c pass"
DRIVERCTL, VIRSH, MODPROBE = "driverctl list-devices", "virsh nodedev-list", "modprobe -R"
# Milliseconds until `list` has ended.
LIMIT = 60.0


def measure(scale: Scale) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        answer = _make_answer(root / "host")
        with _stand_in(root / "socket", answer):
            listing = run_rounds(_list_sides(root / "socket"), scale.rounds, warm_up=scale.warm_up)[""]
        tree = Tree(root / "tree", scale.aliases[0], scale.modules)
        resolving = run_rounds(_resolve_sides(tree), scale.rounds, warm_up=scale.warm_up)[""]
    return [
        Row("list, 300 devices", "ms", LIST, listing, {DRIVERCTL: 1.0}, limit=LIMIT),
        Row(f"resolve, {scale.aliases[0]:,} lines", "ms", RESOLVE, resolving),
    ]


def _list_sides(socket_path: Path) -> dict[str, Side]:
    sides: dict[str, Side] = {
        LIST: _process([*PYTHON, RUN, str(ROOT), str(socket_path), "list"], "0000:20:01.0"),
        NOTHING: _process([*PYTHON, "pass"]),
    }
    for command in ([*DRIVERCTL.split()], [*VIRSH.split(), "--cap", "pci"]):
        if _works(command):
            sides[" ".join(command[:2])] = _process(command)
    return sides


def _resolve_sides(tree: Tree) -> dict[str, Side]:
    where = ["--modules-dir", str(tree.modules_dir), "--modprobe-d", str(tree.conf)]
    return {
        RESOLVE: _process([*PYTHON, RUN, str(ROOT), "-", "resolve", DEVICE, *where], WINNER),
        MODPROBE: timed(tree.ask_modprobe),
    }


def _process(command: Sequence[str], says: str = "") -> Side:
    environment = {**os.environ, "PATH": WHERE_PROGRAMS_ARE}

    def run() -> None:
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        assert says in done.stdout, done.stdout

    return timed(run)


def _works(command: Sequence[str]) -> bool:
    """virsh is of no use where no libvirtd runs, driverctl where there is no PCI bus."""
    environment = {**os.environ, "PATH": WHERE_PROGRAMS_ARE}
    if shutil.which(command[0], path=WHERE_PROGRAMS_ARE) is None:
        return False
    done = subprocess.run(command, check=False, env=environment, capture_output=True)
    return done.returncode == 0 and bool(done.stdout)


def _make_answer(root: Path) -> bytes:
    """What the daemon of a host with 300 devices answers to List."""
    host = LargeHost(root)

    def ask() -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(root / "readonly"))
            return Connection(sock).call("List")

    async def serve_it() -> dict[str, Any]:
        async with serve(make_engine(host.kernel), root, host.find_name):
            return await asyncio.to_thread(ask)

    return json.dumps({"parameters": asyncio.run(serve_it())}).encode() + b"\0"


@contextmanager
def _stand_in(path: Path, answer: bytes) -> Iterator[None]:
    """Gives everyone that answer, whatever is asked."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    if not connection.recv(65536):
                        return
                    connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
            serving.join()
