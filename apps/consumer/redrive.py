"""Sends dead letters back to the topic that they came from, each once.

The records and the marks that say which dead letters they were are written in one transaction. The transactional id is
the group's: a redrive that begins fences one that was begun by another copy of the service, or died in the middle
(https://cwiki.apache.org/confluence/display/KAFKA/KIP-98+-+Exactly+Once+Delivery+and+Transactional+Messaging).
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, ProducerFenced

from apps.chassis.cluster import Cluster
from apps.chassis.kafka import ClientOptions, size_of_batch
from apps.chassis.logs import one_line
from apps.consumer.log_reader import LogReader
from apps.consumer.search import size_of
from apps.consumer.window import Record
from contracts.dead_letter import DeadLetter, history, is_omitted, read, sent_back

log = logging.getLogger(__name__)

DEADLINE = 10.0
"""Seconds for a redrive, and for Kafka to end a transaction that nobody ends."""
LONG_ENOUGH = 5.0
"""Seconds after which a redrive begins no more transactions."""
MOST_BYTES = 16 * 1024 * 1024
"""Bytes of keys and values that a transaction sends back, but for one record of each partition."""
PIECE = 256 * 1024
"""Bytes of keys and values that are read at a time."""
MOST_ROUNDS = 3
"""How often a dead letter is sent back before it is held: then only when it is asked for by itself."""

TOPIC_ID = "dead-letter-topic-id"
"""The header of a mark that says which topic it is of: a name may be given again."""

Intervals = list[tuple[int, int]]
"""Offsets, as ascending ranges from one up to another (not with it)."""

decode_intervals = msgspec.json.Decoder(Intervals).decode


class Taken(Exception):
    """Another redrive of the group began meanwhile; nothing was sent back by this one."""


class SentBefore(Exception):
    """The dead letter asked for was sent back before."""


class TooLarge(Exception):
    """The topic does not take what is to be sent back; the message tells the sizes. Nothing was sent back."""


class NoSuchLetter(Exception):
    """There is no such dead letter."""


class Redriven(msgspec.Struct):
    """A dead letter that was sent back, by its place among the dead letters."""

    partition: int
    offset: int


class Returned(NamedTuple):
    """The dead letters that were sent back, and whether there may be more that were not."""

    letters: list[Redriven]
    more: bool


class Marks(NamedTuple):
    """Which dead letters were sent back, by partition; `headers` tell of which topic, where Kafka tells its id."""

    headers: Sequence[tuple[str, bytes]]
    intervals: dict[int, Intervals]

    def of(self, partition: int) -> Intervals:
        """Return the offsets in a partition."""
        return self.intervals.get(partition, [])

    def add(self, record: Record) -> None:
        """Mark one more."""
        self.intervals[record.partition] = with_offset(self.of(record.partition), record.offset)


class Redriver:
    """Sends dead letters of one topic back. One call at a time, of all copies of the service.

    Which were sent back stands in a compacted topic beside that of the dead letters, a record a partition, with the id
    of the dead letters' topic: one that is made anew begins with none sent back.
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
        """Return which dead letters were sent back, by partition; within 10 s. Raises as `LogReader` does.

        What was marked of a topic that had the name before counts no more.
        """
        async with asyncio.timeout(DEADLINE):
            return (await self._read_marks()).intervals

    async def redrive(self, limit: int) -> Returned:
        """Send back the oldest `limit` dead letters that were not, and are not held; within 10 s.

        It is done some 16 MiB at a time, so that memory is bounded, and for 5 s: then, or when something fails, it ends
        with those that are back already, and `more` tells. Where there are none of those it raises `Taken`, `TooLarge`,
        or `KafkaError`, `OSError` and `TimeoutError` when Kafka is out of reach: then no transaction is committed, and
        nothing of it is ever read.
        """
        done: list[Redriven] = []
        more = True
        late = asyncio.get_running_loop().time() + LONG_ENOUGH
        try:
            async with self._fenced() as (producer, marks):
                while more and len(done) < limit and asyncio.get_running_loop().time() < late:
                    chosen, more = await self._oldest(limit - len(done), marks)
                    await self._send_back(producer, chosen, marks)
                    done += map(_place_of, chosen)
        except (KafkaError, OSError, TimeoutError, Taken, TooLarge) as error:
            if not done:
                raise
            log.warning("a redrive ended after %d dead letters: %s", len(done), one_line(error))
            more = True
        return Returned(done, more)

    async def redrive_one(self, partition: int, offset: int) -> Returned:
        """Send back one dead letter, also one that is held. Raises as `redrive`, and `SentBefore` or `NoSuchLetter`."""
        async with self._fenced() as (producer, marks):
            letter = await self._one(partition, offset, marks)
            await self._send_back(producer, [letter], marks)
        return Returned([_place_of(letter)], more=False)

    def is_held(self, letter: DeadLetter) -> bool:
        """Tell whether a dead letter is not sent back by itself: it was so often, or the topic does not take it.

        One without the value that its record has never is.
        """
        _, _, rounds = history(letter.headers)
        return (
            rounds >= MOST_ROUNDS
            or is_omitted(letter)
            or size_sent_back(letter) > self._cluster.max_message_bytes(self._topic)
        )

    @asynccontextmanager
    async def _fenced(self) -> AsyncIterator[tuple[AIOKafkaProducer, Marks]]:
        """Let no other redrive of the group go on; what was sent back is read then, for it changes no more."""
        try:
            async with self._lock, asyncio.timeout(DEADLINE), self._producer() as producer:
                yield producer, await self._read_marks()
        except ProducerFenced:
            raise Taken("another redrive of this group began meanwhile") from None

    async def _read_marks(self) -> Marks:
        (first, end), topic_id = await asyncio.gather(self._marks.offsets(1), self._dead.topic_id())
        marks = Marks([(TOPIC_ID, str(topic_id).encode())] if topic_id else [], {})
        async for records in self._marks.read({0: (first[0], end[0])}):
            for record in records:
                told = [header for header in record.headers if header[0] == TOPIC_ID]
                if not told or told == marks.headers:
                    marks.intervals[int(record.key or b"")] = decode_intervals(record.value or b"[]")
        return marks

    async def _send_back(self, producer: AIOKafkaProducer, chosen: Sequence[Record], marks: Marks) -> None:
        """Write records and marks, which are added to `marks`, in one transaction."""
        if not chosen:
            return
        sent: list[asyncio.Future[object]] = []
        try:
            async with producer.transaction():
                for record in chosen:
                    letter = read(record.key, record.value, record.headers)
                    batch = producer.create_batch()  # `send` takes no record that has neither key nor value
                    batch.append(timestamp=None, key=letter.key, value=letter.value, headers=sent_back(letter))
                    partition = letter.partition % self._cluster.partitions[self._topic]
                    sent.append(await producer.send_batch(batch, self._topic, partition=partition))
                    marks.add(record)
                for partition in {record.partition for record in chosen}:
                    key, value = b"%d" % partition, msgspec.json.encode(marks.of(partition))
                    mark = producer.send(self._marks.topic, value, key=key, partition=0, headers=marks.headers)
                    sent.append(await mark)
                await asyncio.gather(*sent)
        except MessageSizeTooLargeError:
            needed = max(size_sent_back(read(record.key, record.value, record.headers)) for record in chosen)
            allowed = self._cluster.max_message_bytes(self._topic)
            raise TooLarge(
                f"with the headers that count its tries it has {needed} bytes; {self._topic} takes {allowed} "
                "(max.message.bytes)"
            ) from None
        finally:
            await asyncio.gather(*sent, return_exceptions=True)  # or each would complain that nobody looked

    async def _oldest(self, limit: int, marks: Marks) -> tuple[list[Record], bool]:
        """Return the oldest that go back, so many and about so large at most, and whether there may be more."""
        first, end = await self._dead.offsets(self._cluster.partitions[self._dead.topic])
        columns = []
        for partition, begin in first.items():
            start = start_of_rest(marks.of(partition), begin)
            columns.append(await self._column(partition, (start, end[partition]), limit, marks.of(partition)))
        return oldest(columns, limit)

    async def _column(
        self, partition: int, span: tuple[int, int], limit: int, sent_before: Intervals
    ) -> tuple[list[Record], bool]:
        """Return the first that go back of a partition, and whether there may be more: its share is limited too."""
        found: list[Record] = []
        size, (start, stop) = 0, span
        share = MOST_BYTES // self._cluster.partitions[self._dead.topic]
        while start < stop:
            records, reached = await self._dead.some({partition: (start, stop)}, PIECE)
            for record in records:
                if not holds(sent_before, record.offset) and self._goes_back(record):
                    if len(found) == limit or (found and size + size_of(record) > share):
                        return found, True
                    found.append(record)
                    size += size_of(record)
            start = reached[partition]
        return found, False

    def _goes_back(self, record: Record) -> bool:
        letter = letter_of(record)
        return letter is not None and letter.topic == self._topic and not self.is_held(letter)

    async def _one(self, partition: int, offset: int, marks: Marks) -> Record:
        if holds(marks.of(partition), offset):
            raise SentBefore(f"dead letter {partition}/{offset} was sent back before")
        first, end = await self._dead.offsets(self._cluster.partitions[self._dead.topic])
        records: list[Record] = []
        if partition in end and first[partition] <= offset < end[partition]:
            records = [record async for some in self._dead.read({partition: (offset, offset + 1)}) for record in some]
        letter = letter_of(records[0]) if records else None
        if letter is None or letter.topic != self._topic:
            raise NoSuchLetter(f"there is no dead letter {partition}/{offset} of {self._topic}")
        if is_omitted(letter):
            raise TooLarge(
                f"its record was too large to be read, and is not in the dead letter: it stays on {letter.topic}, "
                f"partition {letter.partition}, offset {letter.offset}, until its retention ends"
            )
        return records[0]

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


def size_sent_back(letter: DeadLetter) -> int:
    """Return the bytes of the batch in which a dead letter is sent back by itself."""
    return size_of_batch(letter.key, letter.value, sent_back(letter))


def oldest(columns: Sequence[tuple[Sequence[Record], bool]], limit: int) -> tuple[list[Record], bool]:
    """Merge records of partitions by age, each in the order of its offsets; return `limit`, and whether there are more.

    With the records of a partition comes whether it has more behind them: those may be older than what others have.
    """
    aged = [
        (time, record)
        for records, _ in columns
        for time, record in zip(accumulate((record.timestamp for record in records), max), records, strict=True)
    ]
    horizon = min((max(r.timestamp for r in records) for records, cut_short in columns if cut_short), default=math.inf)
    chosen = sorted((one for one in aged if one[0] <= horizon), key=itemgetter(0))[:limit]
    more = len(chosen) < len(aged) or any(cut_short for _, cut_short in columns)
    return [record for _, record in chosen], more


def _place_of(record: Record) -> Redriven:
    return Redriven(record.partition, record.offset)


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
