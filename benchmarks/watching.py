"""Looks at topics and consumer groups from outside, so that nothing is asked of the process that is measured."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Self

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
PROGRESS_EVERY = 0.02
"""Seconds between two looks whether a group has committed more."""
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
        deadline = time.perf_counter() + DRAINED_WITHIN
        async with _committed(bootstrap_servers, topic, group, wait=partial(wait, deadline)) as committed:
            before = first = await committed()
            while (first := await committed()) == before:
                await wait(deadline)
            start, cpu = time.perf_counter(), consumer.cpu_seconds()
            while await committed() < upto:
                await wait(deadline)
            return Took(upto - first, time.perf_counter() - start, consumer.cpu_seconds() - cpu)

    async def wait(deadline: float) -> None:
        consumer.refuse_ended()
        if time.perf_counter() > deadline:
            raise BenchmarkFailed(f"the backlog was not consumed within {DRAINED_WITHIN:g} s")
        await asyncio.sleep(EVERY)

    return asyncio.run(watch())


@asynccontextmanager
async def _committed(
    bootstrap_servers: str,
    topic: str,
    group: str,
    partitions: int = PARTITIONS,
    *,
    wait: Callable[[], Awaitable[None]],
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Yield what tells how many records of a topic a group has committed; `wait` until the group has a coordinator."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        coordinator = None
        while coordinator is None:
            with suppress(GroupCoordinatorNotAvailableError):  # the first group of a new Kafka waits for its topic
                coordinator = int(await admin.find_coordinator(group))
            if coordinator is None:
                await wait()

        async def committed() -> int:
            offsets = await admin.list_consumer_group_offsets(group, coordinator, _partitions(topic, partitions))
            return sum(max(0, offset.offset) for offset in offsets.values())

        yield committed
    finally:
        await admin.close()


class Progress:
    """When a group was seen to have committed more than before, as `time.perf_counter` tells it."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._ended = threading.Event()

    def longest_pause(self, since: float, until: float) -> float:
        """Return the longest time, in seconds, in which nothing was committed."""
        times = [since, *(one for one in self._times if since < one < until), until]
        return max(later - earlier for earlier, later in pairwise(times))

    @contextmanager
    def watch(self, bootstrap_servers: str, topic: str, group: str, partitions: int) -> Iterator[Self]:
        """Look every 20 ms of the block."""

        async def look() -> None:
            wait = partial(asyncio.sleep, PROGRESS_EVERY)
            async with _committed(bootstrap_servers, topic, group, partitions, wait=wait) as committed:
                so_far = 0
                while not self._ended.is_set():
                    if (now := await committed()) > so_far:
                        self._times.append(time.perf_counter())
                        so_far = now
                    await wait()

        thread = threading.Thread(target=asyncio.run, args=(look(),))
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()


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
