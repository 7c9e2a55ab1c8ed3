"""What the producer measures: read from the publisher when Prometheus asks, but for the time of a batch."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, Metric
from prometheus_client.core import CounterMetricFamily

from apps.chassis.kafka.connection import Connection
from apps.chassis.observability.metrics import SECONDS, counter, gauge
from apps.producer.publishing.publisher import Publisher


def acknowledgement_seconds(registry: CollectorRegistry) -> Histogram:
    """Return what takes the time of each acknowledged batch."""
    return Histogram(
        "producer_acknowledgement_seconds",
        "Seconds from the making of a batch of records to its acknowledgement by all in-sync replicas.",
        ["stream"],
        buckets=SECONDS,
        registry=registry,
    )


def of_publisher(publisher: Publisher, connection: Connection) -> Iterator[Metric]:
    """Return what became of the records so far, and what is on its way."""
    records = CounterMetricFamily("producer_records", "Records by what became of them.", labels=["outcome"])
    for outcome, number in publisher.outcomes.items():
        records.add_metric([outcome], number)
    yield records
    yield gauge(
        "producer_records_in_flight", "Records that wait for their acknowledgement.", publisher.records_in_flight
    )
    yield gauge("producer_bytes_in_flight", "Bytes of keys and values of the calls not yet done.", publisher.in_flight)
    replaced = connection.replaced
    yield counter("producer_connections_replaced", "Connections to Kafka that were replaced by new ones.", replaced)
