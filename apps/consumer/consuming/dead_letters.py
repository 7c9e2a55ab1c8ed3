"""Write dead letters: the record byte for byte, and the reason."""

from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from msgspec.structs import replace

from apps.chassis.internals.record_batches import MAX_HEADERS
from apps.chassis.kafka.clients import ClientOptions, size_of_batch
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.topic_writer import TopicWriter
from apps.consumer.consuming.containment import HandlerError
from apps.consumer.consuming.error_stacks import stack_text
from contracts.dead_letter import LETTER_FIELDS, OMITTED_BYTES, POISON, REFUSED, DeadLetter, describe, history
from contracts.record import Record


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
    """Writes to the dead-letter topic, through a producer of its own that is opened by the first bad record."""

    def __init__(
        self,
        options: ClientOptions,
        topic: str,
        cluster: Cluster,
        group: str,
        new_producer: Callable[..., AIOKafkaProducer] = AIOKafkaProducer,
    ) -> None:
        self.topic = topic
        self._cluster = cluster
        self._group = group
        self._writer = TopicWriter(options, topic, cluster, new_producer)
        self._written: set[Hashable] = set()
        self._topic_id: UUID | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the producer at the end."""
        async with self._writer.open():
            yield

    async def write(self, bad: Sequence[BadRecord]) -> None:
        """Write dead letters; return when all in-sync replicas have them.

        Each goes to the partition of the number it came from, so that their order there is kept. Raises what
        `TopicWriter` and `Cluster.topic_id` raise. Later attempts skip acknowledged letters, so that a letter that
        cannot be written adds no copies of the others, unless their topic was recreated. After the first letter that is
        too large they are compressed. Raises `MessageSizeTooLargeError` with the missing bytes when that is not enough.
        """
        if self._written or self._topic_id is None:
            await self._look_at_topic()
        unwritten: dict[int, list[BadRecord]] = {}
        for one in bad:
            if identity_of(one.record) not in self._written:
                unwritten.setdefault(one.record.partition, []).append(one)
        letters = {
            partition: [(one.key, one.value, one.all_headers()) for one in map(self._letter, some)]
            for partition, some in unwritten.items()
        }

        def on_acknowledged(partition: int, places: range) -> None:
            self._written.update(identity_of(unwritten[partition][place].record) for place in places)

        compression = self._writer.compression
        try:
            await self._writer.write_to(letters, on_acknowledged)
            self._written.difference_update(identity_of(one.record) for one in bad)
        except MessageSizeTooLargeError:
            if compression is not None:
                raise self._too_large(bad) from None
            self._writer.compression = "gzip"
            await self.write(bad)

    async def _look_at_topic(self) -> None:
        """Forget letters that were acknowledged by a topic that was deleted since."""
        topic_id = await self._cluster.topic_id(self.topic)
        if topic_id != self._topic_id:
            self._written.clear()
        self._topic_id = topic_id

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
        stack = stack_text(bad.error.stack) if isinstance(bad.error, HandlerError) else None
        letter = DeadLetter(
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
        if len(record.headers) > MAX_HEADERS - len(LETTER_FIELDS):  # with the letter's they are more than are read
            size = size_of_batch(record.key, record.value, letter.headers)
            letter = replace(letter, value=None, headers=((OMITTED_BYTES, b"%d" % size),))
        return replace(letter, stack=stack) if stack and self._fits(replace(letter, stack=stack)) else letter

    def _fits(self, letter: DeadLetter) -> bool:
        """Return whether the dead-letter topic takes a letter, even uncompressed."""
        size = size_of_batch(letter.key, letter.value, letter.all_headers())
        return size <= self._cluster.max_message_bytes(self.topic)


def identity_of(record: Record) -> Hashable:
    """Return the place and the content of a record: a recreated topic has other records at the same places."""
    return record.topic, record.partition, record.offset, record.timestamp, hash((record.key, record.value))
