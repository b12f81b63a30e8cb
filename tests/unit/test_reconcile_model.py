"""Whatever happens in whatever order: each device is what a simple model says, and no other is written to."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_kernel import FakeDevice, FakeKernel, make_engine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from test_reconcile import LONG, QUICK, USER, add_with_native, ask, at, bind_by_others, policy, remarks, reset
from virtual_time import _JumpingLoop

from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome
from vfio_flavourd.model.policy import Match, Policy, Rule

ADDRESSES = ("0000:01:00.0", "0000:02:00.0")
DRIVERS = {Flavour.NATIVE: "e1000e", Flavour.VFIO: "vfio-pci"}

devices = st.sampled_from(ADDRESSES)
flavours = st.sampled_from([Flavour.NATIVE, Flavour.VFIO])
# What a policy says of each device; None: it has no rule.
policies = st.fixed_dictionaries({address: st.none() | flavours for address in ADDRESSES})


@dataclass
class Expected:
    """Of one device. `applied` is what was wanted when the policy was last applied to it, or a wish granted;
    `rule` says that there was a rule for it then. While `is_waiting` what is wanted can't be had, since it
    `is_used`. While `is_held_back` a policy has come with a restart that says something else.
    `is_meddled` tells that somebody else has moved it since it came."""

    flavour: Flavour = Flavour.NATIVE
    applied: Flavour | None = None
    rule: bool = False
    wish: Flavour | None = None
    is_waiting: bool = False
    is_used: bool = False
    is_held_back: bool = False
    is_meddled: bool = False


class Reconciling(RuleBasedStateMachine):
    """Two devices, a policy, and a daemon that is started again and again.

    After each step so much time passes that whatever is to be tried again has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda descriptor: None)
        self.kernel = FakeKernel(self.root / "host")
        self.runner = _make_runner()
        self.devices: dict[str, FakeDevice] = {}
        self.expected: dict[str, Expected] = {}
        self.switched: set[str] = set()
        self.says: dict[str, Flavour | None] = {}

    def teardown(self) -> None:
        self.runner.close()
        self.patch.undo()
        shutil.rmtree(self.root)

    @initialize(says=policies)
    def the_first_start(self, says: dict[str, Flavour | None]) -> None:
        for number, address in enumerate(ADDRESSES):
            self.devices[address] = add_with_native(self.kernel, address, number)
            self.expected[address] = Expected()
        self._start(says)
        for address in ADDRESSES:
            self._apply(address)
        self._let_time_pass()

    # the daemon

    @rule(says=policies, stopped=st.booleans())
    def the_daemon_is_started_again(self, says: dict[str, Flavour | None], *, stopped: bool) -> None:
        """Stopped or killed, and the policy's files may be others by now."""
        if stopped:
            self.runner.run(self.engine.settle(1.0))
        self.runner.close()
        self.runner = _make_runner()
        self._start(says)
        for address, expected in self.expected.items():
            wanted, expected.is_held_back = self._wanted(address), False
            if wanted not in (None, expected.applied):
                if expected.flavour == wanted:
                    self._note(address)
                else:
                    expected.is_held_back = True
            elif expected.is_waiting:
                self._apply(address)
        self._let_time_pass()

    @rule(says=policies)
    def the_policy_is_reloaded(self, says: dict[str, Flavour | None]) -> None:
        self.says = says
        self.engine._host.policy.policy = _make_policy(says)
        self.engine._host.policy._modules = None

        async def run() -> None:
            self.engine.reconciler.reload()

        self.runner.run(run())
        for address, expected in self.expected.items():
            expected.is_held_back = False
            same = [] if expected.is_waiting else [expected.applied]
            if not expected.is_waiting and expected.rule and says[address] is not None:
                same.append(None)
            if self._wanted(address) not in same:
                self._apply(address)
        self._let_time_pass()

    # what is asked by hand

    @rule(address=devices, flavour=flavours)
    def it_is_asked_for(self, address: str, flavour: Flavour) -> None:
        expected = self.expected[address]
        told = self._ask(ask(self.engine, self.devices[address], flavour))
        if isinstance(told, FlavourError):
            assert expected.is_used
            assert expected.flavour != flavour
        else:
            expected.flavour = expected.wish = flavour
            self._note(address)
            self.switched.add(address)
        self._let_time_pass()

    @rule(address=devices)
    def it_is_reset(self, address: str) -> None:
        expected = self.expected[address]
        told = self._ask(reset(self.engine, self.devices[address]))
        if isinstance(told, FlavourError):
            assert expected.is_used
        else:
            says = self.says[address]
            if says is None and expected.is_meddled:
                expected.flavour = told.flavour  # what was there first may be somebody else's doing
            else:
                expected.flavour = says or Flavour.NATIVE
            assert told.flavour == expected.flavour
            expected.wish = None
            self._apply(address)
            self.switched.add(address)
        self._let_time_pass()

    # what others do

    @rule(address=devices, flavour=flavours)
    def somebody_else_moves_it(self, address: str, flavour: Flavour) -> None:
        expected = self.expected[address]
        if expected.flavour == flavour:
            return
        self.kernel.load("vfio_pci")
        bind_by_others(self.kernel, self.devices[address], DRIVERS[flavour])
        expected.flavour, expected.is_meddled = flavour, True
        self._event(address)
        self._let_time_pass()

    @rule(address=devices)
    def it_comes_into_use_or_free(self, address: str) -> None:
        expected = self.expected[address]
        expected.is_used = not expected.is_used
        self.kernel.users[address] = (USER,) if expected.is_used else ()
        self._let_time_pass()

    @rule(address=devices, told=st.booleans())
    def it_is_replugged(self, address: str, *, told: bool) -> None:
        self.kernel.remove_device(self.devices[address])
        self.kernel.users[address] = ()
        if told:
            self._run(lambda: self.engine.forget(at(self.devices[address])))
        self.devices[address] = add_with_native(self.kernel, address, ADDRESSES.index(address))
        self.expected[address] = Expected()
        self._event(address)
        self._apply(address)
        self._let_time_pass()

    @rule()
    def events_come_that_say_nothing(self) -> None:
        self._run(self.engine.notice_all)
        self._let_time_pass()

    # what is promised

    @invariant()
    def each_device_is_what_the_model_says(self) -> None:
        for address, expected in self.expected.items():
            status = self.engine.device(at(self.devices[address]))
            assert status.flavour == expected.flavour, address
            assert status.wish == expected.wish, address

    @invariant()
    def what_somebody_else_did_is_remarked_on_and_nothing_else(self) -> None:
        for address, expected in self.expected.items():
            is_done = not expected.is_waiting and not expected.is_held_back
            is_other = is_done and expected.applied not in (None, expected.flavour)
            assert (remarks(self.engine, self.devices[address]) != ()) == is_other, address

    # the model

    def _wanted(self, address: str) -> Flavour | None:
        return self.expected[address].wish or self.says[address]

    def _apply(self, address: str) -> None:
        expected, wanted = self.expected[address], self._wanted(address)
        self._note(address)
        if wanted is None or wanted == expected.flavour:
            return
        if expected.is_used:
            expected.is_waiting = True
        else:
            expected.flavour = wanted
            self.switched.add(address)

    def _note(self, address: str) -> None:
        expected = self.expected[address]
        expected.applied = self._wanted(address)
        expected.rule = expected.applied is not None and self.says[address] is not None
        expected.is_waiting = expected.is_held_back = False

    # how

    def _start(self, says: dict[str, Flavour | None]) -> None:
        self.says = says
        self.engine = make_engine(self.kernel, _make_policy(says))

        async def run() -> None:
            self.engine.recover()
            await self.engine.reconciler.start()

        self.runner.run(run())

    def _event(self, address: str) -> None:
        self._run(lambda: self.engine.reconciler.consider(at(self.devices[address])))

    def _run(self, act: Any) -> None:
        async def run() -> None:
            act()

        self.runner.run(run())

    def _ask(self, work: Coroutine[Any, Any, Outcome]) -> Outcome | FlavourError:
        try:
            return self.runner.run(work)
        except FlavourError as error:
            return error

    def _let_time_pass(self) -> None:
        self.runner.run(asyncio.sleep(LONG))
        for address, expected in self.expected.items():
            if expected.is_waiting:
                self._apply(address)
        touched = {address for address in ADDRESSES if address in "\n".join(self.kernel.writes)}
        assert touched <= self.switched
        self.kernel.writes.clear()
        self.switched.clear()


def _make_policy(says: dict[str, Flavour | None]) -> Policy:
    return policy(
        *(
            Rule(address, Match(address=(parse_address(address),)), flavour, (), QUICK, None, "50.yaml:3")
            for address, flavour in says.items()
            if flavour is not None
        )
    )


def _make_runner() -> asyncio.Runner:
    """It goes on from one step to the next, with what is due later."""
    return asyncio.Runner(loop_factory=_JumpingLoop)


Reconciling.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, suppress_health_check=list(HealthCheck)
)


TestReconciling = Reconciling.TestCase
