"""The compiled rules on disk: what they are made of, what they leave the host, when they are out of date."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from test_udev_rules import EVIL, FLAVOURS, NIC, make_rule
from udev_interpreter import FakeUdevDevice, apply, parse

from vfio_flavourd import early, journal
from vfio_flavourd.engine.early_rules import Occasion, Update, find_notes, update_rules
from vfio_flavourd.engine.policy import is_switched_off
from vfio_flavourd.kernel.early_rules import (
    RULES,
    find_rebuild_command,
    find_stale_initramfs,
    read_rules,
    read_sources,
    write_rules,
)
from vfio_flavourd.kernel.index import ModuleIndex
from vfio_flavourd.kernel.node_access import announce, write_node_files
from vfio_flavourd.kernel.sysfs import Sysfs
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.device import Device, Personality
from vfio_flavourd.model.errors import FlavourError
from vfio_flavourd.model.node_access import render_node_files
from vfio_flavourd.model.occupancy import Use, User
from vfio_flavourd.model.policy import InUse, Match, NodeAccess, Policy, Rule, Settings
from vfio_flavourd.model.udev_header import Kept, parse_header
from vfio_flavourd.model.udev_rules import GENERIC, PLACEHOLDER, Compiled

ROOT = Path(__file__).parents[2]
RELEASE = os.uname().release
SECOND = 1_000_000_000

FindUsers = Callable[[Device], tuple[User, ...]]


def unused(_: Device) -> tuple[User, ...]:
    return ()


def used_by(use: Use, what: str = "default route via eth0") -> FindUsers:
    return lambda device: (User(use, what),) if device.address == NIC else ()


class FakeHost:
    """A root directory with one NIC, a module index and policy files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nic = root / "sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0"
        self.nic.mkdir(parents=True)
        devices = root / "sys/bus/pci/devices"
        devices.mkdir(parents=True)
        (devices / "0000:01:00.0").symlink_to(self.nic)
        self.write(self.nic / "modalias", "pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00\n")
        self.write(self.nic / "revision", "0x00\n")
        self.policy = root / "etc/vfio-flavourd/policy.d"
        self.policy.mkdir(parents=True)
        self.index = root / "lib/modules" / RELEASE / "modules.alias"
        self.write(
            self.index,
            "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
            "alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\n"
            "alias pci:v00008086d000010D3sv*sd*bc*sc*i* igb\n",
        )

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")

    @property
    def rules(self) -> Path:
        return self.root / RULES

    def age(self, path: Path, seconds: int) -> None:
        stamp = path.stat().st_mtime_ns - seconds * SECOND
        os.utime(path, ns=(stamp, stamp))

    def update(
        self,
        *rules: Rule,
        find_users: FindUsers = unused,
        kept: tuple[Kept, ...] | None = None,
        occasion: Occasion = Occasion.ASKED,
        personalities: tuple[Personality, ...] = (),
    ) -> Update:
        return update_rules(
            self.root,
            Policy(rules=rules, flavours=FLAVOURS, personalities=personalities),
            read_sources(self.root, RELEASE),
            sysfs=Sysfs(str(self.root)),
            table=ModuleIndex(self.root, RELEASE).table(),
            find_users=find_users,
            host_name="virt1",
            kept=kept,
            occasion=occasion,
        )

    def renumber(self, address: str) -> None:
        """A card more is in the host, and the NIC's bus has another number."""
        moved = self.nic.with_name(address)
        self.nic.rename(moved)
        devices = self.root / "sys/bus/pci/devices"
        (devices / self.nic.name).unlink()
        (devices / address).symlink_to(moved)
        self.nic = moved

    def override(self) -> str | None:
        """What the rules on disk do with the NIC when it is found."""
        if not self.rules.exists():
            return None
        device = FakeUdevDevice(
            self.nic.name,
            f"/devices/pci0000:00/0000:00:1c.0/{self.nic.name}",
            {
                "vendor": "0x8086",
                "device": "0x10d3",
                "subsystem_vendor": "0x8086",
                "subsystem_device": "0xa01f",
                "class": "0x020000",
                "modalias": (self.nic / "modalias").read_text(encoding="ascii"),
                "driver_override": "(null)",
            },
            {"iommu_group"},
        )
        written = apply(parse(os.fsdecode(self.rules.read_bytes())), device).written
        return dict(written).get("driver_override")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    monkeypatch.setattr(journal, "open_log", lambda: None)
    return FakeHost(tmp_path)


def test_the_rules_are_written_once(host: FakeHost) -> None:
    assert host.update(make_rule()) == Update(changed=True, notes=())
    assert host.override() == GENERIC
    assert host.rules.stat().st_mode & 0o777 == 0o644
    before = host.rules.stat()
    assert host.update(make_rule()) == Update(changed=False, notes=())
    assert host.rules.stat().st_ino == before.st_ino
    assert [path.name for path in host.rules.parent.iterdir()] == [host.rules.name]


def test_a_policy_with_nothing_for_early_boot_makes_no_file(host: FakeHost) -> None:
    assert not host.update().changed
    assert not host.rules.exists()


def test_rules_that_have_nothing_to_do_any_more_stay_as_comments(host: FakeHost) -> None:
    host.update(make_rule())
    host.age(host.rules, 100)
    before = host.rules.stat().st_mtime_ns
    assert host.update().changed
    text = read_rules(host.root)
    assert text is not None
    assert all(line.startswith("#") for line in text.splitlines())
    assert host.rules.stat().st_mtime_ns > before


def test_the_time_stamp_is_that_of_the_last_change_in_effect(host: FakeHost) -> None:
    host.update(make_rule())
    host.age(host.rules, 100)
    before = host.rules.stat().st_mtime_ns
    host.write(host.policy / "10.yaml", "another comment\n")
    assert host.update(make_rule()).changed
    assert host.rules.stat().st_mtime_ns == before
    assert host.update(make_rule(Match(vendor=(0x8086,)))).changed
    assert host.rules.stat().st_mtime_ns > before


def test_a_directory_that_cannot_be_written_is_one_clear_error(host: FakeHost) -> None:
    host.write(host.rules.parent, "not a directory\n")
    with pytest.raises(FlavourError, match=r"policy\.rules' failed: Not a directory"):
        write_rules(host.root, Compiled("# x\n", (), acts=True))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_rules_that_can_not_be_written_leave_nothing_beside_them(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    host.update(make_rule())
    before = host.rules.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if call == "fsync" else Path, call, no_space)
    with pytest.raises(FlavourError, match="No space left"):
        host.update(make_rule(settings=Settings(in_use=InUse.FORCE)))
    assert [path.name for path in host.rules.parent.iterdir()] == [host.rules.name]
    assert host.rules.read_bytes() == before


def test_the_notes_are_told_without_looking_who_uses_what_and_nothing_is_written(host: FakeHost) -> None:
    rule = make_rule()
    notes = host.update(rule, find_users=used_by(Use.ROOT, "/ on vda1")).notes
    before = host.rules.stat()
    table = ModuleIndex(host.root, RELEASE).table()
    policy = Policy(rules=(rule,), flavours=FLAVOURS)
    found = find_notes(host.root, policy, sysfs=Sysfs(str(host.root)), table=table, host_name="virt1")
    assert found == notes != ()
    assert host.rules.stat() == before


@pytest.mark.parametrize("use", [Use.ROOT, Use.MOUNT, Use.SWAP, Use.HOLDER])
def test_what_the_host_needs_is_not_even_taken_by_force(host: FakeHost, use: Use) -> None:
    forced = make_rule(settings=Settings(in_use=InUse.FORCE))
    update = host.update(forced, find_users=used_by(use, "/ on vda1"))
    assert update.notes == ("rule 'x' would take 0000:01:00.0 from the host, which needs it: / on vda1",)
    assert host.override() is None


@pytest.mark.parametrize("use", [Use.ROUTE, Use.ADDRESS, Use.PORT, Use.NETWORK_STORAGE, Use.DISPLAY])
def test_what_the_running_host_would_be_refused_is_refused_at_boot(host: FakeHost, use: Use) -> None:
    assert host.update(make_rule(), find_users=used_by(use)).notes
    assert host.override() is None
    host.update(make_rule(settings=Settings(in_use=InUse.FORCE)), find_users=used_by(use))
    assert host.override() == GENERIC


@pytest.mark.parametrize("use", [Use.OPEN, Use.GUEST, Use.VFS])
def test_a_use_that_ends_with_the_boot_spares_nothing(host: FakeHost, use: Use) -> None:
    host.update(make_rule(), find_users=used_by(use))
    assert host.override() == GENERIC


def test_what_was_seen_in_use_is_spared_until_a_person_asks_anew(host: FakeHost) -> None:
    host.update(make_rule(), find_users=used_by(Use.ROUTE))
    host.update(make_rule(), occasion=Occasion.START)
    assert host.override() is None
    host.update(make_rule())
    assert host.override() == GENERIC


def test_what_vfio_has_by_now_is_not_spared_any_more(host: FakeHost) -> None:
    host.update(make_rule(), find_users=used_by(Use.ROUTE))
    (host.nic / "vfio-dev/vfio0").mkdir(parents=True)
    host.update(make_rule(), occasion=Occasion.START)
    assert host.override() == GENERIC


def test_another_device_at_the_address_is_not_spared(host: FakeHost) -> None:
    host.update(make_rule(), find_users=used_by(Use.ROOT))
    host.write(host.nic / "modalias", "pci:v000010DEd00002230sv000010DEsd00000001bc03sc00i00\n")
    host.update(make_rule(), occasion=Occasion.START)
    text = read_rules(host.root)
    assert text is not None
    assert parse_header(text).spared == ()


@pytest.mark.parametrize(("use", "in_use"), [(Use.ROOT, InUse.FORCE), (Use.ROUTE, InUse.REFUSE)])
def test_what_the_host_uses_is_spared_where_a_card_more_gives_its_bus_another_number(
    host: FakeHost, use: Use, in_use: InUse
) -> None:
    rule = make_rule(Match(device_class=("02",)), settings=Settings(in_use=in_use))
    host.update(rule, find_users=used_by(use))
    host.renumber("0000:02:00.0")
    assert host.override() is None, "as made before, in an initramfs too"
    host.update(rule, occasion=Occasion.START)
    assert host.override() is None, "as made anew before anything is in use"
    (spared,) = parse_header(read_rules(host.root) or "").spared
    assert (str(spared.address), spared.slot) == ("0000:02:00.0", "0000:00:1c.0/00.0")


def test_an_identical_device_in_another_slot_is_not_spared(host: FakeHost) -> None:
    host.update(make_rule(), find_users=used_by(Use.ROOT))
    other = host.root / "sys/devices/pci0000:00/0000:00:1d.0"
    other.mkdir()
    shutil.copytree(host.nic, other / "0000:03:00.0")
    (host.root / "sys/bus/pci/devices/0000:03:00.0").symlink_to(other / "0000:03:00.0")
    host.update(make_rule(), occasion=Occasion.START)
    (spared,) = parse_header(read_rules(host.root) or "").spared
    assert spared.address == NIC
    text = read_rules(host.root) or ""
    ids = {"vendor": "0x8086", "device": "0x10d3", "subsystem_vendor": "0x8086", "subsystem_device": "0xa01f"}
    device = FakeUdevDevice(
        "0000:03:00.0",
        "/devices/pci0000:00/0000:00:1d.0/0000:03:00.0",
        {**ids, "class": "0x020000", "modalias": "pci:v00008086d000010D3", "driver_override": "(null)"},
        {"iommu_group"},
    )
    assert dict(apply(parse(text), device).written)["driver_override"] == GENERIC


def test_a_spared_device_of_rules_without_slots_is_still_spared(host: FakeHost) -> None:
    host.update(make_rule(), find_users=used_by(Use.ROUTE, "default route via eth0"))
    text = host.rules.read_text(encoding="ascii")
    host.write(host.rules, text.replace("used 0000:00:1c.0/00.0 ", "used "))
    (spared,) = parse_header(host.rules.read_text(encoding="ascii")).spared
    assert (spared.slot, spared.why) == ("", "default route via eth0")
    host.update(make_rule(), occasion=Occasion.START)
    assert host.override() is None
    assert "0000:00:1c.0/00.0 default route" in host.rules.read_text(encoding="ascii")


def test_wishes_that_last_are_kept_where_nobody_can_tell_them_yet(host: FakeHost) -> None:
    wish = Kept(NIC, (0x8086, 0x10D3, 0x8086, 0xA01F), "native")
    host.update(make_rule(), kept=(wish,))
    assert host.override() is None
    host.update(make_rule(), occasion=Occasion.START)
    assert host.override() is None
    host.update(make_rule(), kept=())
    assert host.override() == GENERIC


def test_what_driverctl_has_is_left_alone_in_the_initramfs_too(host: FakeHost) -> None:
    host.write(host.root / "etc/driverctl.d/pci-0000:01:00.0", "igb\n")
    host.update(make_rule())
    assert host.override() is None


def test_variants_and_drivers_with_a_personality_come_from_the_index(host: FakeHost) -> None:
    host.update(make_rule(), personalities=(Personality("igb", "igb/vfio"),))
    assert host.override() is None
    host.write(host.nic / "modalias", "pci:v000015B3d0000101Esv000015B3sd00000001bc02sc00i00\n")
    assert host.override() == PLACEHOLDER


def is_out_of_date(host: FakeHost) -> bool:
    script = ROOT / "libexec/policy-changed"
    done = subprocess.run(["/bin/sh", script, host.root], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode in (0, 1)
    return done.returncode == 0


def test_the_shell_sees_every_change_that_matters(host: FakeHost) -> None:
    assert is_out_of_date(host)
    host.write(host.policy / "10 a.yaml", "version: 1\n")
    host.write(host.policy / "B.yaml", "version: 1\n")
    host.write(host.policy / ".hidden.yaml", "version: 1\n")
    (host.policy / "masked.yaml").symlink_to("/dev/null")
    host.write(host.root / "usr/lib/modprobe.d/x.conf", "blacklist x\n")
    host.update(make_rule())
    assert not is_out_of_date(host)

    changes: list[Callable[[], object]] = [
        lambda: host.age(host.policy / "B.yaml", 1),
        lambda: host.write(host.policy / "B.yaml", "version: 12\n"),
        (host.policy / "B.yaml").unlink,
        lambda: host.write(host.root / "run/vfio-flavourd/policy.d/c.yaml", "version: 1\n"),
        lambda: host.write(host.root / "etc/modprobe.d/y.conf", "blacklist y\n"),
        lambda: host.write(host.index, "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"),
        (host.policy / "masked.yaml").unlink,
    ]
    for change in changes:
        change()
        assert is_out_of_date(host)
        host.update(make_rule())
        assert not is_out_of_date(host)


@pytest.mark.parametrize(
    "name",
    [
        "größe Łódź.yaml".encode(),
        "\u0085\u2028 .yaml".encode(),
        b"back\\slash\\n.yaml",
        bytes(range(0x80, 0x100)) + b".yaml",
        b"a: b #'\"$(c).yaml",
    ],
    ids=str,
)
def test_a_file_may_have_any_name_that_is_one_line(host: FakeHost, name: bytes) -> None:
    path = host.policy / os.fsdecode(name)
    host.write(path, "version: 1\n")
    host.update(make_rule())
    assert parse_header(read_rules(host.root) or "").sources == read_sources(host.root, RELEASE)
    assert name in host.rules.read_bytes()
    assert not is_out_of_date(host)
    assert host.override() == GENERIC
    before = host.rules.stat().st_mtime_ns
    path.unlink()
    assert is_out_of_date(host)
    host.update(make_rule())
    assert host.rules.stat().st_mtime_ns == before  # no initramfs is older for a name


@pytest.mark.parametrize("name", ["line\nKERNEL=='x'.yaml", "\x1b[31m\r.yaml"], ids=repr)
def test_a_name_that_is_no_line_is_none_in_the_rules_either(host: FakeHost, name: str) -> None:
    host.write(host.policy / name, "version: 1\n")
    host.update(make_rule())
    assert host.override() == GENERIC
    (line,) = [line for line in host.rules.read_bytes().split(b"\n") if b"policy.d" in line]
    assert line.startswith(b"# source: /etc/vfio-flavourd/policy.d/")
    assert line.isascii()
    assert line.decode("ascii").isprintable()


def test_a_policy_for_some_hosts_is_out_of_date_on_another(host: FakeHost) -> None:
    host.update(make_rule(Match(host=("virt*",))))
    assert is_out_of_date(host)
    text = host.rules.read_text(encoding="ascii")
    host.write(host.rules, text.replace("# host: virt1\n", f"# host: {os.uname().nodename}\n"))
    assert not is_out_of_date(host)


def write_policy(host: FakeHost, flavour: str = "vfio") -> None:
    host.write(
        host.policy / "10.yaml",
        f'version: 1\nrules:\n  - name: NICs\n    match: {{ vendor: "8086" }}\n    flavour: {flavour}\n',
    )
    for directory in (host.policy, host.policy.parent, host.policy.parent.parent):
        directory.chmod(0o755)


OTHER = make_rule(Match(vendor=(0x10DE,)))


def boot(host: FakeHost) -> str | None:
    """What the NIC gets, before anybody could use it."""
    assert early.main(host.root, owner=os.getuid()) == 0
    return host.override()


def test_a_policy_that_was_edited_after_a_reload_holds_at_the_next_boot(host: FakeHost) -> None:
    host.update(OTHER)
    write_policy(host)
    assert boot(host) == GENERIC
    assert not is_out_of_date(host)


def test_a_first_policy_takes_nothing_before_a_daemon_has_had_it_in_force(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    """As in an image: next to nothing is in use yet, and nobody has ever looked."""
    host.update()
    write_policy(host)
    for _ in range(2):
        caplog.clear()
        assert boot(host) is None
        assert not host.rules.exists()
        assert "no daemon has had this policy in force yet" in caplog.text
    host.update(make_rule(), find_users=used_by(Use.ROUTE), occasion=Occasion.START)
    caplog.clear()
    assert boot(host) is None
    assert "no daemon" not in caplog.text
    host.update(make_rule())
    assert boot(host) == GENERIC


def test_rules_from_before_anything_was_in_use_say_nothing_of_what_is_free(host: FakeHost) -> None:
    """A daemon starts before the address is there, and the policy is edited without a reload."""
    host.update(OTHER)
    host.update(OTHER, occasion=Occasion.START)
    write_policy(host)
    assert boot(host) is None
    assert boot(host) is None, "no daemon was there in between"
    host.update(make_rule(), occasion=Occasion.START)
    assert boot(host) == GENERIC, "it has had its chance to refuse"


def test_what_is_used_after_a_reload_is_not_free_any_more(host: FakeHost) -> None:
    host.update(OTHER)
    host.update(OTHER, occasion=Occasion.WISH)
    text = host.rules.read_bytes()
    write_policy(host)
    assert boot(host) == GENERIC
    host.rules.write_bytes(text)
    host.update(OTHER, occasion=Occasion.WISH, find_users=used_by(Use.ADDRESS))
    assert boot(host) is None


def test_what_vfio_had_it_keeps_under_an_edited_policy(host: FakeHost) -> None:
    (host.nic / "vfio-dev/vfio0").mkdir(parents=True)
    host.update(make_rule(), occasion=Occasion.START)
    shutil.rmtree(host.nic / "vfio-dev")
    write_policy(host)
    assert boot(host) == GENERIC
    host.write(host.nic / "modalias", "pci:v00008086d00001533sv00008086sd0000A01Fbc02sc00i00\n")
    host.write(host.policy / "20.yaml", "version: 1\n")
    assert boot(host) is None, "it is another device"


def test_another_kernels_variants_make_no_policy_that_is_new(host: FakeHost) -> None:
    write_policy(host)
    host.update(make_rule(), occasion=Occasion.START)
    host.write(host.index, "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n")
    assert is_out_of_date(host)
    assert boot(host) == GENERIC
    assert not is_out_of_date(host)


def test_a_wish_that_lasts_holds_beside_a_new_policy(host: FakeHost) -> None:
    host.update(kept=(Kept(NIC, (0x8086, 0x10D3, 0x8086, 0xA01F), "vfio"),), occasion=Occasion.WISH)
    write_policy(host, flavour="native")
    assert boot(host) == GENERIC


def test_an_invalid_policy_leaves_the_rules_as_they_are(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    write_policy(host)
    assert early.main(host.root, owner=os.getuid()) == 0
    before = read_rules(host.root)
    write_policy(host, flavour="vfoi")
    assert early.main(host.root, owner=os.getuid()) == 78
    assert read_rules(host.root) == before
    assert any(
        "10.yaml:5" in record.getMessage() and "stay as they are" in record.getMessage()
        for record in caplog.records
        if record.levelname == "ERROR"
    )


def test_rules_that_cannot_be_written_are_told(host: FakeHost, caplog: pytest.LogCaptureFixture) -> None:
    write_policy(host)
    host.write(host.rules.parent, "not a directory\n")
    assert early.main(host.root, owner=os.getuid()) == 1
    assert "Not a directory" in caplog.text


@pytest.mark.parametrize(
    ("cmdline", "off"),
    [
        ("ro vfio_flavourd.policy=0", True),
        ("vfio-flavourd.policy=no quiet", True),
        ('vfio_flavourd.policy="off"', True),
        ("vfio_flavourd.policy='0'", True),
        ('"vfio_flavourd.policy=0"', True),
        ("vfio_flavourd.policy=1 vfio_flavourd.policy=0", True),
        ("vfio_flavourd.policy=0 vfio-flavourd.policy=1", False),
        ("vfio_flavourd.policy", False),
        ("rd.vfio_flavourd.policy=0", False),
        ('say="a vfio_flavourd.policy=0 b"', False),
        ("ro quiet", False),
    ],
)
def test_the_switch_on_the_kernel_command_line_is_read_as_udev_reads_it(
    tmp_path: Path, cmdline: str, off: bool
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text(f"{cmdline}\n", encoding="ascii")
    assert is_switched_off(tmp_path) is off


def test_an_older_initramfs_is_found_the_running_kernels_first(host: FakeHost) -> None:
    assert find_stale_initramfs(host.root, RELEASE) == ()
    for release in ("1.0", RELEASE, "gone"):
        host.write(host.root / f"boot/initrd.img-{release}", "")
        host.age(host.root / f"boot/initrd.img-{release}", 100)
    (host.root / "lib/modules/1.0").mkdir()
    host.write(host.root / "boot/vmlinuz-1.0", "")
    assert find_stale_initramfs(host.root, RELEASE) == ()
    host.update(make_rule())
    found = [(each.path.name, each.running) for each in find_stale_initramfs(host.root, RELEASE)]
    assert found == [(f"initrd.img-{RELEASE}", True), ("initrd.img-1.0", False)]
    host.age(host.root / f"boot/initrd.img-{RELEASE}", -200)
    assert [each.release for each in find_stale_initramfs(host.root, RELEASE)] == ["1.0"]


DRACUT = """
dracutsysrootdir=$1
inst_simple() { echo "file $1"; }
instmods() { echo "modules $*"; }
. "$2"
check || exit 0
depends
installkernel
install
"""


@pytest.mark.parametrize(
    ("rules", "carried"),
    [
        (None, []),
        ("# No rule gives a device a flavour.\n", []),
        ('ATTR{driver_override}="vfio-flavourd"\n', ["udev-rules", f"file /{RULES}"]),
        (
            'RUN{builtin}+="kmod load vfio_pci"\n',
            ["udev-rules", "modules vfio_pci vfio_iommu_type1", f"file /{RULES}"],
        ),
    ],
    ids=["no rules", "comments", "a placeholder", "vfio-pci"],
)
def test_dracut_is_given_the_rules_and_the_modules_that_they_load(
    host: FakeHost, rules: str | None, carried: list[str]
) -> None:
    if rules is not None:
        host.write(host.rules, rules)
    module = ROOT / "dracut/90vfio-flavourd/module-setup.sh"
    done = subprocess.run(
        ["bash", "-ec", DRACUT, "dracut", host.root, module], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == carried


@pytest.mark.parametrize(
    "path",
    [
        f"boot/initramfs-{RELEASE}.img",  # dracut: Fedora
        f"boot/initrd-{RELEASE}",  # dracut: openSUSE
        f"boot/8a7b0c6f/{RELEASE}/initrd",  # kernel-install, by the place of the EFI system partition
        f"boot/efi/8a7b0c6f/{RELEASE}/initrd.img-{RELEASE}",
        f"efi/fedora/{RELEASE}/initrd",
    ],
)
def test_an_older_initramfs_is_found_where_each_distribution_has_it(host: FakeHost, path: str) -> None:
    host.write(host.root / path, "")
    host.age(host.root / path, 100)
    host.write(host.root / "boot/efi/EFI/Linux/initrd-of-no-kernel", "")
    host.update(make_rule())
    (found,) = find_stale_initramfs(host.root, RELEASE)
    assert (found.path, found.release, found.running) == (host.root / path, RELEASE, True)
    host.age(host.root / path, -200)
    assert find_stale_initramfs(host.root, RELEASE) == ()


def test_the_command_is_that_of_the_tool_that_is_there(host: FakeHost) -> None:
    assert find_rebuild_command(host.root) is None
    host.write(host.root / "usr/bin/dracut", "")
    assert find_rebuild_command(host.root) == "dracut --force --regenerate-all"
    host.write(host.root / "usr/sbin/update-initramfs", "")
    assert find_rebuild_command(host.root) == "update-initramfs -u -k all"


KVM = NodeAccess("root", "kvm", 0o660)


def test_a_group_is_given_only_where_all_its_devices_are() -> None:
    other = parse_address("0000:02:00.0")
    files = render_node_files([(NIC, 7, KVM), (other, 7, KVM)])
    text = "VFIO_FLAVOUR_NODE=1\n.VFIO_FLAVOUR_OWNER=root\n.VFIO_FLAVOUR_GROUP=kvm\n.VFIO_FLAVOUR_MODE=0660\n"
    assert files.files == {"0000:01:00.0": text, "0000:02:00.0": text, "7": text}
    mixed = render_node_files([(NIC, 7, KVM), (other, 7, None)])
    assert set(mixed.files) == {"0000:01:00.0"}
    (note,) = mixed.notes
    assert note.startswith("IOMMU group 7: the policy's rules disagree")
    assert render_node_files([(NIC, 7, None)]).files == {}


def test_no_account_says_more_to_udev_than_its_name() -> None:
    (text,) = render_node_files([(NIC, None, NodeAccess(EVIL, "a$b", None))]).files.values()
    assert text == "VFIO_FLAVOUR_NODE=1\n"


def test_udev_is_told_of_nodes_that_are_there_already(host: FakeHost) -> None:
    uevents = [
        host.root / "sys/devices/virtual/vfio/7/uevent",
        host.nic / "vfio-dev/vfio0/uevent",
    ]
    for path in uevents:
        host.write(path, "")
    directory = host.root / "run/vfio-flavourd/nodes"
    names = write_node_files(directory, render_node_files([(NIC, 7, KVM)]).files)
    assert names == ("0000:01:00.0", "7")
    assert write_node_files(directory, render_node_files([(NIC, 7, KVM)]).files) == ()
    announce(Sysfs(str(host.root)), (*names, "8", "0000:09:00.0"))
    assert [path.read_text(encoding="ascii") for path in uevents] == ["change", "change"]
    assert write_node_files(directory, {}) == names
    assert list(directory.iterdir()) == []
