"""Where the time of one switch goes, layer by layer, in the guest.

    python3 -m bench.layers [--rounds 20] [--svg FILE] --deb dist/vfio-flavourd_<version>_all.deb

The daemon and the file system run as they are installed, but for a few of their functions, which note when
they are passed (CLOCK_MONOTONIC, which is one for all processes). What lies between two marks is a layer.
Each is told by its median over the rounds, so they need not add up to the median of the whole.

User space is 10 to 30 times slower in an emulated guest than natively.
"""

import argparse
import atexit
import importlib
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

_PACKAGE = Path("/usr/share/vfio-flavourd")
_HERE = _PACKAGE / "layers.py"
_MAIN = {"daemon": "vfio_flavourd.daemon", "fs": "vfio_flavourd.doors.fs.main"}
_UNITS = {"daemon": "vfio-flavourd.service", "fs": "vfio-flavour-fs.service"}

# The marks in the order in which a switch passes them: what ends there, in which process, and the function
# that is passed (with a * when it returns). The worker's come from the times that it notes itself.
_MARKS = (
    ("open the file, into the file system", "fs", "doors.fs.operations:FlavourFs.write"),
    ("file system: until it calls", "fs", "doors.client:Client.call"),
    ("socket, wake the daemon", "daemon", "doors.connections:_Connection._take"),
    ("varlink: parse the call", "daemon", "engine.engine:Engine.set_flavour"),
    ("engine: read the device, get its turn", "daemon", "engine.engine:judge"),
    ("engine: who uses it, and its group", "daemon", "engine.engine:judge*"),
    ("engine: resolve and plan", "daemon", "engine.ledger:Ledger.write"),
    ("ledger: write and sync", "daemon", "engine.ledger:Ledger.write*"),
    ("hand over, wake the worker", "worker", ""),
    ("kernel: the writes", "worker", ""),
    ("worker: read back, wake the daemon", "daemon", "kernel.hands:Hands._finish"),
    ("engine: judge, keep record and wish", "daemon", "engine.engine:Engine.set_flavour*"),
    ("varlink: back to the connection", "daemon", "doors.connections:_Connection._send"),
    ("varlink: render, socket, wake the file system", "fs", "doors.client:Client.call*"),
    ("file system: answer, wake the writer", "writer", ""),
)

_passed: list[tuple[str, int]] = []


def serve(process: str) -> int:
    """Run one of the processes with its marks; they are written down at its end."""
    sys.path.insert(0, str(_PACKAGE))
    for layer, where, function in _MARKS:
        if where == process:
            _mark(layer, function)
    if process == "daemon":
        _mark_the_worker()
        journal: Any = importlib.import_module("vfio_flavourd.journal")
        journal.leave = int  # it comes back with the status: there are the marks to write down yet
    path = Path(f"/run/vfio-flavourd/layers-{process}.json")
    atexit.register(lambda: path.write_text(json.dumps(_passed), encoding="ascii"))
    main = importlib.import_module(_MAIN[process]).main
    return int(main([]))


def _mark(layer: str, function: str) -> None:
    module, name = function.removesuffix("*").split(":")
    holder: Any = importlib.import_module(f"vfio_flavourd.{module}")
    *parents, name = name.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    marked = getattr(holder, name)

    def on_the_way_in(*args: Any, **named: Any) -> Any:
        _note(layer)
        return marked(*args, **named)

    def on_the_way_out(*args: Any, **named: Any) -> Any:
        result = marked(*args, **named)
        if inspect.isawaitable(result):
            return _note_after(layer, result)
        _note(layer)
        return result

    setattr(holder, name, on_the_way_out if function.endswith("*") else on_the_way_in)


def _note(layer: str) -> None:
    _passed.append((layer, time.monotonic_ns()))


async def _note_after(layer: str, work: Awaitable[Any]) -> Any:
    result = await work
    _note(layer)
    return result


def _mark_the_worker() -> None:
    """By its own times of the writes; what is expected before them, and read after them, is no write."""
    from vfio_flavourd.kernel import hands

    woken, written = (layer for layer, where, _ in _MARKS if where == "worker")
    finish = hands.Hands._finish

    def note_and_finish(self: Any, hand: Any) -> None:
        first, last = hand.results[0], hand.results[-4]  # read back are three things
        _passed.append((woken, int(first.start * 1e9)))
        _passed.append((written, int(last.end * 1e9)))
        finish(self, hand)

    hands.Hands._finish = note_and_finish  # type: ignore[method-assign]


def write(path: str, rounds: int) -> int:
    """Write both flavours in turn, and tell when."""
    laps = []
    for number in range(rounds + 1):
        for flavour in ("vfio", "native"):
            subprocess.run(["udevadm", "settle"], check=True)
            begin = time.monotonic_ns()
            file = os.open(path, os.O_WRONLY | os.O_TRUNC)
            os.write(file, f"{flavour}\n".encode())
            end = time.monotonic_ns()
            os.close(file)
            if number:  # the first round warms up
                laps.append((flavour, begin, end))
    print(json.dumps(laps))
    return 0


def split(
    laps: list[tuple[str, int, int]], passed: list[tuple[str, int]]
) -> dict[str, dict[str, list[float]]]:
    """By flavour and layer, the milliseconds of each round."""
    times: dict[str, dict[str, list[float]]] = {}
    for flavour, begin, end in laps:
        at = begin
        for layer, where, _ in _MARKS:
            when = [time for each, time in passed if each == layer and at <= time <= end]
            mark = end if where == "writer" else min(when, default=at)
            times.setdefault(flavour, {}).setdefault(layer, []).append((mark - at) / 1e6)
            at = mark
    return times


def draw(times: dict[str, dict[str, list[float]]], subtitle: str) -> str:
    """A bar for each flavour's layers, one below the other on one axis, with what each takes."""
    from vfio_flavourd.cli.palette import BLACK, BLUE, GREEN, GREY
    from vfio_flavourd.cli.svg import Svg

    medians = {
        flavour: {layer: statistics.median(each) for layer, each in layers.items()}
        for flavour, layers in times.items()
    }
    longest = max(sum(layers.values()) for layers in medians.values())
    bar_at, bar_width, line = 300.0, 560.0, 18.0
    picture = Svg("Where the time of a switch goes")
    picture.text(24, 40, "Where the time of a switch goes", size=20, fill=BLACK, font_weight="bold")
    picture.text(24, 58, subtitle, size=11, fill=GREY)
    y = 76.0
    for flavour, layers in medians.items():
        total = sum(layers.values())
        y += line
        picture.text(24, y, f"to {flavour}: {total:.1f} ms", size=14, fill=BLACK, font_weight="bold")
        at = 0.0
        for layer, took in layers.items():
            y += line
            with picture.titled(f"{layer}: {took:.2f} ms"):
                picture.text(24, y, layer, size=11, fill=BLACK)
                picture.rectangle(
                    bar_at + bar_width * at / longest,
                    y - 10,
                    max(bar_width * took / longest, 1),
                    12,
                    fill=GREEN if layer.startswith("kernel") else BLUE,
                )
                picture.text(
                    bar_at + bar_width + 80, y, f"{took:.2f} ms", size=11, fill=BLACK, text_anchor="end"
                )
            at += took
        y += line
    return picture.render(bar_at + bar_width + 104, y + 12)


_UNIT = """[Service]
ExecStart=
ExecStart=/usr/bin/python3 -I {here} --serve {process}
"""


def measure(options: argparse.Namespace) -> int:
    from tests.guest.devices import ROLES
    from tests.guest.image import RELEASES, build_image
    from tests.guest.vm import Guest

    role = ROLES["good"]
    with Guest(build_image(RELEASES[options.release], options.deb)) as guest:
        guest.push(Path(__file__), str(_HERE))
        guest.run("modprobe vft_good; modprobe vfio-pci")
        for process, unit in _UNITS.items():
            directory = f"/run/systemd/system/{unit}.d"
            text = _UNIT.format(here=_HERE, process=process)
            guest.run(f"mkdir -p {directory}; cat > {directory}/layers.conf <<'EOF'\n{text}EOF")
        guest.run("systemctl daemon-reload; systemctl restart vfio-flavourd vfio-flavour-fs")
        path = f"/run/vfio-flavour/{role.bdf}/driver_flavour"
        said = guest.run(f"python3 -I {_HERE} --write {path} --rounds {options.rounds}", timeout=1800).stdout
        guest.run("systemctl stop vfio-flavour-fs vfio-flavourd")
        passed = [
            mark
            for process in _UNITS
            for mark in json.loads(guest.read(f"/run/vfio-flavourd/layers-{process}.json"))
        ]
    times = split(json.loads(said), passed)
    for flavour, layers in times.items():
        print(f"to {flavour}; guest ms, median (minimum..maximum) of {options.rounds} rounds")
        for layer, each in layers.items():
            print(f"  {layer:40} {statistics.median(each):7.2f} ({min(each):.2f}..{max(each):.2f})")
    if options.svg:
        subtitle = f"Debian {options.release} emulated, {options.rounds} rounds, medians; modules loaded"
        options.svg.write_text(draw(times, subtitle), encoding="ascii")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Where the time of one switch goes.")
    parser.add_argument("--release", default="trixie")
    parser.add_argument("--deb", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--svg", type=Path, help="where to draw it")
    parser.add_argument(
        "--serve", choices=_UNITS, help="in the guest: run one of the processes with its marks"
    )
    parser.add_argument("--write", help="in the guest: the file to write to")
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    if options.write:
        return write(options.write, options.rounds)
    if options.deb is None:
        parser.error("--deb is needed")
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
