"""The way in: files -> the policy, or everything that is wrong with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..model.policy import Policy
from .build import Merged, build_policy, merge
from .definitions import FILE
from .files import SIZE_LIMIT, TOTAL_LIMIT, PolicyFile, read_named_files, read_policy_files
from .kinds import Value
from .nodes import UnreadableError, decode, parse_nodes
from .problems import PolicyError, Problem, Report, TooManyErrorsError


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid set of files; `warnings` change nothing."""

    policy: Policy
    files: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()
    merged: Merged = field(default_factory=Merged)


def load_policy(root: str | Path = "/", *, owner: int = 0) -> Loaded:
    """The policy that is installed; an empty one where there are no files.

    Raises PolicyError when anything is wrong with any of them. `owner` is the user ID whose they must be.
    """
    report = Report()
    return _load(lambda: read_policy_files(Path(root), owner, report), report)


def load_files(paths: Sequence[Path]) -> Loaded:
    """These files alone, as one policy; it does not matter whose they are. Raises PolicyError."""
    report = Report()
    return _load(lambda: read_named_files(paths, SIZE_LIMIT, report), report)


def load_rendered(path: Path) -> Loaded:
    """What `render_yaml` wrote, which is as large as all files together. Raises PolicyError."""
    report = Report()
    return _load(lambda: read_named_files([path], 8 * TOTAL_LIMIT, report), report)


def _load(read_files: Callable[[], list[PolicyFile]], report: Report) -> Loaded:
    files: list[PolicyFile] = []
    merged, policy = Merged(), Policy()
    try:
        files = read_files()
        checked = [_check(file, report) for file in files]
        merged = merge([value for value in checked if value is not None], report)
        policy = build_policy(merged, report, complete=None not in checked)
    except TooManyErrorsError:
        pass  # has been reported
    paths = tuple(file.path for file in files)
    if report.has_errors:
        raise PolicyError(report.in_order(), paths)
    return Loaded(
        policy=policy,
        files=paths,
        warnings=report.in_order(),
        merged=merged,
    )


def _check(file: PolicyFile, report: Report) -> Value | None:
    report.add_source(file.path, file.data.decode("utf-8-sig", "replace"))
    try:
        return FILE.check(parse_nodes(decode(file.data, file.path), file.path), "the file", report)
    except UnreadableError as error:
        report.error(error.place, str(error), error.hint)
        return None
