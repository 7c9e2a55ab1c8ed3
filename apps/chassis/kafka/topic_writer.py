"""Write records to a topic through an idempotent producer of its own, and wait until all replicas have them.

FastStream's publishing cannot be used: it rewrites null and binary headers, and drops the headers of batches.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, UnknownTopicOrPartitionError
from aiokafka.producer.message_accumulator import BatchBuilder

from apps.chassis.internals.transactions import close_producer
from apps.chassis.kafka.clients import METADATA_MS, ClientOptions, size_of_batch
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.sent_batches import SentBatches
from apps.chassis.kafka.topic_settings import Unusable
from contracts.dead_letter import Header
from contracts.partitioning import partitions_of

ACK_TIMEOUT_S = 15.0
"""Seconds for Kafka to acknowledge records; later it is unknown whether they are written."""
SETTLE_S = 2.0
"""Seconds for Kafka to acknowledge what a cancelled write has sent: newer records may come from another instance."""
CHECK_PARTITIONS_S = 1.0
"""Seconds between two checks whether the partitions of unacknowledged records still exist."""
READ_SETTINGS_S = 1.0
"""Least seconds between two looks at how large a record may be."""
MAX_BATCH_BYTES = 512 * 1024
"""Bytes of a batch; less where the topic takes less. A larger record travels alone."""

Content = tuple[bytes | None, bytes | None, Sequence[Header]]
"""Key, value and headers of a record."""
OnAcknowledged = Callable[[int, range], object]
"""Called with the partition of an acknowledged batch, and with the range of its records among the partition's."""


async def nothing_to_prepare() -> None:
    """Prepare nothing: the topic exists."""


class TopicWriter:
    """Writes to one topic.

    The first write, and the first after one that failed, calls `prepare` and opens a producer with `compression`.
    """

    def __init__(  # noqa: PLR0913 - what its producers are made of
        self,
        options: ClientOptions,
        topic: str,
        cluster: Cluster,
        new_producer: Callable[..., AIOKafkaProducer] = AIOKafkaProducer,
        *,
        prepare: Callable[[], Awaitable[None]] = nothing_to_prepare,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        check_partitions_s: float = CHECK_PARTITIONS_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.topic = topic
        self.compression: str | None = None
        self._options = options
        options["client_id"].journal.epochs.topic = topic
        self._cluster = cluster
        self._new_producer = new_producer
        self._prepare = prepare
        self._ack_timeout_s = ack_timeout_s
        self._check_partitions_s = check_partitions_s
        self._settle_s = settle_s
        self._producer: AIOKafkaProducer | None = None
        self._settling: set[asyncio.Task[None]] = set()
        self._read_settings_at = -math.inf
        self._connecting = asyncio.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the producer at the end."""
        try:
            yield
        finally:
            await self._drop(self._producer)
            await asyncio.gather(*self._settling)  # what they wait for is written, or has failed

    async def write(self, keys: Sequence[bytes], values: Sequence[bytes], headers: Sequence[Header] = ()) -> None:
        """Write records with the same headers, each to the partition of its key; as `write_to` does otherwise."""
        async with self._producing() as producer:
            by_partition: defaultdict[int, list[Content]] = defaultdict(list)
            partitions = partitions_of(keys, len(await producer.partitions_for(self.topic)))
            for number, key, value in zip(partitions, keys, values, strict=True):
                by_partition[number].append((key, value, headers))
            error = self._size_error(keys, values, headers)
            if error is not None:
                await self._read_settings()
                error = self._size_error(keys, values, headers)
            if error is None:
                await self._write(producer, by_partition)
        if error is not None:
            raise error  # the producer is kept: refused by Kafka, the record would fail concurrent writes too

    def _size_error(
        self, keys: Sequence[bytes], values: Sequence[bytes], headers: Sequence[Header]
    ) -> MessageSizeTooLargeError | None:
        """Return the error for records of which one is too large for the topic, or None."""
        key, value = max(zip(keys, values, strict=True), key=lambda record: len(record[0]) + len(record[1]))
        needed, allowed = size_of_batch(key, value, headers), self._cluster.max_message_bytes(self.topic)
        if needed <= allowed:
            return None
        return MessageSizeTooLargeError(
            f"a value for {self.topic} needs {needed} bytes, and the topic takes {allowed} (max.message.bytes)"
        )

    async def _read_settings(self) -> None:
        """Read the settings of the topic, which may take larger records by now; at most once a second."""
        now = asyncio.get_running_loop().time()
        if now >= self._read_settings_at:
            self._read_settings_at = now + READ_SETTINGS_S
            with suppress(*KAFKA_ERRORS, Unusable):
                await self._cluster.check_settings()

    async def write_to(
        self, by_partition: Mapping[int, Sequence[Content]], on_acknowledged: OnAcknowledged | None = None
    ) -> None:
        """Write records to partitions, in their order; return when all in-sync replicas have them.

        The number of a partition that the topic does not have is taken modulo their count. Raises the errors of
        `prepare`, `KafkaError`, `OSError` or, after 15 s, `TimeoutError`: some of the records may be written then.
        """
        async with self._producing() as producer:
            await self._write(producer, by_partition, on_acknowledged)

    @asynccontextmanager
    async def _producing(self) -> AsyncIterator[AIOKafkaProducer]:
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                producer = await self._connected()
                yield producer
        except asyncio.CancelledError:
            raise  # by the caller: what others write at the same time must not fail with it
        except BaseException:
            # a refused or abandoned batch leaves a gap in the producer's sequence numbers: it cannot be used again
            await self._drop(producer)
            raise

    async def _write(
        self,
        producer: AIOKafkaProducer,
        by_partition: Mapping[int, Sequence[Content]],
        on_acknowledged: OnAcknowledged | None = None,
    ) -> None:
        sent, count = SentBatches(), len(await producer.partitions_for(self.topic))
        try:
            for number, records in by_partition.items():
                for batch, places in batches_of(producer, records):
                    sending = await producer.send_batch(batch, self.topic, partition=number % count)
                    if on_acknowledged is not None:
                        sending.add_done_callback(partial(_report, on_acknowledged, number, places))
                    sent.add(sending)
            while not await sent.acknowledged(self._check_partitions_s):
                if len(await producer.partitions_for(self.topic)) < count:
                    raise UnknownTopicOrPartitionError(f"{self.topic} was created again with fewer partitions")
        except asyncio.CancelledError:
            self._settling.add(settling := asyncio.create_task(self._settle(producer, sent)))
            settling.add_done_callback(self._settling.discard)
            raise

    async def _settle(self, producer: AIOKafkaProducer, sent: SentBatches) -> None:
        """Let a producer write what a cancelled write has handed to it; replace it after 2 s, or when that fails."""
        with suppress(*KAFKA_ERRORS):
            if await sent.acknowledged(self._settle_s):
                return
        await self._drop(producer)

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                await self._prepare()
                max_message_bytes = self._cluster.max_message_bytes(self.topic)
                producer = self._new_producer(
                    **self._options,
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=min(MAX_BATCH_BYTES, max_message_bytes),
                    max_request_size=max_message_bytes,
                    compression_type=self.compression,
                    metadata_max_age_ms=METADATA_MS,
                )
                try:
                    await producer.start()
                except BaseException:
                    await close_producer(producer)
                    raise
                self._producer = producer
            return self._producer

    async def _drop(self, producer: AIOKafkaProducer | None) -> None:
        """Close a producer: of several writes that fail at once, the later ones find another one, or none."""
        if producer is not None and producer is self._producer:
            self._producer = None
            await close_producer(producer)


def batches_of(producer: AIOKafkaProducer, records: Sequence[Content]) -> Iterator[tuple[BatchBuilder, range]]:
    """Yield the batches of a partition's records, each with the range of its records."""
    batch, first = producer.create_batch(), 0
    for number, (key, value, headers) in enumerate(records):
        if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
            yield batch, range(first, number)
            batch, first = producer.create_batch(), number
            batch.append(timestamp=None, key=key, value=value, headers=headers)
    yield batch, range(first, len(records))


def _report(on_acknowledged: OnAcknowledged, partition: int, places: range, sending: "asyncio.Future[object]") -> None:
    if not sending.cancelled() and sending.exception() is None:
        on_acknowledged(partition, places)
