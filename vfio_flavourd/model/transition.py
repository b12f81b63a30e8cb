"""The state table of a switch: every legal move stands here."""

from enum import StrEnum


class Phase(StrEnum):
    """How far a switch has got."""

    WAITING = "waiting"  # for its IOMMU group's turn; nothing is touched
    LOADING = "loading"  # a module; the device is untouched unless a candidate has refused before
    SWITCHING = "switching"  # the record is on disk; override, unbind, bind
    VERIFYING = "verifying"  # the driver link and vfio-dev/ are read back
    UNDOING = "undoing"  # all candidates refused: the device goes back to what it had
    STUCK = "stuck"  # a write has not returned in time; the device is out of reach
    DONE = "done"
    FAILED = "failed"


LAST = frozenset({Phase.DONE, Phase.FAILED})

MOVES: dict[Phase, frozenset[Phase]] = {
    # DONE at once when the device has the flavour already, FAILED when a guard refuses.
    Phase.WAITING: frozenset({Phase.LOADING, Phase.SWITCHING, *LAST}),
    # LOADING again for the next candidate; UNDOING when the last one can't be loaded and the device
    # has lost its driver to an earlier one; DONE when the named driver has the device already. Reading
    # what the device has may get stuck as well as a write.
    Phase.LOADING: frozenset({Phase.LOADING, Phase.SWITCHING, Phase.UNDOING, Phase.STUCK, *LAST}),
    # LOADING or SWITCHING again: the probe refused and the next candidate is tried.
    Phase.SWITCHING: frozenset(
        {Phase.LOADING, Phase.SWITCHING, Phase.VERIFYING, Phase.UNDOING, Phase.STUCK, Phase.FAILED}
    ),
    # LOADING or SWITCHING again: a driver took the device, but no VFIO device appeared.
    Phase.VERIFYING: frozenset({Phase.LOADING, Phase.SWITCHING, Phase.UNDOING, Phase.STUCK, *LAST}),
    Phase.UNDOING: frozenset({Phase.FAILED, Phase.STUCK}),
    # The one who asked has been told; the engine brings the device to an end when the kernel lets go.
    Phase.STUCK: frozenset(),
    # Another device of the same switch could not be had.
    Phase.DONE: frozenset({Phase.UNDOING}),
    Phase.FAILED: frozenset(),
}


def check_move(now: Phase, then: Phase) -> None:
    """Raises ValueError for a move that the table does not have: a bug, not an error."""
    if then not in MOVES[now]:
        raise ValueError(f"a switch can't go from {now} to {then}")
