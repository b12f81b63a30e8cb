"""What flavourctl says on a host with 300 devices, word for word: golden/large-host/*.txt.

`GOLDEN=write .venv/bin/pytest tests/unit/test_golden.py` writes them anew; look at the difference then.
"""

import asyncio
import contextlib
import io
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from fake_kernel import RELEASE, make_engine
from large_host import LargeHost
from policies import load
from served import Said, listened_to, serve, start_piped

from tests.outputs import validate_output
from vfio_flavourd.cli import doctor, importing, policy, resolve
from vfio_flavourd.cli.main import main
from vfio_flavourd.config.load import load_policy
from vfio_flavourd.doors import blocking_client
from vfio_flavourd.kernel.index import ModuleIndex
from vfio_flavourd.kernel.sysfs import Sysfs

GOLDEN = Path(__file__).parent / "golden/large-host"

GPU, VF, DISK, NIC, UNKNOWN = "10:00.0", "20:01.0", "10000:81:00.0", "40:00.0", "70:00.0"

# Said one after the other, to one daemon; each file has what its commands come to.
SESSION = {
    "list": ["list"],
    "list-columns": ["list --columns device,ids,class,node,before,policy,slot --noheadings"],
    "list-wrong-column": ["list --columns device,drvier"],
    "set": [
        f"set {VF} vfio",
        f"set {VF} vfio",
        f"set {NIC} vfio --strict",
        f"set {NIC} native",
        f"set {GPU} vfio",
        f"set {GPU} vfio --dry-run",
        f"set {DISK} vfio",
        f"set {UNKNOWN} vfio",
        f"set {NIC} vfio --driver broken",
        "set 0f:00.0 vfio",
        "set 40:00.0 vfoi",
        "set 00:01.0 vfio",
    ],
    "show": [
        f"show {GPU}",
        f"show {VF}",
        f"show {DISK}",
        f"show {NIC}",
        f"show {UNKNOWN}",
        "show 42:00.0",
        "show 00:01.0",
    ],
    "reset": [f"reset {VF}", "reset 42:00.0"],
    "resolve": [f"resolve {GPU}", f"resolve {VF}", "resolve pci:x"],
    "policy": ["check", "cat-config", "reload"],
    "history": ["history"],
    "groups": ["groups"],
    "doctor": ["doctor"],
    "explain": ["explain", "explain in-use", "explain EBUSY", "explain in-sue"],
    "import": ["import driverctl", "import modprobe"],
}
JSON = [
    "list",
    f"show {GPU}",
    f"set {VF} vfio --dry-run",
    f"set {VF} vfio",
    f"reset {VF}",
    f"resolve {VF}",
    "check",
    "cat-config",
    "reload",
    "show 0f:00.0",
    "history",
    f"plot {VF}",
    "groups",
    "doctor",
    "explain",
    "explain in-use",
    "import driverctl",
]

JOURNAL = """\
Nov 25 19:00:00 host kernel: nouveau 0000:10:00.0: enabling device (0000 -> 0003)
Nov 25 19:00:07 host vfio-flavourd[812]: 0000:10:00.0: nouveau -> vfio-pci in 41 ms: vfio_pci
"""


class Session:
    """What was said, by name."""

    def __init__(self, root: Path) -> None:
        self._host = LargeHost(root)
        self._root = root
        self.texts: dict[str, str] = {}
        self.objects: list[tuple[str, object]] = []
        self.events: list[object] = []

    def hold(self) -> None:
        with (
            start_piped(self._root, "monitor") as follower,
            start_piped(self._root, "monitor", "--json") as events,
        ):
            asyncio.run(self._hold())
            out, err = follower.communicate()
            self.texts["monitor"] = self._render("monitor", Said(follower.returncode, out, err))
            self.events = [json.loads(line) for line in events.communicate()[0].splitlines()]

    async def _hold(self) -> None:
        engine = make_engine(self._host.kernel, load(self._root).policy)
        async with serve(engine, self._root, self._host.find_name):
            await listened_to(engine, by=2)
            for name, commands in SESSION.items():
                told = [self._render(each, await asyncio.to_thread(call, each)) for each in commands]
                self.texts[name] = "\n".join(told)
            for command in JSON:
                said = await asyncio.to_thread(call, f"--json {command}")
                self.objects.append((command.split()[0], json.loads(said.out)))

    def _render(self, command: str, said: Said) -> str:
        """As in a terminal, with standard error marked; without what differs from run to run."""
        text = f"$ flavourctl {command}\n{said.out}"
        text += "".join(f"! {line}\n" for line in said.err.splitlines())
        return normalise(f"{text}[exit status {said.status}]\n", self._root)


def normalise(text: str, root: Path) -> str:
    text = text.replace(str(root), "")
    text = re.sub(r"(?<=after) +(?=\d+ ms:)", " ", text)
    text = re.sub(r"\d+\.\d ms", "1.0 ms", text)
    text = re.sub(r"(?<![.\d])\d+ ms", "1 ms", text)
    text = re.sub(r"(?<=\d ms) {2,}", "  ", text)  # padded to the longest
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-25 19:00:00", text)
    text = re.sub(r"^\d\d:\d\d:\d\d", "19:00:00", text, flags=re.MULTILINE)
    return re.sub(r"uid \d+ pid \d+", "uid 0 pid 812", text)


def call(command: str) -> Said:
    """In this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(shlex.split(command))
    return Said(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Session]:
    root = tmp_path_factory.mktemp("host")
    (root / "journal").write_text(JOURNAL, encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        patch.setenv("FAKE_JOURNAL", str(root / "journal"))
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(blocking_client, "CONTROL_SOCKET", str(root / "control"))
        patch.setattr(blocking_client, "READ_ONLY_SOCKET", str(root / "readonly"))
        patch.setattr(resolve, "Sysfs", lambda: Sysfs(str(root)))
        patch.setattr(resolve, "ModuleIndex", partial(ModuleIndex, root, RELEASE))
        uname = os.uname()
        patch.setattr(
            os, "uname", lambda: type(uname)((uname.sysname, "host", RELEASE, uname.version, "x86_64"))
        )
        for module in (policy, doctor, importing):
            patch.setattr(module, "ROOT", str(root))
        patch.setattr(doctor, "OWNER", os.getuid())
        patch.setattr(policy, "load_policy", lambda where: load_policy(where, owner=os.getuid()))
        session = Session(root)
        session.hold()
        yield session


@pytest.mark.parametrize("name", [*SESSION, "monitor"])
def test_it_says_what_is_written_down(session: Session, name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(session.texts[name], encoding="utf-8")
    assert session.texts[name] == path.read_text(encoding="utf-8")


def test_every_golden_text_is_one_of_a_session() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {*SESSION, "monitor"}


def test_every_object_is_as_the_schema_says(session: Session) -> None:
    verbs: Sequence[str] = [verb for verb, _ in session.objects]
    assert len(verbs) == len(JSON)
    for verb, data in session.objects:
        validate_output(verb, data)


def test_every_event_is_one_line_and_as_the_schema_says(session: Session) -> None:
    assert len(session.events) > 10
    for event in session.events:
        validate_output("monitor", event)
