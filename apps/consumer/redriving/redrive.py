"""Sends dead letters back to the topic that they came from, each once.

The records and the marks of the dead letters are written in one transaction. The transactional id is the group's: a
redrive fences an older one of another instance, also one that died in the middle
(https://cwiki.apache.org/confluence/display/KAFKA/KIP-98+-+Exactly+Once+Delivery+and+Transactional+Messaging).

Groups may share a dead-letter topic: each sends back its own letters. A record that is sent back names the group, so
that other groups pass over it (`redrive_addressing`). On a compacted topic it names none: there it replaces the
original, which other groups may not have consumed yet. A letter that names no group may be sent back by all of them;
for such letters they share a transactional id and marks.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple
from uuid import UUID

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, ProducerFenced

from apps.chassis.deadline import CALL_S, within
from apps.chassis.internals.transactions import close_producer, transaction
from apps.chassis.kafka.clients import ClientOptions, size_of_batch
from apps.chassis.kafka.cluster import Cluster, Unusable
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.search import size_of
from apps.chassis.observability.logs import one_line
from apps.consumer.redriving.marks import TOPIC_ID, Intervals, Marks, holds, merged, rest_of, without
from contracts.dead_letter import DeadLetter, Header, history, is_omitted, read, sent_back
from contracts.partitioning import partitions_of
from contracts.record import Record

log = logging.getLogger(__name__)

WORK_S = 6.5
"""Seconds from the call on after which the transaction of a redrive is aborted."""
LONG_ENOUGH_S = 5.0
"""Seconds from the call on in which a redrive begins transactions and looks for dead letters."""
TURN_S = 4.0
"""Seconds that a call waits for another redrive of this instance."""
TRANSACTION_S = 10.0
"""Seconds after which Kafka aborts an abandoned transaction."""
OTHERS_S = 2.0
"""Seconds that a redrive waits for the open transactions of other groups."""
SETTLING_S = 0.1
"""Seconds between two checks whether the transactions of other groups have ended."""
MOST_BYTES = 16 * 1024 * 1024
"""Bytes of keys and values that a transaction sends back, but for one record of each partition."""
PIECE = 256 * 1024
"""Bytes of keys and values that are read at a time."""
MOST_ROUNDS = 3
"""How often a dead letter is sent back before it is held: then only when it is asked for by itself."""


class Taken(Exception):
    """Another redrive is under way, or has started meanwhile; this one sent nothing back."""


class SentBefore(Exception):
    """The dead letter asked for was sent back before."""


class TooLarge(Exception):
    """Kafka refuses the size of a record; the message has the sizes. Nothing was sent back."""


class NoSuchLetter(Exception):
    """There is no such dead letter, or it is not of this service's topic."""


class OfAnotherGroup(Exception):
    """The requested dead letter is of another group, whose consumers send it back."""


class Unsafe(Exception):
    """Kafka may forget what was sent back, or has forgotten it; nothing was sent back. The message names the remedy."""


class Redriven(msgspec.Struct):
    """A dead letter that was sent back, by its place among the dead letters of its stream."""

    partition: int
    offset: int
    stream: str = ""


class Returned(NamedTuple):
    """The dead letters that were sent back, and whether there may be more that were not."""

    letters: list[Redriven]
    more: bool


class Redriver:
    """Sends back the dead letters of one topic and one group, one call at a time across all instances.

    A compacted topic next to the dead letters records which were sent back, with the id of the dead-letter topic: a
    recreated topic begins with none sent back.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a redrive
        self,
        options: ClientOptions,
        cluster: Cluster,
        dead: LogReader,
        marks_topic: str,
        topic: str,
        group: str,
        reader: Callable[..., LogReader] = LogReader,
    ) -> None:
        self._options = options
        self._cluster = cluster
        self._dead = dead
        self._topic = topic
        self._group = group
        self._marks = reader(options, marks_topic)
        self._uncommitted = reader(options, marks_topic, committed_only=False)
        self._lock = asyncio.Lock()
        self._passed: dict[tuple[str | None, int], Intervals] = {}
        self._passed_of: UUID | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self._marks.open(), self._uncommitted.open():
            yield

    async def marks(self) -> Marks:
        """Return which dead letters were sent back. Raises the errors of `LogReader`.

        Marks of an older topic of the same name are ignored.
        """
        (first, end), topic_id = await asyncio.gather(self._marks.offsets(1), self._cluster.topic_id(self._dead.topic))
        return await self._read_marks(first[0], end[0], topic_id)

    async def redrive(self, limit: int) -> Returned:
        """Send back the oldest `limit` dead letters that were not yet sent back and are not held; within 9 s.

        Memory is bounded, because some 16 MiB are sent at a time. After 5 s, or when something fails, it returns the
        letters that were sent back, and `more`. Without any of those it raises `Taken`, `TooLarge`, `Unsafe`, or
        `KafkaError`, `OSError` and `TimeoutError` when Kafka is out of reach. No transaction is committed then, except
        one whose commit Kafka did not confirm: its marks were committed with it.

        The group's own letters come first, then those that name no group.
        """
        return await within(CALL_S, self._redrive(limit))

    async def redrive_one(self, partition: int, offset: int) -> Returned:
        """Send back one dead letter, even a held one; within 9 s.

        Raises the errors of `redrive`, and `SentBefore`, `NoSuchLetter` or `OfAnotherGroup`.
        """
        return await within(CALL_S, self._redrive_one(partition, offset))

    def is_held(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter is held: it was sent back too often, or is too large for the topic.

        A letter without its record's value is never sent back.
        """
        _, _, rounds = history(letter.headers)
        return (
            rounds >= MOST_ROUNDS
            or is_omitted(letter)
            or size_sent_back(letter) > self._cluster.max_message_bytes(self._topic)
        )

    def is_ours(self, letter: DeadLetter) -> bool:
        """Return whether this service may send a dead letter back: it is of its topic, and of its group or of none."""
        return letter.topic == self._topic and owner_of(letter) in {self._group, None}

    async def _redrive(self, limit: int) -> Returned:
        late = asyncio.get_running_loop().time() + LONG_ENOUGH_S
        done: list[Redriven] = []
        try:
            async with self._turn():
                more = await self._redrive_of(self._group, limit, late, done)
                if not more and len(done) < limit:
                    waiting, more = await self._oldest(None, 1, await self.marks(), late)
                    more = await self._redrive_of(None, limit, late, done) if waiting else more
        except (KafkaError, OSError, TimeoutError, Taken, TooLarge, Unsafe) as error:
            if not done:
                raise
            log.warning("a redrive ended after %d dead letters: %s", len(done), one_line(error))
            more = True
        return Returned(done, more)

    async def _redrive_of(self, owner: str | None, limit: int, late: float, done: list[Redriven]) -> bool:
        """Send back letters of one owner, add them to `done`, and return whether there may be more."""
        more = True
        async with self._fenced(owner) as (producer, marks):
            while more and len(done) < limit and asyncio.get_running_loop().time() < late:
                chosen, more = await self._oldest(owner, limit - len(done), marks, late)
                await self._send_back(producer, owner, chosen, marks)
                done += map(_place_of, chosen)
        return more

    async def _redrive_one(self, partition: int, offset: int) -> Returned:
        async with self._turn():
            record = await self._find(partition, offset)
            owner = owner_of(letter_of(record))
            if owner not in {self._group, None}:
                raise OfAnotherGroup(f"dead letter {partition}/{offset} is of the group {owner}: ask its consumer")
            async with self._fenced(owner) as (producer, marks):
                if marks.holds(owner, partition, offset):
                    raise SentBefore(f"dead letter {partition}/{offset} was sent back before")
                await self._send_back(producer, owner, [record], marks)
        return Returned([_place_of(record)], more=False)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait up to 4 s for this instance's other redrives; end one that takes too long. Raises `Taken`, `Unsafe`."""
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(TURN_S):
                await self._lock.acquire()
        except TimeoutError:
            raise Taken("other redrives of this instance are under way: try again") from None
        try:
            async with asyncio.timeout_at(start + WORK_S):
                await self._check_marks_topic()
                yield
        finally:
            self._lock.release()

    async def _check_marks_topic(self) -> None:
        """Raise `Unsafe` when Kafka may delete marks: their letters would be sent back again."""
        try:
            deletions = await self._cluster.deletions(self._marks.topic)
        except Unusable as error:
            raise Unsafe(f"whether {self._marks.topic} keeps what was sent back is not known: {error}") from None
        if deletions:
            raise Unsafe(
                f"topic {self._marks.topic}: {'; '.join(map(str, deletions))}. Set cleanup.policy=compact on it, "
                "without delete, and try again"
            )

    @asynccontextmanager
    async def _fenced(self, owner: str | None) -> AsyncIterator[tuple[AIOKafkaProducer, Marks]]:
        """Fence all other redrives of the owner's letters; what was sent back is read after that, when it is final.

        Raises `Taken` or `Unsafe`.
        """
        try:
            async with self._producer(owner) as producer:
                yield producer, await self._settled_marks()
        except ProducerFenced:
            raise Taken("another redrive began meanwhile: try again") from None

    async def _settled_marks(self) -> Marks:
        """Return the marks once all are visible: an open transaction of another group hides those after it."""
        (first, _), (_, written), topic_id = await asyncio.gather(
            self._marks.offsets(1), self._uncommitted.offsets(1), self._cluster.topic_id(self._dead.topic)
        )
        waited_until = asyncio.get_running_loop().time() + OTHERS_S
        while (await self._marks.offsets(1))[1][0] < written[0]:
            if asyncio.get_running_loop().time() >= waited_until:
                raise Taken("a redrive of another group has not ended, and hides what was sent back: try again")
            await asyncio.sleep(SETTLING_S)
        if first[0]:
            raise Unsafe(
                f"topic {self._marks.topic}: what stood before offset {first[0]} was deleted, and with it which dead "
                "letters were sent back. Delete the topic to begin with none sent back; it is created again"
            )
        marks = await self._read_marks(0, written[0], topic_id)
        if marks.unreadable:
            raise Unsafe(f"which dead letters were sent back is not known: {marks.unreadable}")
        return marks

    async def _read_marks(self, first: int, end: int, topic_id: UUID | None) -> Marks:
        if topic_id is None or topic_id != self._passed_of:
            self._passed.clear()
        self._passed_of = topic_id
        marks = Marks([(TOPIC_ID, str(topic_id).encode())] if topic_id else [])
        async for records in self._marks.read({0: (first, end)}):
            for record in records:
                marks.read(record)
        return marks

    async def _send_back(
        self, producer: AIOKafkaProducer, owner: str | None, chosen: Sequence[Record], marks: Marks
    ) -> None:
        """Write records and marks, which are added to `marks`, in one transaction."""
        if not chosen:
            return
        for partition in {record.partition for record in chosen}:
            offsets = [(record.offset, record.offset + 1) for record in chosen if record.partition == partition]
            marks.add(owner, partition, [*self._passed.get((owner, partition), []), *offsets])
        written = {partition: marks.to_write(owner, partition) for partition in {r.partition for r in chosen}}
        self._check_size(written, marks)
        sent: list[asyncio.Future[object]] = []
        try:
            async with transaction(producer):
                for record in chosen:
                    letter = letter_of(record)
                    batch = producer.create_batch()  # `send` takes no record that has neither key nor value
                    batch.append(timestamp=None, key=letter.key, value=letter.value, headers=self._headers_of(letter))
                    partition = self._partition_for(letter, record)
                    sent.append(await producer.send_batch(batch, self._topic, partition=partition))
                for key, value in written.values():
                    mark = producer.send(self._marks.topic, value, key=key, partition=0, headers=marks.headers)
                    sent.append(await mark)
                await asyncio.gather(*sent)
        except MessageSizeTooLargeError:
            needed = max(size_sent_back(letter_of(record)) for record in chosen)
            allowed = self._cluster.max_message_bytes(self._topic)
            raise TooLarge(
                f"with the headers that count its tries it has {needed} bytes; {self._topic} takes {allowed} "
                "(max.message.bytes)"
            ) from None
        finally:
            await asyncio.gather(*sent, return_exceptions=True)  # or each would complain that nobody looked

    def _check_size(self, written: dict[int, tuple[bytes, bytes]], marks: Marks) -> None:
        """Raise `TooLarge` when the marks topic does not accept a mark: held letters leave gaps in it."""
        allowed = self._cluster.max_message_bytes(self._marks.topic)
        for partition, (key, value) in written.items():
            if (needed := size_of_batch(key, value, marks.headers)) > allowed:
                raise TooLarge(
                    f"what was sent back of partition {partition} is too scattered to be marked: that takes {needed} "
                    f"bytes, and {self._marks.topic} takes {allowed} (max.message.bytes). Raise it, or send back the "
                    "oldest letters that are held, one by one"
                )

    def _headers_of(self, letter: DeadLetter) -> list[Header]:
        """Return the headers to send a letter back with; they name its group where the original stays for others."""
        return sent_back(letter, for_all_groups=self._cluster.may_be_compacted(self._topic))

    def _partition_for(self, letter: DeadLetter, record: Record) -> int:
        """Return the partition to send a letter back to: its own, or that of its key if its own does not exist."""
        count = self._cluster.partition_count(self._topic)
        if letter.partition is not None and letter.partition < count:
            return letter.partition
        if letter.key is not None:
            return partitions_of([letter.key], count)[0]
        return (record.partition if letter.partition is None else letter.partition) % count

    async def _oldest(self, owner: str | None, limit: int, marks: Marks, late: float) -> tuple[list[Record], bool]:
        """Return the oldest that go back, so many and about so large at most, and whether there may be more."""
        first, end = await self._dead.offsets(self._cluster.partition_count(self._dead.topic))
        columns = []
        for partition, begin in first.items():
            column = _Column(owner, partition, marks.of(owner, partition), limit, late)
            columns.append(await self._read_column(column, (begin, end[partition])))
        return oldest(columns, limit)

    async def _read_column(self, column: "_Column", span: tuple[int, int]) -> tuple[list[Record], bool]:
        """Return the first that go back of a partition, and whether there may be more: its share is limited too."""
        found: list[Record] = []
        size, place = 0, (column.owner, column.partition)
        share = MOST_BYTES // self._cluster.partition_count(self._dead.topic)
        for start, stop in rest_of(merged([*column.marked, *self._passed.get(place, [])]), *span):
            at = start
            while at < stop:
                if asyncio.get_running_loop().time() >= column.late:
                    return found, True
                records, reached = await self._dead.some({column.partition: (at, stop)}, PIECE)
                own = [record for record in records if owner_of(letter_of(record)) == column.owner]
                for record in own:
                    if holds(column.marked, record.offset) or not self._goes_back(letter_of(record)):
                        continue
                    if len(found) == column.limit or (found and size + size_of(record) > share):
                        return found, True
                    found.append(record)
                    size += size_of(record)
                others = without(at, reached[column.partition], (record.offset for record in own))
                self._passed[place] = merged([*self._passed.get(place, []), *others])
                at = reached[column.partition]
        return found, False

    def _goes_back(self, letter: DeadLetter) -> bool:
        return letter.topic == self._topic and not self.is_held(letter)

    async def _find(self, partition: int, offset: int) -> Record:
        first, end = await self._dead.offsets(self._cluster.partition_count(self._dead.topic))
        records: list[Record] = []
        if partition in end and first[partition] <= offset < end[partition]:
            records = [record async for some in self._dead.read({partition: (offset, offset + 1)}) for record in some]
        if not records:
            raise NoSuchLetter(f"there is no dead letter {partition}/{offset}")
        letter = letter_of(records[0])
        topic = letter.topic
        if topic != self._topic:
            known = "does not say which topic it came from" if topic is None else f"came from {topic}"
            raise NoSuchLetter(f"dead letter {partition}/{offset} {known}: only those of {self._topic} are sent back")
        if is_omitted(letter):
            raise TooLarge(
                f"its record was too large to be read, and is not in the dead letter: it stays on {letter.topic}, "
                f"partition {letter.partition}, offset {letter.offset}, until its retention ends"
            )
        return records[0]

    @asynccontextmanager
    async def _producer(self, owner: str | None) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(
            **self._options,
            transactional_id=f"{self._dead.topic if owner is None else owner}-redrive",
            transaction_timeout_ms=int(TRANSACTION_S * 1_000),
            max_request_size=max(map(self._cluster.max_message_bytes, (self._dead.topic, self._marks.topic))),
        )
        try:
            await producer.start()
            yield producer
        finally:
            await close_producer(producer)


class _Column(NamedTuple):
    """What to look for in a partition of the dead letters: an owner's letters that are not marked.

    At most `limit` of them, until it is `late` (event loop time).
    """

    owner: str | None
    partition: int
    marked: Intervals
    limit: int
    late: float


def letter_of(record: Record) -> DeadLetter:
    """Return the dead letter in a record."""
    return read(record.key, record.value, record.headers)


def owner_of(letter: DeadLetter) -> str | None:
    """Return the group that owns a letter, None when it names none."""
    return letter.group or None


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
    horizon = min(
        (max((r.timestamp for r in records), default=-math.inf) for records, cut_short in columns if cut_short),
        default=math.inf,
    )
    chosen = sorted((one for one in aged if one[0] <= horizon), key=itemgetter(0))[:limit]
    more = len(chosen) < len(aged) or any(cut_short for _, cut_short in columns)
    return [record for _, record in chosen], more


def _place_of(record: Record) -> Redriven:
    return Redriven(record.partition, record.offset)
