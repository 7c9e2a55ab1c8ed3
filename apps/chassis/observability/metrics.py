"""Metrics at `/metrics`, as text for Prometheus: what any service measures, and the page itself.

Every application has a registry of its own. Figures that the service keeps anyway are not counted twice: they are read
when Prometheus asks.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, Protocol

from litestar import Controller, get
from litestar.connection import Request
from litestar.openapi import ResponseSpec
from litestar.params import SkipValidation
from litestar.response import Response
from litestar.types import Scope
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from apps.chassis.http.health import VERSION
from apps.chassis.http.problems import documented
from apps.chassis.kafka.connection import Connection

REGISTRY = "registry"
"""The key of an application's state that holds its registry."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds of the buckets of every histogram: from an answer out of memory to a request that is given up."""
TEXT = "text/plain; version=0.0.4"
"""The format of the page; Litestar adds the charset."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def new_registry(service: str) -> CollectorRegistry:
    """Return a registry with metrics of the process (Linux), the interpreter and the service's version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    info = Info("service", "Which service this is, in which version.", registry=registry)
    info.info({"service": service, "version": VERSION})
    return registry


class Answers:
    """How many answers one method, route and status had, by how long they took."""

    def __init__(self) -> None:
        self.in_bucket = [0] * (len(SECONDS) + 1)
        self.seconds = 0.0


class HttpMetrics(Collector):
    """Counts the answers by method, route and status, and times them, also those to no route.

    A path that no route knows counts as `unmatched`, a method that HTTP does not know as `other`: callers cannot make
    series. HEAD counts as the GET that it asks for. A counter and a histogram of the library take ten times as long.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers: dict[tuple[str, str, int], Answers] = {}
        registry.register(self)

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        method = scope.get("method")
        of = method if method in METHODS else "other", scope.get("path_template") or "unmatched", status
        answers = self._answers.get(of) or self._answers.setdefault(of, Answers())
        answers.in_bucket[bisect_left(SECONDS, seconds)] += 1
        answers.seconds += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the counter and the histogram."""
        requests = CounterMetricFamily(
            "http_requests", "Requests that were answered.", labels=["method", "route", "status"]
        )
        took = HistogramMetricFamily(
            "http_request_duration_seconds",
            "Seconds from a request to the last byte of its answer.",
            labels=["method", "route"],
        )
        by_route: dict[tuple[str, str], list[Answers]] = {}
        for (method, route, status), answers in self._answers.items():
            requests.add_metric([method, route, str(status)], sum(answers.in_bucket))
            by_route.setdefault((method, route), []).append(answers)
        for labels, all_answers in by_route.items():
            up_to = accumulate(map(sum, zip(*(one.in_bucket for one in all_answers), strict=True)))
            buckets = list(zip([*map(str, map(float, SECONDS)), "+Inf"], up_to, strict=True))
            took.add_metric(labels, buckets, sum(one.seconds for one in all_answers))
        yield from (requests, took)


class Measured(Protocol):
    """The part of a service that serves one stream."""

    async def metrics(self) -> Iterable[Metric]:
        """Return what is read only when Prometheus asks; it may take seconds while Kafka is out of reach."""


class MetricsController(Controller):
    """The page for Prometheus; it is answered however many calls are under way."""

    @get(
        "/metrics",
        summary="What Prometheus collects",
        media_type=TEXT,
        unlimited=True,
        responses={
            **documented(),
            200: ResponseSpec(str, generate_examples=False, description="Metrics", media_type="text/plain"),
        },
    )
    async def metrics(
        self, request: Request[Any, Any, Any], served: SkipValidation[Mapping[str, Measured]]
    ) -> Response[Any]:
        """Return all metrics of the service."""
        seen = await asyncio.gather(*(one.metrics() for one in served.values()))
        page = generate_latest(_Page(request.app.state[REGISTRY], merged(chain.from_iterable(seen))))
        return Response(page, media_type=TEXT)


Values = float | Mapping[Any, float]
"""The value of a metric, or its values by tuples of labels."""


def gauge(name: str, documentation: str, values: Values, labels: Sequence[str] = ()) -> Metric:
    """Return a gauge."""
    return _filled(GaugeMetricFamily(name, documentation, labels=labels), values)


def counter(name: str, documentation: str, values: Values, labels: Sequence[str] = ()) -> Metric:
    """Return a counter, which is named `name` with `_total` behind it."""
    return _filled(CounterMetricFamily(name, documentation, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
        family.add_metric(labels, value)
    return family


def of_kafka(connection: Connection, *, healthy: bool, connected: bool) -> Iterator[Metric]:
    """Return what is read of any service."""
    yield gauge(
        "service_healthy", "Whether the service can do its job for a stream, as /health-check?stream= says.", healthy
    )
    yield gauge("kafka_connected", "Whether Kafka can be reached, as /health-check?stream= says.", connected)
    throttled = connection.journal.throttled_seconds
    yield counter("kafka_throttled_seconds", "Seconds for which quotas of Kafka made the main client wait.", throttled)


def of_stream(name: str, metrics: Iterable[Metric]) -> Iterator[Metric]:
    """Return metrics with the label `stream`."""
    for metric in metrics:
        metric.samples = [one._replace(labels={"stream": name, **one.labels}) for one in metric.samples]
        yield metric


def merged(metrics: Iterable[Metric]) -> Iterable[Metric]:
    """Return metrics with the samples of all streams together: the format has each name once."""
    by_name: dict[str, Metric] = {}
    for metric in metrics:
        known = by_name.setdefault(metric.name, metric)
        if known is not metric:
            known.samples += metric.samples
    return by_name.values()


class _Page(Collector):
    """All that stands on one page."""

    def __init__(self, registry: CollectorRegistry, seen: Iterable[Metric]) -> None:
        self._registry = registry
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """Yield it, without the times at which series were made: they would be a third of the page."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        yield from self._seen
