"""The control API: a varlink service on a control socket and its read-only twin."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from asyncvarlink import LastResult, VarlinkInterfaceRegistry, varlinkmethod
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from .. import __version__
from ..engine.attempts import Report
from ..engine.engine import Engine
from ..engine.guards import check_request
from ..model.address import PciAddress, parse_address
from ..model.codes import Code
from ..model.device import Device
from ..model.errors import FlavourError
from ..model.flavour import Attempt, Flavour, Outcome, Request, StepBegun, StepReport, parse_flavour
from ..model.iommu_group import find_groups
from ..model.message_ids import MessageId, log_fields
from ..model.policy import OthersInGroup
from ..model.requester import Requester
from . import interface, rendering
from .access import Access
from .connections import Listener
from .interface import AttemptInfo, Event, Grouping, Listing, Progress, ResolutionInfo, Shown, UserInfo
from .peer import current_peer, wants_steps
from .refusals import Refusals
from .turns import Turns

_log = logging.getLogger(__name__)

# Events that a slow Monitor client may be behind before it is cut off.
# Its socket holds some hundreds besides.
_BACKLOG = 512

# Drivers that one may name for a device: each is looked for among thousands of modules, within the loop.
_MOST_DRIVERS = 16

# Looks for who uses a device that go on at a time for all but root, of each user one. Each takes a thread, or
# the process that is kept for the next one: those before a switch must find some left.
LOOKS = 2

_Seen = TypeVar("_Seen")

_Switch = Callable[[Request, Report], Coroutine[Any, Any, Outcome]]


class ManagerService(interface.Manager):
    """Answers for the engine. `find_name` gives a device's name from the hardware database."""

    def __init__(
        self,
        engine: Engine,
        find_name: Callable[[Device], str],
        reload: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._engine = engine
        self.refusals = Refusals(engine.find_unit)
        self._access = Access(self.refusals)
        self._find_name = find_name
        self._reload = reload
        self._looks = Turns(LOOKS)
        self._looking: set[asyncio.Task[Any]] = set()

    @classmethod
    def render_interface_description(cls, *, comments: bool = True) -> str:
        # The words that are for callers stand at the interface.
        return interface.Manager.render_interface_description(comments=comments)

    @varlinkmethod
    def List(self) -> Listing:
        with _translated():
            devices = [
                rendering.render_device(status, self._find_name(status.device))
                for status in self._engine.devices()
            ]
            return Listing(devices=devices, policy_trouble=self._engine.policy_trouble)

    @varlinkmethod
    def Groups(self) -> Grouping:
        with _translated():
            members = self._engine.group_members()
            return Grouping(
                groups=[rendering.render_group(group, self._find_name) for group in find_groups(members)],
                ungrouped=[
                    rendering.render_group_member(member, self._find_name(member.device))
                    for member in members
                    if member.device.iommu_group is None
                ],
            )

    @varlinkmethod
    async def Get(self, *, device: str, users: bool | None = None) -> Shown:
        with _translated():
            status = self._engine.device(parse_address(device))
            found = await self._find_users(status.device) if users else ()
            group = self._engine.find_group(status.device)
            return Shown(
                device=rendering.render_device(status, self._find_name(status.device), found),
                group=None if group is None else rendering.render_group(group, self._find_name),
                flavours=[str(flavour) for flavour in self._engine.flavours],
                policy_trouble=self._engine.policy_trouble,
            )

    async def _find_users(self, device: Device) -> tuple[UserInfo, ...]:
        """All the rest can be shown also where nobody can look for them."""
        try:
            found = await self._look(lambda: self._engine.find_users(device))
            return tuple(rendering.render_user(user) for user in found)
        except FlavourError as error:
            return (UserInfo("unknown", str(error), None),)

    async def _look(self, look: Callable[[], Coroutine[Any, Any, _Seen]]) -> _Seen:
        """A thread can't be called back: the look of one who has hung up has its place until it ends."""
        uid = current_peer.get().uid
        if uid == 0:
            return await look()
        end = await self._looks.take(uid)
        task = asyncio.create_task(look())
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)
        task.add_done_callback(lambda _: end())
        return await asyncio.shield(task)

    @varlinkmethod(return_parameter="resolution")
    def Resolve(self, *, modalias: str) -> ResolutionInfo:
        with _translated():
            return rendering.render_resolution(self._engine.resolve(modalias))

    @varlinkmethod(return_parameter="steps")
    async def Plan(
        self,
        *,
        device: str,
        flavour: str,
        drivers: list[str] | None = None,
        force: bool | None = None,
        group: str | None = None,
    ) -> list[str]:
        with _translated():
            request = Request(
                parse_address(device),
                parse_flavour(flavour, self._engine.flavours),
                _parse_drivers(drivers),
                force=bool(force),
                others=_parse_group(group),
            )
            return await self._look(lambda: self._engine.plan(request))

    @varlinkmethod(delay_generator=False)
    async def SetFlavour(
        self,
        *,
        device: str,
        flavour: str,
        drivers: list[str] | None = None,
        timeout: float | None = None,
        force: bool | None = None,
        group: str | None = None,
        persist: bool | None = None,
        uid: int | None = None,
        pid: int | None = None,
    ) -> AsyncIterator[Progress]:
        with _translated():
            by_file = None if uid is None else Requester(uid, pid or 0, by_file=True)
            with self._access.on_record("SetFlavour", by_file):
                address = parse_address(device)
                peer = self._access.switch()
                if force or persist:
                    what = "take a device by force" if force else "make a wish last beyond this boot"
                    self._access.as_root(what, address)
                if by_file is not None:
                    self._access.as_root("name another as the one who asks", address)
                request = Request(
                    address,
                    parse_flavour(flavour, self._engine.flavours),
                    _parse_drivers(drivers),
                    timeout,
                    str(by_file or peer),
                    force=bool(force),
                    others=_parse_group(group),
                    persist=bool(persist),
                )
                check_request(request, self._engine.flavours)
            async for progress in _follow(request, self._engine.set_flavour):
                yield progress

    @varlinkmethod(delay_generator=False)
    async def Reset(
        self,
        *,
        device: str,
        timeout: float | None = None,
        force: bool | None = None,
        group: str | None = None,
    ) -> AsyncIterator[Progress]:
        with _translated():
            with self._access.on_record("Reset"):
                address = parse_address(device)
                peer = self._access.switch()
                if force:
                    self._access.as_root("take a device by force", address)
                request = Request(
                    address,
                    Flavour.NATIVE,
                    (),
                    timeout,
                    str(peer),
                    force=bool(force),
                    others=_parse_group(group),
                    may_undo_lasting=peer.uid == 0,
                )
                check_request(request, self._engine.flavours)
            async for progress in _follow(request, self._engine.reset):
                yield progress

    @varlinkmethod(return_parameter="attempts")
    def History(self, *, device: str | None = None) -> list[AttemptInfo]:
        with _translated():
            address = None if device is None else parse_address(device)
            return [
                rendering.render_attempt(attempt)
                for attempt in self._engine.attempts.history
                if address in (None, attempt.address)
            ]

    @varlinkmethod(delay_generator=False)
    async def Monitor(self) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event | None] = asyncio.Queue(_BACKLOG)

        def listen(address: PciAddress, news: Attempt | StepReport) -> None:
            if isinstance(news, StepReport):
                event = Event(device=str(address), step=rendering.render_step(news), attempt=None)
            else:
                event = Event(device=str(address), step=None, attempt=rendering.render_attempt(news))
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._engine.attempts.listeners.discard(listen)
                while not queue.empty():  # a client that does not read may stay for long
                    queue.get_nowait()
                queue.put_nowait(None)

        self._engine.attempts.listeners.add(listen)
        try:
            while (event := await queue.get()) is not None:
                yield event
            raise interface.render_error(
                FlavourError(
                    f"more than {_BACKLOG} events wait for this client, so it is told no more",
                    code=Code.FAILED,
                    hint="it has to read them as they come",
                )
            )
        finally:
            self._engine.attempts.listeners.discard(listen)

    @varlinkmethod
    async def Reload(self) -> None:
        with _translated():
            peer = self._access.as_root("reload the policy")
            _log.info(
                "%s asks for the policy to be read again",
                peer,
                extra={**log_fields(MessageId.RELOAD_ASKED), **self.refusals.name(peer.requester)},
            )
            await self._reload()
            if trouble := self._engine.policy_trouble:
                raise FlavourError(
                    f"the policy on disk is not in force: {trouble}",
                    code=Code.FAILED,
                    hint="flavourctl doctor says what to do",
                )


async def _follow(request: Request, switch: _Switch) -> AsyncIterator[Progress]:
    """Each step as it happens, where the caller wants them; then the outcome as the last reply."""
    if not wants_steps.get():
        raise LastResult(
            Progress(
                running=None, step=None, outcome=rendering.render_outcome(await switch(request, _ignore))
            )
        )
    steps: asyncio.Queue[StepBegun | StepReport | None] = asyncio.Queue()
    task: asyncio.Task[Outcome] = asyncio.create_task(switch(request, steps.put_nowait))
    task.add_done_callback(lambda _: steps.put_nowait(None))
    try:
        while (step := await steps.get()) is not None:
            if isinstance(step, StepBegun):
                yield Progress(running=step.what, step=None, outcome=None)
            else:
                yield Progress(running=None, step=rendering.render_step(step), outcome=None)
        outcome = await task
    finally:
        task.cancel()
    raise LastResult(Progress(running=None, step=None, outcome=rendering.render_outcome(outcome)))


def _ignore(_: StepBegun | StepReport) -> None:
    """The outcome has the steps too."""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FlavourError as error:
        raise interface.render_error(error) from error


def _parse_drivers(names: list[str] | None) -> tuple[str, ...]:
    """Raises FlavourError (EINVAL)."""
    if len(names or ()) > _MOST_DRIVERS:
        raise FlavourError(
            f"{len(names or ())} drivers are too many to name",
            code=Code.INVALID_ARGUMENT,
            hint=f"allowed: {_MOST_DRIVERS}, in the order to try them",
        )
    return tuple(names or ())


def _parse_group(text: str | None) -> OthersInGroup | None:
    """Raises FlavourError (EINVAL)."""
    if text is None:
        return None
    try:
        return OthersInGroup(text)
    except ValueError:
        allowed = ", ".join(OthersInGroup)
        raise FlavourError(
            f"group can't be {text[:64]!r}", code=Code.INVALID_ARGUMENT, hint=f"allowed: {allowed}"
        ) from None


class VarlinkDoor:
    """Accepts connections on the control socket and its read-only twin."""

    def __init__(self, service: ManagerService) -> None:
        self._registry = VarlinkInterfaceRegistry()
        self._registry.register_interface(
            VarlinkServiceInterface(
                "vfio-flavourd developers",
                "vfio-flavourd",
                __version__,
                "https://varlink.org",
                self._registry,
            )
        )
        self._registry.register_interface(service)
        self._turns = Turns(1)
        self._refusals = service.refusals
        self._listeners: list[Listener] = []

    def listen(self, sock: socket.socket, *, writes: bool) -> None:
        """`sock` is bound and listening already (socket activation)."""
        self._listeners.append(Listener(sock, self._registry, self._turns, self._refusals, writes=writes))

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._refusals.close()
