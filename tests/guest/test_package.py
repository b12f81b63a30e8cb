"""The package: what it brings, and that it comes, stays and goes without touching a device."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from .conftest import Host, Seen
from .devices import ROLES
from .test_doors import synthetic
from .test_policy import DIRECTORY, RULES, forget_wishes, policy, reload, rule, wait_for, write

GOOD = ROLES["good"]
ON_VFIO = Seen("vft-good-vfio-pci", "vft-good-vfio-pci", vfio=True)

FLAVOUR_FS = "/run/vfio-flavour"
FILES = [
    *("/usr/bin/flavourctl", "/usr/sbin/vfio-flavourd", "/usr/sbin/vfio-flavour-fs"),
    "/usr/lib/systemd/system/vfio-flavourd.service",
    "/usr/lib/systemd/system/vfio-flavourd.socket",
    "/usr/lib/systemd/system/vfio-flavourd-readonly.socket",
    "/usr/lib/systemd/system/vfio-flavour-fs.service",
    "/usr/lib/systemd/system/vfio-flavour-early.service",
    "/usr/lib/systemd/system/vfio-flavour-modprobe.socket",
    "/usr/lib/systemd/system/vfio-flavour-modprobe@.service",
    "/usr/lib/systemd/system/vfio-flavour-users.socket",
    "/usr/lib/systemd/system/vfio-flavour-users@.service",
    "/usr/lib/udev/rules.d/90-vfio-flavourd.rules",
    "/usr/lib/udev/rules.d/91-vfio-flavourd-nodes.rules",
    "/usr/libexec/vfio-flavourd/compile-policy",
    "/usr/libexec/vfio-flavourd/find-users",
    "/usr/libexec/vfio-flavourd/load-module",
    "/usr/libexec/vfio-flavourd/policy-changed",
    "/usr/share/initramfs-tools/hooks/vfio-flavourd",
    "/usr/lib/dracut/modules.d/90vfio-flavourd/module-setup.sh",
    "/usr/share/vfio-flavourd/flavourctl.schema.json",
    "/usr/share/vfio-flavourd/policy.schema.json",
    "/usr/share/bash-completion/completions/flavourctl",
    "/usr/share/fish/vendor_completions.d/flavourctl.fish",
    "/usr/share/zsh/vendor-completions/_flavourctl",
    "/usr/lib/sysusers.d/vfio-flavour.conf",
]
UNITS = [
    "vfio-flavourd.service",
    "vfio-flavourd.socket",
    "vfio-flavourd-readonly.socket",
    "vfio-flavour-modprobe.socket",
    "vfio-flavour-users.socket",
    "vfio-flavour-fs.service",
]
IN_GUEST = "/run/vfio-flavourd.deb"
NEWER = "9.9.9"
# Nothing can be fetched in the guest, and need not be: what the package depends on is there.
INSTALL = "apt-get install --yes --allow-downgrades"
# udev's database, with the tag of its own making, lasts until the next boot.
LEFT = """
    find /etc /usr /var/lib /run -regextype egrep -regex '.*(vfio-?flavour|flavourctl)[^/]*' |
        grep -v -e '[.]deb$' -e '^/run/udev/tags/'
    findmnt -n -l | grep flavour
    pgrep -f vfio-flavour[d-]
    grep -r VFIO_FLAVOUR /run/udev/data
"""


@pytest.fixture
def package(host: Host, deb: Path) -> Iterator[str]:
    """The .deb that is installed, in the guest; installed again where a test left it otherwise."""
    host.guest.push(deb, IN_GUEST)
    before = version(host)
    yield IN_GUEST
    if version(host) != before:
        host.run(f"dpkg --install {IN_GUEST}", timeout=600)


@pytest.fixture
def newer(host: Host, deb: Path, tmp_path: Path) -> str:
    """The same with a higher version."""
    tree, package = tmp_path / "tree", tmp_path / "newer.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    changed = [f"Version: {NEWER}" if line.startswith("Version:") else line for line in lines]
    control.write_text("\n".join(changed) + "\n")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, package],
        check=True,
        capture_output=True,
    )
    host.guest.push(package, "/run/newer.deb")
    return "/run/newer.deb"


def version(host: Host) -> str:
    return host.run("dpkg-query -W -f '${db:Status-Status} ${Version}' vfio-flavourd", check=False).stdout


def test_everything_is_there_and_runs_after_the_boot(host: Host) -> None:
    listed = host.run("dpkg -L vfio-flavourd").stdout.splitlines()
    assert set(FILES) <= set(listed)
    host.run(f"ls {' '.join(FILES)}")
    for state in ("enabled", "active"):
        said = host.run(f"systemctl is-{state} {' '.join(UNITS)}").stdout.split()
        assert said == [state] * len(UNITS)
    assert host.run("findmnt -n -o FSTYPE /run/vfio-flavour").stdout.startswith("fuse")
    # The guest keeps no documentation of any package.
    missing = host.run("dpkg --verify vfio-flavourd | grep -v -E '/usr/share/(doc|man)/'", check=False)
    assert missing.stdout == ""
    modes = host.run(f"""
        cd {FLAVOUR_FS}/{GOOD.bdf} && stat -c '%A %U:%G %n' *
        cd /run/vfio-flavourd && stat -c '%A %U:%G %n' io.*
    """)
    assert modes.stdout.splitlines() == [
        "-rw-rw-r-- root:vfio-flavour driver_flavour",
        "-r--r--r-- root:vfio-flavour last_error",
        "-rw-rw-r-- root:vfio-flavour use_vfio",
        "srw-rw---- root:vfio-flavour io.vfioflavour.Manager",
        "srw-rw-rw- root:root io.vfioflavour.Manager.ReadOnly",
    ]


def test_an_upgrade_changes_no_device_and_forgets_nothing(host: Host, package: str, newer: str) -> None:
    before = host.look()
    host.switch(GOOD, "vfio")
    switched = host.look()
    pids = "systemctl show --property MainPID --value vfio-flavourd vfio-flavour-fs"
    was = host.run(pids).stdout

    host.run(f"{INSTALL} {newer}", timeout=600)

    assert version(host) == f"installed {NEWER}"
    assert host.look().changed(switched) == set()
    # What runs is what was installed.
    assert not set(host.run(pids).stdout.split()) & set(was.split())
    assert host.read(GOOD) == "native [vfio]"
    host.switch(GOOD, "native")
    assert host.look().changed(before) == set()

    # Edited, not reloaded: that another version restarts the daemon is no reason to touch a device.
    with policy(host, rule("one", f"address: {GOOD.bdf}")):
        wait_for(host, GOOD.bdf, ON_VFIO)
        write(host, "version: 1\nrules:\n" + rule("other", f"address: {ROLES['good_sibling'].bdf}"))
        host.run(f"{INSTALL} {package}", timeout=600)
        assert version(host) != f"installed {NEWER}"
        host.run("sleep 2; udevadm settle")
        assert host.look().changed(before) == {GOOD.bdf}
        assert host.look().devices[GOOD.bdf] == ON_VFIO


def test_a_removed_package_leaves_devices_alone_and_a_new_one_can_undo_them(host: Host, package: str) -> None:
    before = host.look()
    host.switch(GOOD, "vfio")
    switched = host.look()

    host.run("apt-get remove --yes vfio-flavourd", timeout=600)
    assert host.look().changed(switched) == set()
    assert host.run("mountpoint -q /run/vfio-flavour", check=False).rc != 0
    assert host.run("pgrep -f vfio-flavour[d-]", check=False).stdout == ""

    host.run(f"{INSTALL} {package}", timeout=600)
    assert host.look().changed(switched) == set()
    assert host.read(GOOD) == "native [vfio]"
    host.switch(GOOD, "native")
    assert host.look().changed(before) == set()


def test_a_purge_takes_back_what_the_policy_and_the_daemon_have_set(host: Host, package: str) -> None:
    """What VFIO has it keeps, since a guest may be using it; nothing will hold it there."""
    before, virtio = host.look(), ROLES["virtio"]
    in_initramfs = "lsinitramfs /boot/initrd.img-$(uname -r) | grep flavour"
    forget_wishes(host)
    write(host, "version: 1\nrules:\n" + rule("one", f"address: {GOOD.bdf}"))
    reload(host)
    wait_for(host, GOOD.bdf, ON_VFIO)
    # As at a boot, where the native driver is not loaded yet: the rules come before the daemon, and it notes
    # down what they have set.
    autoprobe = "/sys/bus/pci/drivers_autoprobe"
    host.run(f"echo 0 > {autoprobe}; echo 1 > {GOOD.sysfs}/remove; echo 1 > /sys/bus/pci/rescan")
    wait_for(host, GOOD.bdf, ON_VFIO)
    host.run(f"echo 1 > {autoprobe}")
    record = host.run(f"cat /run/vfio-flavourd/devices/{GOOD.bdf}.json").stdout
    assert '"override": "vfio-flavourd"' in record
    host.switch(virtio, "vfio")
    host.run("update-initramfs -u", timeout=300)
    assert "79-vfio-flavourd-policy.rules" in host.run(in_initramfs, check=False).stdout

    host.run("apt-get purge --yes vfio-flavourd", timeout=600)

    now = host.look()
    assert now.devices[GOOD.bdf] == replace(ON_VFIO, override="(null)")
    assert now.devices[virtio.bdf].override == "(null)"
    assert host.run(f"ls {RULES}", check=False).rc != 0
    assert host.run(in_initramfs, check=False).stdout == ""
    host.run(f"rm -r {DIRECTORY}")
    for role in (GOOD, virtio):
        host.run(f"echo {role.bdf} > {role.sysfs}/driver/unbind")
        host.run(f"echo {role.bdf} > /sys/bus/pci/drivers_probe")
    host.run(f"{INSTALL} {package}", timeout=600)
    assert host.look().changed(before) == set()


def test_a_purge_leaves_nothing_behind(host: Host, package: str) -> None:
    before = host.look()
    journal = host.journal()
    host.run(synthetic("vfio"))  # which a new installation would grant again
    journal.wait_for("e1000e -> vft-good-vfio-pci")
    host.switch(GOOD, "native")
    host.run("apt-get purge --yes vfio-flavourd", timeout=600)
    left = host.run(LEFT, check=False)
    assert left.stdout == ""
    assert host.run("systemctl list-unit-files --no-legend 'vfio-flavour*'", check=False).stdout == ""
    assert host.run("systemctl list-units --all --no-legend 'vfio-flavour*'", check=False).stdout == ""
    assert version(host) in ("", "not-installed ")
    assert host.look().changed(before) == set()

    host.run(f"{INSTALL} {package}", timeout=600)
    said = host.run(f"systemctl is-active {' '.join(UNITS)}", check=False).stdout.split()
    assert said == ["active"] * len(UNITS)
    assert host.read(GOOD) == "[native] vfio"
