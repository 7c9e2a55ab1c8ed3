"""Sends dead letters back to the topic that they came from, each once.

The records and the marks that say which dead letters they were are written in one transaction. The transactional id is
the group's: a redrive that begins fences one that was begun by another copy of the service, or died in the middle
(https://cwiki.apache.org/confluence/display/KAFKA/KIP-98+-+Exactly+Once+Delivery+and+Transactional+Messaging).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerFenced

from apps.chassis.cluster import Cluster
from apps.chassis.kafka import ClientOptions
from apps.consumer.log_reader import LogReader
from apps.consumer.window import Record
from contracts.dead_letter import DeadLetter, history, read, sent_back

DEADLINE = 10.0
"""Seconds for a redrive, and for Kafka to end a transaction that nobody ends."""
MOST_ROUNDS = 3
"""How often a dead letter is sent back before it is held: then only when it is asked for by itself."""

Intervals = list[tuple[int, int]]
"""Offsets, as ascending ranges from one up to another (not with it)."""

decode_intervals = msgspec.json.Decoder(Intervals).decode


class Taken(Exception):
    """Another redrive of the group began meanwhile; nothing was sent back by this one."""


class SentBefore(Exception):
    """The dead letter asked for was sent back before."""


class NoSuchLetter(Exception):
    """There is no such dead letter."""


class Redriven(msgspec.Struct):
    """A dead letter that was sent back, by its place among the dead letters."""

    partition: int
    offset: int


class Redriver:
    """Sends dead letters of one topic back. One call at a time, of all copies of the service.

    Which were sent back stands in a compacted topic beside that of the dead letters, a record a partition.
    """

    def __init__(self, options: ClientOptions, cluster: Cluster, dead: LogReader, topic: str, group: str) -> None:
        self._options = options
        self._cluster = cluster
        self._dead = dead
        self._topic = topic
        self._marks = LogReader(options, marks_topic(dead.topic))
        self._transactional_id = f"{group}-redrive"
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self._marks.open():
            yield

    async def marks(self) -> dict[int, Intervals]:
        """Return which dead letters were sent back, by partition. Raises as `LogReader` does."""
        first, end = await self._marks.offsets(1)
        marks: dict[int, Intervals] = {}
        async for records in self._marks.read({0: (first[0], end[0])}):
            for record in records:
                marks[int(record.key or b"")] = decode_intervals(record.value or b"[]")
        return marks

    async def redrive(self, limit: int) -> list[Redriven]:
        """Send back the oldest `limit` dead letters that were not, and are not held; within 10 s.

        Raises `Taken`, or `KafkaError`, `OSError` and `TimeoutError` when Kafka is out of reach: then the transaction
        is not committed, and nothing of it is ever read.
        """
        return await self._redrive(lambda marks: self._oldest(limit, marks))

    async def redrive_one(self, partition: int, offset: int) -> list[Redriven]:
        """Send back one dead letter, also one that is held. Raises as `redrive`, and `SentBefore` or `NoSuchLetter`."""
        return await self._redrive(lambda marks: self._one(partition, offset, marks))

    async def _redrive(self, choose: Callable[[dict[int, Intervals]], AsyncIterator[Record]]) -> list[Redriven]:
        async with self._lock, asyncio.timeout(DEADLINE), self._producer() as producer:
            try:
                marks = await self.marks()  # after the fencing: whoever was before us changes them no more
                chosen = [record async for record in choose(marks)]
                if chosen:
                    await self._send_back(producer, chosen, marks)
            except ProducerFenced:
                raise Taken("another redrive of this group began meanwhile") from None
        return [Redriven(record.partition, record.offset) for record in chosen]

    async def _send_back(
        self, producer: AIOKafkaProducer, chosen: Sequence[Record], marks: dict[int, Intervals]
    ) -> None:
        sent: list[asyncio.Future[object]] = []
        try:
            async with producer.transaction():
                for record in chosen:
                    letter = read(record.key, record.value, record.headers)
                    batch = producer.create_batch()  # `send` takes no record that has neither key nor value
                    batch.append(timestamp=None, key=letter.key, value=letter.value, headers=sent_back(letter))
                    partition = letter.partition % self._cluster.partitions[self._topic]
                    sent.append(await producer.send_batch(batch, self._topic, partition=partition))
                    marks[record.partition] = with_offset(marks.get(record.partition, []), record.offset)
                for partition in {record.partition for record in chosen}:
                    value = msgspec.json.encode(marks[partition])
                    sent.append(await producer.send(self._marks.topic, value, key=b"%d" % partition, partition=0))
                await asyncio.gather(*sent)
        finally:
            await asyncio.gather(*sent, return_exceptions=True)  # or each would complain that nobody looked

    async def _oldest(self, limit: int, marks: dict[int, Intervals]) -> AsyncIterator[Record]:
        first, end = await self._dead.offsets(self._cluster.partitions[self._dead.topic])
        found: list[Record] = []
        for partition, begin in first.items():
            sent_before = marks.get(partition, [])
            of_partition: list[Record] = []
            async with aclosing(
                self._dead.read({partition: (start_of_rest(sent_before, begin), end[partition])})
            ) as log:
                async for records in log:
                    of_partition += [
                        record
                        for record in records
                        if not holds(sent_before, record.offset) and self._goes_back(record)
                    ]
                    if len(of_partition) >= limit:
                        break
            found += of_partition[:limit]
        for record in sorted(found, key=lambda record: record.timestamp)[:limit]:
            yield record

    def _goes_back(self, record: Record) -> bool:
        letter = letter_of(record)
        return letter is not None and letter.topic == self._topic and not is_held(letter)

    async def _one(self, partition: int, offset: int, marks: dict[int, Intervals]) -> AsyncIterator[Record]:
        if holds(marks.get(partition, []), offset):
            raise SentBefore(f"dead letter {partition}/{offset} was sent back before")
        first, end = await self._dead.offsets(self._cluster.partitions[self._dead.topic])
        records: list[Record] = []
        if partition in end and first[partition] <= offset < end[partition]:
            records = [record async for some in self._dead.read({partition: (offset, offset + 1)}) for record in some]
        letter = letter_of(records[0]) if records else None
        if letter is None or letter.topic != self._topic:
            raise NoSuchLetter(f"there is no dead letter {partition}/{offset} of {self._topic}")
        yield records[0]

    @asynccontextmanager
    async def _producer(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(
            **self._options,
            transactional_id=self._transactional_id,
            transaction_timeout_ms=int(DEADLINE * 1_000),
            max_request_size=self._cluster.max_message_bytes(self._dead.topic),
        )
        try:
            await producer.start()
            yield producer
        finally:
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await producer.stop()


def letter_of(record: Record) -> DeadLetter | None:
    """Return the dead letter that a record is, or None."""
    try:
        return read(record.key, record.value, record.headers)
    except ValueError:
        return None


def is_held(letter: DeadLetter) -> bool:
    """Tell whether a dead letter was sent back so often that it is not again by itself."""
    _, _, rounds = history(letter.headers)
    return rounds >= MOST_ROUNDS


def marks_topic(dead_letter_topic: str) -> str:
    """Return the name of the topic that says which dead letters were sent back."""
    return f"{dead_letter_topic}-redriven"


def holds(intervals: Intervals, offset: int) -> bool:
    """Tell whether an offset is in the intervals."""
    return any(start <= offset < stop for start, stop in intervals)


def start_of_rest(intervals: Intervals, first: int) -> int:
    """Return the first offset, from `first` on, that is not in the intervals."""
    return next((stop for start, stop in intervals if start <= first < stop), first)


def with_offset(intervals: Intervals, offset: int) -> Intervals:
    """Return the intervals with one offset more."""
    merged: Intervals = []
    for start, stop in sorted([*intervals, (offset, offset + 1)]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
