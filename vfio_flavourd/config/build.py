"""Checked files -> one Policy: what is true of the files only together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..model.device import ENABLE_VFIO, Personality
from ..model.policy import AUTO, VFIO, FlavourKind, Match, NodeAccess, Policy, Rule, Settings
from .kinds import Value
from .problems import Report, nearest, shown

_NATIVE = "native"


@dataclass(slots=True)
class Merged:
    """What the files say together, each thing with its place."""

    defaults: dict[str, Value] = field(default_factory=dict)
    flavours: dict[str, Value] = field(default_factory=dict)
    personalities: list[Value] = field(default_factory=list)
    metrics: Value | None = None
    rules: list[Value] = field(default_factory=list)


def merge(files: Sequence[Value], report: Report) -> Merged:
    """In their order: a later file's defaults replace an earlier one's key by key; the rest adds up."""
    merged = Merged()
    for file in files:
        given: dict[str, Value] = file.value
        for key in ("defaults", "flavours"):
            if key in given:
                _add(getattr(merged, key), given[key].value, report, once=key == "flavours")
        merged.personalities += given["personalities"].value if "personalities" in given else ()
        merged.metrics = given.get("metrics", merged.metrics)
        merged.rules += given["rules"].value if "rules" in given else ()
    return merged


def _add(into: dict[str, Value], values: dict[str, Value], report: Report, *, once: bool) -> None:
    for name, value in values.items():
        if once and name in into:
            report.error(value.place, f"the flavour {name!r} is already defined in {into[name].place}")
        else:
            into[name] = value


def build_policy(merged: Merged, report: Report, *, complete: bool = True) -> Policy:
    """Worth something only when nothing was reported as an error, here or before; what has errors already
    may lack keys, and is looked at as far as it goes. Not `complete`: there are files that can't be read.
    """
    defaults = _settings(Settings(), {name: value.plain for name, value in merged.defaults.items()})
    flavours = {VFIO.name: VFIO}
    told: dict[tuple[str, str], str] = {}
    for name, value in merged.flavours.items():
        _check_flavour(name, value, told, report)
        given = {"alias_prefix": "none", "fallback": "", **value.plain}
        prefix = given["alias_prefix"]
        flavours[name] = FlavourKind(name, None if prefix == "none" else prefix, given["fallback"])
    return Policy(
        defaults=defaults,
        rules=_build_rules(merged.rules, defaults, (_NATIVE, *flavours) if complete else (), report),
        flavours=flavours,
        personalities=(ENABLE_VFIO, *_build_personalities(merged.personalities, report)),
        metrics=_find_metrics(merged),
    )


def _check_flavour(name: str, value: Value, told: dict[tuple[str, str], str], report: Report) -> None:
    """A driver tells which flavour a device has, so no two can have one. `told` are the prefixes and drivers
    that the flavours before this one are told by."""
    if name in (_NATIVE, VFIO.name):
        report.error(value.place, f"the flavour {name!r} is built in and can't be redefined")
    for key, vfios in (("alias_prefix", VFIO.alias_prefix), ("fallback", VFIO.fallback)):
        given = value.value.get(key)
        if given is None or given.value == "none":
            continue
        text = given.value.replace("-", "_")
        first = VFIO.name if text == vfios else told.setdefault((key, text), name)
        if key == "alias_prefix" and text == "pci":
            report.error(given.place, "alias_prefix: 'pci' is what the native drivers' aliases begin with")
        elif first != name:
            report.error(
                given.place,
                f"{key}: {given.value!r} is for the flavour {first!r}",
                "a device's driver has to tell which flavour it has",
            )


def _find_metrics(merged: Merged) -> str | None:
    given = {} if merged.metrics is None else merged.metrics.plain
    return given.get("file")


def _build_personalities(values: Sequence[Value], report: Report) -> list[Personality]:
    built: dict[tuple[str, str], Value] = {}
    for value in values:
        if not {"driver", "attribute"} <= set(value.value):
            continue
        personality = Personality(**value.plain)
        if personality.on == personality.off:
            given = value.value.get("off") or value.value["on"]
            report.error(given.place, f"off: {shown(personality.off)} is what turns it on")
        key = (value.plain["driver"], value.plain["attribute"])
        if key in built:
            message = f"this personality of {key[0]!r} is already defined in {built[key].place}"
            report.error(value.place, message)
        built[key] = value
    return [Personality(**value.plain) for value in built.values()]


def _build_rules(
    values: Sequence[Value], defaults: Settings, flavours: Sequence[str], report: Report
) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    named: dict[str, Value] = {}
    shadows = _Shadows()
    for value in values:
        if not {"name", "match"} <= set(value.value):
            continue
        name: Value = value.value["name"]
        if name.value in named:
            first = named[name.value].place
            report.error(name.place, f"a rule {shown(name.value)} is already defined in {first}")
        named[name.value] = name
        rule = _build_rule(value, defaults)
        _check_rule(rule, value, flavours, report)
        earlier = None if report.has_errors else shadows.add(rule)
        if earlier is not None:
            message = (
                f"the rule {shown(rule.name)} never applies: {shown(earlier.name)} in {earlier.origin}"
                " matches everything it does, and the first match counts"
            )
            report.warn(value.value["match"].place, message, "put the narrower one first, or remove one")
        rules.append(rule)
    return tuple(rules)


def _build_rule(value: Value, defaults: Settings) -> Rule:
    given: dict[str, Any] = value.plain
    match = {"device_class" if key == "class" else key: each for key, each in given["match"].items()}
    drivers: tuple[str, ...] = given.get("driver", ())
    nodes: dict[str, Any] | None = given.get("nodes")
    return Rule(
        name=given["name"],
        match=Match(**match),
        flavour=given.get("flavour"),
        drivers=() if drivers == (AUTO,) else drivers,
        settings=_settings(defaults, given),
        nodes=NodeAccess(nodes.get("owner"), nodes.get("group"), nodes.get("mode")) if nodes else None,
        origin=str(value.place),
    )


def _settings(base: Settings, given: dict[str, Any]) -> Settings:
    names = ("load_timeout", "bind_timeout", "group", "in_use", "noiommu")
    changed = {name: given[name] for name in names if name in given}
    return replace(base, **changed, denied=base.denied | frozenset(given.get("deny", ())))


def _check_rule(rule: Rule, value: Value, flavours: Sequence[str], report: Report) -> None:
    given: dict[str, Value] = value.value
    if rule.flavour is not None and flavours and rule.flavour not in flavours:
        message = f"flavour: there is no {rule.flavour!r}, only {', '.join(flavours)}"
        report.error(given["flavour"].place, message, nearest(rule.flavour, flavours))
    if rule.flavour == _NATIVE and rule.drivers:
        report.error(
            given["driver"].place,
            "driver: none can be named for native",
            "leave it out: the device has the driver that it had before, or that the kernel chooses",
        )
    for driver in given["driver"].value if rule.drivers else ():
        if driver.value == AUTO:
            report.error(
                driver.place,
                "driver: 'auto' stands alone, not in a list",
                "leave it out: the flavour's generic driver is always tried last",
            )
        if driver.value.replace("-", "_") in rule.settings.denied:
            report.error(driver.place, f"driver: {driver.value!r} is denied, by this rule or the defaults")
    if rule.nodes is not None and rule.nodes.mode is not None and rule.nodes.mode & 0o002:
        place = given["nodes"].value["mode"].place
        report.warn(place, "mode: this lets every user of this host control the device")


class _Shadows:
    """Finds the rule that takes everything from a later one.

    Whatever covers a later rule has, for each of its own conditions, all of the later one's values. So each
    rule is kept under the values of one condition, the one that fewest share; and not all pairs are compared.
    """

    def __init__(self) -> None:
        self._by_value: dict[tuple[str, object], list[Rule]] = {}

    def add(self, rule: Rule) -> Rule | None:
        conditions = rule.match.conditions()
        candidates = [
            earlier
            for name, values in conditions.items()
            for earlier in self._by_value.get((name, next(iter(values))), ())
        ]
        found = next((earlier for earlier in candidates if earlier.match.covers(rule.match)), None)
        if found is None:  # else that one covers all that this one would
            name = min(conditions, key=lambda name: self._crowd(name, conditions[name]))
            for value in conditions[name]:
                self._by_value.setdefault((name, value), []).append(rule)
        return found

    def _crowd(self, name: str, values: frozenset[object]) -> int:
        return max(len(self._by_value.get((name, value), ())) for value in values)
