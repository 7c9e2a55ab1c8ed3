"""Looks at topics and consumer groups from outside, so that nothing is asked of the process that is measured."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from benchmarks.processes import BenchmarkFailed, Measured, Service, Took, call

PARTITIONS = 6
"""Of a topic, where nothing else is said: the services' default."""
EVERY = 0.05
"""Seconds between two looks at what a group has committed."""
DRAINED_WITHIN = 600.0
"""Seconds."""
PAGE_EVERY = 1.0
"""Seconds between two looks of a live page that is open, and between two of Prometheus here."""
SEEN_BY_PAGE = ("/consumers/status", "/consumers/group", "/consumers/messages?limit=30")


def create_topic(bootstrap_servers: str, topic: str, partitions: int = PARTITIONS) -> None:
    """Create a topic as the services do it."""

    async def create() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, partitions, 1)])
        finally:
            await admin.close()

    asyncio.run(create())


def records_in(bootstrap_servers: str, topic: str, partitions: int = PARTITIONS) -> int:
    """Return how many records have been written to a topic."""

    async def ask() -> int:
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers)
        await consumer.start()
        try:
            return sum((await consumer.end_offsets(_partitions(topic, partitions))).values())
        finally:
            await consumer.stop()

    return asyncio.run(ask())


def watch_drain(bootstrap_servers: str, topic: str, group: str, upto: int, consumer: Measured) -> Took:
    """Wait until a group has committed `upto` records.

    The time runs from the first commit that is seen to the last: start, connection and join are not counted, nor are
    the records of that first commit. Raises `BenchmarkFailed` after 600 s.
    """

    async def watch() -> Took:
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
            return Took(upto - first, time.perf_counter() - start, consumer.cpu_seconds() - cpu)
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


@contextmanager
def page_open(consumer: Service, *more: str) -> Iterator[None]:
    """Ask what the live page asks, and what else is named, every second of the block."""
    closed = threading.Event()

    def look() -> None:
        while not closed.wait(PAGE_EVERY):
            with closing(consumer.connection()) as connection:
                for target in (*SEEN_BY_PAGE, *more):
                    call(connection, "GET", target)

    page = threading.Thread(target=look)
    page.start()
    try:
        yield
    finally:
        closed.set()
        page.join()


def _partitions(topic: str, partitions: int = PARTITIONS) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for partition in range(partitions)]
