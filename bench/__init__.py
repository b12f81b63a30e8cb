"""What vfio-flavourd costs, beside what else does the same: `python3 -m bench --help`."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The fake host is the unit tests' own, and they are modules without a package.
if (_unit := str(ROOT / "tests/unit")) not in sys.path:
    sys.path.append(_unit)
