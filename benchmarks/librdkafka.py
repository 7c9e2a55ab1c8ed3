"""Another yardstick: librdkafka, the client in C, by `confluent-kafka`, in a process of its own.

    python -m benchmarks.librdkafka produce HOST:PORT TOPIC RECORDS
    python -m benchmarks.librdkafka produce_batch HOST:PORT TOPIC RECORDS
    python -m benchmarks.librdkafka consume HOST:PORT TOPIC GROUP

It has threads of its own, whose processor time counts too.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import Consumer, Producer

from apps.producer.generating.people import PersonFactory
from benchmarks.raw import MAX_BATCH_BYTES, MAX_RECORDS, Records
from contracts.person import PEOPLE
from contracts.stream import encode

Delivered = Callable[[Any, Any], None]


def produce(
    bootstrap_servers: str, topic: str, number: str, way: Callable[[Producer, str, Records, Delivered], None]
) -> None:
    """Send as many people twice, made and encoded beforehand, and time the second time (the first is the warm-up).

    Idempotent, acks=all, each key on the partition that Java chooses, a callback for each record. Prints `seconds`
    (until the last acknowledgement) and `cpu_seconds` as JSON.
    """
    people = PersonFactory.batch(int(number))
    records = [*zip(PEOPLE.keys_of(people), map(encode, people), strict=True)]
    places: list[tuple[int, int]] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "batch.size": MAX_BATCH_BYTES,
            "queue.buffering.max.messages": 2 * len(records),
        }
    )

    def delivered(error: Any, message: Any) -> None:  # noqa: ANN401 - as the client calls it
        if error is None:
            places.append((message.partition(), message.offset()))

    way(producer, topic, records, delivered)
    places.clear()
    cpu, start = time.process_time(), time.perf_counter()
    way(producer, topic, records, delivered)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    if len(places) != len(records):
        sys.exit(f"{len(records)} records were sent, and {len(places)} delivered")
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))


def one_by_one(producer: Producer, topic: str, records: Records, delivered: Delivered) -> None:
    """Send records one by one, and wait until each was delivered."""
    for key, value in records:
        producer.produce(topic, value, key, on_delivery=delivered)
        producer.poll(0)
    producer.flush()


def all_at_once(producer: Producer, topic: str, records: Records, delivered: Delivered) -> None:
    """Send records by one call, and wait until each was delivered."""
    messages = [{"key": key, "value": value} for key, value in records]
    producer.produce_batch(topic, messages, on_delivery=delivered)
    producer.flush()


def consume(bootstrap_servers: str, topic: str, group: str) -> None:
    """Fetch, decode and commit batch after batch from the beginning of the topic, until the process is ended."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    while True:
        records = consumer.consume(MAX_RECORDS, timeout=0.2)
        people = [PEOPLE.decode(record.value()) for record in records if record.error() is None]  # type: ignore[arg-type, unused-ignore]  # has a value
        if people:
            consumer.commit(asynchronous=False)


if __name__ == "__main__":
    ways: dict[str, Callable[..., None]] = {
        "produce": partial(produce, way=one_by_one),
        "produce_batch": partial(produce, way=all_at_once),
        "consume": consume,
    }
    ways[sys.argv[1]](*sys.argv[2:])
