"""The state table, what of it really happens, and the writes from one binding to another."""

import asyncio
import errno
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from fake_kernel import FakeDriver, FakeKernel, make_engine, pending
from hypothesis import given
from hypothesis import strategies as st

from vfio_flavourd.engine import steps
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.device import Binding
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Request, StepBegun, StepReport
from vfio_flavourd.model.plan import Action, Step, plan_move, plan_release
from vfio_flavourd.model.policy import OthersInGroup
from vfio_flavourd.model.transition import LAST, MOVES, Phase, check_move

ADDRESS = parse_address("0000:01:00.0")
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"

Move = tuple[Phase, Phase]


# the table


@pytest.mark.parametrize(("now", "then"), list(product(Phase, Phase)))
def test_a_move_is_legal_exactly_when_it_stands_in_the_table(now: Phase, then: Phase) -> None:
    if then in MOVES[now]:
        check_move(now, then)
    else:
        with pytest.raises(ValueError, match=f"from {now} to {then}"):
            check_move(now, then)


def test_every_phase_has_its_row_and_a_switch_that_is_over_stays_so_or_is_taken_back() -> None:
    assert set(MOVES) == set(Phase)
    assert {phase for phase in Phase if not MOVES[phase]} == {Phase.FAILED, Phase.STUCK}
    assert MOVES[Phase.DONE] == {Phase.UNDOING}


def test_every_phase_can_be_reached_and_left_for_an_end() -> None:
    reached = {Phase.WAITING}
    while more := {then for now in reached for then in MOVES[now]} - reached:
        reached |= more
    assert reached == set(Phase)
    for phase in set(Phase) - LAST - {Phase.STUCK}:
        assert MOVES[phase] & {Phase.FAILED, Phase.STUCK}


# what really happens


class Story:
    """One device on a fake kernel, and what is asked for it."""

    def __init__(self, root: Path) -> None:
        self.kernel = FakeKernel(root)
        self.device = self.kernel.add_device()
        self.blocks: asyncio.Event | None = None

    def variant(self, *drivers: FakeDriver, name: str = "good_vfio", **traits: object) -> None:
        self.kernel.add_module(*drivers, name=name, alias=ALIAS, **traits)

    def ask(self, flavour: Flavour, *drivers: str, others: OthersInGroup | None = None) -> None:
        async def run() -> None:
            engine = make_engine(self.kernel, bind=0.05, load=0.05, group=0.05)
            try:
                await engine.set_flavour(Request(ADDRESS, flavour, drivers, others=others), lambda _: None)
            except FlavourError:
                pass
            if self.blocks is not None:
                self.blocks.set()
                await asyncio.gather(*pending(engine))

        asyncio.run(run())

    def hold(self) -> None:
        self.blocks = self.device.held = asyncio.Event()

    def refuse(self) -> None:
        self.kernel.modules["vfio_pci"].drivers[0].probe_errno = errno.EINVAL


def plain(story: Story) -> None:
    story.kernel.add_native(story.device)
    story.ask(Flavour.VFIO)
    story.ask(Flavour.NATIVE)


def nothing_to_do(story: Story) -> None:
    story.ask(Flavour.NATIVE)


def a_bridge(story: Story) -> None:
    story.kernel.remove_device(story.device)
    story.device = story.kernel.add_device(class_code=0x060400)
    story.ask(Flavour.VFIO)


def personality_held(story: Story) -> None:
    story.kernel.add_native(story.device, "chameleon")
    story.kernel.add_personality(story.device)
    story.hold()
    story.ask(Flavour.VFIO)


def personality_that_is_never_ready(story: Story) -> None:
    story.kernel.add_native(story.device, "chameleon")
    story.kernel.add_personality(story.device)
    story.kernel.add_vfio_device = lambda device: None  # type: ignore[method-assign]
    story.ask(Flavour.VFIO)


def personality_whose_driver_goes(story: Story) -> None:
    story.kernel.add_native(story.device, "chameleon")
    story.kernel.add_personality(story.device)
    story.kernel.add_vfio_device = story.kernel.release  # type: ignore[method-assign]
    story.ask(Flavour.VFIO)


def two_candidates_not_to_be_had(story: Story) -> None:
    story.variant(status=1)
    story.kernel.modules["vfio_pci"].status = 1
    story.ask(Flavour.VFIO)


def refused_and_nothing_else_to_be_had(story: Story) -> None:
    story.variant(FakeDriver("good", "good_vfio", vfio=True, probe_errno=errno.EINVAL))
    story.kernel.modules["vfio_pci"].status = 1
    story.ask(Flavour.VFIO)


def all_refuse(story: Story) -> None:
    story.kernel.add_native(story.device)
    story.refuse()
    story.ask(Flavour.VFIO)


def another_of_the_group_refuses(story: Story) -> None:
    story.variant(FakeDriver("good", "good_vfio", vfio=True))
    story.kernel.add_device("0000:01:00.1", device=0x1000)
    story.refuse()
    story.ask(Flavour.VFIO, others=OthersInGroup.TOGETHER)


def two_drivers_of_one_module(story: Story) -> None:
    story.variant(
        FakeDriver("first", "good_vfio", vfio=True, probe_errno=errno.EINVAL),
        FakeDriver("second", "good_vfio", vfio=True),
    )
    story.ask(Flavour.VFIO)


def hollow_first_of_two_drivers(story: Story) -> None:
    story.variant(FakeDriver("first", "good_vfio"), FakeDriver("second", "good_vfio", vfio=True))
    story.ask(Flavour.VFIO)


def hollow_then_the_fallback(story: Story) -> None:
    story.variant(FakeDriver("good", "good_vfio"))
    story.ask(Flavour.VFIO)


def hollow_all_over(story: Story) -> None:
    story.kernel.modules["vfio_pci"].drivers[0].vfio = False
    story.ask(Flavour.VFIO)


def has_the_named_driver_already(story: Story) -> None:
    story.ask(Flavour.VFIO)
    story.ask(Flavour.VFIO, "vfio-pci")


def held_by_a_guest(story: Story) -> None:
    native = story.kernel.add_native(story.device)
    story.blocks = native.remove_blocks = asyncio.Event()
    story.ask(Flavour.VFIO)


def hold_after(story: Story, attribute: str) -> None:
    real = story.kernel.write

    async def write(path: str, text: str) -> None:
        try:
            await real(path, text)
        finally:
            if path.endswith(f"/{attribute}"):
                story.hold()

    story.kernel.write = write  # type: ignore[method-assign]


def held_while_it_is_undone(story: Story) -> None:
    story.refuse()
    story.kernel.add_native(story.device)
    hold_after(story, "vfio-pci/bind")
    story.ask(Flavour.VFIO)


def held_before_the_second_candidate(story: Story) -> None:
    story.variant(FakeDriver("good", "good_vfio", vfio=True, probe_errno=errno.EINVAL))
    load = story.kernel.load

    def load_and_hold(name: str) -> None:
        load(name)
        if name == "vfio_pci":
            story.hold()

    story.kernel.load = load_and_hold  # type: ignore[method-assign]
    story.ask(Flavour.VFIO)


def held_after_a_personality_took_too_long(story: Story) -> None:
    story.kernel.add_native(story.device, "chameleon")
    story.kernel.add_personality(story.device)
    story.kernel.add_vfio_device = lambda device: None  # type: ignore[method-assign]

    async def hold_soon() -> None:
        await asyncio.sleep(0.02)
        story.hold()

    real = story.kernel.write
    tasks = []

    async def write(path: str, text: str) -> None:
        await real(path, text)
        tasks.append(asyncio.create_task(hold_soon()))

    story.kernel.write = write  # type: ignore[method-assign]
    story.ask(Flavour.VFIO)


def cannot_be_recorded(story: Story) -> None:
    directory = story.kernel.root / "run/devices"
    story.kernel.load("vfio_pci")
    directory.mkdir(parents=True)
    # Where the record's file would go first there is a directory.
    (directory / f"{ADDRESS}.new").mkdir()
    story.ask(Flavour.VFIO)


STORIES: dict[Callable[[Story], None], set[Move]] = {
    another_of_the_group_refuses: {(Phase.DONE, Phase.UNDOING), (Phase.UNDOING, Phase.FAILED)},
    plain: {
        (Phase.WAITING, Phase.LOADING),
        (Phase.LOADING, Phase.SWITCHING),
        (Phase.SWITCHING, Phase.VERIFYING),
        (Phase.VERIFYING, Phase.DONE),
        (Phase.WAITING, Phase.SWITCHING),
    },
    nothing_to_do: {(Phase.WAITING, Phase.DONE)},
    a_bridge: {(Phase.WAITING, Phase.FAILED)},
    personality_held: {(Phase.SWITCHING, Phase.STUCK)},
    personality_that_is_never_ready: {(Phase.VERIFYING, Phase.UNDOING), (Phase.UNDOING, Phase.FAILED)},
    personality_whose_driver_goes: {(Phase.VERIFYING, Phase.FAILED)},
    two_candidates_not_to_be_had: {(Phase.LOADING, Phase.LOADING), (Phase.LOADING, Phase.FAILED)},
    refused_and_nothing_else_to_be_had: {(Phase.SWITCHING, Phase.LOADING), (Phase.LOADING, Phase.UNDOING)},
    all_refuse: {(Phase.SWITCHING, Phase.UNDOING), (Phase.UNDOING, Phase.FAILED)},
    two_drivers_of_one_module: {(Phase.SWITCHING, Phase.SWITCHING)},
    hollow_first_of_two_drivers: {(Phase.VERIFYING, Phase.SWITCHING)},
    hollow_then_the_fallback: {(Phase.VERIFYING, Phase.LOADING)},
    hollow_all_over: {(Phase.VERIFYING, Phase.UNDOING)},
    has_the_named_driver_already: {(Phase.LOADING, Phase.DONE)},
    held_by_a_guest: {(Phase.SWITCHING, Phase.STUCK)},
    held_while_it_is_undone: {(Phase.UNDOING, Phase.STUCK)},
    held_before_the_second_candidate: {(Phase.LOADING, Phase.STUCK)},
    held_after_a_personality_took_too_long: {(Phase.VERIFYING, Phase.STUCK)},
    cannot_be_recorded: {(Phase.SWITCHING, Phase.FAILED)},
}


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_a_story_goes_through_its_moves_and_only_legal_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story: Callable[[Story], None]
) -> None:
    seen: set[Move] = set()

    def check(now: Phase, then: Phase) -> None:
        check_move(now, then)
        seen.add((now, then))

    monkeypatch.setattr(steps, "check_move", check)
    story(Story(tmp_path))
    assert seen >= STORIES[story]


def test_every_move_in_the_table_is_made_by_a_story() -> None:
    made = {move for moves in STORIES.values() for move in moves}
    assert {(now, then) for now in Phase for then in MOVES[now]} == made


# plans

names = st.none() | st.sampled_from(["e1000e", "vfio-pci", "good-vfio-pci", "mine"])
bindings = st.builds(Binding, driver=names, override=names)


class Model:
    """A device as far as its driver and its override go; refuses what the kernel would."""

    def __init__(self, binding: Binding) -> None:
        self.driver, self.override = binding.driver, binding.override

    @property
    def binding(self) -> Binding:
        return Binding(self.driver, self.override)

    def apply(self, steps: tuple[Step, ...]) -> "Model":
        for step in steps:
            self._one(step)
        return self

    def _one(self, step: Step) -> None:
        match step.action:
            case Action.OVERRIDE:
                self.override = step.value
            case Action.UNBIND:
                assert step.value is not None
                assert self.driver == step.value
                self.driver = None
            case Action.BIND:
                assert step.value is not None
                assert self.driver is None
                # An override decides who may have the device; without one, so do its IDs.
                assert self.override == step.value
                self.driver = step.value
            case Action.PROBE:
                if self.driver is None:
                    self.driver = self.override if self.override is not None else "the kernel's choice"
            case Action.ASK:
                raise AssertionError("no move asks a driver")


def actions(steps: tuple[Step, ...]) -> list[Action]:
    return [step.action for step in steps]


@given(now=bindings, goal=bindings)
def test_a_plan_reaches_its_goal_from_anywhere(now: Binding, goal: Binding) -> None:
    assert Model(now).apply(plan_move(now, goal)).binding == goal


@given(now=bindings, goal=bindings)
def test_going_there_and_back_restores_what_was(now: Binding, goal: Binding) -> None:
    model = Model(now).apply(plan_move(now, goal))
    assert model.apply(plan_move(model.binding, now)).binding == now


@given(binding=bindings)
def test_nothing_is_written_to_stay_where_one_is(binding: Binding) -> None:
    assert plan_move(binding, binding) == ()


@given(now=bindings, goal=bindings)
def test_a_driver_that_stays_is_not_taken_away_meanwhile(now: Binding, goal: Binding) -> None:
    steps = actions(plan_move(now, Binding(now.driver, goal.override)))
    assert steps in ([], [Action.OVERRIDE])


@given(now=bindings, goal=bindings)
def test_no_move_unbinds_or_binds_twice_or_lets_the_kernel_choose(now: Binding, goal: Binding) -> None:
    steps = actions(plan_move(now, goal))
    assert steps.count(Action.UNBIND) == (now.driver is not None and now.driver != goal.driver)
    assert steps.count(Action.BIND) == (goal.driver is not None and now.driver != goal.driver)
    assert Action.PROBE not in steps
    assert steps.count(Action.OVERRIDE) <= 2


@given(now=bindings, goal=bindings)
def test_the_override_names_the_goal_before_the_device_loses_its_driver(now: Binding, goal: Binding) -> None:
    model = Model(now)
    for step in plan_move(now, goal):
        if step.action is Action.UNBIND:
            assert model.override == (goal.override if goal.driver is None else goal.driver)
        model.apply((step,))


@given(now=bindings, override=names)
def test_a_device_whose_goal_has_no_driver_is_never_bound(now: Binding, override: str | None) -> None:
    assert Action.BIND not in actions(plan_move(now, Binding(None, override)))


@given(now=bindings, goal=bindings)
def test_no_write_is_made_that_changes_nothing(now: Binding, goal: Binding) -> None:
    model = Model(now)
    for step in plan_move(now, goal):
        before = model.binding
        model.apply((step,))
        assert model.binding != before


@given(now=bindings)
def test_a_release_leaves_the_choice_to_the_kernel(now: Binding) -> None:
    steps = plan_release(now)
    assert Model(now).apply(steps).binding == Binding("the kernel's choice", None)
    assert actions(steps)[-1] is Action.PROBE
    assert actions(steps).count(Action.UNBIND) == (now.driver is not None)
    if Action.UNBIND in actions(steps) and now.override is not None:
        assert actions(steps).index(Action.OVERRIDE) < actions(steps).index(Action.UNBIND)


def test_steps_read_as_what_they_write() -> None:
    assert [str(step) for step in plan_move(Binding("e1000e", None), Binding("vfio-pci", "vfio-pci"))] == [
        "set driver_override to vfio-pci",
        "unbind from e1000e",
        "bind to vfio-pci",
    ]
    assert [str(step) for step in plan_release(Binding("vfio-pci", "vfio-pci"))] == [
        "clear driver_override",
        "unbind from vfio-pci",
        "let the kernel choose a native driver",
    ]
    assert str(Step(Action.ASK, "1", "enable_vfio")) == "write 1 to enable_vfio"


# turns


@pytest.mark.parametrize("ticks", range(8))
def test_who_comes_at_the_very_moment_a_turn_ends_is_told_the_truth(tmp_path: Path, ticks: int) -> None:
    """Three wishes for one device: the second waits for the first, the third comes as that one ends."""
    kernel = FakeKernel(tmp_path)
    kernel.add_native(kernel.add_device())
    told: list[tuple[str, Flavour, Flavour]] = []

    async def run() -> None:
        engine = make_engine(kernel)
        loop = asyncio.get_running_loop()
        third: asyncio.Future[None] = loop.create_future()

        async def ask(name: str, flavour: Flavour, report: Callable[[StepBegun | StepReport], None]) -> None:
            outcome = await engine.set_flavour(Request(ADDRESS, flavour), report)
            # What it had when the switch ended: its own steps are the last that were made.
            told.append((name, outcome.flavour, engine.device(ADDRESS).flavour))

        def later(left: int) -> None:
            if left:
                loop.call_soon(later, left - 1)
            else:
                task = loop.create_task(ask("third", Flavour.VFIO, lambda _: None))
                task.add_done_callback(lambda _: third.set_result(None))

        def watch(step: StepBegun | StepReport) -> None:
            if isinstance(step, StepReport) and step.what == "bind to vfio-pci":
                later(ticks)

        first = asyncio.create_task(ask("first", Flavour.VFIO, watch))
        await asyncio.sleep(0)
        second = asyncio.create_task(ask("second", Flavour.NATIVE, lambda _: None))
        await asyncio.gather(first, second, third)

    asyncio.run(run())
    # The third came when the second was waiting already, so its wish is the last to be fulfilled.
    assert told[-1] == ("third", Flavour.VFIO, Flavour.VFIO)
