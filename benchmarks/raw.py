"""The yardstick: the raw client, aiokafka without a framework, in a process of its own as the services are.

    python -m benchmarks.raw send_batch HOST:PORT TOPIC RECORDS
    python -m benchmarks.raw send HOST:PORT TOPIC RECORDS
    python -m benchmarks.raw consume HOST:PORT TOPIC GROUP
    python -m benchmarks.raw visible HOST:PORT TOPIC PER_SECOND SECONDS

It runs on the event loop that uvicorn gives the services.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner
from uvicorn.loops.auto import auto_loop_factory

from apps.producer.generating.people import PersonFactory
from benchmarks.caller import spread_of
from contracts.person import PEOPLE
from contracts.stream import encode

MAX_BATCH_BYTES = 512 * 1024
MAX_RECORDS = 2_000
"""Records of a batch that is consumed and committed: as many as the consumer service takes."""

Records = list[tuple[bytes, bytes]]
Send = Callable[[AIOKafkaProducer, str, Records], Awaitable[None]]


async def produce(bootstrap_servers: str, topic: str, number: str, way: Send) -> None:
    """Send as many people twice, made and encoded beforehand, and time the second time (the first is the warm-up).

    Idempotent, acks=all, each key on the partition that aiokafka chooses. Prints `seconds` (until the last
    acknowledgement), `cpu_seconds` and `value_bytes` (the mean) as JSON.
    """
    people = PersonFactory.batch(int(number))
    records = [*zip(PEOPLE.keys_of(people), map(encode, people), strict=True)]
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        max_batch_size=MAX_BATCH_BYTES,
        max_request_size=4 * MAX_BATCH_BYTES,
    )
    await producer.start()
    try:
        await way(producer, topic, records)
        cpu, start = time.process_time(), time.perf_counter()
        await way(producer, topic, records)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    finally:
        await producer.stop()
    value_bytes = sum(len(value) for _, value in records) / len(records)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "value_bytes": value_bytes}))


async def by_send(producer: AIOKafkaProducer, topic: str, records: Records) -> None:
    """Send records one by one, and gather their acknowledgements."""
    sent = [await producer.send(topic, value, key) for key, value in records]
    await asyncio.gather(*sent)


async def by_send_batch(producer: AIOKafkaProducer, topic: str, records: Records) -> None:
    """Send records in batches of the client's own making, each key to the partition that aiokafka chooses."""
    partitions = sorted(await producer.partitions_for(topic))
    choose = DefaultPartitioner()
    batches = {partition: producer.create_batch() for partition in partitions}
    sent = []
    for key, value in records:
        partition = choose(key, partitions, partitions)
        if batches[partition].append(key=key, value=value, timestamp=None) is None:
            sent.append(await producer.send_batch(batches[partition], topic, partition=partition))
            batches[partition] = producer.create_batch()
            batches[partition].append(key=key, value=value, timestamp=None)
    for partition, batch in batches.items():
        if batch.record_count():
            sent.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*sent)


async def consume(bootstrap_servers: str, topic: str, group: str) -> None:
    """Fetch, PEOPLE.decode and commit batch after batch from the beginning of the topic, until the process is ended."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap_servers,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        while True:
            batches = await consumer.getmany(timeout_ms=200, max_records=MAX_RECORDS)
            for records in batches.values():
                people = [PEOPLE.decode(record.value) for record in records]
                assert len(people) == len(records)  # noqa: S101 - nothing else is done with them
            if batches:
                await consumer.commit()
    finally:
        await consumer.stop()


async def visible(bootstrap_servers: str, topic: str, per_second: str, seconds: str) -> None:
    """Send people one by one at an even pace, and print `p50`, `p99` and `max` of the milliseconds until `getmany`.

    Both clients are in this process. A time runs from when its turn was, as for those who call the services.
    """
    rate = int(per_second)
    people = PersonFactory.batch(rate * int(seconds))
    records = [*zip(PEOPLE.keys_of(people), map(encode, people), strict=True)]
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True)
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers)
    async with producer, consumer:
        for partition in consumer.assignment():
            await consumer.position(partition)
        due: dict[bytes, float] = {}
        times: list[float] = []

        async def send() -> None:
            start = time.perf_counter()
            for number, (key, value) in enumerate(records):
                due[key] = start + number / rate
                await asyncio.sleep(max(0.0, due[key] - time.perf_counter()))
                await producer.send(topic, value, key)

        sending = asyncio.create_task(send())
        while len(times) < len(records):
            fetched = await consumer.getmany(timeout_ms=500)
            now = time.perf_counter()
            times += [(now - due[record.key]) * 1e3 for some in fetched.values() for record in some]
        await sending
    print(json.dumps(spread_of(times)))


if __name__ == "__main__":
    ways: dict[str, Callable[..., Any]] = {
        "send_batch": partial(produce, way=by_send_batch),
        "send": partial(produce, way=by_send),
        "consume": consume,
        "visible": visible,
    }
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(ways[sys.argv[1]](*sys.argv[2:]))
