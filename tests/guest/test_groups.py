"""An IOMMU group counts as a whole."""

import json
from typing import Any

from pictures import check_picture, find_labels

from .conftest import NO_VFIO_PCI, Host, Seen
from .devices import ROLES
from .test_policy import policy, rule

# pair2 has a variant of its own, pair0 and pair1 have none; all are one group with their bridge.
PAIR0, PAIR1, PAIR2, BRIDGE = (ROLES[name] for name in ("pair0", "pair1", "pair2", "pair_bridge"))
UNISOLATED = ROLES["unisolated"]
GROUP = (PAIR0, PAIR1, PAIR2)
GENERIC = Seen("vfio-pci", "vfio-pci", vfio=True)
VARIANT = Seen("vft-good-vfio-pci", "vft-good-vfio-pci", vfio=True)
BUSY = 75


def test_one_of_a_group_is_refused_while_others_have_host_drivers(host: Host) -> None:
    before = host.look()
    refused = host.ctl("set", PAIR0.bdf, "vfio")
    assert refused.rc == BUSY
    assert f"{PAIR1.bdf} (pcnet32)" in refused.stderr
    assert f"{PAIR2.bdf} (e1000e)" in refused.stderr
    assert BRIDGE.bdf not in refused.stderr
    assert "--group together" in refused.stderr
    assert "Device or resource busy" in host.write(PAIR0, "vfio").stderr
    assert host.look().changed(before) == set()


def test_together_gives_each_its_own_best_driver_and_leaves_the_bridge(host: Host) -> None:
    before = host.look()
    planned = host.ctl("set", PAIR0.bdf, "vfio", "--group", "together", "--dry-run")
    assert f"{PAIR1.bdf}: " in planned.stdout
    assert host.look().changed(before) == set()

    switched = host.ctl("set", PAIR0.bdf, "vfio", "--group", "together")
    assert switched.rc == 0, switched.stderr
    now = host.look()
    assert now.changed(before) == {role.bdf for role in GROUP}
    assert (now.devices[PAIR0.bdf], now.devices[PAIR1.bdf]) == (GENERIC, GENERIC)
    assert now.devices[PAIR2.bdf] == VARIANT
    assert f"{PAIR2.bdf}: e1000e -> vft-good-vfio-pci" in switched.stdout
    group = host.show(PAIR0)["iommu_group"]
    # A guest can have it.
    held = host.guest.hold(*(role.bdf for role in GROUP))
    assert f"/dev/vfio/{group}" in host.ctl("set", PAIR2.bdf, "native").stderr
    held.kill()
    held.wait()

    back = host.ctl("set", PAIR1.bdf, "native", "--group", "together")
    assert back.rc == 0, back.stderr
    assert host.look().changed(before) == set()
    assert host.look().records == frozenset()


def test_ignore_switches_the_one_and_says_that_the_group_is_not_usable(host: Host) -> None:
    before = host.look()
    switched = host.ctl("set", PAIR0.bdf, "vfio", "--group", "ignore")
    assert switched.rc == 0, switched.stderr
    assert host.look().changed(before) == {PAIR0.bdf}
    assert "is not usable" in switched.stdout
    assert f"{PAIR1.bdf} (pcnet32)" in switched.stdout
    host.switch(PAIR0, "native")
    assert host.look().changed(before) == set()


def test_others_without_a_driver_do_not_stand_in_the_way(host: Host) -> None:
    before = host.look()
    for role in (PAIR1, PAIR2):
        host.run(f"echo {role.bdf} > {role.sysfs}/driver/unbind")
    host.switch(PAIR0, "vfio")
    assert host.look().devices[PAIR0.bdf] == GENERIC
    host.switch(PAIR0, "native")
    for role in (PAIR1, PAIR2):
        host.run(f"echo {role.bdf} > /sys/bus/pci/drivers_probe")
    assert host.look().changed(before) == set()


def test_where_one_cannot_be_had_all_are_as_they_were(host: Host) -> None:
    """pair2 has a variant; nothing serves the others while vfio-pci is not to be had."""
    host.run(f"mkdir -p /run/modprobe.d; echo 'blacklist vfio_pci' > {NO_VFIO_PCI}")
    host.run(f"echo e1000e > {PAIR2.sysfs}/driver_override")
    before = host.look()
    refused = host.ctl("set", PAIR2.bdf, "vfio", "--group", "together")
    assert refused.rc == 1
    now = host.look()
    assert now.changed(before) == set()
    assert now.devices[PAIR2.bdf] == Seen("e1000e", "e1000e")
    assert now.records == frozenset()
    assert f"{PAIR2.bdf} of the same group: it has e1000e again" in refused.stderr
    host.run(f"rm {NO_VFIO_PCI}; echo > {PAIR2.sysfs}/driver_override")


def test_one_of_the_group_in_use_keeps_all_from_being_switched(host: Host) -> None:
    before = host.look()
    host.run(f"card=$(ls {PAIR2.sysfs}/net); ip link add br0 type bridge; ip link set $card master br0")
    refused = host.ctl("set", PAIR0.bdf, "vfio", "--group", "together")
    assert refused.rc == BUSY
    assert "bridge br0" in refused.stderr
    assert PAIR2.bdf in refused.stderr
    assert host.look().changed(before) == set()
    host.run("ip link del br0")


def find_group(host: Host) -> dict[str, Any]:
    """That of the pair, as groups tells it."""
    groups = json.loads(host.ctl("--json", "groups").stdout)["groups"]
    (found,) = [group for group in groups if PAIR0.bdf in [member["device"] for member in group["members"]]]
    return dict(found)


def test_groups_tells_what_is_in_the_way_and_the_command_that_it_tells_makes_the_group_usable(
    host: Host,
) -> None:
    before = host.look()
    assert host.ctl("set", PAIR0.bdf, "vfio", "--group", "ignore").rc == 0
    group = find_group(host)
    assert (group["state"], group["viable"]) == ("mixed", False)
    assert group["in_the_way"] == [PAIR1.bdf, PAIR2.bdf]
    standings = {member["device"]: member["standing"] for member in group["members"]}
    assert (standings[BRIDGE.bdf], standings[PAIR0.bdf]) == ("harmless", "vfio")

    tree = host.ctl("groups").stdout.splitlines()
    number = group["group"]
    told = f"{PAIR1.bdf} (pcnet32), {PAIR2.bdf} (e1000e) are in the way"
    at = tree.index(f"IOMMU group {number}: not viable: {told}")
    assert [line.split()[1:4] for line in tree[at + 1 : at + 5]] == [
        [BRIDGE.bdf, "bridge", "no"],
        [PAIR0.bdf, "vfio", "vfio-pci"],
        [PAIR1.bdf, "native", "pcnet32"],
        [PAIR2.bdf, "native", "e1000e"],
    ]
    command = f"flavourctl set {PAIR1.bdf} vfio --group together"
    assert group["takes"] == [command]
    assert tree[at + 5] == f"   for a guest: {command}"
    devices = set(before.devices)
    assert {word for line in tree for word in line.split()[1:2]} >= devices
    graph = host.ctl("groups", "--dot").stdout
    # One for what is in no group too.
    assert graph.count("subgraph cluster_") == sum(line[0] not in "├└ " for line in tree)
    assert all(f'    "{bdf}" [label=' in graph for bdf in devices)
    assert set(find_labels(check_picture(host.ctl("groups", "--svg").stdout))) >= devices

    host.run(command, timeout=120)
    assert find_group(host)["state"] == "ready"
    held = host.guest.hold(PAIR0.bdf)
    held.kill()
    held.wait()
    assert host.ctl("set", PAIR0.bdf, "native", "--group", "together").rc == 0
    assert find_group(host)["state"] == "host"
    assert host.look().changed(before) == set()


def test_plot_draws_a_real_switch_with_the_candidate_that_refused(host: Host) -> None:
    refuse = ROLES["refuse"]
    host.switch(refuse, "vfio")
    picture = check_picture(host.ctl("plot", refuse.bdf).stdout)
    host.switch(refuse, "native")
    labels = find_labels(picture)
    assert f"{refuse.bdf} to vfio: done" in labels
    tried = [label for label in labels if label.startswith("candidate ")]
    assert tried == ["candidate 1, vft_refuse: failed", "candidate 2, vfio_pci: took the device"]
    lanes = ("guard", "load", "override", "unbind", "bind", "verify")
    assert [label for label in labels if label in lanes] == [
        *("guard", "load", "override", "unbind", "bind"),
        *("load", "override", "bind", "verify"),
    ]


def test_a_device_that_no_iommu_isolates_is_refused_in_words_that_say_so(host: Host) -> None:
    before = host.look()
    for more in ([], ["--force"], ["--dry-run"]):
        refused = host.ctl("set", UNISOLATED.bdf, "vfio", *more)
        assert refused.rc == 1
        first, hint = refused.stderr.splitlines()
        assert "in no IOMMU group, so VFIO can't isolate it" in first
        assert "intel_iommu=on" in hint
        assert "noiommu: allow" in hint
    written = host.write(UNISOLATED, "vfio")
    assert "Input/output error" in written.stderr
    assert "in no IOMMU group" in host.read(UNISOLATED, "last_error")
    assert (host.look().changed(before), host.look().vfio_modules) == (set(), set())


def test_where_the_policy_allows_it_the_kernel_has_its_say_before_the_device_is_touched(host: Host) -> None:
    """Debian's kernels are built without VFIO's mode for hosts without an IOMMU."""
    before = host.look()
    allowing = "defaults: { noiommu: allow }\n"
    with policy(host, rule("one", f"address: {UNISOLATED.bdf}"), more=allowing):
        said = "this kernel's VFIO can't do without one"
        host.run(f'until flavourctl --json show {UNISOLATED.bdf} | grep -q "{said}"; do sleep 0.2; done')
        refused = host.ctl("set", UNISOLATED.bdf, "vfio")
        assert refused.rc == 1
        assert "CONFIG_VFIO_NOIOMMU" in refused.stderr
        # VFIO is loaded by now, so it is known beforehand.
        assert host.ctl("set", UNISOLATED.bdf, "vfio", "--dry-run").stderr == refused.stderr
        last = host.show(UNISOLATED)["last"]
        assert {step["action"] for step in last["steps"]} <= {"turn", "guard", "load"}
        assert host.look().changed(before) == set()
