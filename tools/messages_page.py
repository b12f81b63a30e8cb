"""The table of codes in docs/messages.md."""

import errno
from pathlib import Path

from vfio_flavourd.model.codes import ERRNOS, find_exit_statuses
from vfio_flavourd.model.explanations import EXPLANATIONS

PAGE = Path("docs/messages.md")
BEGIN, END = "<!-- made from the code by `make reference` -->\n", "<!-- end -->"


def render_messages() -> dict[Path, str]:
    before, _, rest = PAGE.read_text(encoding="ascii").partition(BEGIN)
    rows = [
        f"| `{code}` | {explanation.summary} | {' '.join(errno.errorcode[each] for each in ERRNOS[code])} "
        f"| {' '.join(map(str, find_exit_statuses(code)))} |\n"
        for code, explanation in EXPLANATIONS.items()
    ]
    table = "".join(["| code | meaning | errno | exit status |\n", "|---|---|---|---|\n", *rows])
    return {PAGE: f"{before}{BEGIN}{table}{END}{rest.partition(END)[2]}"}
