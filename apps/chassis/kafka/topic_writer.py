"""Write records to a topic, keyed, through an idempotent producer of its own, and wait until all replicas have them."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from apps.chassis.kafka.clients import METADATA_MS, ClientOptions
from apps.chassis.kafka.cluster import Cluster
from contracts.partitioning import partitions_of

ACK_TIMEOUT_S = 15.0
"""Seconds for Kafka to acknowledge records; later it is unknown whether they are written."""
CLOSE_TIMEOUT_S = 2.0
"""Seconds for a producer to close."""
MAX_BATCH_BYTES = 512 * 1024
"""Bytes of a batch; less where the topic takes less."""

Header = tuple[str, bytes | None]


class TopicWriter:
    """Writes to one topic; the first write creates the topic if it is missing."""

    def __init__(
        self,
        options: ClientOptions,
        topic: str,
        cluster: Cluster,
        new_producer: Callable[..., AIOKafkaProducer] = AIOKafkaProducer,
        *,
        ack_timeout_s: float = ACK_TIMEOUT_S,
    ) -> None:
        self.topic = topic
        self._options = options
        self._cluster = cluster
        self._new_producer = new_producer
        self._ack_timeout_s = ack_timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close its connections at the end; the first write opens them."""
        async with self._cluster.open():
            try:
                yield
            finally:
                await self._drop(self._producer)

    async def write(self, keys: Sequence[bytes], values: Sequence[bytes], headers: Sequence[Header] = ()) -> None:
        """Write records with the same headers; return when all in-sync replicas have them.

        Records of one key keep their order. Raises `Unusable`, `KafkaError`, `OSError` or, after 15 s, `TimeoutError`:
        some of the records may be written then.
        """
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                producer = await self._connected()
                await self._write(producer, keys, values, headers)
        except BaseException:
            # a refused or abandoned batch leaves a gap in the producer's sequence numbers: it cannot be used again
            await self._drop(producer)
            raise

    async def _write(
        self, producer: AIOKafkaProducer, keys: Sequence[bytes], values: Sequence[bytes], headers: Sequence[Header]
    ) -> None:
        by_partition: defaultdict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        partitions = partitions_of(keys, len(await producer.partitions_for(self.topic)))
        for partition, key, value in zip(partitions, keys, values, strict=True):
            by_partition[partition].append((key, value))
        sent: list[asyncio.Future[object]] = []
        for partition, records in by_partition.items():
            batch = producer.create_batch()
            for key, value in records:
                if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                    sent.append(await producer.send_batch(batch, self.topic, partition=partition))
                    batch = producer.create_batch()
                    batch.append(timestamp=None, key=key, value=value, headers=headers)
            sent.append(await producer.send_batch(batch, self.topic, partition=partition))
        await asyncio.gather(*sent)

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                await self._cluster.ensure_topics()
                max_message_bytes = self._cluster.max_message_bytes(self.topic)
                producer = self._new_producer(
                    **self._options,
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=min(MAX_BATCH_BYTES, max_message_bytes),
                    max_request_size=max_message_bytes,
                    metadata_max_age_ms=METADATA_MS,
                )
                try:
                    await producer.start()
                except BaseException:
                    await _stop(producer)
                    raise
                self._producer = producer
            return self._producer

    async def _drop(self, producer: AIOKafkaProducer | None) -> None:
        """Close a producer: of several writes that fail at once, the later ones find another one, or none."""
        if producer is not None and producer is self._producer:
            self._producer = None
            await _stop(producer)


async def _stop(producer: AIOKafkaProducer) -> None:
    with suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.stop()
