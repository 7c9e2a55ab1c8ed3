"""Lets one call at a time act on the dead letters of a group: others of this instance wait, older ones are fenced."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation, InvalidTransactionTimeout, KafkaError, ProducerFenced, UnknownError

from apps.chassis.deadline import CALL_S
from apps.chassis.internals.transactions import close_producer
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.topic_writer import MAX_BATCH_BYTES
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.marks_topic import MarksTopic
from apps.consumer.redriving.refusals import RedriveNotNow

TRANSACTION_S = 10.0
"""Seconds after which Kafka aborts an abandoned transaction."""
UNEXPECTED = "Kafka ended the transaction with an unexpected error, as it may when another redrive or discard begins"


class RedriveLimits(NamedTuple):
    """How long an action may take, in seconds from its call on, and how much a transaction sends back.

    It is answered after `call_s`. It waits `turn_s` for another action of this instance, begins transactions within
    `begin_within_s`, looks for the dead letters of one for `search_s`, and aborts its transaction after `work_s`.
    It waits until its marks are visible, but not after `visible_s`. A transaction has `transaction_bytes` of
    records, but for one record of each partition.
    """

    call_s: float = CALL_S
    turn_s: float = 4.0
    search_s: float = 3.0
    begin_within_s: float = 5.0
    work_s: float = 6.5
    visible_s: float = 7.5
    transaction_bytes: int = 16 * 1024 * 1024


class Fences:
    """Fences the calls that act on letters of one dead-letter topic, by the transactional id of the letters' owner."""

    def __init__(
        self, options: ClientOptions, cluster: Cluster, dead_topic: str, marks_topic: MarksTopic, limits: RedriveLimits
    ) -> None:
        self.limits = limits
        self._options = options
        self._cluster = cluster
        self._dead_topic = dead_topic
        self._marks_topic = marks_topic
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait up to 4 s for this instance's other actions; end one that takes too long. Raises `RedriveNotNow`."""
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.limits.turn_s):
                await self._lock.acquire()
        except TimeoutError:
            raise RedriveNotNow("other redrives or discards of this instance are under way: try again") from None
        try:
            async with asyncio.timeout_at(start + self.limits.work_s):
                await self._marks_topic.check()
                yield
        finally:
            self._lock.release()

    @asynccontextmanager
    async def fenced(
        self, owner: str | None, compression: str | None = None
    ) -> AsyncIterator[tuple[AIOKafkaProducer, Marks]]:
        """Fence all other actions on the owner's letters; their marks are read after that, when they are final.

        The producer writes with `compression`. Raises `RedriveNotNow`.
        """
        producer = AIOKafkaProducer(
            **self._options,
            transactional_id=f"{self._dead_topic if owner is None else owner}-redrive",
            transaction_timeout_ms=int(TRANSACTION_S * 1_000),
            max_batch_size=min(MAX_BATCH_BYTES, self._cluster.max_message_bytes(self._dead_topic)),
            max_request_size=max(map(self._cluster.max_message_bytes, (self._dead_topic, self._marks_topic.name))),
            compression_type=compression,
        )
        try:
            await producer.start()
            yield producer, await self._marks_topic.settled()
        except (ProducerFenced, IllegalOperation):  # the latter if it was fenced between two records of a transaction
            raise RedriveNotNow("another redrive or discard has begun: try again") from None
        except InvalidTransactionTimeout:
            needed = f"below the {TRANSACTION_S:g} s that a redrive or discard takes: raise it"
            raise InvalidTransactionTimeout(f"the brokers' transaction.max.timeout.ms is {needed}") from None
        except KafkaError as error:
            if isinstance(error.__cause__, UnknownError):  # the sender of aiokafka raises another error from it
                raise RedriveNotNow(f"{UNEXPECTED}: try again") from None
            raise
        finally:
            await close_producer(producer)
