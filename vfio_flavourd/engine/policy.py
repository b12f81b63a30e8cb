"""The policy that is in force: the last good set of files."""

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path

from ..config.files import DIRECTORIES
from ..config.problems import PolicyError
from ..model.address import PciAddress
from ..model.aliases import AliasTable
from ..model.device import Device
from ..model.flavour import Flavour
from ..model.message_ids import MessageId, log_fields
from ..model.modprobe_conf import split_parameters
from ..model.policy import Policy
from ..model.udev_rules import SWITCH
from .whole_file import write_whole_file

_log = logging.getLogger(__name__)

ModulesOfFlavours = Mapping[Flavour, frozenset[str]]


def is_switched_off(root: Path) -> bool:
    """For a host that its policy keeps from coming up; the rules for early boot look at the same.

    As udev reads it: without quotes, `-` in the name is `_`, and the last one counts (proc_cmdline_get_key()
    in systemd's proc-cmdline.c).
    """
    try:
        text = (root / "proc/cmdline").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    said = ""
    for word in split_parameters(text):
        key, equals, value = re.sub("[\"']", "", word).partition("=")
        if equals and key.replace("-", "_") == SWITCH:
            said = value
    return said in ("0", "no", "off")


def has_files(root: Path) -> bool:
    """Whether there is anything in the directories at all, be it what can't be read."""
    for directory in DIRECTORIES:
        try:
            if any((root / directory).iterdir()):
                return True
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False


class PolicyInForce:
    """The last good set. `serials` are those that devices told, each with the inode of the one that did: an
    NVMe drive tells none while VFIO has it. `read_at` (seconds since the epoch) is when it was read from its
    files. `trouble` says why a newer one is not in force, and is empty otherwise."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.trouble = ""
        self.read_at = time.time()
        self.policy = policy or Policy()
        self.serials: dict[PciAddress, tuple[int, tuple[str, ...]]] = {}
        self._modules: tuple[AliasTable, ModulesOfFlavours] | None = None

    def find_serials(self, device: Device) -> tuple[str, ...]:
        inode, serials = self.serials.get(device.address, (0, ()))
        return serials if inode == device.identity.inode else ()

    def read(self, root: Path, last_good: Path) -> None:
        """Take what is installed. Raises PolicyError; what was in force stays, and `trouble` says why."""
        if is_switched_off(root):
            self.trouble = f"{SWITCH}=0 on the kernel command line switches it off"
            return
        if not has_files(root):
            self._replace(Policy())
            try:
                last_good.unlink(missing_ok=True)
            except OSError as error:
                # A directory on a read-only file system says so also where there is no such file.
                if last_good.exists():
                    _log.warning("the policy that was in force can't be forgotten (%s), ignoring", error)
            return
        # A host without a policy does without the YAML library: 70 ms and 5 MiB.
        from ..config.load import load_policy
        from ..config.render import render_yaml

        try:
            loaded = load_policy(root)
        except PolicyError as error:
            self.trouble = str(error)
            raise
        for problem in loaded.warnings:
            _log.warning("%s", problem)
        self._replace(loaded.policy)
        rules, files = len(loaded.policy.rules), len(loaded.files)
        _log.info(
            "the policy is in force: %d rule%s in %d file%s",
            rules,
            "s" * (rules != 1),
            files,
            "s" * (files != 1),
            extra=log_fields(MessageId.POLICY_IN_FORCE),
        )
        try:
            write_whole_file(last_good, render_yaml(loaded.merged))
        except OSError as error:
            _log.warning(
                "the policy can't be saved as the last good one (%s), ignoring",
                error.strerror,
                extra=log_fields(MessageId.NOT_KEPT),
            )

    def read_last_good(self, last_good: Path) -> None:
        """At a start without a valid policy: the one that was in force before. Raises PolicyError."""
        trouble = self.trouble
        if last_good.exists():
            from ..config.load import load_rendered

            self._replace(load_rendered(last_good).policy)
            self.read_at = last_good.stat().st_mtime
        self.trouble = trouble

    def _replace(self, policy: Policy) -> None:
        self.policy = policy
        self.read_at = time.time()
        self.trouble = ""
        self._modules = None

    @property
    def flavours(self) -> tuple[Flavour, ...]:
        """All that there are, `native` first."""
        return (Flavour.NATIVE, *map(Flavour, self.policy.flavours))

    def find_modules(self, table: AliasTable) -> ModulesOfFlavours:
        """Which modules bring the drivers of each flavour but `native`."""
        if self._modules is None or self._modules[0] is not table:
            found = {
                Flavour(kind.name): table.flavoured_modules(kind.alias_prefix, kind.fallback)
                if kind.alias_prefix is not None
                else frozenset({kind.fallback.replace("-", "_")})
                for kind in self.policy.flavours.values()
            }
            self._modules = (table, found)
        return self._modules[1]
