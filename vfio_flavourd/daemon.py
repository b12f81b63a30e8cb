"""vfio-flavourd: wires the parts, says when it is ready, stops in time."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import __version__, journal
from .config.problems import PolicyError
from .doors.protocol import CONTROL_SOCKET
from .doors.uevents import UeventDoor
from .doors.varlink import LOOKS, ManagerService, VarlinkDoor
from .engine.changes import Changes
from .engine.early_rules import Occasion, update_rules
from .engine.engine import Engine
from .engine.host import Host
from .engine.ledger import Ledger
from .engine.policy import PolicyInForce
from .kernel.early_rules import read_sources
from .kernel.hands import Blocked, Hands
from .kernel.index import ModuleIndex
from .kernel.loading import Loading
from .kernel.looker import Looker
from .kernel.modules import Modules
from .kernel.sysfs import Sysfs
from .kernel.udev_database import UdevDatabase
from .kernel.uevents import Uevents
from .model.errors import FlavourError
from .model.message_ids import MessageId, log_fields

_log = logging.getLogger(__name__)

STATE = Path("/run/vfio-flavourd")
LASTING_STATE = Path("/var/lib/vfio-flavourd")

# A switch that is under way when the service stops is given this long (seconds) to come to its end.
_GRACE = 5.0

_ROOT = Path("/")

# Threads that look for who uses a device, of which clients who only look leave two to switches; each that was
# needed keeps some memory for good.
_LOOKING = LOOKS + 2

# Seconds that the end waits for what threads still write.
_LAST_WRITES = 1.0

# The policy that was in force last, for a start without a valid one.
_LAST_GOOD = LASTING_STATE / "last-good-policy.yaml"


class Threads(ThreadPoolExecutor):
    """The loop's end waits for them: for a moment, since a disk may not answer."""

    def shutdown(
        self,
        wait: bool = True,  # noqa: FBT001, FBT002 - as it is there
        *,
        cancel_futures: bool = False,
    ) -> None:
        """As there."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        deadline = time.monotonic() + _LAST_WRITES
        for thread in tuple(self._threads) if wait else ():
            thread.join(max(0.0, deadline - time.monotonic()))


class Daemon:
    """One run of the service."""

    def __init__(self) -> None:
        sysfs = Sysfs()
        self._hands = Hands()
        self._looker = Looker()
        self._index = ModuleIndex()
        self._host = Host(
            sysfs=sysfs,
            hands=self._hands,
            modules=Modules(sysfs, Loading().modprobe),
            index=self._index,
            ledger=Ledger(STATE / "devices"),
            changes=Changes(),
            occupancy=self._looker,
            policy=PolicyInForce(),
            release=os.uname().release,
            state=STATE,
            lasting_state=LASTING_STATE,
        )
        self._engine = Engine(self._host)
        self._uevents = Uevents()
        self._database = UdevDatabase()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._compiling = asyncio.Lock()
        # What the policy in force was read from, as it was then.
        self._sources: tuple[str, ...] = ()

    async def run(self, sockets: Mapping[str, socket.socket]) -> None:
        """Serve until told to stop. Raises OSError when the state of this boot can't be read."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_on_signal)
        self._report_index()
        self._read_policy_at_start()
        self._engine.recover()
        self._engine.metrics.refresh()
        service = ManagerService(
            self._engine, lambda device: self._database.find_name(device.address), self._reload
        )
        varlink = VarlinkDoor(service)
        for name, sock in sockets.items():
            varlink.listen(sock, writes=name == "control")
        uevents = UeventDoor(self._engine, self._uevents, self._database, STATE / "last-wish")
        uevents.open()
        self._ping()
        first_round = asyncio.create_task(self._engine.reconciler.start())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({first_round, stopped}, return_when=asyncio.FIRST_COMPLETED)
        # What is there now stays: no collection needs to look at it again.
        gc.collect()
        gc.freeze()
        journal.notify("READY=1")
        if not self._stop.is_set():
            # Who waits for the service needs none yet; where they can't be had, who needs one is told.
            with suppress(OSError):
                self._hands.prepare()
            self._looker.prepare()
        self._engine.reconciler.lasting_wishes_changed = self._compile_wishes
        self._spawn(self._compile(Occasion.START))
        await stopped
        journal.notify("STOPPING=1")
        first_round.cancel()
        self._uevents.close()
        varlink.close()
        await self._engine.settle(_GRACE)
        self._hands.close()
        self._looker.close()

    def _ping(self) -> None:
        interval = journal.watchdog_interval()
        if interval is not None:
            journal.notify("WATCHDOG=1")
            asyncio.get_running_loop().call_later(interval, self._ping)

    def _read_policy_at_start(self) -> None:
        """An invalid policy doesn't keep the daemon from starting: the last good one stays in force."""
        self._sources = read_sources(_ROOT, self._host.release)
        try:
            self._host.policy.read(_ROOT, _LAST_GOOD)
        except PolicyError as error:
            _log_invalid(error)
            try:
                self._host.policy.read_last_good(_LAST_GOOD)
            except PolicyError as spoilt:
                _log.error("the last good policy can't be read either, so none is in force: %s", spoilt)

    async def _reload(self) -> None:
        """Raises PolicyError, and nothing has changed then; or FlavourError (EIO) where the next boot doesn't
        follow what is in force now."""
        sources = read_sources(_ROOT, self._host.release)
        journal.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._report_index()
            self._host.policy.read(_ROOT, _LAST_GOOD)
            self._sources = sources
            self._engine.reconciler.reload()
        except PolicyError as error:
            _log_invalid(error)
            raise
        finally:
            self._engine.metrics.refresh()
            journal.notify("READY=1")
        await self._compile(Occasion.ASKED)

    def _reload_on_signal(self) -> None:
        self._spawn(self._reload_unheard())

    async def _reload_unheard(self) -> None:
        with suppress(FlavourError):  # it is in the log, nobody waits for an answer
            await self._reload()

    async def _compile_wishes(self) -> None:
        await self._compile(Occasion.WISH)

    async def _compile(self, occasion: Occasion) -> None:
        """Have the rules for early boot say what the policy says. It takes its time, since it looks who uses
        what, so it is done beside the rest; a device that was in use before counts as in use unless a person
        asks for a reload, who is told of a failure too: raises FlavourError (EIO)."""
        if self._host.policy.trouble:
            return  # those of the last good policy stay
        try:
            async with self._compiling:
                update = await asyncio.to_thread(
                    update_rules,
                    _ROOT,
                    self._host.policy.policy,
                    self._sources,
                    sysfs=self._host.sysfs,
                    table=self._index.table(),
                    find_users=self._host.occupancy.find_users,
                    host_name=os.uname().nodename,
                    kept=self._engine.reconciler.wishes.find_kept(),
                    occasion=occasion,
                )
            for note in update.notes:
                _log.warning("%s", note)
            if update.changed:
                await self._hands.carry_out([("run", "udevadm", "control", "--reload")], timeout=10)
        except FlavourError as error:
            _log.error(
                "the rules for early boot stay as they are: %s",
                error,
                extra=log_fields(MessageId.EARLY_RULES_OLD),
            )
            if occasion is Occasion.ASKED:
                told = f"the policy is in force, but the rules for early boot stay as they are: {error}"
                raise FlavourError(told, code=error.code, hint=error.hint) from error
        except Blocked:
            _log.warning("udevd does not answer: the rules for early boot count from the next boot on")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _report_index(self) -> None:
        table = self._index.table()
        for warning in table.warnings:
            _log.warning("%s", warning)
        _log.info("%d modules have a vfio_pci alias", len(table.flavoured_modules()))


def _log_invalid(error: PolicyError) -> None:
    for problem in error.problems:
        _log.error(
            "policy: %s (%s)",
            problem,
            problem.hint or "flavourctl check shows the place",
            extra={**log_fields(MessageId.POLICY_INVALID), "POLICY_FILE": problem.file},
        )


def _read_arguments(arguments: Sequence[str]) -> None:
    import argparse  # systemd gives none, and need not wait for it

    parser = argparse.ArgumentParser(
        prog="vfio-flavourd", description="Switch PCI devices between the host and VFIO. Started by systemd."
    )
    parser.add_argument("--version", action="version", version=f"vfio-flavourd {__version__}")
    parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    if arguments := sys.argv[1:] if argv is None else argv:
        _read_arguments(arguments)
    sockets = journal.activated_sockets()
    if not sockets:
        print(
            f"vfio-flavourd: only systemd can start this, because it passes in {CONTROL_SOCKET}\n"
            "  systemctl start vfio-flavourd.socket vfio-flavourd.service",
            file=sys.stderr,
        )
        return 1
    journal.open_log()

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(Threads(_LOOKING, thread_name_prefix="looking"))
        await Daemon().run(sockets)  # made within the loop, which it needs

    status = 0
    try:
        asyncio.run(run())
    except OSError as error:
        _log.critical("can't run: %s; see whether %r is full or read-only", error.strerror, str(STATE))
        status = 1
    return journal.leave(status)


if __name__ == "__main__":
    sys.exit(main())
