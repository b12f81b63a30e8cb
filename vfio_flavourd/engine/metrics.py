"""What is counted, for Prometheus: a file for the textfile collector of its node exporter.

Nobody waits for it, and nothing depends on it: what can't be written is told once and left. The counters
begin at 0 with the daemon, as Prometheus expects of them.
"""

import asyncio
import errno
import logging
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .. import __version__
from ..model.address import PciAddress
from ..model.device import Device
from ..model.exposition import Histogram, Kind, Metric, Sample, render
from ..model.flavour import Attempt, Ending, StepAction, StepReport
from ..model.message_ids import MessageId, log_fields
from .host import Host

_log = logging.getLogger(__name__)

# Seconds from a change until it is in the file; whatever else changes meanwhile is in it too.
PAUSE = 5.0

# Seconds.
BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

SWITCHES = Metric(
    "vfio_flavour_switches_total", Kind.COUNTER, "Attempts to give a device a flavour, by how they ended."
)
FALLBACKS = Metric(
    "vfio_flavour_fallbacks_total",
    Kind.COUNTER,
    "Switches after which the generic driver serves a device although a better one was known, by what became"
    " of that one.",
)
DURATION = Metric(
    "vfio_flavour_switch_duration_seconds",
    Kind.HISTOGRAM,
    "How long the switches took that changed a device's driver, with their waiting and their guards.",
)
DEVICES = Metric("vfio_flavour_devices", Kind.GAUGE, "PCI devices, by flavour and driver.")
STUCK = Metric(
    "vfio_flavour_devices_stuck", Kind.GAUGE, "PCI devices that the kernel has not come back with."
)
POLICY_READ = Metric(
    "vfio_flavour_policy_read_timestamp_seconds",
    Kind.GAUGE,
    "When the policy in force was read from its files, in seconds since 1970.",
)
POLICY_REFUSED = Metric(
    "vfio_flavour_policy_refused",
    Kind.GAUGE,
    "1 while the policy on disk is not the one in force, because it is invalid or switched off.",
)
INFO = Metric("vfio_flavour_build_info", Kind.GAUGE, "The version of vfio-flavourd; always 1.")

METRICS = (SWITCHES, FALLBACKS, DURATION, DEVICES, STUCK, POLICY_READ, POLICY_REFUSED, INFO)

# What became of the better driver, by FALLBACKS.
REASONS = ("rejected", "not-loaded", "refused", "no-vfio-device")


class Metrics:
    """Counts from the beginning; writes once `refresh` has found that the policy names a file."""

    def __init__(self, host: Host, count_stuck: Callable[[], int]) -> None:
        self._host = host
        self._count_stuck = count_stuck
        self._switches: Counter[tuple[str, str]] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._durations: dict[str, Histogram] = {}
        self._path: Path | None = None
        self._due: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._is_in_trouble = False

    def count(self, _: PciAddress, news: Attempt | StepReport) -> None:
        """A listener of the attempts."""
        if not isinstance(news, Attempt):
            return
        self._switches[str(news.flavour), str(news.ending)] += 1
        if news.fallback:
            self._fallbacks[find_reason(news)] += 1
        if news.ending is Ending.DONE:
            empty = Histogram((0,) * (len(BOUNDS) + 1), 0.0)
            before = self._durations.get(str(news.flavour), empty)
            self._durations[str(news.flavour)] = before.add(news.duration, BOUNDS)
        self.touch()

    def refresh(self) -> None:
        """The policy has been read. A file that it names no more would show for ever what was once."""
        given = self._host.policy.policy.metrics
        path = None if given is None else Path(given)
        if self._path is not None and self._path != path:
            _take_away(self._path)
        self._path = path
        self._is_in_trouble = False
        self.touch()

    def touch(self) -> None:
        """Something has changed that is counted."""
        if self._path is not None and self._due is None:
            self._due = asyncio.get_running_loop().call_later(PAUSE, self._begin)

    async def withdraw(self) -> None:
        """The daemon ends, and its file would go on showing what was as what is. Takes a second at most."""
        path, self._path = self._path, None
        if self._due is not None:
            self._due.cancel()
        if path is not None:
            await asyncio.wait([asyncio.create_task(self._remove(path))], timeout=1)

    async def _remove(self, path: Path) -> None:
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await asyncio.to_thread(_take_away, path)

    def _begin(self) -> None:
        self._due = None
        if self._writing is not None and not self._writing.done():
            self.touch()  # a disk that does not answer holds up one thread, not more
            return
        self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        if (path := self._path) is None:
            return
        try:
            devices = await asyncio.to_thread(self._host.read_devices)
            await asyncio.to_thread(write_aside, path, self.render(devices).encode())
        except OSError as error:
            if not self._is_in_trouble:
                self._complain(path, error)
            self._is_in_trouble = True
        else:
            self._is_in_trouble = False

    def _complain(self, path: Path, error: OSError) -> None:
        what_to_do = ""
        if isinstance(error, FileNotFoundError):
            what_to_do = "; is its directory there?"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            what_to_do = f"; the service may write there with ReadWritePaths={path.parent}"
        _log.warning(
            "metrics can't be written to %r (%s)%s, ignoring",
            str(path),
            error.strerror,
            what_to_do,
            extra=log_fields(MessageId.NOT_KEPT),
        )

    def render(self, devices: tuple[Device, ...]) -> str:
        flavours = [str(flavour) for flavour in self._host.policy.flavours]
        empty = Histogram((0,) * (len(BOUNDS) + 1), 0.0)
        pairs = dict.fromkeys((flavour, str(ending)) for flavour in flavours for ending in Ending)
        drivers = Counter((str(self._host.find_flavour(each)), each.driver or "none") for each in devices)
        policy = self._host.policy
        samples = {
            SWITCHES: [
                Sample(self._switches[pair], {"flavour": pair[0], "outcome": pair[1]})
                for pair in pairs | dict.fromkeys(self._switches)
            ],
            FALLBACKS: [Sample(self._fallbacks[reason], {"reason": reason}) for reason in REASONS],
            DURATION: [
                sample
                for flavour in dict.fromkeys([*flavours, *self._durations])
                for sample in self._durations.get(flavour, empty).samples(BOUNDS, {"flavour": flavour})
            ],
            DEVICES: [
                Sample(number, {"flavour": flavour, "driver": driver})
                for (flavour, driver), number in sorted(drivers.items())
            ],
            STUCK: [Sample(self._count_stuck(), {})],
            POLICY_READ: [Sample(policy.read_at, {})],
            POLICY_REFUSED: [Sample(bool(policy.trouble), {})],
            INFO: [Sample(1, {"version": __version__})],
        }
        return render((metric, samples[metric]) for metric in METRICS)


def find_reason(attempt: Attempt) -> str:
    """What became of the better driver that was tried last, one of REASONS."""
    for step in reversed(attempt.steps):
        if step.error and step.action is StepAction.LOAD:
            return "not-loaded"
        if step.error and step.action is StepAction.BIND:
            return "refused"
    tries = sum(step.action is StepAction.BIND for step in attempt.steps)
    return "no-vfio-device" if tries > 1 else "rejected"


def _take_away(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def write_aside(path: Path, data: bytes) -> None:
    """Whoever reads meanwhile finds the one or the other whole. Raises OSError."""
    aside = path.with_name(f"{path.name}.new")
    with suppress(FileNotFoundError):
        aside.unlink()  # of a daemon that was killed
    try:
        # Not through a link that somebody has put there: the directory may be another user's.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(aside, flags, 0o644), "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask says
            file.write(data)
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise
