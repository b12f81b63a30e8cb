"""The package's bill of materials (CycloneDX 1.5): what it carries, by version and hash, and depends on.

Without a time or a serial number, so that the same sources make the same file.
"""

import json
import re
from pathlib import Path
from typing import Any

from vfio_flavourd import __version__

BILL = Path("debian/sbom.cdx.json")
CARRIED = Path("debian/vendored-requirements.txt")
CONTROL = Path("debian/control")
LICENSES = {"asyncvarlink": "LGPL-2.0-or-later"}


def render_bill() -> dict[Path, str]:
    subject = {
        "type": "application",
        "bom-ref": "vfio-flavourd",
        "name": "vfio-flavourd",
        "version": __version__,
        "licenses": [{"license": {"id": "LGPL-2.1-or-later"}}],
    }
    components = [*_carried(), *_dependencies()]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": [{"ref": "vfio-flavourd", "dependsOn": [each["bom-ref"] for each in components]}],
    }
    return {BILL: json.dumps(bill, indent=2) + "\n"}


def _carried() -> list[dict[str, Any]]:
    text = CARRIED.read_text(encoding="ascii")
    pins = re.findall(r"^(\S+)==(\S+) \\\n +--hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "scope": "required",
            "hashes": [{"alg": "SHA-256", "content": digest}],
            "licenses": [{"license": {"id": LICENSES[name]}}],
            "purl": f"pkg:pypi/{name}@{version}",
        }
        for name, version, digest in pins
    ]


def _dependencies() -> list[dict[str, Any]]:
    """Of Debian, each with the least version that will do."""
    paragraph = re.findall(r"^Depends:\n((?: .*\n)+)", CONTROL.read_text(encoding="ascii"), re.MULTILINE)
    wanted = re.findall(r"^ ([a-z0-9.+-]+)(?: \((.+)\))?,$", "".join(paragraph), re.MULTILINE)
    return [
        {
            "type": "application",
            "bom-ref": f"pkg:deb/debian/{name}",
            "name": name,
            "scope": "required",
            "purl": f"pkg:deb/debian/{name}",
            **({"properties": [{"name": "debian:version", "value": version}]} if version else {}),
        }
        for name, version in wanted
    ]
