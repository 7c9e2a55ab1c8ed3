"""Looks at topics and consumer groups from outside, so that nothing is asked of the process that is measured."""

import asyncio
import time
from contextlib import suppress
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from benchmarks.processes import BenchmarkFailed, Measured

PARTITIONS = 6
"""Of each topic here: the services' default."""
EVERY = 0.05
"""Seconds between two looks at what a group has committed."""
DRAINED_WITHIN = 300.0
"""Seconds."""


class Drained(NamedTuple):
    """What happened from the first commit seen to the last: records, seconds, processor seconds of the process."""

    records: int
    seconds: float
    cpu_seconds: float


def create_topic(bootstrap_servers: str, topic: str) -> None:
    """Create a topic as the services do it."""

    async def create() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
        finally:
            await admin.close()

    asyncio.run(create())


def records_in(bootstrap_servers: str, topic: str) -> int:
    """Return how many records have been written to a topic."""

    async def ask() -> int:
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers)
        await consumer.start()
        try:
            return sum((await consumer.end_offsets(_partitions(topic))).values())
        finally:
            await consumer.stop()

    return asyncio.run(ask())


def watch_drain(bootstrap_servers: str, topic: str, group: str, upto: int, consumer: Measured) -> Drained:
    """Wait until a group has committed `upto` records.

    The time runs from the first commit that is seen to the last: start, connection and join are not counted, nor are
    the records of that first commit. Raises `BenchmarkFailed` after 300 s.
    """

    async def watch() -> Drained:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        try:
            deadline = time.perf_counter() + DRAINED_WITHIN
            while (coordinator := await coordinator_of_group(admin)) is None:
                await wait(deadline)
            before = first = await committed(admin, coordinator)
            while (first := await committed(admin, coordinator)) == before:
                await wait(deadline)
            start, cpu = time.perf_counter(), consumer.cpu_seconds()
            while await committed(admin, coordinator) < upto:
                await wait(deadline)
            return Drained(upto - first, time.perf_counter() - start, consumer.cpu_seconds() - cpu)
        finally:
            await admin.close()

    async def coordinator_of_group(admin: AIOKafkaAdminClient) -> int | None:
        with suppress(GroupCoordinatorNotAvailableError):  # the first group of a new Kafka waits for its topic
            return int(await admin.find_coordinator(group))
        return None

    async def committed(admin: AIOKafkaAdminClient, coordinator: int) -> int:
        offsets = await admin.list_consumer_group_offsets(group, coordinator, _partitions(topic))
        return sum(max(0, offset.offset) for offset in offsets.values())

    async def wait(deadline: float) -> None:
        consumer.refuse_ended()
        if time.perf_counter() > deadline:
            raise BenchmarkFailed(f"the backlog was not consumed within {DRAINED_WITHIN:g} s")
        await asyncio.sleep(EVERY)

    return asyncio.run(watch())


def _partitions(topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
