"""Metrics: what Prometheus reads is what there is, and no switch depends on it."""

import asyncio
import errno
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, make_engine
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse
from virtual_time import run_at_once

from vfio_flavourd.config.load import load_files
from vfio_flavourd.engine import metrics
from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.metrics import BOUNDS, METRICS, PAUSE, REASONS, find_reason, write_aside
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.exposition import Histogram, Kind, Metric, Sample, render
from vfio_flavourd.model.flavour import Ending, Flavour, Request
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import Policy, Settings

ADDRESS = parse_address("0000:01:00.0")
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
LONG = PAUSE + 1
DASHBOARD = Path(__file__).parents[2] / "grafana/dashboard.json"

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "textfile").mkdir()
    return tmp_path / "textfile/vfio-flavourd.prom"


@pytest.fixture
def device(kernel: FakeKernel) -> FakeDevice:
    device = kernel.add_device()
    kernel.add_native(device)
    return device


def read(file: Path) -> Values:
    """By name and labels; Prometheus's own parser must take it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(file.read_text(encoding="utf-8"))
        for sample in family.samples
    }


def value(values: Values, name: str, **labels: str) -> float:
    return values[name, frozenset(labels.items())]


def begin(kernel: FakeKernel, file: Path | None) -> Engine:
    policy = Policy(
        defaults=Settings(load_timeout=1.0, bind_timeout=1.0), metrics=None if file is None else str(file)
    )
    engine = make_engine(kernel, policy)
    engine.metrics.refresh()
    return engine


async def ask(engine: Engine, flavour: Flavour = Flavour.VFIO) -> None:
    try:
        await engine.set_flavour(Request(ADDRESS, flavour), lambda _: None)
    except FlavourError:
        pass  # it is counted


# what is in it


def test_all_is_there_from_the_beginning_so_that_the_first_switch_is_an_increase(
    kernel: FakeKernel, device: FakeDevice, file: Path
) -> None:
    async def run() -> None:
        begin(kernel, file)
        await asyncio.sleep(LONG)

    run_at_once(run())
    values = read(file)
    for flavour in ("native", "vfio"):
        for ending in Ending:
            labels = {"flavour": flavour, "outcome": str(ending)}
            assert value(values, "vfio_flavour_switches_total", **labels) == 0
        assert value(values, "vfio_flavour_switch_duration_seconds_count", flavour=flavour) == 0
    for reason in REASONS:
        assert value(values, "vfio_flavour_fallbacks_total", reason=reason) == 0
    assert value(values, "vfio_flavour_devices", flavour="native", driver="e1000e") == 1
    assert value(values, "vfio_flavour_devices_stuck") == 0
    assert value(values, "vfio_flavour_policy_refused") == 0
    assert value(values, "vfio_flavour_policy_read_timestamp_seconds") > 1e9


def test_switches_are_counted_by_how_they_ended(kernel: FakeKernel, device: FakeDevice, file: Path) -> None:
    async def run() -> None:
        engine = begin(kernel, file)
        await ask(engine)
        await ask(engine)
        await ask(engine, Flavour.NATIVE)
        kernel.users[str(ADDRESS)] = (User(Use.SWAP, "swap"),)
        await ask(engine)
        await asyncio.sleep(LONG)

    run_at_once(run())
    values = read(file)

    def switches(flavour: str, outcome: str) -> float:
        return value(values, "vfio_flavour_switches_total", flavour=flavour, outcome=outcome)

    assert (switches("vfio", "done"), switches("vfio", "unchanged"), switches("vfio", "refused")) == (1, 1, 1)
    assert (switches("native", "done"), switches("native", "failed")) == (1, 0)
    assert value(values, "vfio_flavour_switch_duration_seconds_count", flavour="vfio") == 1
    assert value(values, "vfio_flavour_switch_duration_seconds_bucket", flavour="vfio", le="+Inf") == 1
    assert value(values, "vfio_flavour_switch_duration_seconds_sum", flavour="native") > 0


def not_loaded(kernel: FakeKernel) -> None:
    kernel.add_module(FakeDriver("better", "better_vfio", vfio=True), alias=ALIAS, status=1)


def refused(kernel: FakeKernel) -> None:
    kernel.add_module(FakeDriver("better", "better_vfio", vfio=True, probe_errno=errno.EIO), alias=ALIAS)


def no_vfio_device(kernel: FakeKernel) -> None:
    kernel.add_module(FakeDriver("better", "better_vfio"), alias=ALIAS)


def rejected(kernel: FakeKernel) -> None:
    kernel.add_module(FakeDriver("better", "better_vfio", vfio=True), alias=ALIAS)
    directory = kernel.root / "etc/modprobe.d"
    directory.mkdir(parents=True)
    (directory / "local.conf").write_text("blacklist better_vfio\n", encoding="ascii")


@pytest.mark.parametrize("before", [not_loaded, refused, no_vfio_device, rejected])
def test_fallbacks_are_counted_by_what_became_of_the_better_driver(
    kernel: FakeKernel, device: FakeDevice, file: Path, before: Callable[[FakeKernel], None]
) -> None:
    before(kernel)

    async def run() -> Engine:
        engine = begin(kernel, file)
        await ask(engine)
        await asyncio.sleep(LONG)
        return engine

    (attempt,) = run_at_once(run()).attempts.history
    assert attempt.fallback
    reason = before.__name__.replace("_", "-")
    assert find_reason(attempt) == reason
    values = read(file)
    counts = {each: value(values, "vfio_flavour_fallbacks_total", reason=each) for each in REASONS}
    assert counts == {each: float(each == reason) for each in REASONS}


def test_a_stuck_device_is_seen_until_the_kernel_lets_go(
    kernel: FakeKernel, device: FakeDevice, file: Path
) -> None:
    assert device.driver is not None
    native, lets_go = device.driver, asyncio.Event()

    async def run() -> None:
        native.remove_blocks = lets_go
        engine = begin(kernel, file)
        await ask(engine)
        await asyncio.sleep(LONG)
        assert value(read(file), "vfio_flavour_devices_stuck") == 1
        native.remove_blocks = None
        lets_go.set()
        await asyncio.sleep(LONG)
        assert value(read(file), "vfio_flavour_devices_stuck") == 0

    run_at_once(run())


def test_a_policy_that_is_refused_shows(kernel: FakeKernel, device: FakeDevice, file: Path) -> None:
    async def run() -> None:
        engine = begin(kernel, file)
        engine._host.policy.trouble = "it is invalid"
        engine.metrics.refresh()
        await asyncio.sleep(LONG)

    run_at_once(run())
    assert value(read(file), "vfio_flavour_policy_refused") == 1


# the text


@given(text=st.text())
def test_whatever_a_label_is_the_parser_finds_it_again(text: str) -> None:
    metric = Metric("name_total", Kind.COUNTER, f"help {text}")
    (family,) = parse(render([(metric, [Sample(1.5, {"driver": text})])]))
    (sample,) = family.samples
    assert sample.labels == {"driver": text.encode("utf-8", "backslashreplace").decode()}
    assert sample.value == 1.5


def test_what_is_not_utf_8_spoils_no_file() -> None:
    text = render([(Metric("name", Kind.GAUGE, "help"), [Sample(1, {"driver": "a\udcffb"})])])
    assert 'driver="a\\\\udcffb"' in text
    text.encode()


@given(values=st.lists(st.floats(0, 1000)))
def test_a_histogram_has_each_value_once(values: list[float]) -> None:
    histogram = Histogram((0,) * (len(BOUNDS) + 1), 0.0)
    for each in values:
        histogram = histogram.add(each, BOUNDS)
    metric = Metric("seconds", Kind.HISTOGRAM, "help")
    (family,) = parse(render([(metric, histogram.samples(BOUNDS, {}))]))
    found = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    for bound in BOUNDS:
        text = str(int(bound)) if bound == int(bound) else str(bound)
        assert found["seconds_bucket", text] == sum(each <= bound for each in values)
    assert found["seconds_bucket", "+Inf"] == found["seconds_count", None] == len(values)
    assert found["seconds_sum", None] == pytest.approx(sum(values))


# the file


def test_without_a_word_in_the_policy_there_is_none(kernel: FakeKernel, device: FakeDevice) -> None:
    async def run() -> None:
        engine = begin(kernel, None)
        await ask(engine)
        await asyncio.sleep(LONG)
        await engine.settle(1.0)

    run_at_once(run())
    assert list(kernel.root.rglob("*.prom*")) == []


def test_many_switches_are_one_write(
    kernel: FakeKernel, device: FakeDevice, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = metrics.write_aside

    def count(path: Path, data: bytes) -> None:
        written.append(path)
        write(path, data)

    monkeypatch.setattr(metrics, "write_aside", count)

    async def run() -> None:
        engine = begin(kernel, file)
        for _ in range(20):
            await ask(engine)
            await ask(engine, Flavour.NATIVE)
        await asyncio.sleep(10 * LONG)

    run_at_once(run())
    assert written == [file]
    assert value(read(file), "vfio_flavour_switches_total", flavour="vfio", outcome="done") == 20


@pytest.mark.parametrize("pause", [0.0, LONG], ids=["before the first write", "after it"])
def test_a_daemon_that_ends_leaves_no_numbers_behind_that_look_alive(
    kernel: FakeKernel, device: FakeDevice, file: Path, pause: float
) -> None:
    async def run() -> None:
        engine = begin(kernel, file)
        await asyncio.sleep(pause)
        assert file.exists() is (pause > 0)
        await ask(engine)
        await engine.settle(1.0)
        engine.metrics.touch()
        await asyncio.sleep(LONG)

    run_at_once(run())
    assert list(file.parent.iterdir()) == []


def test_a_write_that_is_under_way_when_the_daemon_ends_puts_no_file_back(
    kernel: FakeKernel, device: FakeDevice, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = metrics.write_aside

    def write_slowly(path: Path, data: bytes) -> None:
        time.sleep(0.2)
        write(path, data)

    monkeypatch.setattr(metrics, "write_aside", write_slowly)

    async def run() -> None:
        engine = begin(kernel, file)
        engine.metrics._begin()
        await asyncio.sleep(0.1)
        await engine.settle(1.0)

    asyncio.run(run())
    assert list(file.parent.iterdir()) == []


def test_everyone_may_read_it_and_nothing_else_is_left_beside_it(file: Path) -> None:
    before = os.umask(0o077)
    try:
        write_aside(file, b"1\n")
        write_aside(file, b"2\n")
    finally:
        os.umask(before)
    assert file.read_bytes() == b"2\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_link_that_somebody_has_put_there_is_not_followed(file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine", encoding="ascii")
    file.with_name(f"{file.name}.new").symlink_to(mine)
    file.symlink_to(mine)
    write_aside(file, b"1\n")
    assert mine.read_text(encoding="ascii") == "mine"
    assert file.read_bytes() == b"1\n"
    assert not file.is_symlink()


def test_what_can_not_be_written_is_told_once_and_no_switch_fails(
    kernel: FakeKernel, device: FakeDevice, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.rmdir()

    async def run() -> None:
        engine = begin(kernel, file)
        for flavour in (Flavour.VFIO, Flavour.NATIVE, Flavour.VFIO):
            await engine.set_flavour(Request(ADDRESS, flavour), lambda _: None)
            await asyncio.sleep(LONG)
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert str(file) in record.getMessage()
        assert "is its directory there?" in record.getMessage()
        file.parent.mkdir()
        engine.notice(ADDRESS)
        await asyncio.sleep(LONG)
        assert value(read(file), "vfio_flavour_switches_total", flavour="vfio", outcome="done") == 2

    run_at_once(run())


def test_a_directory_that_the_service_may_not_write_to_is_told_with_what_to_do(
    kernel: FakeKernel,
    device: FakeDevice,
    file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(metrics, "write_aside", refuse)

    async def run() -> None:
        begin(kernel, file)
        await asyncio.sleep(LONG)

    run_at_once(run())
    assert f"ReadWritePaths={file.parent}" in caplog.text


def test_a_file_that_the_policy_names_no_more_is_taken_away(
    kernel: FakeKernel, device: FakeDevice, file: Path
) -> None:
    async def run() -> None:
        engine = begin(kernel, file)
        await asyncio.sleep(LONG)
        assert file.exists()
        engine._host.policy.policy = Policy()
        engine.metrics.refresh()
        await asyncio.sleep(LONG)
        assert not file.exists()

    run_at_once(run())


# the policy


def load(tmp_path: Path, *texts: str) -> str | None:
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(f"version: 1\n{text}", encoding="ascii")
    return load_files(paths).policy.metrics


def test_the_policy_names_the_file_and_the_last_word_counts(tmp_path: Path) -> None:
    assert load(tmp_path, "rules: []\n") is None
    assert load(tmp_path, "metrics: {file: /a/b.prom}\n") == "/a/b.prom"
    assert load(tmp_path, "metrics: {file: /a/b.prom}\n", "rules: []\n") == "/a/b.prom"
    assert load(tmp_path, "metrics: {file: /a/b.prom}\n", "metrics: {file: /c.prom}\n") == "/c.prom"


@pytest.mark.parametrize(
    "path", ["a.prom", "/a/b.txt", "/a/../etc/b.prom", "/etc/passwd", "'/a b.prom'", "/a/.prom"]
)
def test_a_path_that_can_not_be_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(FlavourError):
        load(tmp_path, f"metrics: {{file: {path}}}\n")


# the dashboard


def find_names(expression: str) -> set[str]:
    return set(re.findall(r"\bvfio_flavour_\w+", expression))


def test_the_dashboard_asks_for_what_there_is_and_shows_all_of_it() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            asked |= find_names(target["expr"])
    there = set()
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        names = {f"{metric.name}{suffix}" for suffix in suffixes}
        there |= names
        assert names & asked, f"{metric.name} is not shown"
    assert asked <= there


def test_the_dashboard_names_only_labels_and_outcomes_that_there_are() -> None:
    text = DASHBOARD.read_text(encoding="utf-8")
    for outcome in re.findall(r"outcome=~?\\\"([\w|-]+)\\\"", text):
        assert set(outcome.split("|")) <= set(Ending)
    labels = set(re.findall(r"by \(([\w, ]+)\)", text))
    named = {label.strip() for group in labels for label in group.split(",")}
    assert named <= {"flavour", "outcome", "reason", "driver", "version", "le", "instance"}
