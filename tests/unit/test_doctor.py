"""doctor's findings, each on a host that has what it is about, and none of them on one in good order."""

import json
import os
from pathlib import Path
from types import MappingProxyType

import pytest
from fake_kernel import RELEASE, FakeDevice, FakeDriver, FakeKernel
from policies import write

from vfio_flavourd.engine.readiness import examine
from vfio_flavourd.kernel.early_rules import RULES, read_sources
from vfio_flavourd.kernel.readiness import find_unreadable, is_mounted
from vfio_flavourd.model.readiness.facts import Daemon
from vfio_flavourd.model.readiness.finding import Finding, State
from vfio_flavourd.model.udev_header import Header, render_header

PLAIN = "BOOT_IMAGE=/boot/vmlinuz root=/dev/vda ro quiet"


def put(kernel: FakeKernel, path: str, text: str | bytes) -> Path:
    file = kernel.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.fixture
def host(kernel: FakeKernel) -> FakeKernel:
    """In good order: an Intel machine with its IOMMU on, a network card of its own, and no policy."""
    put(kernel, "proc/cmdline", f"{PLAIN} intel_iommu=on\n")
    put(kernel, "proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\n")
    put(kernel, "proc/sys/kernel/modules_disabled", "0\n")
    put(kernel, "sys/firmware/acpi/tables/DMAR", b"")
    put(kernel, "sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    put(kernel, f"lib/modules/{RELEASE}/kernel/vfio-pci.ko.xz", b"")
    put(kernel, f"lib/modules/{RELEASE}/modules.dep", "kernel/vfio-pci.ko.xz:\n")
    put(kernel, f"boot/config-{RELEASE}", "CONFIG_VFIO_PCI=m\n# CONFIG_MLX5_VFIO_PCI is not set\n")
    kernel.add_native(kernel.add_device())
    return kernel


def look(host: FakeKernel, daemon: Daemon | None = None) -> tuple[Finding, ...]:
    return examine(host.root, RELEASE, daemon or Daemon(), owner=os.getuid())


def find(host: FakeKernel, name: str, daemon: Daemon | None = None) -> Finding:
    """The only one with this name that is not ok; there is none of another name."""
    findings = [finding for finding in look(host, daemon) if finding.state is not State.OK]
    assert {finding.name for finding in findings} == {name}
    (finding,) = findings
    return finding


def apply(host: FakeKernel, text: str) -> Path:
    """As a policy that the daemon has read already."""
    path = write(host.root, text)
    put(host, RULES, "\n".join(render_header(Header(sources=read_sources(host.root, RELEASE)))))
    return path


def rule(name: str, match: str, flavour: str = "vfio", more: str = "") -> str:
    return f"version: 1\nrules:\n  - {{name: {name}, match: {{{match}}}, flavour: {flavour}{more}}}\n"


def test_a_host_in_good_order_has_nothing_but_what_is_fine(host: FakeKernel) -> None:
    assert [(finding.name, finding.state) for finding in look(host)] == [
        ("policy", State.OK),
        ("iommu", State.OK),
        ("modules", State.OK),
        ("vfio-pci", State.OK),
        ("daemon", State.OK),
    ]


def test_nothing_at_all_that_can_be_read_is_no_traceback(tmp_path: Path) -> None:
    findings = examine(tmp_path, RELEASE, Daemon(), owner=os.getuid())
    assert {finding.name for finding in findings if finding.state is State.PROBLEM} == {"iommu", "modules"}


# IOMMU


def switch_off(host: FakeKernel, vendor: str, cmdline: str = PLAIN, table: str = "") -> None:
    for member in (host.root / "sys/bus/pci/devices").iterdir():
        (member / "iommu_group").unlink()
    groups = host.root / "sys/kernel/iommu_groups"
    for path in sorted(groups.rglob("*"), reverse=True):
        if path.is_symlink():
            path.unlink()
        else:
            path.rmdir()
    put(host, "proc/cmdline", f"{cmdline}\n")
    put(host, "proc/cpuinfo", f"vendor_id\t: {vendor}\n")
    (host.root / "sys/firmware/acpi/tables/DMAR").unlink()
    put(host, "sys/firmware/acpi/tables/FACP", b"")
    if table:
        put(host, f"sys/firmware/acpi/tables/{table}", b"")


def test_an_intel_iommu_that_is_off_is_switched_on_on_the_command_line(host: FakeKernel) -> None:
    switch_off(host, "GenuineIntel", table="DMAR")
    put(host, "usr/sbin/update-grub", "")
    finding = find(host, "iommu")
    assert finding.state is State.PROBLEM
    assert "the kernel command line lacks intel_iommu=on" in finding.what
    assert finding.advice == (
        "add intel_iommu=on to GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub && reboot"
    )


def test_the_advice_is_for_the_boot_loader_that_is_there(host: FakeKernel) -> None:
    switch_off(host, "GenuineIntel", table="DMAR")
    assert find(host, "iommu").advice.startswith("add intel_iommu=on to the boot loader's configuration")
    put(host, "etc/kernel/cmdline", "")
    assert "add intel_iommu=on to /etc/kernel/cmdline" in find(host, "iommu").advice
    put(host, "usr/sbin/grubby", "")
    assert find(host, "iommu").advice == "grubby --update-kernel=ALL --args=intel_iommu=on && reboot"


@pytest.mark.parametrize("word", ["intel_iommu=off", "iommu=off"])
def test_an_iommu_that_the_command_line_switches_off_is_said_with_the_word(
    host: FakeKernel, word: str
) -> None:
    switch_off(host, "GenuineIntel", f"{PLAIN} {word}", "DMAR")
    put(host, "usr/sbin/grubby", "")
    finding = find(host, "iommu")
    assert f"the kernel command line says {word}" in finding.what
    assert finding.advice == f"grubby --update-kernel=ALL --remove-args={word} && reboot"


@pytest.mark.parametrize(
    ("vendor", "table", "called"),
    [
        ("GenuineIntel", "DMAR", "VT-d"),
        ("AuthenticAMD", "IVRS", "AMD-Vi"),
        ("HygonGenuine", "IVRS", "AMD-Vi"),
    ],
)
def test_a_firmware_without_the_table_is_where_to_switch_it_on(
    host: FakeKernel, vendor: str, table: str, called: str
) -> None:
    switch_off(host, vendor)
    finding = find(host, "iommu")
    assert f"the firmware has no {table} table" in finding.what
    assert f"enable {called}" in finding.advice


def test_an_amd_iommu_needs_no_word_on_the_command_line(host: FakeKernel) -> None:
    switch_off(host, "AuthenticAMD", table="IVRS")
    finding = find(host, "iommu")
    assert "intel_iommu" not in finding.what + finding.advice
    assert "dmesg" in finding.advice


def test_an_iommu_without_a_device_behind_it_is_named(host: FakeKernel) -> None:
    switch_off(host, "GenuineIntel", f"{PLAIN} intel_iommu=on", "DMAR")
    put(host, "sys/class/iommu/dmar0/x", "")
    assert "the kernel has dmar0, but no device is behind it" in find(host, "iommu").what


def test_noiommu_mode_is_a_warning_and_takes_the_iommus_place(host: FakeKernel) -> None:
    parameter = put(host, "sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
    assert find(host, "noiommu").state is State.WARNING
    switch_off(host, "AuthenticAMD", table="IVRS")
    findings = {finding.name: finding.state for finding in look(host)}
    assert (findings["iommu"], findings["noiommu"]) == (State.WARNING, State.WARNING)
    parameter.write_text("N\n", encoding="ascii")
    assert find(host, "iommu").state is State.PROBLEM


# modules


def test_a_missing_index_is_a_problem_that_depmod_solves(host: FakeKernel) -> None:
    (host.root / f"lib/modules/{RELEASE}/modules.alias").unlink()
    finding = find(host, "modules")
    assert finding.state is State.PROBLEM
    assert "no such file or directory" in finding.what
    assert finding.advice.startswith(f"depmod -a {RELEASE}")


def test_an_index_that_can_not_be_read_says_why(host: FakeKernel) -> None:
    index = host.root / f"lib/modules/{RELEASE}/modules.alias"
    index.unlink()
    index.mkdir()
    assert "is a directory" in find(host, "modules").what


def test_an_empty_index_is_a_problem(host: FakeKernel) -> None:
    put(host, f"lib/modules/{RELEASE}/modules.alias", "# Aliases extracted from modules themselves.\n")
    assert "it has no aliases" in find(host, "modules").what


def test_an_index_of_aliases_that_is_damaged_is_told(host: FakeKernel) -> None:
    put(host, f"lib/modules/{RELEASE}/modules.alias.bin", "spoilt")
    finding = find(host, "modules")
    assert finding.state is State.WARNING
    assert "modules.alias.bin can't be used" in finding.what
    assert "it is cut short" in finding.what
    assert finding.advice == f"depmod -a {RELEASE} && flavourctl reload"


def test_modules_newer_than_the_index_are_named_and_those_that_came_with_it_are_not(host: FakeKernel) -> None:
    dep = host.root / f"lib/modules/{RELEASE}/modules.dep"
    updates = host.root / f"lib/modules/{RELEASE}/updates/dkms"
    updates.mkdir(parents=True)
    assert all(finding.state is State.OK for finding in look(host))
    made = dep.stat().st_mtime - 3600
    for path in (host.root / f"lib/modules/{RELEASE}").rglob("*"):
        os.utime(path, (made, made))
    os.utime(updates, (made + 60, made + 60))
    finding = find(host, "modules")
    assert finding.state is State.WARNING
    assert str(updates) in finding.what
    assert finding.advice == f"depmod -a {RELEASE} && flavourctl reload"


def test_malformed_lines_are_counted_with_the_place_of_the_first(host: FakeKernel) -> None:
    conf = put(host, "etc/modprobe.d/x.conf", "alias\nwhat is this\n")
    finding = find(host, "modules")
    assert finding.state is State.NOTE
    assert finding.what.startswith("2 malformed lines")
    assert f"{conf}:1" in finding.what


@pytest.mark.parametrize("line", ["blacklist vfio_pci", "install vfio-pci /bin/false"])
def test_a_vfio_pci_that_is_kept_out_is_a_problem_with_the_place(host: FakeKernel, line: str) -> None:
    conf = put(host, "etc/modprobe.d/no.conf", f"# no\n{line}\n")
    finding = next(finding for finding in look(host) if finding.name == "vfio-pci")
    assert finding.state is State.PROBLEM
    assert f"{conf}:2" in finding.what
    assert "remove that line" in finding.advice


def test_a_blacklisted_vfio_pci_is_not_used_though_it_is_loaded(host: FakeKernel) -> None:
    put(host, "etc/modprobe.d/no.conf", "blacklist vfio_pci\n")
    host.load("vfio_pci")
    assert find(host, "vfio-pci").state is State.PROBLEM


def test_a_kernel_without_vfio_pci_needs_another_package(host: FakeKernel) -> None:
    put(host, f"lib/modules/{RELEASE}/modules.dep", "kernel/other.ko:\n")
    finding = find(host, "vfio-pci")
    assert finding.state is State.PROBLEM
    assert "not in modules.dep" in finding.what
    assert RELEASE in finding.advice
    host.load("vfio_pci")
    assert all(finding.state is State.OK for finding in look(host))


# variants


def add_connectx_vf(host: FakeKernel) -> FakeDevice:
    return host.add_device("0000:03:00.1", 0x15B3, 0x101E, group=9)


def test_a_variant_that_this_kernel_was_built_without_is_told(host: FakeKernel) -> None:
    add_connectx_vf(host)
    finding = find(host, "variant")
    assert finding.state is State.NOTE
    assert finding.what == (
        "0000:03:00.1: Linux has had the variant driver mlx5_vfio_pci for it since 5.18, but kernel "
        f"{RELEASE} has CONFIG_MLX5_VFIO_PCI=n; vfio-pci serves instead, without what that adds"
    )
    assert "CONFIG_MLX5_VFIO_PCI=m" in finding.advice
    put(host, f"boot/config-{RELEASE}", "CONFIG_MLX5_VFIO_PCI=m\n")
    finding = find(host, "variant")
    assert "has CONFIG_MLX5_VFIO_PCI=m and the module is not installed;" in finding.what
    assert finding.advice == f"install the package with all modules of kernel {RELEASE}"
    (host.root / f"boot/config-{RELEASE}").unlink()
    assert f"but kernel {RELEASE} has none;" in find(host, "variant").what


def test_a_variant_that_came_after_this_kernel_needs_a_later_one(host: FakeKernel) -> None:
    host.add_device("0000:03:00.0", 0x1014, 0x04ED, group=9)
    finding = find(host, "variant")
    assert f"since 7.1, but kernel {RELEASE} is older" in finding.what
    assert finding.advice == "run Linux 7.1 or later"


def test_a_missing_variant_is_a_warning_where_the_policy_gives_the_device_to_vfio(host: FakeKernel) -> None:
    add_connectx_vf(host)
    apply(host, rule("vfs", "vendor: 15b3"))
    assert find(host, "variant").state is State.WARNING


def test_a_variant_that_is_there_is_not_missing_nor_a_vendors_own(host: FakeKernel) -> None:
    device = add_connectx_vf(host)
    host.add_module(
        FakeDriver("own", "own_vfio", vfio=True), alias=f"vfio_{device.modalias[:22]}sv*sd*bc*sc*i*"
    )
    put(host, f"lib/modules/{RELEASE}/modules.dep", "kernel/vfio-pci.ko.xz:\nkernel/own_vfio.ko:\n")
    put(host, f"lib/modules/{RELEASE}/kernel/own_vfio.ko", b"")
    assert all(finding.state is State.OK for finding in look(host))


def test_an_id_that_the_physical_function_shares_counts_for_virtual_ones_only(host: FakeKernel) -> None:
    device = host.add_device("0000:03:00.0", 0x1AF4, 0x1041, group=9)
    assert all(finding.state is State.OK for finding in look(host))
    (host.path(device) / "physfn").symlink_to(host.path(host.devices["0000:01:00.0"]))
    assert "virtio_vfio_pci" in find(host, "variant").what


@pytest.mark.parametrize("line", ["blacklist own_vfio", "install own_vfio /bin/true"])
def test_a_variant_that_is_kept_out_is_a_warning_with_the_place(host: FakeKernel, line: str) -> None:
    own = FakeDriver("own", "own_vfio", vfio=True)
    host.add_module(own, alias="vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*")
    put(host, f"lib/modules/{RELEASE}/modules.dep", "kernel/vfio-pci.ko.xz:\nkernel/own_vfio.ko:\n")
    put(host, f"lib/modules/{RELEASE}/kernel/own_vfio.ko", b"")
    conf = put(host, "etc/modprobe.d/no.conf", f"{line}\n")
    finding = next(finding for finding in look(host) if finding.name == "blacklist")
    assert finding.state is State.WARNING
    assert finding.what.startswith("the variant driver own_vfio for 0000:01:00.0 is not used: ")
    assert f"{conf}:1" in finding.what


def test_a_variant_whose_file_is_gone_is_a_warning(host: FakeKernel) -> None:
    own = FakeDriver("own", "own_vfio", vfio=True)
    host.add_module(own, alias="vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*")
    finding = find(host, "modules")
    assert finding.state is State.WARNING
    assert "own_vfio for 0000:01:00.0 is not used: module file missing" in finding.what
    assert f"depmod -a {RELEASE}" in finding.advice


# Secure Boot, lockdown

SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def test_lockdown_and_signatures_are_a_note_with_secure_boot_as_the_reason(host: FakeKernel) -> None:
    put(host, "sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    finding = find(host, "lockdown")
    assert finding.state is State.NOTE
    assert finding.what.startswith("the kernel is locked down (integrity): a variant driver")
    put(host, "sys/module/module/parameters/sig_enforce", "Y\n")
    put(host, SECURE_BOOT, b"\6\0\0\0\1")
    assert find(host, "lockdown").what.startswith(
        "Secure Boot is on, the kernel is locked down (integrity), the kernel demands signed modules: "
    )


@pytest.mark.parametrize(("value", "told"), [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (b"", False)])
def test_secure_boot_alone_stands_in_nobodys_way(host: FakeKernel, value: bytes, told: bool) -> None:
    put(host, SECURE_BOOT, value)
    findings = look(host)
    assert all(finding.state is State.OK for finding in findings)
    assert ("secure-boot" in {finding.name for finding in findings}) == told


def test_disabled_modules_are_a_problem_unless_vfio_pci_is_loaded(host: FakeKernel) -> None:
    put(host, "proc/sys/kernel/modules_disabled", "1\n")
    assert find(host, "modules-disabled").state is State.PROBLEM
    host.load("vfio_pci")
    assert find(host, "modules-disabled").state is State.WARNING


# others' claims


@pytest.mark.parametrize(
    ("driver", "flavour", "state"),
    [
        ("vfio-pci", "native", State.PROBLEM),
        ("pci-stub", "vfio", State.PROBLEM),
        ("vfio-pci", "vfio", State.WARNING),
        ("e1000e", "native", State.WARNING),
    ],
)
def test_driverctl_and_the_policy_on_one_device(
    host: FakeKernel, driver: str, flavour: str, state: State
) -> None:
    put(host, "etc/driverctl.d/pci-0000:01:00.0", f"{driver}\n")
    path = apply(host, rule("mine", "vendor: 8086", flavour))
    assert find(host, "driverctl") == Finding(
        "driverctl",
        state,
        f"0000:01:00.0: driverctl has {driver} saved for it, so it is left to that although "
        f"rule 'mine' ({path}:3) says {flavour}",
        "driverctl unset-override 0000:01:00.0",
    )


def test_what_driverctl_has_alone_is_a_note_and_what_is_not_there_is_none(host: FakeKernel) -> None:
    put(host, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    put(host, "etc/driverctl.d/pci-0000:07:00.0", "vfio-pci\n")
    put(host, "etc/driverctl.d/vmbus-x", "uio_hv_generic\n")
    put(host, "etc/driverctl.d/pci-0000:07:00.1", "")
    put(host, "etc/driverctl.d/pci-0000:01:00.1", "other\n")
    host.add_device("0000:01:00.1", 0x1234, 0x5678)
    finding = find(host, "driverctl")
    assert (finding.state, finding.advice) == (State.NOTE, "flavourctl import driverctl")
    assert "0000:01:00.0" in finding.what


@pytest.mark.parametrize("where", ["proc/cmdline", "etc/modprobe.d/vfio.conf"])
def test_ids_of_vfio_pci_that_claim_what_is_here(host: FakeKernel, where: str) -> None:
    text = f"{PLAIN} vfio-pci.ids=8086:10d3\n" if "proc" in where else "options vfio-pci ids=8086:10d3\n"
    put(host, where, text)
    finding = find(host, "vfio-pci-ids")
    assert finding.state is State.NOTE
    assert "claims 0000:01:00.0" in finding.what
    assert "flavourctl import modprobe" in finding.advice
    apply(host, rule("mine", "vendor: 8086"))
    assert find(host, "vfio-pci-ids").state is State.NOTE
    apply(host, rule("mine", "vendor: 8086", "native"))
    finding = find(host, "vfio-pci-ids")
    assert finding.state is State.PROBLEM
    assert "says native of 0000:01:00.0" in finding.what


def test_ids_of_vfio_pci_come_before_a_better_driver_of_the_policys(host: FakeKernel) -> None:
    own = FakeDriver("own", "own_vfio", vfio=True)
    host.add_module(own, alias="vfio_pci:v00008086d000010D3sv*sd*bc*sc*i*")
    put(host, f"lib/modules/{RELEASE}/modules.dep", "kernel/vfio-pci.ko.xz:\nkernel/own_vfio.ko:\n")
    put(host, f"lib/modules/{RELEASE}/kernel/own_vfio.ko", b"")
    put(host, "etc/modprobe.d/vfio.conf", "options vfio-pci ids=8086:10d3\n")
    apply(host, rule("mine", "vendor: 8086"))
    finding = find(host, "vfio-pci-ids")
    assert finding.state is State.WARNING
    assert "before the policy's driver, own_vfio" in finding.what
    apply(host, rule("mine", "vendor: 8086", more=", driver: vfio-pci"))
    assert find(host, "vfio-pci-ids").state is State.NOTE


def test_ids_that_do_nothing_are_told(host: FakeKernel) -> None:
    first = put(host, "etc/modprobe.d/a.conf", "options vfio_pci ids=8086:10d3\n")
    second = put(host, "etc/modprobe.d/b.conf", "options vfio_pci ids=1234:5678,nonsense\n")
    whats = [finding.what for finding in look(host) if finding.name == "vfio-pci-ids"]
    assert whats == [
        f"vfio-pci's ids= in {second}:1 has entries that are no IDs: nonsense",
        f"vfio-pci's ids= in {first}:1 has no effect: {second}:1 sets it again later",
        f"vfio-pci's ids= in {second}:1 claims no device that is here",
    ]


def test_softdeps_and_installs_that_load_vfio_are_one_note(host: FakeKernel) -> None:
    text = "softdep nouveau pre: vfio-pci\ninstall nvidia modprobe vfio-pci\nsoftdep a pre: b\n"
    conf = put(host, "etc/modprobe.d/vfio.conf", text)
    finding = find(host, "modprobe.d")
    assert finding.state is State.NOTE
    assert (
        f"softdep nouveau pre: vfio-pci ({conf}:1); install nvidia modprobe vfio-pci ({conf}:2)"
        in finding.what
    )


@pytest.mark.parametrize(
    ("is_root", "state", "advice"),
    [(True, State.WARNING, "what is in it does not count"), (False, State.NOTE, "sudo flavourctl doctor")],
)
def test_what_can_not_be_read_of_modprobe_d_depends_on_who_asks(
    host: FakeKernel, is_root: bool, state: State, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (host.root / "etc/modprobe.d").mkdir(parents=True)
    (host.root / "etc/modprobe.d/a.conf").symlink_to("a.conf")
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    finding = find(host, "modules")
    assert (finding.state, finding.advice) == (state, advice)
    assert "too many levels of symbolic links" in finding.what


# the policy


def test_an_invalid_policy_is_a_problem_with_its_place(host: FakeKernel) -> None:
    path = write(host.root, "version: 1\nrulse: []\n")
    finding = find(host, "policy")
    assert finding.state is State.PROBLEM
    assert f"{path}:2:1: 'rulse'" in finding.what
    assert finding.advice == "flavourctl check"


def test_a_policys_warnings_are_notes(host: FakeKernel) -> None:
    write(
        host.root,
        rule("a", "modalias: '*'", "native") + "  - {name: b, match: {vendor: 8086, modalias: '*'}}\n",
    )
    finding = find(host, "policy")
    assert finding.state is State.NOTE
    assert "'b'" in finding.what
    assert "matches everything it does" in finding.what


def test_a_policy_that_is_switched_off_is_a_warning(host: FakeKernel) -> None:
    write(host.root, rule("mine", "vendor: 8086"))
    put(host, "proc/cmdline", f"{PLAIN} vfio_flavourd.policy=0\n")
    finding = find(host, "policy")
    assert (finding.state, "switched off" in finding.what) == (State.WARNING, True)


def test_a_policy_newer_than_its_rules_and_an_initramfs_older_than_them(host: FakeKernel) -> None:
    write(host.root, rule("mine", "vendor: 8086"))
    put(host, "usr/sbin/update-initramfs", "")
    image = put(host, f"boot/initrd.img-{RELEASE}", b"")
    os.utime(image, (1, 1))
    put(host, "etc/udev/rules.d/79-vfio-flavourd-policy.rules", "# source: /etc/x 1 1.0\n")
    findings = [finding for finding in look(host) if finding.state is not State.OK]
    assert [(each.name, each.state, each.advice) for each in findings] == [
        ("early-rules", State.WARNING, "flavourctl reload"),
        ("initramfs", State.WARNING, "update-initramfs -u -k all"),
    ]


def test_rules_for_early_boot_that_were_never_written_are_told_where_the_policy_has_something_for_them(
    host: FakeKernel,
) -> None:
    write(host.root, rule("mine", "vendor: 1234"))
    finding = find(host, "early-rules")
    assert (finding.state, finding.advice) == (State.WARNING, "flavourctl reload")
    assert finding.what == "there are no rules for early boot yet, so native drivers bind first at boot"
    write(host.root, rule("mine", "vendor: 1234", "native"))
    assert [each.name for each in look(host) if each.state is not State.OK] == []


def test_a_group_that_no_guest_could_use_is_told_with_who_is_in_the_way(host: FakeKernel) -> None:
    other = host.add_device("0000:01:00.1", 0x1234, 0x5678)
    host.add_native(other, "other")
    bridge = host.add_device("0000:01:01.0", 0x1234, 0x5679, class_code=0x060400)
    host.add_native(bridge, "pcieport")
    host.add_device("0000:01:02.0", 0x1234, 0x567A)
    path = apply(host, rule("mine", "vendor: 8086"))
    assert find(host, "group") == Finding(
        "group",
        State.PROBLEM,
        f"0000:01:00.0: no guest can use it, though rule 'mine' ({path}:3) says vfio: in IOMMU group 7 "
        "0000:01:00.1 (other) has a host driver",
        "write group: together in the rule, or move the device to another slot",
    )
    apply(host, rule("mine", "vendor: 8086", more=", group: ignore"))
    assert find(host, "group").state is State.WARNING
    apply(host, rule("mine", "vendor: 8086", more=", group: together"))
    assert all(finding.state is State.OK for finding in look(host))
    apply(host, rule("both", "iommu_group: 7"))
    assert all(finding.state is State.OK for finding in look(host))


def test_what_is_on_vfio_without_a_policy_in_a_group_with_a_host_driver_is_told(host: FakeKernel) -> None:
    host.add_vfio_device(host.add_device("0000:01:00.1", 0x1234, 0x5678))
    assert find(host, "group") == Finding(
        "group",
        State.WARNING,
        "0000:01:00.1: no guest can use it, though it is on VFIO: in IOMMU group 7 0000:01:00.0 (e1000e) has "
        "a host driver",
        "flavourctl set 0000:01:00.0 vfio",
    )
    apply(host, rule("mine", "vendor: 1234"))
    assert find(host, "group").state is State.PROBLEM
    apply(host, rule("both", "iommu_group: 7"))
    assert all(finding.state is State.OK for finding in look(host))


def test_many_of_one_group_are_one_finding(host: FakeKernel) -> None:
    for function in range(1, 8):
        host.add_device(f"0000:06:00.{function}", 0x1234, 0x5678, group=11)
    host.add_native(host.add_device("0000:06:00.0", 0x4321, 0x5678, group=11), "other")
    apply(host, rule("many", "vendor: 1234"))
    finding = find(host, "group")
    assert finding.what.startswith("0000:06:00.1, 0000:06:00.2, 0000:06:00.3 and 4 more: no guest can use it")


def test_a_device_in_no_group_can_not_be_isolated(host: FakeKernel) -> None:
    host.add_device("0000:05:00.0", 0x1234, 0x5678, group=None)
    apply(host, rule("mine", "vendor: 1234"))
    finding = find(host, "group")
    assert finding.state is State.PROBLEM
    assert finding.what.startswith("0000:05:00.0: in no IOMMU group")
    apply(host, rule("mine", "vendor: 1234", more=", noiommu: allow"))
    finding = find(host, "group")
    assert finding.state is State.PROBLEM
    assert "VFIO has not been told to do without" in finding.what
    put(host, "etc/modprobe.d/vfio.conf", "options vfio enable_unsafe_noiommu_mode=Y\n")
    apply(host, rule("mine", "vendor: 1234", more=", noiommu: allow"))
    assert all(finding.state is State.OK for finding in look(host))


def test_a_bridge_whose_driver_does_dma_is_in_the_way_and_has_to_be_unbound(host: FakeKernel) -> None:
    bridge = host.add_device("0000:00:1f.0", 0x8086, 0x2918, class_code=0x060100)
    host.add_native(bridge, "lpc_ich")
    apply(host, rule("all", "vendor: 8086", more=", group: together"))
    finding = find(host, "group")
    assert finding.state is State.PROBLEM
    assert "0000:00:1f.0 (lpc_ich)" in finding.what
    assert finding.advice == "echo 0000:00:1f.0 > /sys/bus/pci/drivers/lpc_ich/unbind"


# the daemon


def test_a_daemon_that_does_not_answer_is_a_problem_with_its_hint(host: FakeKernel) -> None:
    finding = find(host, "daemon", Daemon(trouble="the daemon can't be reached", hint="systemctl start x"))
    assert finding == Finding("daemon", State.PROBLEM, "the daemon can't be reached", "systemctl start x")


def test_what_the_daemon_tells_of_its_policy_and_of_stuck_devices(host: FakeKernel) -> None:
    finding = find(host, "policy", Daemon(policy_trouble="x.yaml:1:1: no"))
    assert (finding.state, finding.advice) == (State.PROBLEM, "flavourctl check")
    finding = find(host, "stuck", Daemon(stuck=MappingProxyType({"0000:01:00.0": "unbinding since 40 s"})))
    assert (finding.state, finding.advice) == (State.PROBLEM, "flavourctl show 0000:01:00.0")
    assert finding.what == "0000:01:00.0: unbinding since 40 s"


def test_a_door_that_is_not_mounted_is_a_warning(host: FakeKernel) -> None:
    assert find(host, "file-system", Daemon(is_door_mounted=False)).state is State.WARNING


def test_a_mount_is_told_by_its_place_and_its_type(tmp_path: Path) -> None:
    mountinfo = tmp_path / "proc/self/mountinfo"
    mountinfo.parent.mkdir(parents=True)
    assert not is_mounted(tmp_path, "/run/vfio-flavour", "fuse")
    line = "200 26 0:50 / /run/vfio-flavour rw,relatime shared:9 - fuse vfio-flavour rw,user_id=0\n"
    mountinfo.write_text(line, encoding="ascii")
    assert is_mounted(tmp_path, "/run/vfio-flavour", "fuse")
    assert not is_mounted(tmp_path, "/run/vfio", "fuse")
    assert not is_mounted(tmp_path, "/run/vfio-flavour", "tmpfs")


def test_what_is_not_there_is_not_unreadable(tmp_path: Path) -> None:
    write(tmp_path, "version: 1\n")
    assert find_unreadable(tmp_path, ["etc/vfio-flavourd/policy.d", "run/vfio-flavourd/policy.d"]) == ()


def test_what_can_not_be_read_is_named_and_what_only_has_to_be_there_is_not(
    host: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so a file's mode would tell nothing here."""
    put(host, "etc/driverctl.d/pci-0000:01:00.0", "vfio-pci\n")
    put(host, "boot/vmlinuz", "")
    hidden = {
        host.root / "etc/driverctl.d",
        host.root / "boot/vmlinuz",
        host.root / "sys/kernel/security/lockdown",
    }
    monkeypatch.setattr(os, "access", lambda path, mode: path not in hidden)
    findings = [finding for finding in look(host) if finding.name == "not-looked-at"]
    assert [(finding.state, finding.advice) for finding in findings] == [
        (State.NOTE, "sudo flavourctl doctor")
    ]
    assert findings[0].what.endswith(": /etc/driverctl.d, /sys/kernel/security/lockdown")


def test_findings_have_no_line_breaks_of_their_own(host: FakeKernel) -> None:
    """Each is one line of what and one of advice; what comes from outside is escaped when it is printed."""
    switch_off(host, "AuthenticAMD")
    write(host.root, "version: 2\n")
    for finding in look(host, Daemon(trouble="no", hint="yes", is_door_mounted=False)):
        assert "\n" not in json.loads(json.dumps(finding.what + finding.advice))
