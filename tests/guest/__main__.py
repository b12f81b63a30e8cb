"""python3 -m tests.guest build | boot | demo | run -- COMMAND"""

import argparse
import sys
from pathlib import Path

from .demo import run_demo
from .errors import RigError
from .image import DEFAULT_RELEASE, RELEASES, Image, build_image
from .vm import Guest

DIST = Path(__file__).parents[2] / "dist"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.guest", description="The test guest, by hand.")
    verbs = ["build", "boot", "demo", "run"]
    parser.add_argument("verb", choices=verbs, help="boot reads commands from stdin")
    parser.add_argument("--release", choices=RELEASES, default=DEFAULT_RELEASE)
    parser.add_argument("--deb", type=Path, help="the package to install in the guest")
    parser.add_argument("--timeout", type=float, default=600, help="for each command, in seconds")
    arguments, command = _split(sys.argv[1:])
    options = parser.parse_args(arguments)
    try:
        if options.verb == "demo" and options.deb is None:
            options.deb = _find_deb()
        image = build_image(RELEASES[options.release], options.deb)
        if options.verb == "build":
            print(image.disk)
            return 0
        if options.verb == "demo":
            return run_demo(image)
        return _with_guest(image, options.verb == "boot", " ".join(command), options.timeout)
    except RigError as error:
        print(error, file=sys.stderr)
        return 1


def _find_deb() -> Path:
    """What `make deb` wrote. Raises RigError."""
    built = sorted(DIST.glob("vfio-flavourd_*_all.deb"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise RigError(f"there is no package in '{DIST}': `make deb` builds it, or name one with --deb")
    return built[-1]


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _with_guest(image: Image, from_stdin: bool, command: str, timeout: float) -> int:
    with Guest(image) as guest:
        boot = f"{image.release.name} {guest.state} after {guest.boot_seconds:.0f} s"
        print(f"{boot}; console: '{guest.console}'", file=sys.stderr)
        if not from_stdin:
            return _run(guest, command, timeout)
        print("one bash command a line; end of file ends the guest", file=sys.stderr)
        for line in sys.stdin:
            if (rc := _run(guest, line, timeout)) != 0:
                print(f"[exited with {rc}]", file=sys.stderr)
        return 0


def _run(guest: Guest, command: str, timeout: float) -> int:
    result = guest.run(command, timeout=timeout, check=False)
    print(result.stdout, end="", flush=True)
    print(result.stderr, end="", file=sys.stderr)
    return result.rc


if __name__ == "__main__":
    sys.exit(main())
