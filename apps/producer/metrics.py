"""Metrics of the producer, read from the publisher at each scrape; only the duration of batches is observed."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, Metric
from prometheus_client.core import CounterMetricFamily

from apps.chassis.kafka.connection import Connection
from apps.chassis.observability.metrics import SECONDS, counter, gauge
from apps.producer.publishing.publisher import Publisher


def acknowledgement_seconds(registry: CollectorRegistry) -> Histogram:
    """Return the histogram of how long batches take to be acknowledged."""
    return Histogram(
        "producer_acknowledgement_seconds",
        "Seconds from the creation of a batch of records to its acknowledgement by all in-sync replicas.",
        ["stream"],
        buckets=SECONDS,
        registry=registry,
    )


def of_publisher(publisher: Publisher, connection: Connection) -> Iterator[Metric]:
    """Return how many records had each outcome, and how many records and bytes are in flight."""
    records = CounterMetricFamily("producer_records", "Records by outcome.", labels=["outcome"])
    for outcome, number in publisher.outcomes.items():
        records.add_metric([outcome], number)
    yield records
    yield gauge(
        "producer_records_in_flight", "Records that wait for their acknowledgement.", publisher.records_in_flight
    )
    yield gauge("producer_bytes_in_flight", "Bytes of keys and values of unfinished calls.", publisher.in_flight)
    replaced = connection.replaced
    yield counter("producer_connections_replaced", "Producer connections that were replaced after a failure.", replaced)
