"""python3 -m bench: measure, and say how it compares."""

import argparse
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.guest.conftest import DEB, LET_GO
from tests.guest.image import DEFAULT_RELEASE, RELEASES, build_image
from tests.guest.vm import Guest

from . import ROOT
from .chart import draw
from .docs import write_docs
from .measure import FULL, QUICK, Row, Scale
from .subjects import IN_GUEST, NAMES, NATIVE
from .table import lay_out, render_markdown

# For the guest of the benches only.
LIBVIRT = ("libvirt-daemon-system", "libvirt-clients")


@dataclass(frozen=True, slots=True)
class Measured:
    name: str
    title: str
    where: str
    rows: Sequence[Row]


@dataclass(slots=True)
class Run:
    """One that fails doesn't lose the others."""

    measured: list[Measured] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def take(self, name: str, title: str, where: str, measure: Callable[[], list[Row]]) -> bool:
        with self.noting(name):
            begin = time.monotonic()
            _tell(f"{name} …")
            rows = measure()
            _tell(f"{name}: {time.monotonic() - begin:.0f} s\n{lay_out(rows)}")
            self.measured.append(Measured(name, title, where, rows))
            return True
        return False

    @contextmanager
    def noting(self, *names: str) -> Iterator[None]:
        try:
            yield
        except Exception:  # noqa: BLE001 - whatever it was, the others are measured all the same
            _tell(f"{', '.join(names)}: failed\n{traceback.format_exc()}")
            self.failed += [name for name in names if name not in self.failed]


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    scale = QUICK if options.quick else FULL
    run = Run()
    machine = f"{time.strftime('%Y-%m-%d')}, {_find_processor()}"
    for subject in NATIVE:
        if subject.name in options.only:
            where = f"{machine}, natively, Python {platform.python_version()}"
            run.take(subject.name, subject.title, where, partial(subject.measure, scale))
    wanted = [subject for subject in IN_GUEST if subject.name in options.only]
    if wanted:
        with run.noting(*(subject.name for subject in wanted)):
            _measure_in_guest(run, scale, options.release, options.deb, machine, options.only)
    _write(run, options.out)
    if options.write_docs:
        for each in run.measured:
            with run.noting(each.name):
                write_docs(each.name, each.title, each.where, each.rows)
    if run.failed:
        _tell(f"failed: {', '.join(run.failed)}")
    return 1 if run.failed else 0


def _measure_in_guest(
    run: Run, scale: Scale, release: str, deb: Path, machine: str, only: Sequence[str]
) -> None:
    _tell(f"a guest with Debian {release} and libvirt …")
    image = build_image(RELEASES[release], deb, LIBVIRT)
    with Guest(image) as guest:
        # Each bench that needs it starts it.
        guest.run(
            "systemctl disable --now libvirtd.service libvirtd{,-ro,-admin}.socket virtlogd.socket",
            check=False,
        )
        kernel = guest.run("uname -r").stdout.strip()
        where = f"{machine}, emulated with 2 processors, Debian {release}, kernel {kernel}"
        for subject in IN_GUEST:
            if subject.name not in only:
                continue
            if not run.take(subject.name, subject.title, where, partial(subject.measure, guest, scale)):
                guest.run(LET_GO, check=False, timeout=300)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m bench", description="What vfio-flavourd costs, beside what else does the same."
    )
    parser.add_argument(
        "--quick", action="store_true", help="as little as shows that it works; the figures mean nothing"
    )
    parser.add_argument(
        "--only", action="append", choices=NAMES, help="measure this, and what else is named so"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / ".build/bench",
        metavar="DIR",
        help="where the results go (default: .build/bench)",
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="put the tables and pictures into docs/ too"
    )
    parser.add_argument(
        "--release", choices=sorted(RELEASES), default=DEFAULT_RELEASE, help="the guest's Debian"
    )
    parser.add_argument("--deb", type=Path, default=DEB, help="the package (default: that of `make deb`)")
    options = parser.parse_args(argv)
    options.only = options.only or NAMES
    return options


def _write(run: Run, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(
        f"## {each.title}\n\n{each.where}\n\n{render_markdown(each.rows)}\n" for each in run.measured
    )
    (out / "results.md").write_text(text, encoding="utf-8")
    data = {
        each.name: [{"what": row.what, "unit": row.unit, "samples": dict(row.samples)} for row in each.rows]
        for each in run.measured
    }
    (out / "results.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for each in run.measured:
        (out / f"{each.name}.svg").write_text(draw(each.title, each.rows), encoding="utf-8")
    _tell(f"written to {str(out)!r}")


def _find_processor() -> str:
    named = re.search(
        r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    return f"{os.cpu_count()} x {named[1] if named else platform.machine()}"


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
