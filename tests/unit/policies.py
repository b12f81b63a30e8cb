"""Policy files in a directory of their own, and devices for them."""

import os
from pathlib import Path
from typing import Any

import pytest

from vfio_flavourd.config.load import Loaded, load_policy
from vfio_flavourd.config.problems import PolicyError, Problem
from vfio_flavourd.model.address import parse_address
from vfio_flavourd.model.device import Device, Identity
from vfio_flavourd.model.policy import Facts

ETC = "etc/vfio-flavourd/policy.d"
RULE = "rules:\n  - {name: all, match: {modalias: '*'}, flavour: vfio}\n"


def write(root: Path, text: str | bytes, name: str = "10.yaml", directory: str = ETC) -> Path:
    path = root / directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o644)
    return path


def load(root: Path) -> Loaded:
    """As the tests' user, whoever that is."""
    return load_policy(root, owner=os.getuid())


def load_text(root: Path, text: str | bytes) -> Loaded:
    write(root, text)
    return load(root)


def problems_of(root: Path, text: str | bytes | None = None) -> tuple[Problem, ...]:
    if text is not None:
        write(root, text)
    with pytest.raises(PolicyError) as caught:
        load(root)
    return caught.value.problems


def problem_of(root: Path, text: str | bytes | None = None) -> Problem:
    """The only one."""
    (problem,) = problems_of(root, text)
    return problem


def make_device(address: str = "0000:01:00.0", **traits: Any) -> Device:
    ids = {"vendor": 0x15B3, "device": 0x101E, "subsystem_vendor": 0x1AF4, "subsystem_device": 0x1100}
    ids.update({name: traits.pop(name) for name in tuple(traits) if name in ids})
    given: dict[str, Any] = {
        "address": parse_address(address),
        "path": f"/sys/devices/pci0000:00/0000:00:1c.0/{address}",
        "identity": Identity(**ids, revision=0, inode=1),
        "modalias": "pci:v000015B3d0000101Esv00001AF4sd00001100bc02sc00i00",
        "class_code": 0x020000,
        "driver": "mlx5_core",
        "driver_module": "mlx5_core",
        "iommu_group": 7,
        "vfio_device": None,
        "personality": None,
    }
    return Device(**(given | traits))


def make_facts(device: Device | None = None, **given: Any) -> Facts:
    facts: dict[str, Any] = {
        "device": device or make_device(),
        "slot": "0000:00:1c.0/00.0",
        "sriov": None,
        "pf": None,
        "serials": (),
        "host_name": "node1.example.com",
    }
    return Facts(**(facts | given))
