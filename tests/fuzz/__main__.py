"""python -m tests.fuzz [TARGET…] [--runs N]: coverage-guided, one target after the other.

What it learns is kept in .build/fuzz, where the next run begins. Data that is a finding is written there too;
it goes to the corpus with the fix.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from .names import HERE, TARGETS, load

_KEPT = Path(".build/fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=10_000_000)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if arguments.here:
        _fuzz(arguments.targets[0], arguments.runs)
    status = 0
    for target in arguments.targets or TARGETS:
        # It ends its process.
        command = [sys.executable, "-m", "tests.fuzz", target, "--runs", str(arguments.runs), "--here"]
        print(f"--- {target}", flush=True)
        status |= subprocess.run(command, check=False).returncode
    return int(status != 0)


def _fuzz(target: str, runs: int) -> None:
    import atheris

    sys.path.insert(0, str(HERE.parent / "unit"))  # the fake kernel
    with atheris.instrument_imports(include=["vfio_flavourd", "asyncvarlink"]):
        one = load(target)
    learnt = _KEPT / target
    learnt.mkdir(parents=True, exist_ok=True)
    options = [f"-runs={runs}", "-max_len=1024", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]
    if (words := HERE / "words" / f"{target}.txt").exists():
        options.append(f"-dict={words}")
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={learnt}-", str(learnt), str(HERE / "corpus" / target)],
        one,
    )
    atheris.Fuzz()


sys.exit(main())
