"""Is the host ready; and what driverctl or vfio-pci's ids= did is done by a policy instead."""

import json
import re
from typing import Any

from .conftest import Host, Seen
from .devices import ROLES
from .test_doors import NOBODY
from .test_policy import DIRECTORY, policy, reload, rule, wait_for, write

GOOD, SIBLING, PAIR0, PAIR1, REFUSE = (
    ROLES[name] for name in ("good", "good_sibling", "pair0", "pair1", "refuse")
)
GENERIC = Seen("vfio-pci", "vfio-pci", vfio=True)
CONF = "/etc/modprobe.d/test-vfio.conf"


def examine(host: Host, user: str = "") -> tuple[int, list[dict[str, Any]]]:
    """The status, and what is not in order. Other tests' policies may have left an older initramfs behind."""
    said = host.ctl("--json", "doctor", user=user)
    findings = json.loads(said.stdout)["findings"]
    return said.rc, [each for each in findings if each["state"] != "ok" and each["name"] != "initramfs"]


def test_a_host_in_good_order_is_ready_whoever_asks(host: Host) -> None:
    groups = host.run("ls /sys/kernel/iommu_groups | wc -l").stdout.strip()
    for user in ("", NOBODY):
        said = host.ctl("doctor", user=user)
        assert (said.rc, said.stderr) == (0, "")
        assert said.stdout.startswith("ready: ")
        assert f"the IOMMU is on, with {groups} groups; the module index is in order;" in said.stdout
        assert "the daemon answers" in said.stdout
    assert examine(host) == (0, [])


def test_what_driverctl_did_the_imported_policy_does(host: Host) -> None:
    before = host.look()
    host.run(f"driverctl set-override {GOOD.bdf} vfio-pci; driverctl set-override {SIBLING.bdf} pci-stub")
    with policy(host, rule("sibling", f"address: {SIBLING.bdf}")):
        # The one has a note, for the other the policy says otherwise.
        status, findings = examine(host)
        assert status == 1
        assert [(each["name"], each["state"]) for each in findings] == [
            ("driverctl", "problem"),
            ("driverctl", "note"),
        ]
        assert findings[0]["advice"] == f"driverctl unset-override {SIBLING.bdf}"
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
        assert examine(host, NOBODY) == (0, [])
        host.run(f"driverctl unset-override {SIBLING.bdf}")
    assert host.look().changed(before) == set()


def test_ids_are_read_as_the_kernel_reads_them(host: Host) -> None:
    entries = (
        "10de:1b80,0x10DE:0x10f0:1:2:030000:ff0000,1234:5678zz,8086,zz,,1022: 2000:ffffffff:3:020000:00ff00"
    )
    host.run(
        f"echo 'options vfio-pci ids=1:1' > {CONF}; echo 'options vfio_pci ids=\"{entries}\"' >> {CONF};"
        " dmesg --clear; modprobe vfio-pci"
    )
    said = host.run("dmesg | grep -o 'vfio_pci: add .*'").stdout
    kernel = [tuple(re.findall("[0-9a-f]{4,}", line.replace("0x", "0000"))) for line in said.splitlines()]
    imported = host.ctl("--json", "import", "modprobe")
    rules = json.loads(imported.stdout)["policy"]["rules"]
    assert [rule["name"].removeprefix("vfio-pci ").split(":")[:2] for rule in rules] == [
        [vendor, device] for vendor, device, *_ in kernel
    ]
    assert rules[1]["match"] == {
        "vendor": "0x10de",
        "device": "0x10f0",
        "subsystem_vendor": "0x0001",
        "subsystem_device": "0x0002",
        "class": "0x03",
    }
    assert "pci:v00001022d00002000sv????????sd00000003bc??sc00i??" in rules[3]["match"]["modalias"]
    # Nothing of that is here; the host is ready, and told of what does nothing.
    status, findings = examine(host)
    assert (status, {each["name"] for each in findings}) == (0, {"vfio-pci-ids"})
    assert f"{CONF}:2 has what is no ID: 8086, zz" in findings[0]["what"]

    host.run(f"echo 'options vfio-pci ids=10ec:8139' > {CONF}")
    with policy(host, rule("native", f"address: {REFUSE.bdf}", "native")):
        status, findings = examine(host)
        assert (status, findings[0]["name"]) == (1, "vfio-pci-ids")
        assert f"in {CONF}:1 claims {REFUSE.bdf}, although rule 'native'" in findings[0]["what"]
        imported = host.ctl("import", "modprobe")
        host.run(f"cat > /root/imported.yaml <<'EOF'\n{imported.stdout}\nEOF")
        assert host.ctl("check", "/root/imported.yaml").stdout == "valid: 1 rule in 1 file\n"
    host.run(f"rm {CONF} /root/imported.yaml")


def test_an_index_that_is_stale_or_damaged_and_a_group_that_is_not_usable(host: Host) -> None:
    tree = host.run("echo /lib/modules/$(uname -r)").stdout.strip()
    host.run(f"cp -a {tree}/modules.alias /root/; touch -r {tree}/updates /root/stamp")
    host.run(f"touch {tree}/updates; echo 'alias x' >> {tree}/modules.alias")
    try:
        with policy(host, rule("one", f"address: {PAIR0.bdf}")):
            status, findings = examine(host, NOBODY)
            assert status == 1
            assert [(each["name"], each["state"]) for each in findings] == [
                ("group", "problem"),
                ("modules", "warning"),
                ("modules", "note"),
            ]
            assert f"{PAIR1.bdf} ({PAIR1.native})" in findings[0]["what"]
            assert f"older than the modules in {tree}/updates" in findings[1]["what"]
            assert f"the first in {tree}/modules.alias:" in findings[2]["what"]
            host.run(f"chmod 0700 {DIRECTORY}; rm {tree}/modules.alias")
            said = host.ctl("doctor", user=NOBODY)
            assert said.rc == 1
            assert f"{tree}/modules.alias can't be used" in said.stdout
            assert (
                f"note: the policy was not looked at: {DIRECTORY} can't be read by this user" in said.stdout
            )
            assert PAIR0.bdf not in said.stdout
            host.run(f"chmod 0755 {DIRECTORY}")
    finally:
        host.run(f"cp -a /root/modules.alias {tree}/; touch -r /root/stamp {tree}/updates")
        host.run("rm /root/modules.alias /root/stamp; systemctl reload vfio-flavourd")
    assert examine(host) == (0, [])


def test_without_the_daemon_it_says_so_and_looks_at_the_rest(host: Host) -> None:
    units = "vfio-flavour-fs.service vfio-flavourd.socket vfio-flavourd-readonly.socket vfio-flavourd.service"
    host.run(f"systemctl stop {units}")
    try:
        status, findings = examine(host)
    finally:
        host.run(f"systemctl start {units}")
    assert status == 1
    assert [(each["name"], each["state"]) for each in findings] == [
        ("daemon", "problem"),
        ("file-system", "warning"),
    ]
    assert findings[0]["advice"].startswith("systemctl start ")
