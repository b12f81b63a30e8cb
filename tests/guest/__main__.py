"""python3 -m tests.guest build | boot | run -- COMMAND"""

import argparse
import sys
from pathlib import Path

from .errors import RigError
from .image import DEFAULT_RELEASE, RELEASES, Image, build_image
from .vm import Guest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.guest", description="The test guest, by hand.")
    parser.add_argument("verb", choices=["build", "boot", "run"], help="boot reads commands from stdin")
    parser.add_argument("--release", choices=RELEASES, default=DEFAULT_RELEASE)
    parser.add_argument("--deb", type=Path, help="the package to install in the guest")
    parser.add_argument("--timeout", type=float, default=600, help="for each command, in seconds")
    arguments, command = _split(sys.argv[1:])
    options = parser.parse_args(arguments)
    try:
        image = build_image(RELEASES[options.release], options.deb)
        if options.verb == "build":
            print(image.disk)
            return 0
        return _with_guest(image, options.verb == "boot", " ".join(command), options.timeout)
    except RigError as error:
        print(error, file=sys.stderr)
        return 1


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
