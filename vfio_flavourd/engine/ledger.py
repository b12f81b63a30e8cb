"""What each device had before it was switched, on disk before the first write to sysfs.

One JSON file a device in the state directory of this boot: bindings don't outlive a boot, so neither
do the records. A file is written aside, synced, renamed, and its directory synced.
"""

import errno
import json
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..kernel.processes import Worker
from ..model.address import PciAddress, parse_address
from ..model.device import Binding, Device, Identity, Personality
from ..model.errors import FlavourError
from ..model.flavour import Flavour
from ..model.message_ids import MessageId, log_fields
from ..model.policy import OthersInGroup

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_.+ -]{1,64}", re.ASCII)
_FLAVOUR = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request by hand leaves behind where it comes true: a wish with these drivers and with that word
    on the others of the IOMMU group, or, for one that `drops` it, none."""

    drops: bool
    persist: bool
    drivers: tuple[str, ...]
    others: OthersInGroup | None


@dataclass(frozen=True, slots=True)
class Record:
    """`origin` is what the device had before the first switch, and `origin_flavour` which one that was.

    `before` is what it had when the running or last switch began, as far as that was known, `written`
    the overrides that this switch may have written since, and `binding` what it set out for.
    `personality` tells how the driver was asked, or is None. `worker` is the process that makes the writes
    while `switching`. `together` are all the devices of a switch that is for all of them or none, as long
    as it is not known to have come to its end for each. `asked` is for whoever brings to its end a switch
    that nobody waits for any more; None for one of the policy's own.
    """

    address: PciAddress
    identity: Identity
    origin: Binding
    origin_flavour: Flavour
    origin_module: str | None
    flavour: Flavour
    before: Binding
    written: tuple[str | None, ...]
    binding: Binding
    personality: Personality | None
    switching: bool
    worker: Worker | None
    together: tuple[PciAddress, ...] = ()
    asked: Asked | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is not at its end."""
        return self.switching or bool(self.together)


class Ledger:
    """The records of all devices, kept in memory and on disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = -1
        self._records: dict[PciAddress, Record] = {}

    def load(self) -> dict[PciAddress | None, str]:
        """Read what is on disk; returns what is wrong with each record that can't be read and is set aside,
        by the address in its file's name."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Of a daemon that was killed while it wrote: what they were for has not begun.
        for unfinished in self._directory.glob("*.new"):
            with suppress(OSError):  # the next record of that device goes over it
                unfinished.unlink()
        complaints: dict[PciAddress | None, str] = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                record = _parse(json.loads(path.read_bytes()))
                if path.stem != str(record.address):
                    raise ValueError(f"it is of {record.address}")
            except (OSError, ValueError, KeyError, TypeError, RecursionError, FlavourError) as error:
                said = f"record {str(path)!r} can't be read and is set aside: {error!r}"
                complaints[_find_address(path.stem)] = said
                with suppress(OSError):  # where it can't be, the next start says so again
                    path.replace(path.with_suffix(".corrupt"))
            else:
                self._records[record.address] = record
        return complaints

    def find(self, address: PciAddress) -> Record | None:
        return self._records.get(address)

    def all(self) -> tuple[Record, ...]:
        return tuple(self._records.values())

    def write(self, record: Record) -> None:
        """Raises OSError when it can't be made to last; the device must not be touched then."""
        path = f"{self._directory}/{record.address}"
        data = json.dumps(_render(record)).encode("ascii")
        descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
            os.replace(f"{path}.new", f"{path}.json")
        except OSError:
            with suppress(OSError):  # the next start does it
                os.unlink(f"{path}.new")
            raise
        finally:
            os.close(descriptor)
        os.fsync(self._descriptor)
        self._records[record.address] = record

    def settle(self, record: Record) -> None:
        """The switch has ended. Where that can't be put on disk, the next start looks at the device again."""
        try:
            self.write(replace(record, switching=False, worker=None))
        except OSError as error:
            self._records[record.address] = replace(record, switching=False, worker=None)
            _warn(record.address, error)

    def take_back(self, address: PciAddress, kept: Record | None) -> None:
        """What was written down as there before has turned out not to be: as it was, with `kept`."""
        if kept is None:
            self.forget(address)
        else:
            self.settle(kept)

    def conclude(self, record: Record) -> None:
        """Keep what `reset` needs, and nothing when that is what the device has."""
        if record.binding == record.origin and record.flavour == record.origin_flavour:
            self.forget(record.address)
        else:
            self.settle(replace(record, together=(), asked=None))

    def forget(self, address: PciAddress) -> None:
        """There is nothing to go back to any more."""
        if self._records.pop(address, None) is None:
            return
        try:
            (self._directory / f"{address}.json").unlink(missing_ok=True)
            os.fsync(self._descriptor)
        except OSError as error:
            _warn(address, error)

    def close(self) -> None:
        os.close(self._descriptor)


def _find_address(text: str) -> PciAddress | None:
    try:
        return parse_address(text)
    except FlavourError:
        return None


def _warn(address: PciAddress, error: OSError) -> None:
    _log.warning(
        "%s: recording that its switch is over failed (%s), the next daemon looks at it again",
        address,
        error.strerror,
        extra=log_fields(MessageId.NOT_KEPT, address),
    )


def find_record(ledger: Ledger, device: Device) -> Record | None:
    """The device's record; one of another device that was at the same address is void."""
    record = ledger.find(device.address)
    return record if record is not None and record.identity == device.identity else None


def forget_record(ledger: Ledger, device: Device) -> None:
    """One of another device that is at the address by now stays."""
    if find_record(ledger, device) is not None:
        ledger.forget(device.address)


def _parse_text(text: object) -> str | None:
    """An override: anything that somebody may have written there."""
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    return text


def _parse_name(name: object) -> str | None:
    text = _parse_text(name)
    if text is not None and not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no driver's or module's name")
    return text


def _parse_binding(data: dict[str, Any]) -> Binding:
    binding = Binding(**data)
    return Binding(_parse_name(binding.driver), _parse_text(binding.override))


def _parse_flavour(name: object) -> Flavour:
    if not _FLAVOUR.fullmatch(_check(name, str)):
        raise ValueError(f"{name!r} is no flavour")
    return Flavour(name)


def _parse_personality(data: object) -> Personality:
    """Its paths stay below the device's directory. 0.1.0 wrote its attribute alone, and had no others."""
    fields = {"driver": "", "attribute": data} if isinstance(data, str) else _fields(data, str)
    personality = Personality(**fields)
    for path in (personality.attribute, personality.ready):
        if not path or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise ValueError(f"{path!r} is no path below a device's directory")
    return personality


def _parse_asked(data: dict[str, Any]) -> Asked:
    others = data["others"]
    return Asked(
        _check(data["drops"], bool),
        _check(data["persist"], bool),
        tuple(_check(driver, str) for driver in _check(data["drivers"], list)),
        None if others is None else OthersInGroup(others),
    )


def _fields(data: object, kind: type[_T]) -> dict[str, _T]:
    return {name: _check(value, kind) for name, value in _check(data, dict).items()}


def _check(value: object, kind: type[_T]) -> _T:
    """Exactly that: true is no number."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of {kind.__name__}")
    return value


def _render(record: Record) -> dict[str, Any]:
    # Not dataclasses.asdict: its deep copies would be a good part of a switch's time.
    identity, worker = record.identity, record.worker
    return {
        "version": 1,
        "address": str(record.address),
        "identity": {name: getattr(identity, name) for name in Identity.__slots__},
        "origin": {"driver": record.origin.driver, "override": record.origin.override},
        "origin_flavour": record.origin_flavour,
        "origin_module": record.origin_module,
        "flavour": record.flavour,
        "before": {"driver": record.before.driver, "override": record.before.override},
        "written": record.written,
        "binding": {"driver": record.binding.driver, "override": record.binding.override},
        "personality": None
        if record.personality is None
        else {name: getattr(record.personality, name) for name in Personality.__slots__},
        "switching": record.switching,
        "worker": None if worker is None else {"pid": worker.pid, "started": worker.started},
        "together": [str(address) for address in record.together],
        "asked": None
        if record.asked is None
        else {name: getattr(record.asked, name) for name in Asked.__slots__},
    }


def _parse(data: dict[str, Any]) -> Record:
    if data["version"] != 1:
        raise ValueError(f"unknown version {data['version']!r}")
    return Record(
        address=parse_address(data["address"]),
        identity=Identity(**_fields(data["identity"], int)),
        origin=_parse_binding(data["origin"]),
        origin_flavour=_parse_flavour(data["origin_flavour"]),
        origin_module=_parse_name(data["origin_module"]),
        flavour=_parse_flavour(data["flavour"]),
        before=_parse_binding(data["before"]),
        written=tuple(_parse_text(override) for override in _check(data["written"], list)),
        binding=_parse_binding(data["binding"]),
        personality=None if data["personality"] is None else _parse_personality(data["personality"]),
        switching=_check(data["switching"], bool),
        worker=None if data["worker"] is None else Worker(**_fields(data["worker"], int)),
        # 0.1.0 had neither.
        together=tuple(parse_address(address) for address in _check(data.get("together", []), list)),
        asked=None if data.get("asked") is None else _parse_asked(data["asked"]),
    )
