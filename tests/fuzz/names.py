"""The targets. Each is a module beside this one with a function `one(data)`, which states what holds of any
data: what it raises is a finding."""

import importlib
from collections.abc import Callable
from pathlib import Path

TARGETS = (
    "alias_index",
    "ledger",
    "modalias",
    "modprobe",
    "modules_alias",
    "pattern",
    "policy",
    "uevent",
    "varlink",
)

HERE = Path(__file__).parent


def load(target: str) -> Callable[[bytes], None]:
    """Imports it only now: the fuzzer has what is imported then tell it which branches were taken."""
    one: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{target}").one
    return one


def corpus(target: str) -> list[Path]:
    return sorted((HERE / "corpus" / target).iterdir())
