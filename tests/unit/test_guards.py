"""The host is never hurt by default: what is refused, by whose doing, and what force is for."""

import errno
import logging
from typing import Any

import pytest
from fake_kernel import MADE_UP, FakeDevice, FakeDriver, FakeKernel, has, make_engine
from virtual_time import run_at_once

from vfio_flavourd.engine.engine import Engine
from vfio_flavourd.engine.guards import judge_users
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.flavour import Flavour, Outcome, Request
from vfio_flavourd.model.occupancy import Subject, Use, User
from vfio_flavourd.model.policy import VFIO as VFIO_KIND
from vfio_flavourd.model.policy import (
    FlavourKind,
    InUse,
    Match,
    NoIommu,
    OthersInGroup,
    Policy,
    Rule,
    Settings,
)
from vfio_flavourd.model.transition import Phase
from vfio_flavourd.model.udev_rules import PLACEHOLDER

ADDRESS = "0000:01:00.0"
SIBLING = "0000:01:00.1"
VARIANT_ALIAS = "vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*"
NATIVE = ("e1000e", None)
VFIO = ("vfio-pci", "vfio-pci")

# Each as `kernel/occupancy.py` words it.
USERS = {
    use: User(use, what)
    for use, what in {
        Use.ROOT: "/ on nvme0n1p2",
        Use.MOUNT: "/mnt/data on nvme0n1p2",
        Use.SWAP: "swap on nvme0n1p3",
        Use.HOLDER: "dm-0 (vg0-home) on nvme0n1p2",
        Use.OPEN: "dd (pid 812) has /dev/nvme0n1 open",
        Use.ROUTE: "default route via eth0",
        Use.ADDRESS: "192.0.2.1 on eth0",
        Use.PORT: "bridge br0 has eth0",
        Use.NETWORK_STORAGE: "/srv from 192.0.2.9 via eth0",
        Use.DISPLAY: "the boot display",
        Use.VFS: "4 VFs enabled",
        Use.BRIDGE: "everything behind the bridge",
        Use.GUEST: "qemu-system-x86 (pid 812) holds /dev/vfio/7",
    }.items()
}
# What promise 1 keeps from force too: written out, because the code's own list may lose one.
NEEDED = (Use.ROOT, Use.VFS, Use.BRIDGE)
FORCEABLE = [use for use in Use if use not in NEEDED]


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def make_request(flavour: str = Flavour.VFIO, *drivers: str, address: str = ADDRESS, **more: Any) -> Request:
    return Request(parse_address(address), Flavour(flavour), drivers, **more)


def ask(engine: Engine, request: Request) -> Outcome:
    async def run() -> Outcome:
        return await engine.set_flavour(request, lambda _: None)

    return run_at_once(run())


def plan(engine: Engine, request: Request) -> list[str]:
    return run_at_once(engine.plan(request))


def plan_and_do(engine: Engine, request: Request) -> tuple[list[str], list[str]]:
    """What a dry run tells, and what then is written."""
    lines = plan(engine, request)
    return lines, [step.what for step in ask(engine, request).steps if step.phase is Phase.SWITCHING]


def refused(engine: Engine, request: Request) -> FlavourError:
    """The switch and its dry run are refused alike, and nothing has come of either."""
    root = engine._host.root
    modules = sorted((root / "sys/module").iterdir())
    with pytest.raises(FlavourError) as planned:
        plan(engine, request)
    with pytest.raises(FlavourError) as caught:
        ask(engine, request)
    told = (str(caught.value), caught.value.errno, caught.value.hint)
    assert (str(planned.value), planned.value.errno, planned.value.hint) == told
    assert sorted((root / "sys/module").iterdir()) == modules
    assert list((root / "run/devices").iterdir()) == []
    return caught.value


def forcing(**settings: Any) -> Policy:
    return Policy(defaults=Settings(1.0, 1.0, in_use=InUse.FORCE, **settings))


def on_vfio(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.load("vfio_pci")
    if device.driver is not None:
        kernel.release(device)
    device.override = "vfio-pci"
    kernel.probe(kernel.drivers["vfio-pci"], device)


# in use


@pytest.mark.parametrize("use", Use, ids=lambda use: use.name.lower())
def test_a_device_in_use_is_refused_with_its_user_named_and_left_alone(kernel: FakeKernel, use: Use) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.users[ADDRESS] = (USERS[use],)
    engine = make_engine(kernel)
    error = refused(engine, make_request())
    assert error.errno == errno.EBUSY
    if use is not Use.BRIDGE:
        assert USERS[use].what in str(error)
    assert error.hint
    assert kernel.writes == []
    assert has(device) == NATIVE
    (attempt,) = engine.attempts.history
    assert attempt.error == str(error)


def test_all_who_use_it_are_named(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    kernel.users[ADDRESS] = (USERS[Use.MOUNT], USERS[Use.ROUTE])
    error = refused(make_engine(kernel), make_request())
    assert "in use: /mnt/data on nvme0n1p2; default route via eth0" in str(error)


@pytest.mark.parametrize("by", ["request", "policy"])
@pytest.mark.parametrize("use", FORCEABLE, ids=lambda use: use.name.lower())
def test_force_takes_it_and_tells_from_whom(
    kernel: FakeKernel, use: Use, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.users[ADDRESS] = (USERS[use],)
    caplog.set_level(logging.INFO)
    engine = make_engine(kernel, forcing() if by == "policy" else None)
    request = make_request(force=by == "request")
    assert f"take it by force from: {USERS[use].what}" in plan(engine, request)
    assert kernel.writes == []
    outcome = ask(engine, request)
    assert outcome.forced == (USERS[use],)
    assert has(device) == VFIO
    engine.attempts.log()
    (record,) = [each for each in caplog.records if each.name.endswith(".attempts")]
    assert record.levelno == logging.WARNING
    assert f"taken by force from: {USERS[use].what}" in record.message
    assert vars(record)["FORCED"] == "yes"


@pytest.mark.parametrize("by", ["request", "policy"])
@pytest.mark.parametrize("use", NEEDED, ids=lambda use: use.name.lower())
def test_what_the_host_can_not_do_without_is_not_given_to_force_either(
    kernel: FakeKernel, use: Use, by: str
) -> None:
    device = kernel.add_device(class_code=0x060400 if use is Use.BRIDGE else 0x020000)
    kernel.add_native(device)
    kernel.users[ADDRESS] = (USERS[Use.MOUNT], USERS[use])
    engine = make_engine(kernel, forcing() if by == "policy" else None)
    error = refused(engine, make_request(force=by == "request"))
    assert error.errno == errno.EBUSY
    if use is not Use.BRIDGE:
        assert USERS[use].what in str(error)
    assert kernel.writes == []
    assert has(device) == NATIVE


def test_a_pf_with_vfs_is_told_how_to_be_rid_of_them(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    kernel.users[ADDRESS] = (USERS[Use.VFS],)
    assert (
        f"echo 0 > /sys/bus/pci/devices/{ADDRESS}/sriov_numvfs"
        in refused(make_engine(kernel), make_request(force=True)).hint
    )


def test_force_without_a_user_is_nothing_special(kernel: FakeKernel) -> None:
    kernel.add_native(kernel.add_device())
    outcome = ask(make_engine(kernel), make_request(force=True))
    assert outcome.forced == ()
    assert outcome.changed


def test_in_use_is_a_matter_of_the_rule_for_the_device(kernel: FakeKernel) -> None:
    devices = [kernel.add_device(ADDRESS), kernel.add_device("0000:02:00.0", group=8)]
    kernel.add_native(devices[0])
    kernel.users = dict.fromkeys((ADDRESS, "0000:02:00.0"), (USERS[Use.ADDRESS],))
    settings = Settings(1.0, 1.0, in_use=InUse.FORCE)
    match = Match(address=(parse_address(ADDRESS),))
    policy = Policy(Settings(1.0, 1.0), (Rule("mine", match, None, (), settings, None, "x.yaml:1"),))
    engine = make_engine(kernel, policy)
    assert ask(engine, make_request()).forced
    with pytest.raises(FlavourError):
        ask(engine, make_request(address="0000:02:00.0"))
    assert has(devices[1]) == NATIVE


# guests


@pytest.mark.parametrize("release", ["5.10.0-28-amd64", "5.18.19", "4.19.0"])
@pytest.mark.parametrize("by", ["request", "policy"])
def test_before_5_19_a_device_that_a_guest_holds_is_not_given_to_force_either(
    kernel: FakeKernel, release: str, by: str
) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    on_vfio(kernel, device)
    kernel.users[ADDRESS] = (USERS[Use.GUEST],)
    engine = make_engine(kernel, forcing() if by == "policy" else None, release=release)
    error = refused(engine, make_request(Flavour.NATIVE, force=by == "request"))
    assert error.errno == errno.EBUSY
    assert USERS[Use.GUEST].what in str(error)
    assert release in error.hint
    assert kernel.writes == []
    assert has(device) == VFIO


@pytest.mark.parametrize("release", ["5.19.0", "6.1.0-18-amd64", "10.0"])
def test_from_5_19_on_force_takes_a_device_from_a_guest(kernel: FakeKernel, release: str) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    on_vfio(kernel, device)
    kernel.users[ADDRESS] = (USERS[Use.GUEST],)
    engine = make_engine(kernel, release=release)
    assert "stop the guest" in refused(engine, make_request(Flavour.NATIVE)).hint
    assert ask(engine, make_request(Flavour.NATIVE, force=True)).forced == (USERS[Use.GUEST],)
    assert has(device) == NATIVE


def test_before_5_19_no_native_driver_comes_into_a_group_that_a_guest_uses(kernel: FakeKernel) -> None:
    """Also where the device itself is free: it has lost its driver, and a guest has the others."""
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel, release="5.10.0")
    ask(engine, make_request())
    kernel.release(device)
    kernel.writes.clear()
    kernel.group_holders[7] = (USERS[Use.GUEST],)

    async def reset(release: str) -> Outcome:
        engine = make_engine(kernel, release=release)
        return await engine.reset(make_request(Flavour.NATIVE, force=True), lambda _: None)

    with pytest.raises(FlavourError) as caught:
        run_at_once(reset("5.10.0"))
    assert caught.value.errno == errno.EBUSY
    assert USERS[Use.GUEST].what in str(caught.value)
    assert kernel.writes == []
    run_at_once(reset("6.12.0"))
    assert has(device) == NATIVE


def test_before_5_19_no_driver_of_a_flavour_of_the_policys_own_comes_into_such_a_group_either(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.add_module(FakeDriver("uio_pci_generic", "uio_pci_generic"))
    kernel.release(device)
    kernel.group_holders[7] = (USERS[Use.GUEST],)
    policy = Policy(flavours={"vfio": VFIO_KIND, "uio": FlavourKind("uio", None, "uio_pci_generic")})
    error = refused(make_engine(kernel, policy, release="5.10.0"), make_request("uio", force=True))
    assert error.errno == errno.EBUSY
    assert USERS[Use.GUEST].what in str(error)
    assert kernel.writes == []
    assert ask(make_engine(kernel, policy, release="5.19.0"), make_request("uio")).driver == "uio_pci_generic"


@pytest.mark.parametrize(
    ("release", "is_safe"), [("odd", True), ("5", True), ("5.18", False), ("5.19", True)]
)
def test_a_release_that_tells_nothing_is_taken_for_a_new_one(
    kernel: FakeKernel, release: str, is_safe: bool
) -> None:
    kernel.add_device()
    device = make_engine(kernel).device(parse_address(ADDRESS)).device
    if is_safe:
        assert judge_users(device, (USERS[Use.GUEST],), release, forced=True)
    else:
        with pytest.raises(FlavourError):
            judge_users(device, (USERS[Use.GUEST],), release, forced=True)


# groups


@pytest.mark.parametrize("use", [Use.MOUNT, Use.VFS, Use.GUEST], ids=lambda use: use.name.lower())
def test_who_uses_another_of_the_group_keeps_all_of_it_in_a_switch_together(
    kernel: FakeKernel, use: Use
) -> None:
    devices = [kernel.add_device(ADDRESS), kernel.add_device(SIBLING)]
    kernel.add_native(devices[0])
    kernel.users[SIBLING] = (USERS[use],)
    engine = make_engine(kernel)
    error = refused(engine, make_request(others=OthersInGroup.TOGETHER))
    assert str(error).startswith(f"{SIBLING}: in use: {USERS[use].what}")
    assert [has(each) for each in devices] == [NATIVE, NATIVE]
    assert kernel.writes == []
    forced = make_request(others=OthersInGroup.TOGETHER, force=True)
    if use in NEEDED:
        refused(engine, forced)
        assert kernel.writes == []
    else:
        assert ask(engine, forced).forced == (USERS[use],)
        assert [has(each) for each in devices] == [VFIO, VFIO]


def test_what_the_policy_may_take_by_force_is_a_matter_of_each_ones_own_rule(kernel: FakeKernel) -> None:
    devices = [kernel.add_device(ADDRESS), kernel.add_device(SIBLING)]
    kernel.add_native(devices[0])
    kernel.users[SIBLING] = (USERS[Use.MOUNT],)
    settings = Settings(1.0, 1.0, in_use=InUse.FORCE, group=OthersInGroup.TOGETHER)
    match = Match(address=(parse_address(ADDRESS),))
    policy = Policy(Settings(1.0, 1.0), (Rule("mine", match, None, (), settings, None, "x.yaml:1"),))
    error = refused(make_engine(kernel, policy), make_request())
    assert f"{SIBLING}: in use" in str(error)
    assert kernel.writes == []


def test_who_uses_another_of_the_group_is_of_no_concern_where_the_others_are_ignored(
    kernel: FakeKernel,
) -> None:
    devices = [kernel.add_device(ADDRESS), kernel.add_device(SIBLING)]
    kernel.add_native(devices[0])
    kernel.users[SIBLING] = (USERS[Use.MOUNT],)
    outcome = ask(make_engine(kernel), make_request(others=OthersInGroup.IGNORE))
    assert outcome.forced == ()
    assert [has(each) for each in devices] == [VFIO, NATIVE]


def test_a_group_in_the_way_is_refused_and_force_is_for_something_else(kernel: FakeKernel) -> None:
    kernel.add_device(ADDRESS)
    kernel.add_native(kernel.add_device(SIBLING))
    error = refused(make_engine(kernel), make_request(force=True))
    assert error.errno == errno.EBUSY
    assert f"{SIBLING} (e1000e) has a host driver" in str(error)


# without an IOMMU


def test_a_device_in_no_iommu_group_is_refused_unless_the_policy_allows_it(kernel: FakeKernel) -> None:
    device = kernel.add_device(group=None)
    kernel.add_native(device)
    error = refused(make_engine(kernel), make_request(force=True))
    assert "no IOMMU group" in str(error)
    assert kernel.writes == []
    allowing = Policy(defaults=Settings(1.0, 1.0, noiommu=NoIommu.ALLOW))
    outcome = ask(make_engine(kernel, allowing), make_request())
    assert (outcome.driver, outcome.group_node) == ("vfio-pci", f"/dev/vfio/noiommu-{MADE_UP}")
    assert has(device) == VFIO


@pytest.mark.parametrize("loaded", [True, False], ids=["VFIO is loaded", "it comes with the driver"])
@pytest.mark.parametrize(
    ("mode", "words"), [("N", "has not been told to do without"), (None, "this kernel's VFIO can't")]
)
def test_a_kernel_that_does_not_do_without_an_iommu_is_known_before_the_native_driver_is_taken_away(
    kernel: FakeKernel, mode: str | None, words: str, *, loaded: bool
) -> None:
    device = kernel.add_device(group=None)
    native = kernel.add_native(device)
    engine = make_engine(kernel, Policy(defaults=Settings(1.0, 1.0, noiommu=NoIommu.ALLOW)))
    parameters = kernel.root / "sys/module/vfio/parameters"

    def load_vfio() -> None:
        parameters.mkdir(parents=True)
        if mode is not None:
            (parameters / "enable_unsafe_noiommu_mode").write_text(f"{mode}\n", encoding="ascii")

    if loaded:
        load_vfio()
        with pytest.raises(FlavourError, match=words):
            run_at_once(engine.plan(make_request()))
    else:
        load = kernel.load

        def load_with_vfio(name: str) -> None:
            load_vfio()
            load(name)

        kernel.load = load_with_vfio  # type: ignore[method-assign]
    with pytest.raises(FlavourError, match=words) as caught:
        ask(engine, make_request())
    assert ("enable_unsafe_noiommu_mode" if mode else "CONFIG_VFIO_NOIOMMU") in caught.value.hint
    assert kernel.writes == []
    assert device.driver is native
    if mode is not None:
        (parameters / "enable_unsafe_noiommu_mode").write_text("Y\n", encoding="ascii")
        assert ask(engine, make_request()).driver == "vfio-pci"


# nothing to do


@pytest.mark.parametrize("use", Use, ids=lambda use: use.name.lower())
@pytest.mark.parametrize("flavour", [Flavour.NATIVE, Flavour.VFIO])
def test_the_flavour_it_has_already_is_no_switch_whoever_uses_it(
    kernel: FakeKernel, flavour: Flavour, use: Use
) -> None:
    device = kernel.add_device(class_code=0x060400 if use is Use.BRIDGE else 0x020000)
    kernel.add_native(device)
    if flavour == Flavour.VFIO:
        on_vfio(kernel, device)
    kernel.users[ADDRESS] = (USERS[use],)
    engine = make_engine(kernel, release="5.10.0")
    assert plan(engine, make_request(flavour)) == []
    outcome = ask(engine, make_request(flavour, others=OthersInGroup.TOGETHER))
    assert not outcome.changed
    assert outcome.forced == ()
    assert kernel.writes == []
    assert not list((kernel.root / "run/devices").iterdir())


@pytest.mark.parametrize("named", ["vfio-pci", "vfio_pci"])
def test_a_named_driver_that_has_the_device_already_is_no_switch_whoever_uses_it(
    kernel: FakeKernel, named: str
) -> None:
    device = kernel.add_device()
    on_vfio(kernel, device)
    kernel.users[ADDRESS] = (USERS[Use.GUEST],)
    engine = make_engine(kernel)
    assert plan(engine, make_request(Flavour.VFIO, named)) == []
    assert not ask(engine, make_request(Flavour.VFIO, named)).changed
    assert kernel.writes == []


def test_another_driver_that_is_named_is_a_switch_like_any(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    on_vfio(kernel, device)
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True))
    kernel.users[ADDRESS] = (USERS[Use.GUEST],)
    engine = make_engine(kernel)
    refused(engine, make_request(Flavour.VFIO, "good_vfio"))
    # The first that is named is wanted, the others are for where it can't be had.
    refused(engine, make_request(Flavour.VFIO, "good_vfio", "vfio-pci"))
    assert kernel.writes == []
    assert ask(engine, make_request(Flavour.VFIO, "good_vfio", force=True)).driver == "good"


def test_a_named_driver_that_is_denied_is_not_had_behind_the_guards_back(kernel: FakeKernel) -> None:
    """It has the device, but may not be used again: what would be done is to take the next one."""
    device = kernel.add_device()
    kernel.add_module(FakeDriver("good", "good_vfio", vfio=True), alias=VARIANT_ALIAS)
    ask(make_engine(kernel), make_request())
    assert has(device) == ("good", "good")
    kernel.writes.clear()
    kernel.users[ADDRESS] = (USERS[Use.GUEST],)
    policy = Policy(defaults=Settings(1.0, 1.0, denied=frozenset({"good_vfio"})))
    engine = make_engine(kernel, policy)
    with pytest.raises(FlavourError) as caught:
        ask(engine, make_request(Flavour.VFIO, "good_vfio"))
    assert caught.value.errno == errno.EBUSY
    assert kernel.writes == []
    assert has(device) == ("good", "good")


def test_the_second_driver_of_a_named_module_is_not_changed_for_the_first_behind_the_guards_back(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    both = [FakeDriver("a-vfio", "two_vfio", vfio=True), FakeDriver("b-vfio", "two_vfio", vfio=True)]
    kernel.add_module(*both, name="two_vfio", alias=VARIANT_ALIAS)
    both[0].probe_errno = errno.ENODEV
    ask(make_engine(kernel), make_request())
    assert has(device) == ("b-vfio", "b-vfio")
    both[0].probe_errno = 0
    kernel.writes.clear()
    kernel.users[ADDRESS] = (USERS[Use.GUEST],)
    with pytest.raises(FlavourError) as caught:
        ask(make_engine(kernel), make_request(Flavour.VFIO, "two_vfio"))
    assert caught.value.errno == errno.EBUSY
    assert kernel.writes == []


def test_a_reset_of_a_device_in_use_is_refused_and_one_with_nothing_to_do_is_not(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    engine = make_engine(kernel)
    kernel.users[ADDRESS] = (USERS[Use.MOUNT],)

    async def reset() -> Outcome:
        return await engine.reset(make_request(Flavour.NATIVE), lambda _: None)

    assert not run_at_once(reset()).changed
    kernel.users.clear()
    ask(engine, make_request())
    kernel.users[ADDRESS] = (USERS[Use.GUEST],)
    kernel.writes.clear()
    with pytest.raises(FlavourError) as caught:
        run_at_once(reset())
    assert caught.value.errno == errno.EBUSY
    assert kernel.writes == []
    assert has(device) == VFIO


def test_a_dry_run_says_what_a_switch_together_would_do_and_does_not_do_it(kernel: FakeKernel) -> None:
    devices = [kernel.add_device(ADDRESS), kernel.add_device(SIBLING)]
    kernel.add_native(devices[0])
    lines = plan(make_engine(kernel), make_request(others=OthersInGroup.TOGETHER))
    assert "unbind from e1000e" in lines
    assert f"{SIBLING}: unbind from e1000e" in lines
    assert "load vfio_pci" in lines
    lines = plan(make_engine(kernel), make_request(others=OthersInGroup.IGNORE))
    assert f"IOMMU group 7 is not usable: {SIBLING} (e1000e) has a host driver" in lines
    assert kernel.writes == []
    assert not (kernel.root / "sys/module/vfio_pci").exists()


def test_a_dry_run_that_is_right_names_the_writes_of_the_switch(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device)
    kernel.load("vfio_pci")
    engine = make_engine(kernel)
    for flavour in (Flavour.VFIO, Flavour.NATIVE):
        lines, writes = plan_and_do(engine, make_request(flavour))
        assert lines == writes
    assert has(device) == NATIVE


def test_a_dry_run_names_the_writes_for_what_an_early_rule_kept_from_its_driver(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    device.override = PLACEHOLDER
    kernel.add_native(device)
    kernel.load("vfio_pci")
    engine = make_engine(kernel)
    ask(engine, make_request())
    lines, writes = plan_and_do(engine, make_request(Flavour.NATIVE))
    assert (
        lines
        == writes
        == [
            "clear driver_override",
            "unbind from vfio-pci",
            "let the kernel choose a native driver",
        ]
    )
    assert has(device) == NATIVE


def test_a_dry_run_names_the_writes_for_what_has_nothing_but_an_early_rules_override(
    kernel: FakeKernel,
) -> None:
    device = kernel.add_device()
    engine = make_engine(kernel)
    assert plan(engine, make_request(Flavour.NATIVE)) == []
    device.override = PLACEHOLDER
    kernel.add_native(device)
    lines, writes = plan_and_do(engine, make_request(Flavour.NATIVE))
    assert lines == writes == ["clear driver_override", "let the kernel choose a native driver"]
    assert has(device) == NATIVE


@pytest.mark.parametrize("flavour", [Flavour.VFIO, Flavour.NATIVE])
def test_a_dry_run_for_the_whole_group_names_the_others_where_a_part_is_so_already(
    kernel: FakeKernel, flavour: Flavour
) -> None:
    devices = [kernel.add_device(ADDRESS), kernel.add_device(SIBLING)]
    kernel.add_native(devices[0])
    kernel.load("vfio_pci")
    engine = make_engine(kernel)
    one = make_request(others=OthersInGroup.IGNORE, address=SIBLING if flavour == Flavour.NATIVE else ADDRESS)
    ask(engine, one)
    request = make_request(flavour, others=OthersInGroup.TOGETHER)
    lines = plan(engine, request)
    assert plan(engine, make_request(flavour, others=OthersInGroup.IGNORE)) == []
    outcome = ask(engine, request)
    assert not outcome.changed
    (other,) = outcome.others
    assert lines == [f"{SIBLING}: {step.what}" for step in other.steps if step.phase is Phase.SWITCHING]
    assert plan(engine, request) == []


def test_a_dry_run_that_asks_a_driver_which_made_it_a_vfio_device_itself_says_so(kernel: FakeKernel) -> None:
    device = kernel.add_device()
    kernel.add_native(device, "chameleon")
    attribute = kernel.add_personality(device)
    attribute.write_text("1\n", encoding="ascii")
    kernel.add_vfio_device(device)
    engine = make_engine(kernel)
    lines, writes = plan_and_do(engine, make_request(Flavour.NATIVE))
    assert writes == ["write 0 to enable_vfio"]
    assert lines == ["write 0 to enable_vfio of chameleon, which is not unbound"]


def test_a_dry_run_names_the_writes_of_a_switch_whose_first_driver_does_not_take_the_device(
    kernel: FakeKernel,
) -> None:
    kernel.add_native(kernel.add_device())
    kernel.add_module(FakeDriver("vfio-special", "vfio_special", vfio=True, probe_errno=errno.ENODEV))
    kernel.load("vfio_special")
    kernel.load("vfio_pci")
    engine = make_engine(kernel)
    lines, writes = plan_and_do(engine, make_request(Flavour.VFIO, "vfio-special"))
    lines.remove("if that fails: vfio_pci")
    assert lines == writes


def test_who_uses_a_device_is_looked_for_when_its_turn_has_come_and_not_before(kernel: FakeKernel) -> None:
    """Whoever has waited for a minute is judged by what is so then."""
    device = kernel.add_device()
    kernel.add_native(device)
    looked: list[bool] = []
    engine = make_engine(kernel)
    occupancy = engine._host.occupancy
    real = occupancy.find_users

    def find_users(subject: Subject) -> tuple[User, ...]:
        looked.append(engine._turns.find(make_request().address).locked())
        return real(subject)

    occupancy.find_users = find_users  # type: ignore[method-assign]
    ask(engine, make_request())
    assert looked == [True, True]  # and again, once the module that takes it has been loaded
