"""What is refused, and what is taken by force all the same, is on record (who may be is in test_guards)."""

import asyncio
import logging

import pytest
from fake_kernel import FakeDevice, FakeDriver, FakeKernel, make_engine

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import InUse, Match, Policy, Rule, Settings

ADDRESS = parse_address("0000:01:00.0")
ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
BY_FORCE = sorted(set(Use) - {Use.ROOT, Use.VFS, Use.BRIDGE})
FORCED = Settings(load_timeout=1.0, bind_timeout=1.0, in_use=InUse.FORCE)


@pytest.fixture
def device(kernel: FakeKernel) -> FakeDevice:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=ALIAS)
    return device


def ask(engine: Engine, flavour: Flavour = Flavour.VFIO, *, force: bool = False) -> Outcome:
    async def run() -> Outcome:
        try:
            return await engine.set_flavour(
                Request(ADDRESS, flavour, force=force, requester="uid 0 pid 1"), lambda _: None
            )
        finally:
            engine.attempts.log()

    return asyncio.run(run())


@pytest.mark.parametrize("use", BY_FORCE)
@pytest.mark.parametrize("by_rule", [False, True], ids=["by request", "by rule"])
def test_what_is_taken_by_force_is_logged_with_who_asked_and_from_whom(
    kernel: FakeKernel, device: FakeDevice, caplog: pytest.LogCaptureFixture, use: Use, by_rule: bool
) -> None:
    kernel.users[device.address] = (User(use, "what uses it"),)
    rule = Rule("mine", Match(device=(0x10D3,)), None, (), FORCED, None, "50-test.yaml:3")
    policy = Policy(rules=(rule,)) if by_rule else None
    with caplog.at_level(logging.INFO):
        outcome = ask(make_engine(kernel, policy), force=not by_rule)
    assert outcome.driver == "good"
    assert [user.what for user in outcome.forced] == ["what uses it"]
    (record,) = [record for record in caplog.records if hasattr(record, "OUTCOME")]
    assert record.levelno == logging.WARNING
    assert "taken by force from: what uses it" in record.getMessage()
    fields = vars(record)
    assert (fields["REQUESTER"], fields["OUTCOME"], fields["FORCED"]) == ("uid 0 pid 1", "done", "yes")
    assert (fields["PCI_ADDRESS"], fields["FLAVOUR"], fields["DRIVER"]) == (device.address, "vfio", "good")


def test_force_for_one_request_is_not_force_for_the_next(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.users[device.address] = (User(Use.GUEST, "what uses it"),)
    engine = make_engine(kernel)
    ask(engine, force=True)
    with pytest.raises(FlavourError, match="what uses it"):
        ask(engine, Flavour.NATIVE)
    assert device.driver is not None
    assert device.driver.name == "good"


def test_a_refusal_is_in_the_journal_with_who_asked_what_and_why(
    kernel: FakeKernel, device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.users[device.address] = (User(Use.SWAP, "swap on nvme0n1p3"),)
    with pytest.raises(FlavourError):
        ask(make_engine(kernel))
    (record,) = [record for record in caplog.records if hasattr(record, "OUTCOME")]
    fields = vars(record)
    assert (fields["REQUESTER"], fields["OUTCOME"]) == ("uid 0 pid 1", "refused")
    assert "swap on nvme0n1p3" in record.getMessage()
    assert int(fields["DURATION_USEC"]) >= 0
