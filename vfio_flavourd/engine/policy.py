"""The policy that is in force: the last good set of files."""

import logging
from collections.abc import Mapping
from pathlib import Path

from ..config.load import Loaded, load_files, load_policy
from ..config.problems import PolicyError
from ..config.render import render_yaml
from ..model.address import PciAddress
from ..model.aliases import AliasTable
from ..model.flavour import Flavour
from ..model.policy import Policy

_log = logging.getLogger(__name__)

ModulesOfFlavours = Mapping[Flavour, frozenset[str]]


class PolicyInForce:
    """The last good set. `serials` are those that devices told (by address and inode): an NVMe drive tells
    none while VFIO has it. `trouble` says why a newer one is not in force, and is empty otherwise."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.trouble = ""
        self.files: tuple[str, ...] = ()
        self.policy = policy or Policy()
        self.serials: dict[tuple[PciAddress, int], tuple[str, ...]] = {}
        self._modules: tuple[AliasTable, ModulesOfFlavours] | None = None

    def read(self, root: Path, last_good: Path) -> None:
        """Take what is installed. Raises PolicyError; what was in force stays, and `trouble` says why."""
        try:
            loaded = load_policy(root)
        except PolicyError as error:
            self.trouble = str(error)
            raise
        for problem in loaded.warnings:
            _log.warning("%s", problem)
        self._replace(loaded)
        try:
            last_good.write_text(render_yaml(loaded.merged), encoding="utf-8")
        except OSError as error:
            _log.warning("the policy can't be kept for a start without a valid one (%s), ignoring", error)

    def read_last_good(self, last_good: Path) -> None:
        """At a start without a valid policy: the one that was in force before. Raises PolicyError."""
        trouble = self.trouble
        if last_good.exists():
            self._replace(load_files([last_good]))
        self.trouble = trouble

    def _replace(self, loaded: Loaded) -> None:
        self.policy = loaded.policy
        self.files = loaded.files
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
