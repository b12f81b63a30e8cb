"""vfio-pci's `ids=` as a policy: of modprobe.d, and of the kernel command line."""

from .draft import Draft, DraftRule
from .flavour import Flavour
from .modprobe_conf import ModprobeConf, split_parameters
from .vfio_ids import VFIO_PCI, VfioId, VfioIds, find_vfio_ids

_CLASS_MASKS = {0xFF0000: 2, 0xFFFF00: 4, 0xFFFFFF: 6}
_DIGITS = "0123456789ABCDEF"


def draft_from_modprobe(conf: ModprobeConf) -> Draft:
    ids = find_vfio_ids(conf)
    rules: list[DraftRule] = []
    taken: list[VfioId] = []
    remarks = [
        f"{ids.origin}: {entry!r} is not an ID (vendor:device), and the kernel skips it"
        for entry in ids.malformed
    ]
    remarks += [
        f"{place}: its ids= has no effect: {ids.origin} sets it again later" for place in ids.replaced
    ]
    for each in ids.ids:
        name = f"vfio-pci {tell(each)}"
        if not each.can_fit:
            remarks.append(f"{ids.origin}: no device can have {tell(each)}")
        elif earlier := next((one for one in taken if one.covers(each)), None):
            remarks.append(f"{ids.origin}: {tell(each)} is part of {tell(earlier)}")
        else:
            taken.append(each)
            rules.append(DraftRule(name, match_of(each), Flavour.VFIO, "vfio-pci", ids.origin))
    remarks += _tell_other_lines(conf)
    return Draft("modprobe", tuple(rules), (), tuple(remarks), _undo(ids))


def match_of(each: VfioId) -> tuple[tuple[str, str], ...]:
    """What a policy's match has for it. Where its keys can't say that, a glob for the modalias does."""
    mask = each.class_mask & 0xFFFFFF
    needs_glob = (
        (each.vendor is None and each.device is not None)
        or (each.subvendor is None and each.subdevice is not None)
        or (mask != 0 and mask not in _CLASS_MASKS)
    )
    keys: list[tuple[str, str]] = []
    if not needs_glob:
        numbers = (each.vendor, each.device, each.subvendor, each.subdevice)
        names = ("vendor", "device", "subsystem_vendor", "subsystem_device")
        keys = [
            (name, f"0x{number:04x}")
            for name, number in zip(names, numbers, strict=True)
            if number is not None
        ]
        if mask:
            keys.append(("class", f"0x{each.device_class & 0xFFFFFF:06x}"[: 2 + _CLASS_MASKS[mask]]))
        needs_glob = not keys
    return (("modalias", _glob(each)),) if needs_glob else tuple(keys)


def tell(each: VfioId) -> str:
    """In the form of `ids=`, as short as it goes."""
    numbers = [each.vendor, each.device, each.subvendor, each.subdevice]
    texts = ["any" if number is None else f"{number:04x}" for number in numbers]
    if each.class_mask:
        texts += [f"{each.device_class:06x}", f"{each.class_mask:06x}"]
    elif texts[2:] == ["any", "any"]:
        texts = texts[:2]
    return ":".join(texts)


def _glob(each: VfioId) -> str:
    ids = (each.vendor, each.device, each.subvendor, each.subdevice)
    if not any(number is not None for number in ids) and not each.class_mask:
        return "*"
    vendor, device, subvendor, subdevice = ("?" * 8 if number is None else f"{number:08X}" for number in ids)
    digits = [
        _digit(each.device_class >> shift & 0xF, each.class_mask >> shift & 0xF)
        for shift in range(20, -1, -4)
    ]
    base, sub, interface = ("".join(digits[at : at + 2]) for at in (0, 2, 4))
    return f"pci:v{vendor}d{device}sv{subvendor}sd{subdevice}bc{base}sc{sub}i{interface}"


def _digit(value: int, mask: int) -> str:
    fitting = [digit for number, digit in enumerate(_DIGITS) if not (number ^ value) & mask]
    if len(fitting) == len(_DIGITS):
        return "?"
    return fitting[0] if len(fitting) == 1 else f"[{''.join(fitting)}]"


def _tell_other_lines(conf: ModprobeConf) -> list[str]:
    remarks = []
    for line in conf.options:
        others = [word for word in split_parameters(line.parameters) if not word.startswith("ids=")]
        if line.module == VFIO_PCI and others:
            remarks.append(f"{line.origin}: {' '.join(others)} is to be kept: a policy has nothing like it")
    remarks += [
        f"{line.origin}: softdep {line.module} {line.rest} is not needed with a policy"
        for line in conf.softdeps
        if "vfio" in line.rest
    ]
    remarks += [
        f"{line.origin}: install {line.modules} {line.command} is not taken over"
        for line in conf.installs
        if "vfio" in f"{line.modules} {line.command}"
    ]
    return remarks


def _undo(ids: VfioIds) -> tuple[str, ...]:
    """Those that don't count would, if only the last one were gone."""
    return tuple(f"remove ids= from {origin}" for origin in (ids.origin, *ids.replaced) if origin)
