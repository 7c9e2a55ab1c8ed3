"""Metrics at `/metrics`, as text for Prometheus: those of any service, and the route.

Every application has a registry of its own. Numbers that the service keeps anyway are read at each scrape instead of
being counted a second time.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any, Protocol

import msgspec
from litestar import Controller, get
from litestar.connection import Request
from litestar.datastructures import State
from litestar.openapi import ResponseSpec
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

from apps.chassis.http.health import PARTS, VERSION
from apps.chassis.http.problems import documented
from apps.chassis.http.roles import METRICS
from apps.chassis.kafka.connection import Connection
from apps.chassis.observability.metric_sums import Families, Sums
from apps.chassis.workers.link import ASK_ALL, Question

REGISTRY = "registry"
"""The key of an application's state that holds its registry."""
METRICS_READS = "metrics_reads"
"""The key of an application's state that holds the `SharedReads` of its metrics: making them takes long, unlimited."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds of the buckets of every histogram, in seconds: from an answer out of memory to a timeout."""
TEXT = "text/plain; version=0.0.4"
"""The media type of the answer; Litestar adds the charset."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def new_registry(service: str) -> CollectorRegistry:
    """Return a registry with metrics of the process (on Linux), the interpreter and the service's version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    info = Info("service", "The service and its version.", registry=registry)
    info.info({"service": service, "version": VERSION})
    return registry


class Answers:
    """The answers of one method, route and status: their number by duration, and the seconds of all together."""

    def __init__(self) -> None:
        self.in_bucket = [0] * (len(SECONDS) + 1)
        self.seconds = 0.0


class HttpMetrics(Collector):
    """Counts and times the answers by method, route and status.

    An unknown path counts as `unmatched` and an unknown method as `other`, so that callers cannot create series. HEAD
    counts as GET. The library's counter and histogram take ten times as long.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers: dict[tuple[str, str, int], Answers] = {}
        registry.register(self)

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answered request, and the seconds that it took."""
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
        """Return the metrics of the stream; this may take seconds while Kafka is out of reach."""


class MetricsController(Controller):
    """The route of the metrics; it is answered even under overload."""

    @get(
        "/metrics",
        summary="Metrics for Prometheus",
        media_type=TEXT,
        unlimited=True,
        role=METRICS,
        responses={
            **documented(),
            200: ResponseSpec(str, generate_examples=False, description="Metrics", media_type="text/plain"),
        },
    )
    async def metrics(self, request: Request[Any, Any, Any]) -> Response[Any]:
        """Return all metrics of the service."""
        state = request.app.state
        text = await state[METRICS_READS].read("all", partial(_text_of, state))
        return Response(text, media_type=TEXT)


async def _text_of(state: State) -> bytes:
    if ask_all := state.get(ASK_ALL):
        return generate_latest(Sums(msgspec.msgpack.decode(await ask_all(Question.METRICS), type=Families)))
    return generate_latest(await metrics_of(state))


async def metrics_of(state: State) -> Collector:
    """Return all metrics of this process."""
    of_streams = await asyncio.gather(*(one.metrics() for one in state[PARTS].values()))
    return _AllMetrics(state[REGISTRY], merged(chain.from_iterable(of_streams)))


Values = float | Mapping[Any, float]
"""The value of a metric, or its values by tuples of labels."""


def gauge(name: str, documentation: str, values: Values, labels: Sequence[str] = ()) -> Metric:
    """Return a gauge."""
    return _filled(GaugeMetricFamily(name, documentation, labels=labels), values)


def counter(name: str, documentation: str, values: Values, labels: Sequence[str] = ()) -> Metric:
    """Return a counter; the text format appends `_total` to its name."""
    return _filled(CounterMetricFamily(name, documentation, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
        family.add_metric(labels, value)
    return family


def of_kafka(connection: Connection, *, healthy: bool, connected: bool) -> Iterator[Metric]:
    """Return the metrics of health and Kafka that any service has for a stream."""
    yield gauge(
        "service_healthy", "Whether the service can do its job for a stream, as in /health-check?stream=.", healthy
    )
    yield gauge("kafka_connected", "Whether Kafka can be reached, as in /health-check?stream=.", connected)
    throttled = connection.journal.throttled_seconds
    yield counter("kafka_throttled_seconds", "Seconds for which quotas of Kafka made the main client wait.", throttled)


def of_stream(name: str, metrics: Iterable[Metric]) -> Iterator[Metric]:
    """Return metrics with the label `stream`."""
    for metric in metrics:
        metric.samples = [one._replace(labels={"stream": name, **one.labels}) for one in metric.samples]
        yield metric


def merged(metrics: Iterable[Metric]) -> Iterable[Metric]:
    """Return metrics with the samples of all streams together, because the text format has each name once."""
    by_name: dict[str, Metric] = {}
    for metric in metrics:
        known = by_name.setdefault(metric.name, metric)
        if known is not metric:
            known.samples += metric.samples
    return by_name.values()


class _AllMetrics(Collector):
    """The metrics of one answer: those of the registry, and those of the streams."""

    def __init__(self, registry: CollectorRegistry, of_streams: Iterable[Metric]) -> None:
        self._registry = registry
        self._of_streams = of_streams

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics without the samples `_created`, which would be a third of the answer."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        yield from self._of_streams
