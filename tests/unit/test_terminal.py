"""flavourctl in a real terminal, narrow and wide, and in pipes."""

import asyncio
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_kernel import FakeKernel, make_engine
from large_host import LargeHost
from policies import load
from served import Terminal, listened_to, serve, start_piped

from vfio_flavourd.cli.terminal import measure, shorten
from vfio_flavourd.engine.engine import Engine

DEVICE = "0000:01:00.0"


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    kernel = FakeKernel(tmp_path)
    kernel.add_native(kernel.add_device(DEVICE))
    return kernel


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LargeHost:
    return LargeHost(tmp_path_factory.mktemp("host"))


def talk(kernel: FakeKernel, story: Callable[[Engine], Awaitable[None]], bind: float = 1.0) -> None:
    """With a daemon that serves at the kernel's root."""

    async def run() -> None:
        engine = make_engine(kernel, load=20.0, bind=bind)
        async with serve(engine, kernel.root, lambda device: "Intel Corporation 82574L Gigabit"):
            await story(engine)

    asyncio.run(run())


def see(large: LargeHost, columns: int, *argv: str, **environment: str) -> Terminal:
    """All that a terminal of that width is told of the large host."""
    seen: list[Terminal] = []

    async def run() -> None:
        root = large.kernel.root
        async with serve(make_engine(large.kernel, load(root).policy), root, large.find_name):
            terminal = Terminal(root, *argv, columns=columns, environment=environment)
            assert await terminal.wait() == 0
            seen.append(terminal)

    asyncio.run(run())
    return seen[0]


# list


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_line_of_a_list_is_wider_than_the_terminal(large: LargeHost, columns: int) -> None:
    lines = see(large, columns, "list").lines
    assert len(lines) == 301
    assert max(map(measure, lines)) <= columns
    assert all(line.split()[0] in {"DEVICE", *large.devices} for line in lines)
    # The longest row, whose name is cut where it must be.
    row = next(line for line in lines if line.startswith("0000:20:01.0"))
    assert row.endswith("…") == (columns < 200)


def test_where_the_others_fit_only_the_last_column_is_shortened(large: LargeHost) -> None:
    lines = see(large, 60, "list", "--columns", "device,driver,name").lines
    assert next(line for line in lines if line.startswith("10000:81:00.0")) == (
        "10000:81:00.0  nvme           Samsung Electronics Co Ltd NV…"
    )
    assert next(line for line in lines if line.startswith("0000:70:00.0")).split() == [
        "0000:70:00.0",
        "-",
        "1af4:1110",
    ]


def test_what_is_piped_is_never_cut_and_has_no_escape_codes(large: LargeHost) -> None:
    async def run() -> str:
        root = large.kernel.root
        async with serve(make_engine(large.kernel, load(root).policy), root, large.find_name):
            with start_piped(root, "list") as process:
                return (await asyncio.to_thread(process.communicate))[0]

    said = asyncio.run(run())
    assert "\x1b" not in said
    assert "…" not in said
    assert max(map(len, said.splitlines())) > 100


@pytest.mark.parametrize(
    ("argv", "environment", "coloured"),
    [
        ([], {}, True),
        (["--no-color"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
    ],
)
@pytest.mark.parametrize("verb", [["list"], ["show", "10:00.0"]])
def test_a_terminal_has_colours_unless_they_are_refused(
    large: LargeHost, verb: list[str], argv: list[str], environment: dict[str, str], coloured: bool
) -> None:
    assert ("\x1b[" in see(large, 80, *verb, *argv, **environment).text) == coloured


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("ab cdef", 4, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
    ],
)
def test_a_text_is_shortened_to_the_columns_that_it_takes(text: str, width: int, shown: str) -> None:
    assert shorten(text, width) == shown


# show


def test_a_long_row_of_show_goes_on_below_itself(large: LargeHost) -> None:
    lines = see(large, 80, "show", "20:01.0").lines
    at = next(number for number, line in enumerate(lines) if line.startswith("    policy: "))
    assert lines[at].startswith("    policy: vfio, by rule 'virtual functions of the fabric'")
    assert lines[at + 1].startswith(" " * 12 + "(/")


def test_at_80_columns_no_line_of_show_is_wider(large: LargeHost) -> None:
    for device in ("10:00.1", "20:01.0", "10000:81:00.0"):
        lines = see(large, 80, "show", device).lines
        # A word stays whole, and the rule's file is deep down here.
        assert max(measure(line) for line in lines if str(large.kernel.root) not in line) <= 80


# set


def test_set_shows_the_step_that_is_under_way_and_then_its_time(kernel: FakeKernel) -> None:
    hang = kernel.modules["vfio_pci"].hang = asyncio.Event()

    async def story(engine: Engine) -> None:
        terminal = Terminal(kernel.root, "set", DEVICE, "vfio")
        await terminal.wait_for("load vfio_pci … ")  # so many seconds
        hang.set()
        assert await terminal.wait() == 0
        shown = [line.split(" (")[0] for line in terminal.lines]
        assert shown[:5] == [
            "  load vfio_pci",
            "  set driver_override to vfio-pci",
            "  unbind from e1000e",
            "  bind to vfio-pci",
            "  read back what it has",
        ]
        assert shown[5].startswith(f"{DEVICE}: e1000e -> vfio-pci in ")

    talk(kernel, story)


@pytest.mark.parametrize("columns", [40, 200])
def test_a_step_that_is_under_way_never_takes_two_lines(kernel: FakeKernel, columns: int) -> None:
    name = "a_module_with_a_name_that_is_longer_than_the_terminal_is_wide"
    kernel.modules[name] = kernel.modules["vfio_pci"]
    hang = kernel.modules["vfio_pci"].hang = asyncio.Event()

    async def story(engine: Engine) -> None:
        argv = ("set", DEVICE, "vfio", "--driver", name, "--no-color")
        terminal = Terminal(kernel.root, *argv, columns=columns)
        await terminal.wait_for("…")
        hang.set()
        await terminal.wait()
        running = [part for part in terminal.text.split("\r\x1b[K") if part.endswith("…")]
        assert running
        assert max(map(measure, running)) < columns

    talk(kernel, story)


def test_a_pipe_gets_plain_lines(kernel: FakeKernel) -> None:
    async def story(engine: Engine) -> None:
        with start_piped(kernel.root, "set", DEVICE, "vfio") as process:
            out, err = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0
        assert not {"\x1b", "\r", "…"} & set(out + err)
        assert len(err.splitlines()) == 5

    talk(kernel, story)


def test_ctrl_c_before_anything_is_touched_says_that_nothing_goes_on(kernel: FakeKernel) -> None:
    kernel.modules["vfio_pci"].hang = asyncio.Event()

    async def story(engine: Engine) -> None:
        terminal = Terminal(kernel.root, "set", DEVICE, "vfio")
        await terminal.wait_for("load vfio_pci …")
        terminal.interrupt()
        assert await terminal.wait() == 130
        said = f"flavourctl: interrupted: {DEVICE}: it is native by e1000e, and nothing goes on"
        assert said in terminal.lines
        assert kernel.writes == []

    talk(kernel, story)


def test_ctrl_c_ends_it_also_while_the_daemon_hangs(tmp_path: Path) -> None:
    with ExitStack() as stack:
        control, readonly = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        for sock, name in ((control, "control"), (readonly, "readonly")):
            sock.bind(str(tmp_path / name))
            sock.listen()
        process = stack.enter_context(start_piped(tmp_path, "set", DEVICE, "vfio", "--json"))
        stack.callback(process.kill)  # where it does not end, the test does
        asked = stack.enter_context(control.accept()[0])
        asked.recv(4096)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    said = "interrupted: the daemon has not answered for 2 s"
    assert err.splitlines() == [
        f"flavourctl: {said}",
        f"  flavourctl show {DEVICE} says what became of it (flavourctl explain interrupted)",
    ]
    error = json.loads(out)["error"]
    assert (error["code"], error["message"]) == ("interrupted", said)


def test_ctrl_c_in_the_middle_says_that_the_daemon_carries_it_to_its_end(kernel: FakeKernel) -> None:
    holds = kernel.drivers["e1000e"].remove_blocks = asyncio.Event()

    async def story(engine: Engine) -> None:
        terminal = Terminal(kernel.root, "set", DEVICE, "vfio")
        await terminal.wait_for("unbind from e1000e …")
        terminal.interrupt()
        assert await terminal.wait() == 130
        assert terminal.lines[-2:] == [
            f"flavourctl: interrupted: {DEVICE}: the daemon carries the switch to its end",
            f"  flavourctl show {DEVICE} says what became of it (flavourctl explain interrupted)",
        ]
        holds.set()
        await engine.settle(5)
        driver = kernel.devices[DEVICE].driver
        assert driver is not None
        assert driver.name == "vfio-pci"

    talk(kernel, story, bind=10.0)


# monitor


def test_monitor_ends_quietly_at_ctrl_c(kernel: FakeKernel) -> None:
    async def story(engine: Engine) -> None:
        terminal = Terminal(kernel.root, "monitor")
        await listened_to(engine)
        switch = Terminal(kernel.root, "set", DEVICE, "vfio")
        assert await switch.wait() == 0
        await terminal.wait_for("to vfio")
        terminal.interrupt()
        assert await terminal.wait() == 0
        assert "Traceback" not in terminal.text
        assert "unbind from e1000e" in terminal.text

    talk(kernel, story)


def test_monitor_ends_when_nobody_reads_it_any_more(kernel: FakeKernel) -> None:
    async def story(engine: Engine) -> None:
        with start_piped(kernel.root, "monitor") as process:
            try:
                await listened_to(engine)
                assert process.stdout is not None
                process.stdout.close()
                # Nothing happens to any device meanwhile.
                await asyncio.to_thread(process.wait, 30)
            finally:
                process.kill()
            assert process.stderr is not None
            assert process.stderr.read() == ""

    talk(kernel, story)


def test_monitor_says_that_the_daemon_has_gone(kernel: FakeKernel) -> None:
    started = []

    async def story(engine: Engine) -> None:
        started.append(start_piped(kernel.root, "monitor", "--json"))
        await listened_to(engine)

    talk(kernel, story)
    with started[0] as process:
        out, err = process.communicate()
    assert process.returncode == 69
    first, hint = err.splitlines()
    assert first == "flavourctl: the daemon has gone"
    assert hint.endswith("(flavourctl explain daemon-went-away)")
    assert json.loads(out)["error"]["code"] == "daemon-went-away"
