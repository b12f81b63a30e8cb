"""What `--json` prints, verb by verb. From these definitions the schema is made (schema.py), by which users
and the tests check the outputs: a verb that is added needs one here and its line in OUTPUTS, and no more.

Field names are promises. Not imported when a verb runs.
"""

from typing import NotRequired, TypedDict

from ..config.problems import Problem
from ..doors.interface import (
    AttemptInfo,
    DeviceInfo,
    GroupMemberInfo,
    OutcomeInfo,
    StepInfo,
)
from ..model.resolution import Candidate


class Listed(TypedDict):
    """All devices. policy_trouble says why the policy on disk is not the one in force."""

    devices: list[DeviceInfo]
    policy_trouble: str


class Planned(TypedDict):
    """What `set` to that flavour would do, or why it would be refused."""

    flavour: str
    steps: list[str]
    refused: str


class Shown(TypedDict):
    """One device, and the others in its IOMMU group."""

    device: DeviceInfo
    group: list[GroupMemberInfo]
    plan: Planned
    policy_trouble: str


class Resolved(TypedDict):
    """Candidates, the best one first; winner is the module of the first that is accepted."""

    modalias: str
    candidates: list[Candidate]
    winner: str | None
    warnings: list[str]


class DryRun(TypedDict):
    """`set --dry-run`."""

    device: str
    flavour: str
    steps: list[str]


class TakenUp(TypedDict):
    """`set --no-wait` and `reset --no-wait`: the daemon is at it."""

    device: str
    taken_up: bool


class Event(TypedDict):
    """One line of `monitor`: a step that is over, or the end of an attempt."""

    device: str
    step: StepInfo | None
    attempt: AttemptInfo | None


class Remembered(TypedDict):
    """Attempts of this boot, the oldest first."""

    attempts: list[AttemptInfo]


class Checked(TypedDict):
    """remarks say where the host is not yet what the policy says; absent for an invalid policy."""

    files: list[str]
    problems: list[Problem]
    remarks: NotRequired[list[str]]


class Merged(TypedDict):
    """The policy that all files come to; its form is that of policy.schema.json, with the origins."""

    files: list[str]
    policy: dict[str, object]


class Reloaded(TypedDict):
    """The policy on disk is in force."""

    reloaded: bool


class ErrorTold(TypedDict):
    """errno is the number that a write to the device's file would fail with."""

    errno: int
    message: str
    hint: str


class Failed(TypedDict):
    """Any verb that fails."""

    error: ErrorTold


# By verb; one that prints different things has several.
OUTPUTS: dict[str, tuple[type, ...]] = {
    "list": (Listed,),
    "show": (Shown,),
    "resolve": (Resolved,),
    "set": (OutcomeInfo, DryRun, TakenUp),
    "reset": (OutcomeInfo, TakenUp),
    "history": (Remembered,),
    "monitor": (Event,),
    "check": (Checked,),
    "cat-config": (Merged, Checked),
    "reload": (Reloaded,),
}
FAILURE = Failed
