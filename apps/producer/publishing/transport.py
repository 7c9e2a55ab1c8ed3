"""Hand a batch of records to Kafka in one of two ways, both of the type `Send`.

`publish` uses the publisher that is declared on the FastStream broker. `accelerated` uses the batch of the broker's own
client, which saves 2 µs per record. Records with headers and tombstones always take the second way, because FastStream
does not write them byte for byte.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

from faststream.kafka import KafkaBroker, KafkaPublishMessage
from faststream.kafka.publisher.usecase import BatchPublisher
from prometheus_client import CollectorRegistry, Gauge

from apps.chassis.internals import client_batch
from apps.chassis.internals.canary import UnexpectedLibrary, check
from apps.chassis.internals.client_batch import Acknowledgement, Records, send_client_batch
from apps.chassis.internals.client_parts import producer_of

log = logging.getLogger(__name__)

Send = Callable[[KafkaBroker, int, int, Records, Mapping[str, str] | None], Awaitable[Acknowledgement | None]]
"""Send a batch to a partition, with a timestamp (ms since 1970 UTC) and headers for all its records.

Returns a future of the offset and timestamp of the first record. Returns None on a `TestKafkaBroker`, where batches
have no offsets; its subscribers then have the records. Raises when nothing was sent, because the broker is closed or
the records do not fit into a batch.
"""


def choose_transport(setting: str, registry: CollectorRegistry) -> Send:
    """Return the faster transport, or FastStream's with `ACCELERATORS=off` or an unexpected client.

    The choice is logged and reported as the metric `accelerators_active`.
    """
    active = Gauge(
        "accelerators_active", "Whether an accelerator is used (1) or not (0).", ["accelerator"], registry=registry
    )
    given_up = None if setting == "on" else "ACCELERATORS is off"
    try:
        check(client_batch.REACHES)
    except UnexpectedLibrary as error:
        given_up = given_up or str(error)
    active.labels("client_batch").set(0 if given_up else 1)
    if given_up:
        log.warning("accelerator client_batch is not used, FastStream publishes the records: %s", given_up)
    return publish if given_up else accelerated


async def publish(
    broker: KafkaBroker, partition: int, timestamp_ms: int, records: Records, headers: Mapping[str, str] | None
) -> Acknowledgement | None:
    """Send a batch by FastStream's publisher; see `Send`."""
    publisher = publisher_of(broker)
    if headers or not all(value for _, value in records):
        return await send_client_batch(broker, publisher.topic, partition, timestamp_ms, records, headers)
    messages = [KafkaPublishMessage(value, key=key) for key, value in records]
    return await publisher.publish(*messages, partition=partition, timestamp_ms=timestamp_ms, no_confirm=True)


async def accelerated(
    broker: KafkaBroker, partition: int, timestamp_ms: int, records: Records, headers: Mapping[str, str] | None
) -> Acknowledgement | None:
    """Send a batch by the client's own batches; see `Send`. FastStream publishes on a `TestKafkaBroker`."""
    if producer_of(broker) is None:
        return await publish(broker, partition, timestamp_ms, records, headers)
    topic = publisher_of(broker).topic
    return await send_client_batch(broker, topic, partition, timestamp_ms, records, headers)


def publisher_of(broker: KafkaBroker) -> BatchPublisher:
    """Return the only publisher of a broker."""
    (publisher,) = broker.publishers
    assert isinstance(publisher, BatchPublisher)  # noqa: S101 - declared with `batch=True`
    return publisher
