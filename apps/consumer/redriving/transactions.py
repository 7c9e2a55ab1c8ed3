"""Writes what an action does to dead letters in one transaction: the records to send back or to move, and the marks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from apps.chassis.internals.transactions import transaction
from apps.chassis.kafka.clients import size_in_gzip, size_of_batch
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.sent_batches import SentBatches
from apps.chassis.kafka.topic_writer import batches_of
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.letters import Letters, letter_of, offsets_of, size_sent_back
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.marks_topic import MarksTopic
from apps.consumer.redriving.refusals import DeletedMeanwhile, TooLarge
from contracts.dead_letter import DeadLetter, Header, redrive_headers, written_again
from contracts.partitioning import partitions_of
from contracts.record import Record, place_of

BY_KAFKA = 1
"""The type of a timestamp that Kafka set, and not who wrote the record."""


class SentTo(msgspec.Struct):
    """Where a record was sent back to on its topic."""

    partition: int
    offset: int


class MarkRecord(NamedTuple):
    """A record of the marks topic."""

    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]]


class Transactions:
    """Writes to the topic of a stream, and to the marks topic of its dead letters."""

    def __init__(
        self, cluster: Cluster, letters: Letters, topic: str, dead_topic: str, marks_topic: MarksTopic
    ) -> None:
        self._cluster = cluster
        self._letters = letters
        self._topic = topic
        self._dead_topic = dead_topic
        self._marks_topic = marks_topic

    async def commit(
        self, action: Action, producer: AIOKafkaProducer, owner: str | None, chosen: Sequence[Record], marks: Marks
    ) -> list[SentTo | None]:
        """Write the marks of an action, and apply it to `marks`; a redrive sends the records back with them.

        Return where each was sent back to. Raises `DeletedMeanwhile` when keys were deleted meanwhile: nothing is
        applied then.
        """
        if not chosen:
            return []
        letters = [letter_of(record) for record in chosen] if action is Action.REDRIVE else []
        # a copy of an aborted transaction stays behind the deletion, and clients that read uncommitted records see it
        await self._letters.check_deletions(letters)
        mark_records = await self._marks_to_write(action, owner, chosen, marks)
        sent, sendings = SentBatches(), []
        try:
            async with transaction(producer):
                for record, letter in zip(chosen, letters, strict=False):  # none of another action
                    batch = producer.create_batch()  # `send` takes no record that has neither key nor value
                    batch.append(timestamp=None, key=letter.key, value=letter.value, headers=self._headers_of(letter))
                    partition = self._partition_for(letter, record)
                    sendings.append(await producer.send_batch(batch, self._topic, partition=partition))
                    sent.add(sendings[-1])
                await self._write_marks(producer, mark_records, sent)
                # a deletion that comes later stands behind what was sent back
                await self._letters.check_deletions(letters)
        except DeletedMeanwhile:
            for partition, offsets in offsets_of(chosen).items():
                marks.apply(Action.RESTORE, owner, partition, offsets)
            raise
        except MessageSizeTooLargeError:
            needed = max(size_sent_back(letter_of(record)) for record in chosen)
            allowed = self._cluster.max_message_bytes(self._topic)
            raise TooLarge(
                f"with the headers that count its tries it has {needed} bytes; {self._topic} takes {allowed} "
                "(max.message.bytes)"
            ) from None
        written = (sending.result() for sending in sendings)
        return [SentTo(one.partition, one.offset) for one in written] or [None] * len(chosen)

    async def move(  # noqa: PLR0913, PLR0917 - what one transaction is about
        self,
        producer: AIOKafkaProducer,
        owner: str | None,
        partition: int,
        before: int,
        staying: Sequence[Record],
        marks: Marks,
    ) -> int | None:
        """Write letters again behind the last one, with their marks; all of their owner before an offset are purged.

        Return when Kafka wrote the marks (ms since 1970 UTC), by its own clock; None where their topic keeps the times
        of its writers. Raises `TooLarge` when Kafka refuses
        the size of one, with its place.
        """
        contents = [(record.key, record.value, self._headers_again(record)) for record in staying]
        sent, moved, acknowledgements = SentBatches(), dict[int, int](), []
        try:
            async with transaction(producer):
                for batch, places in batches_of(producer, contents) if contents else ():
                    sending = await producer.send_batch(batch, self._dead_topic, partition=partition)
                    sent.add(sending)
                    acknowledgements.append((sending, places))
                await sent.acknowledged()
                for sending, places in acknowledgements:
                    first = sending.result().offset
                    moved |= {staying[place].offset: first + number for number, place in enumerate(places)}
                changed = {partition: marks.purge(owner, partition, before, moved)}
                return await self._write_marks(producer, await self._dated(owner, changed, marks), sent)
        except MessageSizeTooLargeError:  # the topic's settings have changed meanwhile
            raise TooLarge(self.why_not_again(staying)) from None

    def fits_again(self, record: Record) -> bool:
        """Return whether Kafka takes a letter again, as far as the settings of its topic are known."""
        return self._fits(*_content_of(record))

    def why_not_again(self, letters: Iterable[Record]) -> str:
        """Return why the largest of some letters is not written again, and what to do."""
        needed, place = max((size_in_gzip(*_content_of(record)), place_of(record)) for record in letters)
        return (
            f"dead letter {place[0]}/{place[1]} is before one to purge, and cannot be written again: with gzip it has "
            f"{needed} bytes, and {self._dead_topic} takes {self._cluster.max_message_bytes(self._dead_topic)} "
            "(max.message.bytes). Raise that for the purge"
        )

    def _headers_again(self, record: Record) -> list[Header]:
        """Return the headers to write a letter again with; without its first time if it does not fit with that."""
        key, value, headers = _content_of(record)
        again = written_again(headers, record.timestamp)
        return again if self._fits(key, value, again) else headers

    def _fits(self, key: bytes | None, value: bytes | None, headers: list[Header]) -> bool:
        allowed = self._cluster.max_message_bytes(self._dead_topic)
        return any(size(key, value, headers) <= allowed for size in (size_of_batch, size_in_gzip))

    async def _write_marks(
        self, producer: AIOKafkaProducer, changed: Sequence[MarkRecord], sent: SentBatches
    ) -> int | None:
        """Write marks, and wait until Kafka has them and all that was `sent` before; return as `move` does."""
        for key, value, headers in changed:
            mark = await producer.send(self._marks_topic.name, value, key=key, partition=0, headers=headers)
            sent.add(mark)
        await sent.acknowledged()
        written = mark.result()
        return int(written.timestamp) if written.timestamp_type == BY_KAFKA else None

    async def _marks_to_write(
        self, action: Action, owner: str | None, chosen: Sequence[Record], marks: Marks
    ) -> list[MarkRecord]:
        """Apply an action to the marks; return the changed ones. Raises the errors of `_dated`."""
        done = offsets_of(chosen)
        others = await self._letters.others(marks.topic_id, owner, done)
        changed = {
            partition: marks.apply(action, owner, partition, offsets, others[partition])
            for partition, offsets in done.items()
        }
        return await self._dated(owner, changed, marks)

    async def _dated(
        self, owner: str | None, changed: Mapping[int, Sequence[tuple[bytes, bytes]]], marks: Marks
    ) -> list[MarkRecord]:
        """Return the records of an owner's changed marks, by partition.

        Raises `TooLarge` when the marks topic does not accept one, as letters that were left out leave gaps in it, or
        the errors of `LogReader`.
        """
        headers = await self._marks_topic.headers(marks, {one: marks.end(owner, one) for one in changed})
        written = []
        for partition, contents in changed.items():
            records = [MarkRecord(key, value, headers[partition]) for key, value in contents]
            self._check_size(partition, max(size_of_batch(*record) for record in records))
            written += records
        return written

    def _check_size(self, partition: int, needed: int) -> None:
        if needed > (allowed := self._cluster.max_message_bytes(self._marks_topic.name)):
            raise TooLarge(
                f"what was sent back or discarded of partition {partition} is too scattered to be marked: that takes "
                f"{needed} bytes, and {self._marks_topic.name} takes {allowed} (max.message.bytes). Raise it, or send "
                "back or discard the oldest letters, one by one"
            )

    def _headers_of(self, letter: DeadLetter) -> list[Header]:
        """Return the headers to send a letter back with; they name its group where the original stays for others."""
        return redrive_headers(letter, for_all_groups=self._cluster.may_be_compacted(self._topic))

    def _partition_for(self, letter: DeadLetter, record: Record) -> int:
        """Return the partition to send a letter back to: its own, or that of its key if its own does not exist."""
        count = self._cluster.partition_count(self._topic)
        if letter.partition is not None and letter.partition < count:
            return letter.partition
        if letter.key is not None:
            return partitions_of([letter.key], count)[0]
        return (record.partition if letter.partition is None else letter.partition) % count


def _content_of(record: Record) -> tuple[bytes | None, bytes | None, list[Header]]:
    return record.key, record.value, [*record.headers]
