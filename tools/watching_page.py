"""The tables of docs/watching.md: kinds of messages in the journal, and metrics."""

import re
from pathlib import Path

from vfio_flavourd.engine.metrics import METRICS
from vfio_flavourd.model.message_ids import MessageId

PAGE = Path("docs/watching.md")
CATALOG = Path("catalog/vfio-flavourd.catalog")


def render_watching() -> dict[Path, str]:
    catalog = CATALOG.read_text(encoding="ascii")
    subjects = dict(re.findall(r"^-- (\w+)\nSubject: (.*)$", catalog, re.MULTILINE))
    messages = ["| MESSAGE_ID | what it says |", "|---|---|"]
    for message in MessageId:
        said = re.sub("@([A-Z_]+)@", r"*\1*", subjects[message])
        messages.append(f"| `{message}` | {said} |")
    metrics = ["| metric | kind | meaning |", "|---|---|---|"]
    metrics += [f"| `{metric.name}` | {metric.kind} | {metric.help} |" for metric in METRICS]
    text = PAGE.read_text(encoding="ascii")
    for name, lines in {"messages": messages, "metrics": metrics}.items():
        begin, end = f"<!-- {name}, made from the code by `make reference` -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        table = "".join(f"{line}\n" for line in lines)
        text = f"{before}{begin}{table}{end}{rest.partition(end)[2]}"
    return {PAGE: text}
