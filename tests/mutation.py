"""python -m tests.mutation [AREA…] [--children N]: which changes to the code no unit test notices.

Each area is run by mutmut in a copy of the tree, .build/mutation/AREA, from nothing; the table that it ends
with is docs/mutation.md's. There, `mutmut show NAME` shows a change and `mutmut run NAME` tries it again.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_MODEL, _ENGINE = "vfio_flavourd/model", "vfio_flavourd/engine"
_COPIED = ("dracut", "initramfs-tools", "libexec", "schemas", "tests", "tools", "vfio_flavourd")
# A change may make a loop endless, and what it gathers with it.
_MEMORY = 6 << 30
# mutmut's exit codes that aren't a timeout.
_OUTCOMES = {0: "survived", 1: "killed", 3: "killed", 33: "not run", 34: "not run", None: "not run"}


@dataclass(frozen=True, slots=True)
class Area:
    """What is changed, and the tests of tests/unit that are to notice."""

    files: tuple[str, ...]
    tests: tuple[str, ...]

    def render_config(self) -> str:
        """As a setup.cfg, which mutmut reads where pyproject.toml has nothing for it."""
        values = {
            "source_paths": ["vfio_flavourd"],
            "only_mutate": self.files,
            "also_copy": [each for each in _COPIED if each not in ("tests", "vfio_flavourd")],
            "pytest_add_cli_args_test_selection": [f"tests/unit/test_{each}.py" for each in self.tests],
            "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        }
        lists = [f"{name} =" + "\n    ".join(["", *each]) + "\n" for name, each in values.items()]
        # A survivor's time may be three times that of the tests unchanged, and 9 s more.
        return "[mutmut]\n" + "".join(lists) + "timeout_multiplier = 3\ntimeout_constant = 3\n"


AREAS = {
    "resolution": Area(
        tuple(
            f"{_MODEL}/{each}.py"
            for each in (
                "alias_pattern",
                "aliases",
                "modalias",
                "modprobe_conf",
                "module_files",
                "ranking",
                "resolution",
            )
        ),
        (
            "modalias",
            "resolution_files",
            "resolution_kmod",
            "resolution_rules",
            "modules",
            "import",
            "early_rules",
        ),
    ),
    "policy": Area((f"{_MODEL}/policy.py",), ("policy", "config_values", "config_files", "import")),
    "switch": Area(
        (
            f"{_MODEL}/plan.py",
            f"{_MODEL}/transition.py",
            f"{_ENGINE}/switch.py",
            f"{_ENGINE}/moves.py",
            f"{_ENGINE}/to_vfio.py",
            f"{_ENGINE}/to_native.py",
        ),
        (
            "switch",
            "transition",
            "guards",
            "groups",
            "own_flavours",
            "faults_transition",
            "faults_state",
            "history",
            "together",
            "recovery",
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=", ".join(AREAS))
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, metavar="N")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for name in arguments.areas or AREAS:
        tree = Path(".build/mutation", name)
        _lay_out(tree, AREAS[name])
        command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", str(arguments.children)]
        log = tree / "mutmut.log"
        with log.open("wb") as file:
            failed = subprocess.run(command, cwd=tree, stdout=file, stderr=file, check=False).returncode
        if failed:
            sys.exit(f"mutmut failed, see {log}")
        _tell(tree, AREAS[name])


def _lay_out(tree: Path, area: Area) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    for folder in _COPIED:
        shutil.copytree(folder, tree / folder)
    shutil.copy("pyproject.toml", tree)
    (tree / "setup.cfg").write_text(area.render_config(), encoding="ascii")


def _tell(tree: Path, area: Area) -> None:
    columns = ("killed", "timed out", "survived", "not run")
    print(f"| file | changes | {' | '.join(columns)} |")
    print(f"|---|{'--:|' * (1 + len(columns))}")
    left = []
    for file in area.files:
        meta = json.loads((tree / f"mutants/{file}.meta").read_text(encoding="utf-8"))
        outcomes = {name: _OUTCOMES.get(code, "timed out") for name, code in meta["exit_code_by_key"].items()}
        counted = Counter(outcomes.values())
        print(f"| {file} | {len(outcomes)} | {' | '.join(str(counted[each]) for each in columns)} |")
        left += [name for name, outcome in outcomes.items() if outcome in ("survived", "not run")]
    print("\n".join(left))


if __name__ == "__main__":
    main()
