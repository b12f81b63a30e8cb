"""The systemd units and the udev rules, by the programs that read them where those are there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "systemd").iterdir())
# The most that `systemd-analyze security` may find, of 10.
EXPOSURES = {
    "vfio-flavourd.service": 1.4,
    "vfio-flavour-fs.service": 3.2,
    "vfio-flavour-users@.service": 2.1,
    "vfio-flavour-modprobe@.service": 3.4,
    "vfio-flavour-early.service": 2.0,
}
# All that each may ever have.
CAPABILITIES = {
    "vfio-flavourd.service": "",
    "vfio-flavour-fs.service": "CAP_SYS_ADMIN",
    "vfio-flavour-users@.service": "CAP_SYS_PTRACE CAP_DAC_READ_SEARCH",
    "vfio-flavour-modprobe@.service": "CAP_SYS_MODULE",
    "vfio-flavour-early.service": "",
}
# What costs nobody anything; the figures would not notice each of them.
EVERYWHERE = {
    "DevicePolicy=closed",
    "IPAddressDeny=any",
    "KeyringMode=private",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "NoNewPrivileges=yes",
    "ProtectClock=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
}
# Found because DevicePolicy=closed lets the kernel's own harmless ones through: /dev/null and its like.
NO_FINDING = {"DeviceAllow"}
RULES = sorted((ROOT / "udev-rules").iterdir())
LAUNCHERS = {path.name for path in (ROOT / "debian/launchers").iterdir()}
# What makes systemd give a service a mount namespace of its own: exec_needs_mount_namespace() of systemd
# 252 to 257, and what implies one of its conditions.
MOUNT_NAMESPACING = re.compile(
    r"^(Bind\w*Paths|DynamicUser|ExecPaths|ExtensionImages|ExtensionDirectories|InaccessiblePaths|LogNamespace|"
    r"MountFlags|MountImages|NoExecPaths|Private(Devices|IPC|Tmp|Users|PIDs)|ProcSubset|"
    r"Protect(ControlGroups|Home|Hostname|KernelLogs|KernelModules|KernelTunables|Proc|System)|"
    r"Read(Only|Write)Paths|Root\w+|TemporaryFileSystem)=",
    re.MULTILINE,
)


def verify(directory: Path, units: list[Path]) -> str:
    """What systemd complains about; the programs are stood in for, as they aren't installed here."""
    for unit in units:
        text = unit.read_text(encoding="utf-8")
        ours = rf"(?m)^(ExecStart=)/usr/(?:sbin|libexec/vfio-flavourd)/({'|'.join(LAUNCHERS)})\b"
        text = re.sub(ours, r"\1/bin/true", text)
        (directory / unit.name).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(directory / unit.name) for unit in units)],
        # The colon at the end stands for the units of the system.
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{directory}:", "SYSTEMD_LOG_LEVEL": "notice"},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if any(unit.name in line for unit in units)]
    if done.returncode != 0 and not complaints:
        complaints = [f"status {done.returncode}", *done.stderr.splitlines()]
    return "\n".join(complaints)


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    assert verify(tmp_path, UNITS) == ""


@pytest.mark.parametrize(
    ("found", "put"),
    [
        ("NoNewPrivileges=yes", "NoNewPrivilege=yes"),
        ("Type=notify", "Type=nothing"),
        ("/usr/sbin/vfio-flavourd", "/usr/sbin/no-such-program"),
    ],
)
def test_a_mistake_in_a_unit_is_found(tmp_path: Path, found: str, put: str) -> None:
    text = (ROOT / "systemd/vfio-flavourd.service").read_text(encoding="utf-8")
    assert found in text
    spoilt = tmp_path / "source" / "vfio-flavourd.service"
    spoilt.parent.mkdir()
    spoilt.write_text(text.replace(found, put), encoding="utf-8")
    others = [unit for unit in UNITS if unit.name != spoilt.name]
    assert verify(tmp_path, [spoilt, *others]) != ""


def test_the_file_system_is_mounted_where_the_host_sees_it() -> None:
    text = (ROOT / "systemd/vfio-flavour-fs.service").read_text(encoding="utf-8")
    assert MOUNT_NAMESPACING.search(text) is None
    # It is implied by PrivateNetwork= unless it is refused (systemd.exec(5), since 254).
    assert re.findall(r"^PrivateMounts=(.*)", text, re.MULTILINE) == ["no"]


of_each_service = pytest.mark.parametrize(
    "unit", [unit for unit in UNITS if unit.suffix == ".service"], ids=lambda unit: unit.name
)


def analyze(directory: Path, unit: Path) -> str:
    """What `systemd-analyze security` says."""
    instance = directory / unit.name.replace("@.", "@1.")
    instance.write_text(unit.read_text(encoding="utf-8"), encoding="utf-8")
    return subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(instance)],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@of_each_service
def test_a_unit_exposes_no_more_than_it_has_to(tmp_path: Path, unit: Path) -> None:
    said = analyze(tmp_path, unit)
    [exposure] = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert float(exposure) <= EXPOSURES[unit.name], said


@of_each_service
def test_what_a_unit_does_without_has_its_reason_beside_it(tmp_path: Path, unit: Path) -> None:
    """Each finding is about a directive that is set, or that a comment names."""
    findings = re.findall(r"^✗ ((?:\w+=/?)+)", analyze(tmp_path, unit), re.MULTILINE)
    assert findings
    text = unit.read_text(encoding="utf-8")
    named = {name for found in findings for name in re.findall(r"\w+", found)} - NO_FINDING
    assert {name for name in named if f"{name}=" not in text} == set()


@of_each_service
def test_a_unit_has_the_capabilities_that_it_needs_and_all_that_costs_nothing(unit: Path) -> None:
    text = unit.read_text(encoding="utf-8")
    assert re.findall(r"^\w*Capabilit\w*=(.*)", text, re.MULTILINE) == [CAPABILITIES[unit.name]]
    assert set(text.splitlines()) >= EVERYWHERE


@pytest.mark.parametrize("name", ["modprobe", "users"])
def test_the_daemon_starts_whatever_is_still_being_done_for_the_one_before_it(name: str) -> None:
    """A oneshot's start lasts until it ends, and a module's init may hang."""
    lines = (ROOT / f"systemd/vfio-flavour-{name}@.service").read_text(encoding="utf-8").splitlines()
    # The order is for the shutdown, where it is the other way round.
    assert "Before=vfio-flavourd.service" in lines
    assert {line for line in lines if line.startswith("Type=")} <= {"Type=simple"}


def test_a_module_whose_init_hangs_is_given_up_by_the_unit_too() -> None:
    """TimeoutStartSec= limits the run of a oneshot only."""
    lines = (ROOT / "systemd/vfio-flavour-modprobe@.service").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if re.match(r"(RuntimeMax|Timeout\w*)Sec=", line)} == {
        "RuntimeMaxSec=3min"
    }


@pytest.mark.parametrize("name", ["modprobe", "users"])
def test_a_socket_that_starts_a_process_for_each_connection_is_never_left_failed(name: str) -> None:
    lines = (ROOT / f"systemd/vfio-flavour-{name}.socket").read_text(encoding="utf-8").splitlines()
    assert {"Accept=yes", "SocketMode=0600", "TriggerLimitIntervalSec=0"} <= set(lines)


def test_every_program_of_a_unit_is_installed_where_the_unit_looks() -> None:
    rules = (ROOT / "debian/rules").read_text(encoding="utf-8")
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8")
        for name in re.findall(r"^Exec\w+=.*?/usr/(?:sbin|libexec/vfio-flavourd)/(\S+)", text, re.MULTILINE):
            assert f"debian/launchers/{name}" in rules or (ROOT / "libexec" / name).exists()


TOKEN = re.compile(
    r"""(?x)
    (?P<key>[A-Z_]+)(\{(?P<attribute>[^}]+)\})?
    (?P<operator>==|!=|\+=|-=|:=|=)
    "(?P<value>(?:[^"\\]|\\.)*)"
    """
)
MATCHES = {"ACTION", "ATTR", "ATTRS", "DEVPATH", "DRIVER", "DRIVERS", "ENV", "KERNEL", "KERNELS", "SUBSYSTEM",
           "SUBSYSTEMS", "TAG", "TAGS", "TEST"}  # fmt: skip
# Not PROGRAM, IMPORT{program} or RUN: udev kills what is slow and lets other events wait for it.
ASSIGNMENTS = {"ENV", "GOTO", "GROUP", "LABEL", "MODE", "OWNER", "TAG"}
IMPORTS = {"db", "file"}


def complaints_about(rules: str) -> list[str]:
    """What `udevadm verify` would find first, for machines whose systemd is older than 254."""
    complaints = []
    lines = rules.replace("\\\n", " ").splitlines()
    labels = set(re.findall(r'LABEL="([^"]+)"', rules))
    for line in lines:
        if not line or line.startswith("#"):
            continue
        rest = line
        while rest:
            token = TOKEN.match(rest)
            if token is None:
                complaints.append(f"not a token: {rest}")
                break
            comparing = token["operator"] in {"==", "!="}
            importing = token["key"] == "IMPORT" and token["attribute"] in IMPORTS
            if not importing and token["key"] not in (MATCHES if comparing else ASSIGNMENTS):
                complaints.append(f"{token['key']}{token['operator']} in: {line}")
            if token["key"] == "ENV" and not token["attribute"]:
                complaints.append(f"ENV without a name in: {line}")
            if token["key"] == "GOTO" and token["value"] not in labels:
                complaints.append(f"GOTO to nowhere in: {line}")
            rest = rest[token.end() :]
            if rest and not rest.startswith(", "):
                complaints.append(f"no comma before: {rest}")
                break
            rest = rest.removeprefix(", ")
    return complaints


@pytest.mark.parametrize("rules", RULES, ids=lambda path: str(path.name))
def test_the_udev_rules_are_well_formed_and_do_no_work(rules: Path) -> None:
    assert complaints_about(rules.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        'ACTION="change"',
        'SUBSYSTEM=="pci" GOTO="x"',
        'GOTO="nowhere"',
        'ENV=="1"',
        'RUN+="/bin/true"',
        'IMPORT{program}="/bin/true"',
        "TAG+=x",
    ],
)
def test_a_mistake_in_a_rule_is_found(line: str) -> None:
    assert complaints_about(line) != []


def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    """`--update-catalog` says what it can't read, and goes on."""
    for directory in ("usr/lib/systemd/catalog", "var/lib/systemd/catalog"):
        (tmp_path / directory).mkdir(parents=True)
    catalog = ROOT / "catalog/vfio-flavourd.catalog"
    shutil.copy(catalog, tmp_path / "usr/lib/systemd/catalog")
    done = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--update-catalog"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    listed = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--list-catalog"], capture_output=True, text=True, check=True
    ).stdout
    assert len(listed.splitlines()) == catalog.read_text(encoding="utf-8").count("\n-- ")
