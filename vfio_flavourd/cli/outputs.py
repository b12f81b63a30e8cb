"""What `--json` prints, verb by verb. From these definitions the schema is made (schema.py), by which users
and the tests check the outputs: a verb that is added needs one here and its line in OUTPUTS, and no more.

Field names are promises. Not imported when a verb runs.
"""

from typing import NotRequired, TypedDict

from ..config.problems import Problem
from ..doors.interface import (
    AttemptInfo,
    DeviceInfo,
    GroupInfo,
    GroupMemberInfo,
    OutcomeInfo,
    StepInfo,
)
from ..model.readiness.finding import Finding
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
    """One device, and its IOMMU group."""

    device: DeviceInfo
    group: GroupInfo | None
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
    """`set --no-wait` and `reset --no-wait`: the device is being changed. What ends sooner, or changes
    nothing, is told as without it."""

    device: str
    taken_up: bool


class Event(TypedDict):
    """One line of `monitor`: a step that is over, or the end of an attempt."""

    device: str
    step: StepInfo | None
    attempt: AttemptInfo | None


class Attempts(TypedDict):
    """`plot`, and `history`: switches that are over, the last one last."""

    attempts: list[AttemptInfo]


class Groups(TypedDict):
    """The IOMMU groups; ungrouped are the devices that no IOMMU isolates."""

    groups: list[GroupInfo]
    ungrouped: list[GroupMemberInfo]


class Examined(TypedDict):
    """`doctor`: ready where nothing stands in the way."""

    ready: bool
    findings: list[Finding]


class Imported(TypedDict):
    """`import`: a policy that says the same, as policy.schema.json has it, with where each rule comes from.
    next says how to take it into use."""

    source: str
    policy: dict[str, object]
    remarks: list[str]
    next: list[str]


class Checked(TypedDict):
    """remarks say which rules are applied only after the native driver has the device, which devices are left
    to the host at boot, and where the host is not yet what the policy says; absent for an invalid policy."""

    files: list[str]
    problems: list[Problem]
    remarks: NotRequired[list[str]]


class Merged(TypedDict):
    """The policy that all files come to, as policy.schema.json has it but for its version, with where each
    part and each default comes from."""

    files: list[str]
    policy: dict[str, object]


class Reloaded(TypedDict):
    """The policy on disk is in force."""

    reloaded: bool


class Explained(TypedDict):
    """An error code: the errnos and exit statuses it comes with, why it happens, what to do."""

    code: str
    errnos: list[str]
    exit_statuses: list[int]
    summary: str
    causes: list[str]
    remedies: list[str]


class AllExplained(TypedDict):
    """`explain` with an exit status or an errno, or with nothing."""

    codes: list[Explained]


class ErrorTold(TypedDict):
    """code is what `explain` knows; errno is the number that a write to the device's file would fail with."""

    code: str
    errno: int
    message: str
    hint: str


class Failed(TypedDict):
    """Any verb that fails, but for a policy's problems: those have places (`check`, `cat-config`)."""

    error: ErrorTold


# By verb; one that prints different things has several.
OUTPUTS: dict[str, tuple[type, ...]] = {
    "list": (Listed,),
    "show": (Shown,),
    "resolve": (Resolved,),
    "set": (OutcomeInfo, DryRun, TakenUp),
    "reset": (OutcomeInfo, TakenUp),
    "history": (Attempts,),
    "monitor": (Event,),
    "plot": (Attempts,),
    "groups": (Groups,),
    "doctor": (Examined,),
    "import": (Imported,),
    "check": (Checked,),
    "cat-config": (Merged, Checked),
    "reload": (Reloaded,),
    "explain": (Explained, AllExplained),
}
FAILURE = Failed
