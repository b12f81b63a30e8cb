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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_COPIED = ("dracut", "libexec", "schemas", "tests", "tools", "vfio_flavourd")
# A change may make a loop endless, and what it gathers with it.
_MEMORY = 6 << 30
# Of mutmut's exit codes those that aren't a timeout's.
_OUTCOMES = {0: "survived", 1: "killed", 3: "killed", 33: "not run", 34: "not run", None: "not run"}
_COLUMNS = ("killed", "timed out", "survived", "not run")


@dataclass(frozen=True, slots=True)
class Area:
    """What is changed, and the files of tests/unit that are to notice.

    `slow` are words in the names of tests, or of their files, which take longer than all the others together:
    only what survives those is tried with these.
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    slow: tuple[str, ...] = ()


AREAS = {
    "resolution": Area(
        (
            "model/alias_pattern",
            "model/aliases",
            "model/modalias",
            "model/modprobe_conf",
            "model/module_files",
            "model/ranking",
            "model/resolution",
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
        slow=(
            "a_hundred_thousand",
            "agrees_with_the_c_library",
            "any_text",
            "are_bounded",
            "no_index_and_no_command_line",
            "the_narrower_pattern_wins",
            "the_same_modules_match",
        ),
    ),
    "policy": Area(("model/policy",), ("policy", "config_values", "config_files", "import")),
    "switch": Area(
        (
            "model/plan",
            "model/transition",
            "engine/switch",
            "engine/steps",
            "engine/undo",
            "engine/moves",
            "engine/to_vfio",
            "engine/to_native",
        ),
        (
            "switch",
            "transition",
            "undo",
            "guards",
            "own_flavours",
            "faults_transition",
            "faults_state",
            "history",
            "together",
            "recovery",
            "reconcile",
            "early_rules",
        ),
        slow=(
            "test_together",
            "test_recovery",
            "test_reconcile",
            "going_back_has_its_full_time",
            "killed_at",
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=", ".join(AREAS))
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, metavar="N")
    arguments = parser.parse_args()
    if unknown := set(arguments.areas) - set(AREAS):
        parser.error(f"no such area: {', '.join(sorted(unknown))}")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for name in arguments.areas or AREAS:
        _try(Path(".build/mutation", name), AREAS[name], arguments.children)


def _try(tree: Path, area: Area, children: int) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    for folder in _COPIED:
        shutil.copytree(folder, tree / folder)
    shutil.copy("pyproject.toml", tree)
    outcomes = _run(tree, area, children, leave_out=area.slow)
    left = [name for name, outcome in outcomes.items() if outcome in ("survived", "not run")]
    if area.slow and left:
        print(f"{len(left)} changes are left for the slow tests:", *left, sep="\n", flush=True)
        again = _run(tree, area, children, *left)
        outcomes |= {name: again[name] for name in left}
    print(f"| file | changes | {' | '.join(_COLUMNS)} |\n|---|{'--:|' * (1 + len(_COLUMNS))}")
    for file in area.files:
        module = f"vfio_flavourd.{file.replace('/', '.')}."
        counted = Counter(outcome for name, outcome in outcomes.items() if name.startswith(module))
        print(f"| {file}.py | {counted.total()} | {' | '.join(str(counted[each]) for each in _COLUMNS)} |")
    print("\n".join(name for name, outcome in outcomes.items() if outcome in ("survived", "not run")))


def _run(
    tree: Path, area: Area, children: int, *changes: str, leave_out: tuple[str, ...] = ()
) -> dict[str, str]:
    """How each change came out, all of them or the ones that are named."""
    (tree / "setup.cfg").write_text(_render_config(area, leave_out), encoding="ascii")
    log = tree / "mutmut.log"
    with log.open("ab") as file:
        mutmut = Path(sys.executable).with_name("mutmut")
        command = [str(mutmut), "run", "--max-children", str(children), *changes]
        if subprocess.run(command, cwd=tree, stdout=file, stderr=file, check=False).returncode:
            sys.exit(f"mutmut failed, see {log}")
    outcomes = {}
    for each in area.files:
        meta = json.loads((tree / f"mutants/vfio_flavourd/{each}.py.meta").read_text(encoding="utf-8"))
        for name, code in meta["exit_code_by_key"].items():
            outcomes[name] = _OUTCOMES.get(code, "timed out")
    return outcomes


def _render_config(area: Area, leave_out: tuple[str, ...]) -> str:
    """As a setup.cfg, which mutmut reads where pyproject.toml has nothing for it."""
    chosen = ["-k", f"not ({' or '.join(leave_out)})"] if leave_out else []
    values: dict[str, Sequence[str]] = {
        "source_paths": ["vfio_flavourd"],
        "only_mutate": [f"vfio_flavourd/{each}.py" for each in area.files],
        "also_copy": [each for each in _COPIED if each not in ("tests", "vfio_flavourd")],
        "pytest_add_cli_args_test_selection": [f"tests/unit/test_{each}.py" for each in area.tests],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", *chosen],
    }
    lists = [f"{name} =" + "\n    ".join(["", *each]) + "\n" for name, each in values.items()]
    # The tests of a change may take three times as long as without it, and 30 s more.
    return "[mutmut]\n" + "".join(lists) + "timeout_multiplier = 3\ntimeout_constant = 10\n"


if __name__ == "__main__":
    main()
