"""Add up the metrics of several processes."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

AMOUNTS = ("_in_flight", "_bytes", "_fds")
"""Ends of the names of gauges that are added up; of other gauges, like `service_healthy`, the least counts."""
ADDED_UP = frozenset({"counter", "histogram"})


class Family(msgspec.Struct, array_like=True):
    """A metric: its documentation, its type, and its samples as name, labels and value."""

    documentation: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


Families = Mapping[str, Family]
"""Metrics by name."""


def families_of(metrics: Iterable[Metric]) -> Families:
    """Return metrics as they are sent to another process."""
    return {
        metric.name: Family(
            metric.documentation, metric.type, [(one.name, one.labels, float(one.value)) for one in metric.samples]
        )
        for metric in metrics
    }


def counters_of(families: Families) -> Families:
    """Return those metrics that stay true when their process has ended."""
    return {name: family for name, family in families.items() if family.type in ADDED_UP}


def summed(of_processes: Iterable[Families]) -> Families:
    """Return the sums of counters, histograms and amounts, and the least of other gauges."""
    total: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], tuple[str, dict[str, str], float]]] = {}
    for families in of_processes:
        for name, family in families.items():
            total.setdefault(name, Family(family.documentation, family.type, []))
            combine = sum if family.type in ADDED_UP or name.endswith(AMOUNTS) else min
            known = values.setdefault(name, {})
            for sample, labels, value in family.samples:
                key = sample, frozenset(labels.items())
                before = known.get(key)
                known[key] = sample, labels, combine((before[2], value)) if before else value
    for name, family in total.items():
        family.samples = list(values[name].values())
    return total


class Sums(Collector):
    """Metrics as the library writes them."""

    def __init__(self, families: Families) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for name, family in self._families.items():
            metric = Metric(name, family.documentation, family.type)
            metric.samples = [Sample(*sample) for sample in family.samples]
            yield metric
