"""Write dead letters: the record byte for byte, and the reason."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder

from apps.chassis.kafka.clients import ClientOptions, size_of_batch
from apps.chassis.kafka.cluster import Cluster
from contracts.dead_letter import POISON, REFUSED, DeadLetter, describe, history
from contracts.record import Record

log = logging.getLogger(__name__)

DEADLINE = 15.0
"""Seconds for Kafka to acknowledge dead letters; then the batch that they came from is consumed again."""
LARGEST_BATCH = 1024 * 1024
"""Bytes of a batch of dead letters; one larger than that travels alone."""


class BadRecord(NamedTuple):
    """A record that cannot be consumed, why, and how often that was tried.

    Poison failed in the handler; the others were refused, by the decoder or the handler. `position` is where poison
    counts towards an outage, see `Finding`.
    """

    record: Record
    error: BaseException
    tries: int
    is_poison: bool = False
    position: int | None = None


class DeadLetters:
    """Writes to the dead-letter topic, through a producer of its own that is opened by the first bad record.

    FastStream's publishing cannot be used: it rewrites null and binary headers and drops those of batches.
    """

    def __init__(
        self,
        options: ClientOptions,
        topic: str,
        cluster: Cluster,
        group: str,
        new_producer: Callable[..., AIOKafkaProducer] = AIOKafkaProducer,
    ) -> None:
        self._new_producer = new_producer
        self.topic = topic
        self._options = options
        self._cluster = cluster
        self._group = group
        self._producer: AIOKafkaProducer | None = None
        self._compression: str | None = None
        self._written: set[Hashable] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the producer at the end."""
        try:
            yield
        finally:
            await self._drop_producer()

    async def write(self, bad: Sequence[BadRecord]) -> None:
        """Write dead letters; return when all in-sync replicas have them.

        Each goes to the partition of the number it came from, so that their order there is kept. Raises what Kafka
        answers, or `TimeoutError` after 15 s. Later attempts skip acknowledged letters, so that a letter that cannot be
        written adds no copies of the others. After the first letter that is too large they are compressed. Raises
        `MessageSizeTooLargeError` with the missing bytes when that is not enough.
        """
        try:
            async with asyncio.timeout(DEADLINE):
                await self._write([one for one in bad if _identity_of(one) not in self._written])
            self._written.clear()
        except MessageSizeTooLargeError:
            await self._drop_producer()
            if self._compression is not None:
                raise self._too_large(bad) from None
            self._compression = "gzip"
            await self.write(bad)
        except BaseException:
            # a refused or abandoned batch leaves a gap in the producer's sequence numbers: it cannot be used again
            await self._drop_producer()
            raise

    async def _write(self, bad: Sequence[BadRecord]) -> None:
        producer = await self._connected()
        sent: list[asyncio.Future[object]] = []

        async def send(batch: BatchBuilder, partition: int, letters: Sequence[BadRecord]) -> None:
            sending = await producer.send_batch(batch, self.topic, partition=partition)
            sending.add_done_callback(partial(self._acknowledged, letters))
            sent.append(sending)

        by_partition: dict[int, list[BadRecord]] = {}
        for one in bad:
            by_partition.setdefault(one.record.partition % self._cluster.partitions[self.topic], []).append(one)
        for partition, letters in by_partition.items():
            batch, first = producer.create_batch(), 0
            for number, letter in enumerate(letters):
                key, value, headers = letter.record.key, letter.record.value, self._letter(letter).all_headers()
                if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                    await send(batch, partition, letters[first:number])
                    batch, first = producer.create_batch(), number
                    batch.append(timestamp=None, key=key, value=value, headers=headers)
            await send(batch, partition, letters[first:])
        await asyncio.gather(*sent)

    def _acknowledged(self, letters: Sequence[BadRecord], sending: asyncio.Future[object]) -> None:
        if not sending.cancelled() and sending.exception() is None:
            self._written.update(map(_identity_of, letters))

    def _too_large(self, bad: Sequence[BadRecord]) -> MessageSizeTooLargeError:
        sizes = {size_of_batch(one.record.key, one.record.value, self._letter(one).all_headers()): one for one in bad}
        needed, record = max(sizes), sizes[max(sizes)].record
        allowed = self._cluster.max_message_bytes(self.topic)
        return MessageSizeTooLargeError(
            f"the dead letter of {record.topic}-{record.partition} offset {record.offset} has {needed} bytes, and "
            f"{self.topic} takes {allowed} (max.message.bytes)"
        )

    def _letter(self, bad: BadRecord) -> DeadLetter:
        record = bad.record
        error_type, error = describe(bad.error)
        _, tries_before, _ = history(record.headers)
        return DeadLetter(
            key=record.key,
            value=record.value,
            headers=tuple(record.headers),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp=record.timestamp,
            group=self._group,
            error_type=error_type,
            error=error,
            tries=tries_before + bad.tries,
            verdict=POISON if bad.is_poison else REFUSED,
        )

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = self._new_producer(
                **self._options,
                acks="all",
                enable_idempotence=True,
                max_batch_size=min(LARGEST_BATCH, self._cluster.max_message_bytes(self.topic)),
                compression_type=self._compression,
                max_request_size=self._cluster.max_message_bytes(self.topic),
            )
            await self._producer.start()
        return self._producer

    async def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await producer.stop()


def _identity_of(bad: BadRecord) -> Hashable:
    """Return the place and the content of a record: a recreated topic has other records at the same places."""
    record = bad.record
    return record.topic, record.partition, record.offset, record.timestamp, hash((record.key, record.value))
