"""Is the host ready; and what driverctl or vfio-pci's ids= did is done by a policy instead."""

import json
import re
from typing import Any

from .conftest import UNITS, Host, Seen
from .devices import ROLES
from .test_doors import NOBODY
from .test_policy import DIRECTORY, policy, reload, rule, wait_for, write

GOOD, SIBLING, PAIR0, PAIR1 = (ROLES[name] for name in ("good", "good_sibling", "pair0", "pair1"))
GENERIC = Seen("vfio-pci", "vfio-pci", vfio=True)
CONF = "/etc/modprobe.d/test-vfio.conf"


def examine(host: Host, user: str = "") -> tuple[int, list[dict[str, Any]]]:
    """The status, and what is not in order. Other tests' policies may have left an older initramfs behind."""
    said = host.ctl("--json", "doctor", user=user)
    findings = json.loads(said.stdout)["findings"]
    return said.rc, [each for each in findings if each["state"] != "ok" and each["name"] != "initramfs"]


def list_names(findings: list[dict[str, Any]]) -> list[str]:
    return [f"{each['state']}: {each['name']}" for each in findings]


def test_a_host_in_good_order_is_ready_whoever_asks_and_only_with_the_daemon(host: Host) -> None:
    groups = host.run("ls /sys/kernel/iommu_groups | wc -l").stdout.strip()
    said = host.ctl("doctor", user=NOBODY)
    assert (said.rc, said.stderr) == (0, "")
    assert said.stdout.startswith("ready: ")
    assert f"the IOMMU is on, with {groups} groups; the module index is in order;" in said.stdout
    assert "the daemon answers" in said.stdout
    assert examine(host) == (0, [])
    host.run(f"systemctl stop {UNITS}")
    try:
        status, findings = examine(host)
    finally:
        host.run(f"systemctl start {UNITS}")
    assert (status, list_names(findings)) == (1, ["problem: daemon", "warning: file-system"])
    assert "systemctl start vfio-flavourd" in findings[0]["advice"]


def test_what_driverctl_did_the_imported_policy_does(host: Host) -> None:
    before = host.look()
    host.run(f"driverctl set-override {GOOD.bdf} vfio-pci; driverctl set-override {SIBLING.bdf} pci-stub")
    rules = (rule("sibling", f"address: {SIBLING.bdf}"), rule("one of a pair", f"address: {PAIR0.bdf}"))
    with policy(host, *rules):
        status, findings = examine(host)
        assert status == 1
        assert list_names(findings) == ["problem: driverctl", "problem: group", "note: driverctl"]
        assert findings[0]["advice"] == f"driverctl unset-override {SIBLING.bdf}"
        assert f"{PAIR1.bdf} ({PAIR1.native})" in findings[1]["what"]
        imported = host.ctl("import", "driverctl")
        assert imported.rc == 0
        assert f"/etc/driverctl.d/pci-{SIBLING.bdf}: pci-stub is no VFIO driver" in imported.stderr
        # As its head says: written, checked, the old setting undone, reloaded.
        write(host, imported.stdout)
        assert host.ctl("check").rc == 0
        host.run(f"driverctl unset-override {GOOD.bdf}")
        assert host.look().devices[GOOD.bdf] == Seen(GOOD.native)
        assert "the policy on disk is not in force yet" in host.ctl("doctor").stdout
        reload(host)
        wait_for(host, GOOD.bdf, GENERIC)
        assert examine(host) == (0, [])
        host.run(f"chmod 0700 {DIRECTORY}")
        status, findings = examine(host, NOBODY)
        host.run(f"chmod 0755 {DIRECTORY}; driverctl unset-override {SIBLING.bdf}")
        assert (status, list_names(findings)) == (0, ["note: policy"])
        assert f"{DIRECTORY} can't be read by this user" in findings[0]["what"]
    assert host.look().changed(before) == set()


def test_ids_are_read_as_the_kernel_reads_them_and_a_stale_or_damaged_index_is_told(host: Host) -> None:
    entries = (
        "10de:1b80,0x10DE:0x10f0:1:2:030000:ff0000,1234:5678zz,8086,zz,,1022: 2000:ffffffff:3:020000:00ff00"
    )
    tree = host.run("echo /lib/modules/$(uname -r)").stdout.strip()
    host.run(
        f"cp -a {tree}/modules.alias /root/; touch -r {tree}/updates /root/stamp;"
        f"touch {tree}/updates; echo 'alias x' >> {tree}/modules.alias;"
        f"echo 'options vfio-pci ids=1:1' > {CONF}; echo 'options vfio_pci ids=\"{entries}\"' >> {CONF};"
        " dmesg --clear; modprobe vfio-pci"
    )
    try:
        said = host.run("dmesg | grep -o 'vfio_pci: add .*'").stdout
        imported = json.loads(host.ctl("--json", "import", "modprobe").stdout)
        status, findings = examine(host, NOBODY)
    finally:
        host.run(
            f"rm {CONF}; cp -a /root/modules.alias {tree}/; touch -r /root/stamp {tree}/updates;"
            "rm /root/modules.alias /root/stamp; systemctl reload vfio-flavourd"
        )
    kernel = [re.findall("[0-9a-f]{4}", line) for line in said.splitlines()]
    rules = imported["policy"]["rules"]
    assert len(rules) == 4
    assert [rule["name"].removeprefix("vfio-pci ").split(":")[:2] for rule in rules] == [
        numbers[:2] for numbers in kernel
    ]
    assert rules[1]["match"] == {
        "vendor": "0x10de",
        "device": "0x10f0",
        "subsystem_vendor": "0x0001",
        "subsystem_device": "0x0002",
        "class": "0x03",
    }
    assert rules[3]["match"] == {"modalias": "pci:v00001022d00002000sv????????sd00000003bc??sc00i??"}
    whats = [each["what"] for each in findings]
    assert (status, {each["state"] for each in findings}) == (0, {"warning", "note"})
    assert f"vfio-pci's ids= in {CONF}:2 has entries that are no IDs: 8086, zz" in whats
    assert f"vfio-pci's ids= in {CONF}:2 claims no device that is here" in whats
    assert any(f"older than the modules in {tree}/updates" in what for what in whats)
    assert any(f"the first in {tree}/modules.alias:" in what for what in whats)
