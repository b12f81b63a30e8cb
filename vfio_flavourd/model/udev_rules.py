"""The policy as udev rules, which have a device's `driver_override` set before its native driver can bind.

They go before 80-drivers.rules, where udev loads modules by a new device's alias, and start no program:
udev would kill a slow one, and lets other events wait for it. Only what has no driver and no override is
touched, so that `udevadm trigger -c add` changes nothing on a running host. Where what a rule looks for
can't be told yet the device is left alone, and the daemon decides later.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .address import PciAddress
from .modprobe_conf import AliasLine
from .policy import VFIO, Facts, InUse, Match, NoIommu, OthersInGroup, Policy, Rule, decide
from .udev_header import Free, Header, Ids, Kept, comment, find_ids, render_header
from .udev_match import any_of, find_places, hex_id, translate, widened

RULES_NAME = "79-vfio-flavourd-policy.rules"

# No driver has this name. It keeps every driver away from a device until the daemon knows which one it
# shall have: a module's driver may be called otherwise, which shows only once it is loaded.
PLACEHOLDER = "vfio-flavourd"
GENERIC = "vfio-pci"

# The property, kept through later events, that tells what these rules have written to `driver_override`.
PROPERTY = "VFIO_FLAVOUR_OVERRIDE"

# Off with `=0` on the kernel's command line, for a host that doesn't come up.
SWITCH = "vfio_flavourd.policy"

_GENERIC_NAMES = frozenset({"vfio-pci", "vfio_pci"})
_IN_USE = "ENV{.VFIO_FLAVOUR_IN_USE}"

# A line can have several KiB, and udev compares them one by one for each device. All rules together may also
# have a line each.
_LINES_OF_A_RULE = 1000
_LINES = 5000

# A dot before a property's name keeps it out of udev's database.
_BEGIN = f"""
SUBSYSTEM!="pci", GOTO="vfio_flavour_end"
ACTION!="remove", IMPORT{{db}}="{PROPERTY}"
ACTION!="add", GOTO="vfio_flavour_end"
TEST=="driver", GOTO="vfio_flavour_end"
IMPORT{{cmdline}}="{SWITCH}"
ENV{{{SWITCH}}}=="0|no|off", GOTO="vfio_flavour_end"
# VFIO refuses bridges.
ATTR{{class}}=="0x06*", GOTO="vfio_flavour_end"
# driverctl has a driver of its own choice for it.
TEST=="/etc/driverctl.d/pci-$kernel", GOTO="vfio_flavour_end"
# The firmware's console is on it.
ATTR{{boot_vga}}=="1", {_IN_USE}="1"
"""

# An override is read last: that waits for whoever is binding or unbinding the device. Older kernels read
# "(null)" where there is none.
_PLACEHOLDER_BLOCK = f"""
LABEL="vfio_flavour_placeholder"
ATTR{{driver_override}}=="(null)|", ATTR{{driver_override}}="{PLACEHOLDER}", OPTIONS+="db_persist", \
ENV{{{PROPERTY}}}="{PLACEHOLDER}"
GOTO="vfio_flavour_end"
"""

# A driver that comes by RUN finds all devices that have the override by then; one that is there already
# has to be told.
_GENERIC_BLOCK = f"""
LABEL="vfio_flavour_generic"
ATTR{{driver_override}}!="(null)|", GOTO="vfio_flavour_end"
ATTR{{driver_override}}="{GENERIC}", ENV{{{PROPERTY}}}="{GENERIC}", OPTIONS+="db_persist", \
RUN{{builtin}}+="kmod load vfio_pci"
TEST=="/sys/bus/pci/drivers/{GENERIC}", ATTR{{[subsystem/pci]drivers_probe}}="$kernel"
"""

_ONLY_FREE = (
    "no daemon has had this policy in force yet: before their native drivers it gets only devices that VFIO "
    "had or that a reload saw unused since the last boot; the daemon decides on the others"
)

_END = '\nLABEL="vfio_flavour_end"'


@dataclass(frozen=True, slots=True)
class Compiled:
    """`text` is the rules file; it is all comments where the policy has nothing for it, which `acts` tells.
    `notes` say what the daemon has to do later, and what the rules leave alone."""

    text: str
    notes: tuple[str, ...]
    acts: bool


def compile_rules(
    policy: Policy,
    header: Header,
    *,
    host_name: str,
    variants: Iterable[AliasLine] = (),
    personal: Iterable[AliasLine] = (),
    claimed: Iterable[PciAddress] = (),
    present: Iterable[Facts] = (),
) -> Compiled:
    """First match wins, as in `decide()`.

    `variants` are the flavoured aliases of all modules but the generic driver's own; `personal` the plain
    aliases of drivers that become VFIO drivers themselves, which the native driver must bind for;
    `claimed` are devices that driverctl has an override for. `present` are devices that are there now, for
    the notes.
    """
    compiler = _Compiler(policy, tuple(variants), tuple(personal), host_name)
    rules = [_as_rule(kept, policy) for kept in header.kept]
    first = len(rules) + 1
    if header.free or not header.only_free:
        rules += policy.rules
    body = [*_spared_lines(header, claimed)]
    for number, rule in enumerate(rules, 1):
        if number == first and header.only_free:
            body += _only_free_lines(header.free)
        body += ["", comment(f"{_shown(rule)} ({rule.origin}): {rule.flavour or 'says no flavour'}")]
        body += compiler.render(number, rule)
        if compiler.finished:
            break
    if any(rule.match.host for rule in policy.rules):
        header = replace(header, host=host_name)
    if header.only_free and any(rule.flavour in policy.flavours for rule in policy.rules):
        compiler.notes.append(_ONLY_FREE)
    notes = (*compiler.notes, *_notes_on_spared(policy, header, tuple(present)))
    lines = render_header(header)
    if not compiler.used:
        lines.append("# No rule gives a device a flavour before its native driver would have it.")
        return Compiled("\n".join(lines) + "\n", notes, acts=False)
    lines += [*_BEGIN.splitlines(), *body]
    if not compiler.finished:
        lines += ["", 'GOTO="vfio_flavour_end"']
    if "vfio_flavour_placeholder" in compiler.used:
        lines += _PLACEHOLDER_BLOCK.splitlines()
    if "vfio_flavour_generic" in compiler.used:
        lines += _GENERIC_BLOCK.splitlines()
    lines += _END.splitlines()
    return Compiled("\n".join(lines) + "\n", notes, acts=True)


class _Compiler:
    """Renders rule after rule; `finished` once one of them takes all that comes to it."""

    def __init__(
        self, policy: Policy, variants: tuple[AliasLine, ...], personal: tuple[AliasLine, ...], host_name: str
    ) -> None:
        self._policy = policy
        self._variants = variants
        self._personal = personal
        self._host_name = host_name
        self.notes: list[str] = []
        self.used: set[str] = set()
        self.finished = False
        self._lines_left = _LINES

    def render(self, number: int, rule: Rule) -> list[str]:
        most = max(1, min(_LINES_OF_A_RULE, self._lines_left))
        translated = translate(rule.match, self._host_name, most)
        if translated is None:
            return ["# It is not for this host."]
        self._lines_left -= translated.count_lines()
        if translated.unknown:
            self._note(rule, f"it names {translated.unknown[0]}: the daemon applies it afterwards")
        elif (why := self._why_not(rule)) is not None:
            if why:
                self._note(rule, why)
        else:
            block = list(self._block(rule))
            lines = [_line(keys, "vfio_flavour_end") for keys in translated.doubtful_lines()]
            if translated.doubtful:
                self._note(rule, "the daemon applies it to VFs in its slot, whose bus udev can't compare")
            if translated.conditions:
                name = f"vfio_flavour_rule_{number}"
                lines += [_line(keys, name) for keys in translated.lines()]
                return [*lines, f'GOTO="{name}_not"', f'LABEL="{name}"', *block, f'LABEL="{name}_not"']
            self.finished = True
            return [*lines, *block]
        self.finished = not translated.conditions
        return [_line(keys, "vfio_flavour_end") for keys in translated.lines()]

    def _why_not(self, rule: Rule) -> str | None:
        """Why devices are left alone, empty where that goes without saying; None where they are not."""
        kind = self._policy.flavours.get(rule.flavour or "")
        if kind is None:
            return ""
        if any(each.driver in rule.drivers for each in self._policy.personalities if each.driver):
            return f"{rule.drivers[0]} becomes a VFIO driver itself, so it has to bind first"
        if kind == VFIO and self._takes_generic(rule) and "vfio_pci" in rule.settings.denied:
            return "vfio_pci is denied: the daemon looks for another driver"
        return None

    def _takes_generic(self, rule: Rule) -> bool:
        return not rule.drivers or rule.drivers[0] in _GENERIC_NAMES

    def _block(self, rule: Rule) -> Iterator[str]:
        """What is done with a device that the rule is for; ends in a GOTO."""
        if rule.settings.in_use is InUse.REFUSE:
            yield f'{_IN_USE}=="1", GOTO="vfio_flavour_end"'
        if self._policy.flavours[rule.flavour or ""] != VFIO:
            yield self._goto("vfio_flavour_placeholder")
            return
        if rule.settings.noiommu is NoIommu.REFUSE:
            yield 'TEST!="iommu_group", GOTO="vfio_flavour_end"'
        if not rule.drivers:
            own = any_of("ATTR{modalias}", _widened(self._personal, "pci", rule.match))
            yield from (f'{key}, GOTO="vfio_flavour_end"' for key in own)
            allowed = [alias for alias in self._variants if alias.module not in rule.settings.denied]
            prefix = VFIO.alias_prefix or ""
            for key in any_of("ATTR{modalias}", _widened(allowed, prefix, rule.match)):
                yield f"{key}, {self._goto('vfio_flavour_placeholder')}"
        # The daemon switches a group as a whole, and is done with a device that udev has had bound.
        waits = rule.settings.group is OthersInGroup.TOGETHER or not self._takes_generic(rule)
        yield self._goto("vfio_flavour_placeholder" if waits else "vfio_flavour_generic")

    def _goto(self, label: str) -> str:
        self.used.add(label)
        return f'GOTO="{label}"'

    def _note(self, rule: Rule, text: str) -> None:
        self.notes.append(f"{_shown(rule)}: {text}")


def _line(keys: tuple[str, ...], label: str) -> str:
    return ", ".join((*keys, f'GOTO="{label}"'))


def _shown(rule: Rule) -> str:
    return f"rule {rule.name!r}"


def _widened(aliases: Iterable[AliasLine], prefix: str, match: Match) -> Iterator[str]:
    """Those of the vendors that the rule is for."""
    vendors = tuple(f"pci:v{vendor:08X}" for vendor in match.vendor)
    for alias in aliases:
        glob = widened(alias.pattern, prefix)
        wild = any(mark in glob[: len("pci:v00000000")] for mark in "*?[")
        if wild or not vendors or glob.startswith(vendors):
            yield glob


def _spared_lines(header: Header, claimed: Iterable[PciAddress]) -> Iterator[str]:
    claims = any_of("KERNEL", map(str, claimed))
    yield from (f'{key}, GOTO="vfio_flavour_end"' for key in claims)
    for each in sorted(header.spared, key=lambda spared: not spared.needed):
        yield comment(each.why)
        then = 'GOTO="vfio_flavour_end"' if each.needed else f'{_IN_USE}="1"'
        # On a root bus its address is its slot.
        places = find_places(each.slot) if "/" in each.slot else ()
        for key in (f'KERNEL=="{each.address}"', *any_of("DEVPATH", places)):
            yield ", ".join((key, *_id_keys(each.ids), then))


def _only_free_lines(free: Iterable[Free]) -> Iterator[str]:
    yield from ("", "# The policy is new: what was not seen to be free is left to the daemon.")
    for each in free:
        yield _line((f'KERNEL=="{each.address}"', *_id_keys(each.ids)), "vfio_flavour_free")
    yield from ('GOTO="vfio_flavour_end"', 'LABEL="vfio_flavour_free"')


def _id_keys(ids: Ids) -> tuple[str, ...]:
    names = ("vendor", "device", "subsystem_vendor", "subsystem_device")
    return tuple(f'ATTR{{{name}}}=="{hex_id(number)}"' for name, number in zip(names, ids, strict=True))


def _as_rule(kept: Kept, policy: Policy) -> Rule:
    """A wish by hand as a rule for the one device, with the policy's defaults."""
    vendor, device, subsystem_vendor, subsystem_device = kept.ids
    match = Match(
        address=(kept.address,),
        vendor=(vendor,),
        device=(device,),
        subsystem_vendor=(subsystem_vendor,),
        subsystem_device=(subsystem_device,),
    )
    name = f"{kept.address} by hand"
    return Rule(name, match, kept.flavour, kept.drivers, policy.defaults, None, "set --persist")


def _notes_on_spared(policy: Policy, header: Header, present: tuple[Facts, ...]) -> Iterator[str]:
    by_address = {facts.device.address: facts for facts in present}
    for each in header.spared:
        facts = by_address.get(each.address)
        decision = decide(facts, policy) if facts and find_ids(facts.device.identity) == each.ids else None
        if decision is None or decision.rule is None or decision.flavour not in policy.flavours:
            continue
        would = f"{_shown(decision.rule)} would take {each.address} from the host"
        if each.needed:
            yield f"{would}, which needs it: {each.why}"
        elif decision.settings.in_use is InUse.REFUSE:
            yield f"{would}, which uses it: {each.why}; `in_use: force` would take it"
