"""A policy: devices have their flavour without a hand."""

import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from .conftest import NO_VFIO_PCI, Host, Seen
from .devices import HOTPLUG_PORTS, ROLES, VFS, Role

GOOD, SIBLING, NVME, NVME_PF, VIRTIO = (
    ROLES[name] for name in ("good", "good_sibling", "nvme", "nvme_pf", "virtio")
)
DIRECTORY = "/etc/vfio-flavourd/policy.d"
RULES = "/etc/udev/rules.d/79-vfio-flavourd-policy.rules"
INVALID = 78
TAKEN = Seen("vft-good-vfio-pci", "vft-good-vfio-pci", vfio=True)


def rule(name: str, match: str, flavour: str = "vfio", more: str = "") -> str:
    """Three drivers at once may take an emulated and busy machine longer than the default, after which the
    device would rightly fall back."""
    patience = "" if "load_timeout" in more else "    load_timeout: 60s\n"
    return f"  - name: {name}\n    match: {{ {match} }}\n    flavour: {flavour}\n{patience}{more}"


def write(host: Host, text: str, name: str = "50-test.yaml") -> None:
    host.run(f"mkdir -p {DIRECTORY}; cat > {DIRECTORY}/{name} <<'EOF'\n{text}\nEOF")


def reload(host: Host) -> None:
    done = host.ctl("reload")
    assert done.rc == 0, done.stderr


def wait_for(host: Host, bdf: str, seen: Seen) -> None:
    """The kernel makes a driver's link some time before VFIO's own directory."""
    until = time.monotonic() + 120
    while (now := host.look().devices.get(bdf)) != seen and time.monotonic() < until:
        time.sleep(0.2)
    assert now == seen
    host.run("udevadm settle")


def wait_for_error(host: Host, role: Role, words: str) -> None:
    """The last attempt's, that the policy makes when it gets to it."""
    until = time.monotonic() + 120
    while words not in (said := str((host.show(role)["last"] or {}).get("error"))):
        assert time.monotonic() < until, said


def forget_wishes(host: Host) -> None:
    """Other tests have switched devices by hand, which stands above the policy: as after a boot."""
    host.run(
        "systemctl stop vfio-flavourd; rm -f /run/vfio-flavourd/wishes.json; systemctl start vfio-flavourd"
    )


@contextlib.contextmanager
def policy(host: Host, *rules: str, more: str = "") -> Iterator[None]:
    """In force while the context lasts; the devices go back after it."""
    try:
        forget_wishes(host)
        write(host, "version: 1\n" + more + "rules:\n" + "".join(rules))
        reload(host)
        yield
    finally:
        host.run(f"rm -f {DIRECTORY}/*; rm -f /etc/driverctl.d/*")
        reload(host)
        host.run("while grep -q -s 'switching.: true' /run/vfio-flavourd/devices/*.json; do sleep 0.1; done")
        host.run(
            "for file in /run/vfio-flavour/*/driver_flavour; do"
            "   if grep -q '\\[vfio\\]' $file; then echo native > $file; fi; done; udevadm settle",
            timeout=300,
        )


def test_a_device_that_is_plugged_in_is_what_the_policy_says_and_others_are_untouched(host: Host) -> None:
    before = host.look()
    first, second = HOTPLUG_PORTS["hotplug1"], HOTPLUG_PORTS["hotplug2"]
    with policy(host, rule("plugged NICs", f"vendor: 0x8086, device: 10d3, address: {first}")):
        assert host.look().changed(before) == set()
        host.guest.device_add("e1000e", id="matching", port="hotplug1")
        host.guest.device_add("e1000e", id="other", port="hotplug2")
        wait_for(host, first, TAKEN)
        wait_for(host, second, Seen("e1000e"))
        assert host.look().changed(before) == {first, second}
        listed = host.ctl("list").stdout
        assert "plugged NICs" in next(line for line in listed.splitlines() if line.startswith(first))
        assert "rule 'plugged NICs'" in host.ctl("show", first).stdout
        host.guest.device_del("matching")
        host.guest.device_del("other")
        host.run(f"while [ -e /sys/bus/pci/devices/{first} ]; do sleep 0.1; done; udevadm settle")


@pytest.mark.before_release
def test_sixty_four_vfs_made_at_once_are_all_on_vfio_sooner_than_by_a_shell_loop(host: Host) -> None:
    """The loop makes the same writes, one device after the other, in the same boot."""
    vfs = f"{NVME_PF.sysfs}/virtfn*"
    host.run(f"modprobe vfio-pci; echo 0 > {NVME_PF.sysfs}/sriov_drivers_autoprobe")
    make = f"echo {VFS} > {NVME_PF.sysfs}/sriov_numvfs"
    count = f"ls -d {vfs}/vfio-dev 2> /dev/null | wc -l"
    clock = "cut -d ' ' -f 1 /proc/uptime"
    vf_rule = rule("VFs", f"sriov: vf, pf: {NVME_PF.bdf}")
    loop = (
        f"for vf in {vfs}; do echo vfio-pci > $vf/driver_override;"
        " basename $(readlink $vf) > /sys/bus/pci/drivers/vfio-pci/bind; done"
    )

    def measure(after: str) -> float:
        said = host.run(
            f"{clock}; {make}; {after}; until [ $({count}) = {VFS} ]; do :; done; {clock}", timeout=300
        )
        begin, end = map(float, said.stdout.split())
        host.run(f"echo 0 > {NVME_PF.sysfs}/sriov_numvfs; udevadm settle", timeout=120)
        return end - begin

    serial, by_policy = [], []
    for _ in range(3):  # in turn, and the best of each: the machine may be busy for a while
        serial.append(measure(loop))
        with policy(host, vf_rule):
            by_policy.append(measure(":"))
        if min(by_policy) < 0.8 * min(serial):
            break
    with policy(host, vf_rule):
        host.run(f"{make}; until [ $({count}) = {VFS} ]; do sleep 0.2; done; udevadm settle", timeout=300)
        listed = json.loads(host.ctl("--json", "list").stdout)["devices"]
        assert sum(device["rule"] == "VFs" and device["flavour"] == "vfio" for device in listed) == VFS
        host.run(f"echo 0 > {NVME_PF.sysfs}/sriov_numvfs; udevadm settle", timeout=120)
    host.run(f"echo 1 > {NVME_PF.sysfs}/sriov_drivers_autoprobe")
    print(f"64 VFs by policy {by_policy} s, by a shell loop {serial} s")
    assert min(by_policy) < 0.8 * min(serial)


def test_a_reload_touches_only_what_differs(host: Host) -> None:
    before, journal = host.look(), host.journal()
    with policy(host, rule("one", f"address: {GOOD.bdf}")):
        journal.wait_for("e1000e -> vft-good-vfio-pci")  # it comes after the switch
        wait_for(host, GOOD.bdf, TAKEN)
        journal = host.journal()
        write(
            host,
            "version: 1\nrules:\n"
            + rule("one", f"address: {GOOD.bdf}")
            + rule("two", f"address: {SIBLING.bdf}"),
        )
        reload(host)
        wait_for(host, SIBLING.bdf, TAKEN)
        assert journal.records(PCI_ADDRESS=GOOD.bdf) == []
        assert host.look().changed(before) == {GOOD.bdf, SIBLING.bdf}
        # A restart of the daemon changes nothing, not even where someone else has changed a device.
        host.run(f"echo {SIBLING.bdf} > {SIBLING.sysfs}/driver/unbind")
        host.run("systemctl restart vfio-flavourd; sleep 2; udevadm settle")
        assert host.look().devices[SIBLING.bdf].driver is None
        assert host.look().devices[GOOD.bdf] == TAKEN
        host.run(f"echo > {SIBLING.sysfs}/driver_override; echo {SIBLING.bdf} > /sys/bus/pci/drivers_probe")


BROKEN = {
    "version: 1\nrules:\n  - nane: x\n": "50-test.yaml:3:",
    "version: 1\nrules: [\n": "50-test.yaml:",
    "version: 1\n" + "rules:\n" + rule("x", f"address: {GOOD.bdf}", flavour="vfoi"): "50-test.yaml:5:",
    "version: 1\nversion: 1\n": "50-test.yaml:2:",
    "version: 1\nrules: &a [*a]\n": "50-test.yaml:2:",
    "version: !!python/object:os.system 1\n": "50-test.yaml:1:",
}
SPOILT = {
    "writable by all": f"chmod 0666 {DIRECTORY}/50-test.yaml",
    "not root's": f"chown nobody {DIRECTORY}/50-test.yaml",
    "a link": f"mv {DIRECTORY}/50-test.yaml /root/; ln -s /root/50-test.yaml {DIRECTORY}/",
    "too large": f"head -c 2000000 /dev/zero | tr '\\0' '#' >> {DIRECTORY}/50-test.yaml",
    "not UTF-8": f"printf '# \\377\\n' >> {DIRECTORY}/50-test.yaml",
    "too deep": f"(echo; head -c 5000 /dev/zero | tr '\\0' '[') >> {DIRECTORY}/50-test.yaml",
    "a pipe": f"mkfifo {DIRECTORY}/60-test.yaml",
    "in a directory that all may write to": f"chmod 0777 {DIRECTORY}",
}


def test_a_broken_policy_is_refused_with_its_place_and_changes_nothing(host: Host) -> None:
    with policy(host, rule("one", f"address: {GOOD.bdf}")):
        wait_for(host, GOOD.bdf, TAKEN)
        before, rules, good = (
            host.look(),
            host.guest.read(RULES),
            host.guest.read(f"{DIRECTORY}/50-test.yaml"),
        )

        def check_refused(place: str) -> None:
            refused = host.ctl("reload")
            assert refused.rc == INVALID
            assert place in refused.stderr
            assert host.look().changed(before) == set()

        for bad, place in BROKEN.items():
            write(host, bad)
            check_refused(place)
        checked = host.ctl("check")
        assert (checked.rc, checked.stdout) == (INVALID, "")
        assert "50-test.yaml:1:" in checked.stderr
        for spoil in SPOILT.values():
            host.run(f"rm -f {DIRECTORY}/*")
            write(host, good)
            host.run(spoil)
            check_refused(DIRECTORY)
            host.run(f"chmod 0755 {DIRECTORY}")
        # Everyone who looks is told, and the last good set is in force, also after a restart.
        assert host.guest.read(RULES) == rules
        host.run(f"rm -f {DIRECTORY}/*")
        write(host, "version: 2\n")
        check_refused("50-test.yaml:1:")
        for _ in range(2):
            assert "50-test.yaml" in host.ctl("list").stderr
            shown = host.ctl("show", GOOD.bdf)
            assert "rule 'one'" in shown.stdout
            assert "50-test.yaml" in shown.stderr
            host.run("systemctl restart vfio-flavourd")
        assert host.look().changed(before) == set()


def test_what_someone_else_does_is_told_and_not_fought(host: Host) -> None:
    before = host.look()
    with policy(host, rule("one", f"address: {GOOD.bdf}")):
        wait_for(host, GOOD.bdf, TAKEN)
        journal = host.journal()
        host.run(
            f"echo {GOOD.bdf} > {GOOD.sysfs}/driver/unbind; echo > {GOOD.sysfs}/driver_override;"
            f" echo {GOOD.bdf} > /sys/bus/pci/drivers_probe; udevadm settle; sleep 2"
        )
        assert host.look().devices[GOOD.bdf] == Seen("e1000e")
        journal.wait_for("someone else made it")
        assert "someone else made it" in host.ctl("show", GOOD.bdf).stdout
        reset = host.ctl("reset", GOOD.bdf)
        assert reset.rc == 0, reset.stderr
        assert host.look().devices[GOOD.bdf] == TAKEN
    assert host.look().changed(before) == set()


def test_a_wish_by_hand_stands_above_the_policy_until_reset(host: Host) -> None:
    with policy(host, rule("one", f"address: {GOOD.bdf}")):
        wait_for(host, GOOD.bdf, TAKEN)
        host.switch(GOOD, "native")
        host.run("sleep 1; systemctl restart vfio-flavourd; udevadm settle; sleep 1")
        reload(host)
        assert host.look().devices[GOOD.bdf] == Seen("e1000e")
        listed = next(line for line in host.ctl("list").stdout.splitlines() if line.startswith(GOOD.bdf))
        assert "by hand: native" in listed
        assert host.ctl("reset", GOOD.bdf).rc == 0
        assert host.look().devices[GOOD.bdf] == TAKEN


def test_what_driverctl_has_saved_is_told_and_left_to_it(host: Host) -> None:
    before = host.look()
    host.run(f"mkdir -p /etc/driverctl.d; echo pci-stub > /etc/driverctl.d/pci-{GOOD.bdf}")
    with policy(host, rule("one", f"address: {GOOD.bdf}")):
        host.run("sleep 1")
        assert host.look().changed(before) == set()
        assert "driverctl has pci-stub saved for it" in host.ctl("show", GOOD.bdf).stdout


def test_in_use_by_rule_is_forced_and_without_it_is_refused_until_it_is_free(host: Host) -> None:
    before = host.look()
    host.run(f"card=$(ls {GOOD.sysfs}/net); ip link add br0 type bridge; ip link set $card master br0")
    with policy(host, rule("one", f"address: {GOOD.bdf}")):
        wait_for_error(host, GOOD, "bridge br0")
        assert host.look().changed(before) == set()
        host.run("ip link del br0")
        wait_for(host, GOOD.bdf, TAKEN)  # tried again by itself
    host.run(f"card=$(ls {GOOD.sysfs}/net); ip link add br0 type bridge; ip link set $card master br0")
    with policy(host, rule("one", f"address: {GOOD.bdf}", more="    in_use: force\n")):
        wait_for(host, GOOD.bdf, TAKEN)
    host.run("ip link del br0")
    assert host.look().changed(before) == set()


def test_a_denied_driver_gives_way_to_the_next(host: Host) -> None:
    with policy(host, rule("one", f"address: {GOOD.bdf}", more="    deny: vft_good\n")):
        wait_for(host, GOOD.bdf, Seen("vfio-pci", "vfio-pci", vfio=True))
        assert "denied by policy" in host.ctl("show", GOOD.bdf).stdout


def test_the_serial_tells_one_of_two_identical_drives(host: Host) -> None:
    before = host.look()
    with policy(host, rule("the plain drive", "class: 0108, serial: plain")):
        wait_for(host, NVME.bdf, Seen("vfio-pci", "vfio-pci", vfio=True))
        assert host.look().changed(before) == {NVME.bdf}
        # It can't tell its serial any more, and is known all the same.
        host.run("systemctl restart vfio-flavourd")
        assert host.show(NVME)["rule"] == "the plain drive"
        assert host.look().changed(before) == {NVME.bdf}


def test_a_flavour_of_the_policys_own(host: Host) -> None:
    before = host.look()
    more = "flavours:\n  uio: { alias_prefix: none, fallback: uio_pci_generic }\n"
    with policy(host, rule("one", f"address: {VIRTIO.bdf}", flavour="uio"), more=more):
        wait_for(host, VIRTIO.bdf, Seen("uio_pci_generic", "uio_pci_generic"))
        assert host.read(VIRTIO) == "native vfio [uio]"
        assert host.read(GOOD) == "[native] vfio uio"
        assert host.write(VIRTIO, "native").rc == 0
        assert host.look().changed(before) == set()
        assert host.write(VIRTIO, "uoi").rc != 0
        assert "uio" in host.read(VIRTIO, "last_error")
    host.run("rmmod uio_pci_generic uio")


def test_nodes_get_an_owner_a_group_and_a_mode_when_the_policy_says_so(host: Host) -> None:
    more = "    nodes: { group: vfio-flavour, mode: 0660 }\n"
    with policy(host, rule("one", f"address: {GOOD.bdf}", more=more)):
        wait_for(host, GOOD.bdf, TAKEN)
        node = host.show(GOOD)["group_node"]
        host.run("udevadm settle")
        assert host.run(f"stat -c '%U %G %a' {node}").stdout == "root vfio-flavour 660\n"
    with policy(host, rule("one", f"address: {GOOD.bdf}")):
        wait_for(host, GOOD.bdf, TAKEN)
        node = host.show(GOOD)["group_node"]
        assert host.run(f"stat -c '%U %G %a' {node}").stdout == "root root 600\n"


def test_the_policy_never_takes_what_the_host_comes_up_from(host: Host) -> None:
    before = host.look()
    with policy(host, rule("all disks", "class: 0100")):
        root_disk = ROLES["root_disk"]
        wait_for_error(host, root_disk, "/ on vda")
        assert host.look().changed(before) == set()
        assert root_disk.bdf in host.guest.read(RULES)


def test_udev_finds_nothing_wrong_in_the_rules(host: Host) -> None:
    """Neither in those that are shipped nor in those that all kinds of matches are compiled to."""
    matches = [
        f"address: {GOOD.bdf}, vendor: 0x8086, device: 10d3",
        "slot: 0000:00:11.0",
        "vendor: [0x15b3, 8086], subsystem_vendor: 1af4, class: '03'",
        "modalias: 'pci:v000015B3d0000101[CE]*', sriov: vf",
        f"pf: {NVME_PF.bdf}",
        "iommu_group: 7, host: 'no-such-*'",
        "serial: plain",
        "driver: nouveau",
    ]
    rules = [rule(f"'rule {number}'", match) for number, match in enumerate(matches)]
    with policy(host, *rules):
        shipped = "/usr/lib/udev/rules.d/9?-vfio-flavourd*.rules"
        said = host.run(f"udevadm verify {RULES} {shipped}", check=False)
        # systemd 254 and later have it.
        assert said.rc == 0 or "Unknown command verb" in said.stderr, said.stdout
        test = host.run(f"udevadm test --action=add {SIBLING.sysfs} 2>&1", check=False).stdout
        assert not [line for line in test.splitlines() if "79-vfio" in line and "nvalid" in line]
        # What the policy has begun goes to its end, though the policy be gone by then.
        wait_for(host, GOOD.bdf, TAKEN)
        wait_for(host, NVME.bdf, Seen("vfio-pci", "vfio-pci", vfio=True))  # by its serial


def test_a_failing_switch_is_tried_again_a_few_times_only(host: Host) -> None:
    host.run(f"mkdir -p /run/modprobe.d; echo 'blacklist vfio_pci' > {NO_VFIO_PCI}")
    refuse = ROLES["refuse"]
    journal = host.journal()
    with policy(host, rule("one", f"address: {refuse.bdf}")):
        journal.wait_for("failed 4 times, giving up until a reload", 120)
        host.run("sleep 5")
        assert len(journal.records(PCI_ADDRESS=refuse.bdf, OUTCOME="failed")) == 4
        assert host.look().devices[refuse.bdf] == Seen(refuse.native)
        host.run(f"rm {NO_VFIO_PCI}")
        host.run("systemctl reload vfio-flavourd")
        wait_for(host, refuse.bdf, Seen("vfio-pci", "vfio-pci", vfio=True))


def test_metrics_are_where_the_policy_says(host: Host) -> None:
    directory = "/var/lib/prometheus/node-exporter"
    file = f"{directory}/vfio-flavourd.prom"
    # The service has seen it when it starts, as it does on a host that has the node exporter.
    host.run(f"mkdir -p {directory}")
    with policy(host, rule("one", f"address: {GOOD.bdf}"), more=f"metrics: {{ file: {file} }}\n"):
        wait_for(host, GOOD.bdf, TAKEN)
        host.switch(NVME, "vfio")
        host.switch(NVME, "native")
        host.write(ROLES["bridge"], "vfio")
        host.run(f"until grep -q 'refused\"}} 1$' {file}; do sleep 0.5; done")
        said = host.run(f"cat {file}; stat -c %a {file}; ls -A {directory}").stdout
    lines = said.splitlines()
    for expected in (
        'vfio_flavour_switches_total{flavour="vfio",outcome="done"} 2',
        'vfio_flavour_switches_total{flavour="native",outcome="done"} 1',
        'vfio_flavour_switches_total{flavour="vfio",outcome="refused"} 1',
        'vfio_flavour_switch_duration_seconds_count{flavour="vfio"} 2',
        'vfio_flavour_devices{flavour="vfio",driver="vft-good-vfio-pci"} 1',
        "vfio_flavour_devices_stuck 0",
        "vfio_flavour_policy_refused 0",
    ):
        assert expected in lines, said
    assert lines[-2:] == ["644", "vfio-flavourd.prom"]
    assert host.run(f"ls -A {directory}").stdout == ""
