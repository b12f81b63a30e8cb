"""How often, and after what pause, the policy is tried again where it failed."""

import errno
from dataclasses import dataclass, field

from ..model.address import PciAddress
from ..model.errors import FlavourError

# Seconds until the first try again, then twice as many each time, up to the most.
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 300.0
# Enough to get there. In use for four days is a thousand refusals, and a float ends at 2**1024.
_DOUBLINGS = 8

# A switch that was begun and failed is tried again so often; one that was refused, as long as it is.
MOST_TRIES = 4


@dataclass(slots=True)
class Tries:
    """Of each device since the last success. How often it was refused does not count against a failure."""

    _refusals: dict[PciAddress, int] = field(default_factory=dict)
    _failures: dict[PciAddress, int] = field(default_factory=dict)

    def fail(self, address: PciAddress, error: FlavourError) -> float | None:
        """Seconds until it is to be tried again; None where it is given up."""
        counted = self._refusals if _is_refusal(error) else self._failures
        tries = counted[address] = counted.get(address, 0) + 1
        if self.is_given_up(address):
            return None
        return float(min(_FIRST_PAUSE * 2 ** min(tries - 1, _DOUBLINGS), _LONGEST_PAUSE))

    def is_given_up(self, address: PciAddress) -> bool:
        return self._failures.get(address, 0) >= MOST_TRIES

    def forget(self, address: PciAddress) -> None:
        """What failed before counts no more."""
        self._refusals.pop(address, None)
        self._failures.pop(address, None)

    def clear(self) -> None:
        self._refusals.clear()
        self._failures.clear()


def _is_refusal(error: FlavourError) -> bool:
    """Whether it was told to wait and nothing was touched, so that trying again costs nothing. A driver's
    probe may say EBUSY as well."""
    return not error.touched and error.errno in (errno.EBUSY, errno.EAGAIN)
