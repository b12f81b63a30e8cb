"""The file system that offers driver_flavour, use_vfio and last_error for each PCI device."""

import sys
from types import ModuleType

# Some 9 MiB: pyfuse3 imports trio also where asyncio is to take its place, and asyncio does without TLS where
# there is none. Neither is ever used here.
sys.modules.setdefault("trio", ModuleType("trio"))
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # its import fails, as that of what isn't there
