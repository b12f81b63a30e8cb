"""The host as the engine sees it: its kernel, its index, its records."""

from dataclasses import dataclass

from ..kernel.hands import Hands
from ..kernel.index import ModuleIndex
from ..kernel.modules import Modules
from ..kernel.sysfs import Sysfs
from ..model.aliases import Resolution
from .changes import Changes
from .ledger import Ledger


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds.

    `load` for one candidate's module, `bind` for the writes of one move, `group` for another switch
    in the same IOMMU group.
    """

    load: float = 10.0
    bind: float = 30.0
    group: float = 30.0


@dataclass(frozen=True, slots=True)
class Host:
    """What a switch works with."""

    sysfs: Sysfs
    hands: Hands
    modules: Modules
    index: ModuleIndex
    ledger: Ledger
    changes: Changes
    timeouts: Timeouts

    def resolve(self, modalias: str, named: tuple[str, ...] = ()) -> Resolution:
        """Which drivers would serve it. Raises FlavourError (EINVAL)."""
        return self.index.table().resolve(modalias, named=named, loaded=self.modules)
