"""The ways in beside the files: flavourctl, varlink and uevents; and who may come in by which."""

import json
import shlex
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from .conftest import NO_VFIO_PCI, Host, Seen, write_command
from .devices import ROLES, VARIANT_MODULES

GOOD, REFUSE = ROLES["good"], ROLES["refuse"]
ON_VFIO = Seen("vft-good-vfio-pci", "vft-good-vfio-pci", vfio=True)

CONTROL = "/run/vfio-flavourd/io.vfioflavour.Manager"
READ_ONLY = f"{CONTROL}.ReadOnly"
SCRIPT = Path(__file__).parents[2] / "docs/examples/switch.py"

NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"
MEMBER = "setpriv --reuid 65534 --regid 65534 --groups $(getent group vfio-flavour | cut -d : -f 3)"
# Whom nobody has refused anything before: of one user the same is logged once in 10 s. And whose group is
# root's, which makes nobody root.
OTHER_MEMBER = MEMBER.replace("--reuid 65534 --regid 65534", "--reuid 65533 --regid 0")


# flavourctl


def test_flavourctl_switches_there_and_back(host: Host) -> None:
    before = host.look()
    there = host.ctl("set", "00:04.0", "vfio")
    assert there.rc == 0
    assert there.stdout.startswith(f"{GOOD.bdf}: e1000e -> vft-good-vfio-pci in ")
    assert "unbind from e1000e" in there.stderr
    now = host.look()
    assert (now.devices[GOOD.bdf], now.changed(before)) == (ON_VFIO, {GOOD.bdf})

    back = host.ctl("reset", GOOD.bdf)
    assert back.rc == 0
    assert back.stdout.startswith(f"{GOOD.bdf}: vft-good-vfio-pci -> e1000e in ")
    assert host.look().changed(before) == set()


def test_flavourctl_prints_one_json_object_with_the_promised_keys(host: Host) -> None:
    outcome = json.loads(host.ctl("set", "--json", GOOD.bdf, "vfio").stdout)
    promised = {
        *("version", "device", "flavour", "driver", "previous_driver", "fallback", "reason"),
        *("vfio_device", "group_node", "steps"),
    }
    assert promised <= outcome.keys()
    group = host.run(f"basename $(readlink {GOOD.sysfs}/iommu_group)").stdout.strip()
    told = {name: outcome[name] for name in promised - {"steps", "reason", "vfio_device"}}
    assert told == {
        "version": 1,
        "device": GOOD.bdf,
        "flavour": "vfio",
        "driver": "vft-good-vfio-pci",
        "previous_driver": "e1000e",
        "fallback": False,
        "group_node": f"/dev/vfio/{group}",
    }
    assert host.run(f"ls {GOOD.sysfs}/vfio-dev").stdout.strip() == outcome["vfio_device"]

    shown = json.loads(host.ctl("show", GOOD.bdf, "--json").stdout)
    assert shown["version"] == 1
    assert (shown["device"]["flavour"], shown["device"]["previous_driver"]) == ("vfio", "e1000e")
    listed = json.loads(host.ctl("--json").stdout)
    assert listed["version"] == 1
    assert [device["device"] for device in listed["devices"]] == sorted(host.look().devices)
    assert host.ctl("set", GOOD.bdf, "native").rc == 0

    resolved = json.loads(host.ctl("resolve", GOOD.bdf, "--json").stdout)
    assert (resolved["version"], resolved["winner"]) == (1, "vft_good")
    assert [(each["module"], each["accepted"]) for each in resolved["candidates"]] == [
        ("vft_good", True),
        ("vfio_pci", True),
    ]
    refused = host.ctl("set", "--json", "00:10.0", "vfio")
    assert json.loads(refused.stdout)["error"]["errno"] == 16


def test_a_dry_run_tells_the_steps_and_touches_nothing(host: Host) -> None:
    before = host.look()
    dry = host.ctl("set", GOOD.bdf, "vfio", "--dry-run")
    assert dry.rc == 0
    assert "load vft_good" in dry.stdout
    assert "unbind from e1000e" in dry.stdout
    now = host.look()
    assert (now.changed(before), now.vfio_modules) == (set(), set())


def test_a_driver_can_be_named(host: Host) -> None:
    assert host.ctl("set", GOOD.bdf, "vfio", "--driver", "vfio-pci").rc == 0
    now = host.look()
    assert now.devices[GOOD.bdf] == Seen("vfio-pci", "vfio-pci", vfio=True)
    assert "vft_good" not in now.modules
    host.switch(GOOD, "native")


def test_the_exit_status_says_what_came_of_it(host: Host) -> None:
    before = host.look()
    assert host.ctl("set", REFUSE.bdf, "vfio", "--strict").rc == 4
    assert host.look().devices[REFUSE.bdf] == Seen("vfio-pci", "vfio-pci", vfio=True)
    host.switch(REFUSE, "native")

    host.run(f"mkdir -p /run/modprobe.d; echo 'blacklist vfio_pci' > {NO_VFIO_PCI}")
    host.run("rmmod vfio_pci")
    failed = host.ctl("set", "00:0d.0", "vfio")
    assert failed.rc == 1
    assert "no VFIO driver took it" in failed.stderr
    host.run(f"rm {NO_VFIO_PCI}")

    for arguments, status, says in (
        (["set", GOOD.bdf, "vfoi"], 2, "no flavour is called 'vfoi'"),
        (["set", GOOD.bdf], 2, "FLAVOUR is missing"),
        (["show", "00:1e.0"], 3, "0000:00:1e.0"),
        (["set", "00:1e.0", "vfio"], 3, "0000:00:1e.0"),
        (["set", "00:10.0", "vfio"], 75, "it is a bridge"),
    ):
        done = host.ctl(*arguments)
        assert (done.rc, says in done.stderr) == (status, True), done
    assert host.look().changed(before) == set()


def test_without_the_daemon_flavourctl_says_so_and_still_resolves(host: Host) -> None:
    host.run("systemctl stop vfio-flavourd.socket vfio-flavourd-readonly.socket vfio-flavourd.service")
    try:
        for arguments in (["list"], ["set", GOOD.bdf, "vfio"]):
            done = host.ctl(*arguments)
            assert done.rc == 69
            assert len(done.stderr.splitlines()) == 2
        assert "1. vft_good" in host.ctl("resolve", GOOD.bdf).stdout
        assert "write error" in host.write(GOOD, "vfio").stderr
    finally:
        host.run("systemctl start vfio-flavourd.socket vfio-flavourd-readonly.socket vfio-flavourd.service")
    assert host.read(GOOD) == "[native] vfio"


# varlink


def varlinkctl(verb: str, *arguments: str) -> str:
    return shlex.join(["varlinkctl", *verb.split(), *arguments])


def test_varlinkctl_looks_and_switches(host: Host) -> None:
    if host.release == "bookworm":
        assert host.run("command -v varlinkctl", check=False).rc == 1
        return
    info = host.run(varlinkctl("info", READ_ONLY)).stdout
    assert "io.vfioflavour.Manager" in info
    described = host.run(varlinkctl("introspect", READ_ONLY, "io.vfioflavour.Manager")).stdout
    for method in ("List", "Get", "Resolve", "Plan", "SetFlavour", "Reset", "History", "Monitor", "Reload"):
        assert f"method {method}" in described
    lines = described.splitlines()
    defined = [index for index, line in enumerate(lines) if line.startswith(("method ", "error ", "type "))]
    assert [lines[index] for index in defined if not lines[index - 1].startswith("# ")] == []

    before = host.look()
    wish = json.dumps({"device": GOOD.bdf, "flavour": "vfio"})
    call = "io.vfioflavour.Manager.SetFlavour"
    refused = host.run(varlinkctl("call", READ_ONLY, call, wish), check=False)
    assert refused.rc != 0
    assert "NotPermitted" in refused.stderr
    assert host.look().changed(before) == set()

    replies = host.run(varlinkctl("call --more -j", CONTROL, call, wish)).stdout
    told = [json.loads(line) for line in replies.replace("\x1e", "").splitlines()]
    assert "unbind from e1000e" in [reply["step"]["what"] for reply in told if reply["step"]]
    assert told[-1]["outcome"]["driver"] == "vft-good-vfio-pci"
    assert host.look().devices[GOOD.bdf] == ON_VFIO

    back = host.run(varlinkctl("call -j", CONTROL, call, wish.replace("vfio", "native"))).stdout
    assert json.loads(back)["outcome"]["driver"] == "e1000e"
    assert host.look().changed(before) == set()


# The reference client, which is no Debian package.
CLIENT = f"""
import json, sys, varlink
device = {GOOD.bdf!r}
with varlink.Client.new_with_address("unix:{CONTROL}") as client:
    with client.open("io.vfioflavour.Manager") as manager:
        steps = [reply for reply in manager.SetFlavour(device=device, flavour="vfio", _more=True)]
        shown = manager.Get(device=device)["device"]
        try:
            manager.SetFlavour(device=device, flavour="vfoi")
        except varlink.VarlinkError as error:
            refused = [error.error(), error.parameters()["errno"], error.parameters()["hint"]]
        back = manager.SetFlavour(device=device, flavour="native")["outcome"]
        listed = [each["device"] for each in manager.List()["devices"]]
steps = [each["step"]["what"] for each in steps if each.get("step")]
said = dict(steps=steps, flavour=shown["flavour"], refused=refused, back=back["driver"], listed=listed)
print(json.dumps(said))
"""


# A raw socket follows, so that it has asked before the other connection does.
FOLLOWER = f"""
import json, socket, varlink
device = {GOOD.bdf!r}
watch = socket.socket(socket.AF_UNIX)
watch.connect({READ_ONLY!r})
watch.sendall(b'{{"method":"io.vfioflavour.Manager.Monitor","more":true}}' + bytes(1))
with varlink.Client.new_with_address("unix:{CONTROL}") as client:
    with client.open("io.vfioflavour.Manager") as manager:
        manager.Get(device=device)
        manager.SetFlavour(device=device, flavour="vfio")
        manager.SetFlavour(device=device, flavour="native")
data = b""
while data.count(b'"attempt":{{') < 2 or not data.endswith(bytes(1)):
    data += watch.recv(65536)
print(json.dumps([json.loads(each)["parameters"] for each in data.split(bytes(1)) if each]))
"""


@pytest.fixture
def reference_client(host: Host, tmp_path: Path) -> str:
    """The command that runs a script with the reference client in the guest."""
    spec = find_spec("varlink")
    assert spec is not None
    assert spec.origin is not None
    with tarfile.open(tmp_path / "varlink.tar", "w") as tar:
        tar.add(Path(spec.origin).parent, "varlink")
    host.guest.push(tmp_path / "varlink.tar", "/run/varlink.tar")
    host.run("mkdir -p /run/varlink-client && tar -x -f /run/varlink.tar -C /run/varlink-client")
    return "PYTHONPATH=/run/varlink-client python3"


def run_script(host: Host, tmp_path: Path, interpreter: str, script: str) -> Any:
    (tmp_path / "script.py").write_text(script)
    host.guest.push(tmp_path / "script.py", "/run/varlink-client.py")
    return json.loads(host.run(f"{interpreter} /run/varlink-client.py").stdout)


def test_the_script_of_the_documentation_does_a_whole_switch(host: Host) -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 30
    host.guest.push(SCRIPT, "/run/switch.py")
    before = host.look()
    told = host.run(f"python3 /run/switch.py {GOOD.bdf} vfio").stdout.splitlines()
    assert "unbind from e1000e: done" in told
    assert told[-1] == f"{GOOD.bdf} is vfio by vft-good-vfio-pci: vft_good: matches vendor, device"
    refused = host.run(f"python3 /run/switch.py {GOOD.bdf} vfoi", check=False)
    assert refused.rc == 1
    assert "native or vfio" in refused.stderr
    host.run(f"python3 /run/switch.py {GOOD.bdf} native")
    assert host.look().changed(before) == set()


def test_the_reference_python_client_looks_and_switches(
    host: Host, tmp_path: Path, reference_client: str
) -> None:
    said = run_script(host, tmp_path, reference_client, CLIENT)
    assert "unbind from e1000e" in said["steps"]
    assert (said["flavour"], said["back"]) == ("vfio", "e1000e")
    assert said["refused"] == [
        "io.vfioflavour.Manager.InvalidArgument",
        22,
        "allowed: native or vfio; did you mean vfio?",
    ]
    now = host.look()
    assert said["listed"] == sorted(now.devices)
    assert now.devices[GOOD.bdf] == Seen("e1000e")


# uevents


def synthetic(flavour: str) -> str:
    return f'echo "change $(cat /proc/sys/kernel/random/uuid) FLAVOUR={flavour}" > {GOOD.sysfs}/uevent'


def test_a_synthetic_uevent_switches_there_and_back(host: Host) -> None:
    before, journal = host.look(), host.journal()
    host.run(synthetic("vfio"))
    journal.wait_for("e1000e -> vft-good-vfio-pci")
    now = host.look()
    assert (now.devices[GOOD.bdf], now.changed(before)) == (ON_VFIO, {GOOD.bdf})
    host.run(synthetic("native"))
    journal.wait_for("vft-good-vfio-pci -> e1000e")
    assert host.look().changed(before) == set()
    # The switch's own events asked for nothing: one attempt for each wish.
    assert [
        each["REQUESTER"].split()[0] for each in journal.records(LOGGER="vfio_flavourd.engine.attempts")
    ] == [
        "uevent",
        "uevent",
    ]


def test_a_uevent_that_asks_for_no_flavour_there_is_changes_nothing(host: Host) -> None:
    before, journal = host.look(), host.journal()
    host.run(synthetic("vfoi"))
    assert "ignoring" in journal.wait_for("no flavour is called 'vfoi'")
    now = host.look()
    assert (now.changed(before), now.vfio_modules) == (set(), set())


@pytest.mark.parametrize("override", [0, 1], ids=["as a driver can send it", "as a bus could send it"])
def test_the_uevent_of_a_flavoured_kernel_switches_there_and_back(host: Host, override: int) -> None:
    before, journal = host.look(), host.journal()
    host.run(f"modprobe vft_flavour override_modalias={override}")
    send = "/sys/module/vft_flavour/parameters/send"
    host.run(f"echo '{GOOD.bdf} vfio' > {send}")
    journal.wait_for("e1000e -> vft-good-vfio-pci")
    now = host.look()
    assert (now.devices[GOOD.bdf], now.changed(before)) == (ON_VFIO, {GOOD.bdf})
    assert not now.modules & VARIANT_MODULES.keys() - {"vft_good"}
    host.run(f"echo '{GOOD.bdf} native' > {send}")
    journal.wait_for("vft-good-vfio-pci -> e1000e")
    assert host.look().changed(before) == set()


def test_a_wish_wakes_a_daemon_that_is_not_running_and_is_taken_up_once(host: Host) -> None:
    journal = host.journal()
    host.run("systemctl stop vfio-flavourd.service")
    host.run(synthetic("vfio"))
    journal.wait_for("e1000e -> vft-good-vfio-pci")
    assert host.look().devices[GOOD.bdf] == ON_VFIO
    host.switch(GOOD, "native")
    # The wish is still in udev's database when the daemon starts again.
    host.run("systemctl restart vfio-flavourd.service")
    assert host.read(GOOD) == "[native] vfio"
    assert len(journal.records(PCI_ADDRESS=GOOD.bdf, FLAVOUR="vfio")) == 1


def test_a_wish_that_nobody_was_there_for_outlasts_other_events_and_is_taken_up_once(host: Host) -> None:
    journal = host.journal()
    again = f"udevadm trigger --settle --action=bind {GOOD.sysfs}; udevadm trigger --settle {GOOD.sysfs}"
    host.run("systemctl stop vfio-flavourd.service; systemctl mask --runtime vfio-flavourd.service")
    try:
        host.run(f"{synthetic('vfio')}; udevadm settle; {again}")
    finally:
        host.run("systemctl unmask --runtime vfio-flavourd.service")
    host.run("systemctl start vfio-flavourd.service")
    journal.wait_for("e1000e -> vft-good-vfio-pci")
    host.switch(GOOD, "native")
    host.run(f"{again}; systemctl restart vfio-flavourd.service; {again}")
    assert host.read(GOOD) == "[native] vfio"
    assert len(journal.records(PCI_ADDRESS=GOOD.bdf, FLAVOUR="vfio")) == 1


# who may


def test_everyone_may_look(host: Host) -> None:
    assert host.ctl("show", GOOD.bdf, user=NOBODY).rc == 0
    assert host.ctl("list", user=NOBODY).rc == 0
    assert host.run(f"{NOBODY} cat /run/vfio-flavour/{GOOD.bdf}/driver_flavour").stdout == "[native] vfio\n"
    assert host.ctl("set", GOOD.bdf, "vfio", "--dry-run", user=NOBODY).rc == 0


def test_who_is_not_in_the_group_can_not_switch_by_any_door(host: Host) -> None:
    before = host.look()
    for name, text in (("driver_flavour", "vfio"), ("use_vfio", "1")):
        write = host.run(
            f"{NOBODY} bash -c '{write_command(GOOD, text, name).replace(chr(39), '')}'", check=False
        )
        assert "Permission denied" in write.stderr
    for arguments in (["set", GOOD.bdf, "vfio"], ["reset", GOOD.bdf]):
        assert host.ctl(*arguments, user=NOBODY).rc == 77
    event = host.run(f"{NOBODY} bash -c 'echo change > {GOOD.sysfs}/uevent'", check=False)
    assert "Permission denied" in event.stderr
    ask = f"""
import socket
for path in ("{CONTROL}", "{READ_ONLY}"):
    door = socket.socket(socket.AF_UNIX)
    try:
        door.connect(path)
        door.send(b'{{"method": "io.vfioflavour.Manager.SetFlavour", "parameters": {{"device": "{GOOD.bdf}", "flavour": "vfio"}}}}' + bytes(1))
        print(door.recv(4096).decode())
    except PermissionError as error:
        print(error.strerror)
"""  # noqa: E501 - one message
    said = host.run(f"{NOBODY} python3 -c {shlex.quote(ask)}").stdout
    assert "Permission denied" in said
    assert "io.vfioflavour.Manager.NotPermitted" in said
    now = host.look()
    assert (now.changed(before), now.vfio_modules) == (set(), set())


def test_a_member_of_the_group_may_switch_by_file_and_by_flavourctl(host: Host) -> None:
    there = host.run(f"{MEMBER} bash -c 'echo vfio > /run/vfio-flavour/{GOOD.bdf}/driver_flavour'")
    assert there.rc == 0
    assert host.look().devices[GOOD.bdf] == ON_VFIO
    assert host.ctl("set", GOOD.bdf, "native", user=MEMBER).rc == 0
    assert host.look().devices[GOOD.bdf] == Seen("e1000e")


def test_someone_who_follows_sees_the_others_switches(
    host: Host, tmp_path: Path, reference_client: str
) -> None:
    events = run_script(host, tmp_path, reference_client, FOLLOWER)
    assert {event["device"] for event in events} == {GOOD.bdf}
    steps = [event["step"]["what"] for event in events if event["step"]]
    assert "unbind from e1000e" in steps
    assert "bind to e1000e" in steps
    attempts = [event["attempt"] for event in events if event["attempt"]]
    assert [(each["flavour"], each["error"]) for each in attempts] == [("vfio", ""), ("native", "")]
    assert host.look().devices[GOOD.bdf] == Seen("e1000e")
