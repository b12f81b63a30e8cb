"""Numbers as the text that Prometheus reads (its text-based exposition format, version 0.0.4)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A name with what it means; `help` is for people."""

    name: str
    kind: Kind
    help: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One number. `suffix` is added to the metric's name."""

    value: float
    labels: Mapping[str, str]
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many there were up to each of the bounds, and beyond the last one; `total` is their sum."""

    counts: tuple[int, ...]
    total: float

    def add(self, value: float, bounds: tuple[float, ...]) -> "Histogram":
        at = sum(value > bound for bound in bounds)
        counts = tuple(count + (number == at) for number, count in enumerate(self.counts))
        return Histogram(counts, self.total + value)

    def samples(self, bounds: tuple[float, ...], labels: Mapping[str, str]) -> list[Sample]:
        below, samples = 0, []
        for bound, count in zip((*bounds, float("inf")), self.counts, strict=True):
            below += count
            samples.append(Sample(below, {**labels, "le": _number(bound)}, "_bucket"))
        return [*samples, Sample(self.total, labels, "_sum"), Sample(below, labels, "_count")]


def render(metrics: Iterable[tuple[Metric, Iterable[Sample]]]) -> str:
    lines = []
    for metric, samples in metrics:
        lines.append(f"# HELP {metric.name} {_escape(metric.help)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for sample in samples:
            pairs = (f'{name}="{_quote(value)}"' for name, value in sample.labels.items())
            labels = f"{{{','.join(pairs)}}}" if sample.labels else ""
            lines.append(f"{metric.name}{sample.suffix}{labels} {_number(sample.value)}")
    return "".join(f"{line}\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _quote(text: str) -> str:
    # What is not UTF-8 in a name of sysfs would have the whole file refused.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return _escape(text).replace('"', '\\"')


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(value)
