"""Sends dead letters back to the topic that they came from, each once.

The records and the marks of the dead letters are written in one transaction. The transactional id is the group's: a
redrive fences an older one of another instance, also one that died in the middle
(https://cwiki.apache.org/confluence/display/KAFKA/KIP-98+-+Exactly+Once+Delivery+and+Transactional+Messaging).

Groups may share a dead-letter topic: each sends back its own letters. A record that is sent back names the group, so
that other groups skip it (`redrive_addressing`). On a compacted topic it names none: there it replaces the original,
which other groups may not have consumed yet. A letter that names no group may be sent back by all of them; for such
letters they share a transactional id and marks.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, ProducerFenced

from apps.chassis.deadline import CALL_S, within
from apps.chassis.internals.transactions import close_producer, transaction
from apps.chassis.kafka.clients import ClientOptions, size_of_batch
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.observability.logs import one_line
from apps.consumer.browsing.topic_search import Filter
from apps.consumer.redriving.letters import MAX_ROUNDS, Letters, Wanted, letter_of, owner_of, size_sent_back
from apps.consumer.redriving.marks import Intervals, Marks
from apps.consumer.redriving.marks_topic import MarksTopic
from apps.consumer.redriving.refusals import NoSuchLetter, RedriveNotNow, RedriveRefused, SentBefore, TooLarge
from contracts.dead_letter import DeadLetter, Header, is_omitted, redrive_headers
from contracts.partitioning import partitions_of
from contracts.record import Record

log = logging.getLogger(__name__)

TRANSACTION_S = 10.0
"""Seconds after which Kafka aborts an abandoned transaction."""
ALL = Filter()


class RedriveLimits(NamedTuple):
    """How long a redrive may take, in seconds from its call on, and how much a transaction sends back.

    It is answered after `call_s`. It waits `turn_s` for another redrive of this instance, begins transactions and looks
    for dead letters within `begin_within_s`, and aborts its transaction after `work_s`. A transaction has
    `transaction_bytes` of keys and values, but for one record of each partition.
    """

    call_s: float = CALL_S
    turn_s: float = 4.0
    begin_within_s: float = 5.0
    work_s: float = 6.5
    transaction_bytes: int = 16 * 1024 * 1024


class Redriven(msgspec.Struct):
    """A dead letter that was sent back, by its place among the dead letters of its stream."""

    partition: int
    offset: int
    stream: str = ""


class Returned(NamedTuple):
    """The dead letters that were sent back, and whether there may be more that were not."""

    letters: list[Redriven]
    more: bool


class Search(NamedTuple):
    """Which letters a redrive looks for: at most `limit` in all, `max_bytes` at a time, until it is `late`."""

    limit: int
    only: Filter
    max_bytes: int
    late: float

    def wanted(self, owner: str | None, marks: Marks, found: int) -> Wanted:
        """Return the letters of an owner that are wanted when some were found before."""
        return Wanted(owner, marks, self.limit - found, self.max_bytes, self.late, self.only)


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
        limits: RedriveLimits = RedriveLimits(),  # noqa: B008 - it is immutable
        max_rounds: int = MAX_ROUNDS,
    ) -> None:
        self._limits = limits
        self.letters = Letters(dead, cluster, topic, max_rounds)
        self._options = options
        self._cluster = cluster
        self._dead_topic = dead.topic
        self._topic = topic
        self._group = group
        self._marks_topic = MarksTopic(options, cluster, marks_topic, dead.topic, reader)
        self._lock = asyncio.Lock()

    def open(self) -> AbstractAsyncContextManager[None]:
        """Close the connections at the end."""
        return self._marks_topic.open()

    async def marks(self) -> Marks:
        """Return which dead letters were sent back. Raises the errors of `LogReader`."""
        return await self._marks_topic.read()

    async def redrive(self, limit: int, only: Filter = ALL) -> Returned:
        """Send back the oldest `limit` dead letters that were not yet sent back and are not held; within 9 s.

        `only` selects some of these. Memory is bounded, because some 16 MiB are sent at a time. After 5 s, or when
        something fails, it returns the letters that were sent back, and `more`. Without any of those it raises
        `RedriveRefused`, or `KafkaError`, `OSError` and `TimeoutError` when Kafka is out of reach. No transaction is
        committed then, except one whose commit Kafka did not confirm: its marks were committed with it.

        The group's own letters come first, then those that name no group.
        """
        return await within(self._limits.call_s, self._redrive(limit, only))

    async def count(self, limit: int, only: Filter = ALL) -> Returned:
        """Return what `redrive` would send back now, and send nothing. Raises the errors of `LogReader`."""
        return await within(self._limits.call_s, self._count(limit, only))

    async def redrive_one(self, partition: int, offset: int) -> Returned:
        """Send back one dead letter, even a held one; within 9 s. Raises the errors of `redrive`."""
        return await within(self._limits.call_s, self._redrive_one(partition, offset))

    async def redrive_found(self, find: Callable[[Marks], Awaitable[Sequence[Record]]]) -> int:
        """Send back the group's letters that `find` returns for the final marks, in one transaction; return how many.

        Raises the errors of `redrive`.
        """

        async def redrive() -> int:
            async with self._turn(), self._fenced(self._group) as (producer, marks):
                chosen = await find(marks)
                await self._send_back(producer, self._group, chosen, marks)
            return len(chosen)

        return await within(self._limits.call_s, redrive())

    def is_ours(self, letter: DeadLetter) -> bool:
        """Return whether this service may send a dead letter back: it is of its topic, and of its group or of none."""
        return letter.topic == self._topic and owner_of(letter) in {self._group, None}

    async def _redrive(self, limit: int, only: Filter) -> Returned:
        search, done = self._search(limit, only), list[Redriven]()
        try:
            async with self._turn():
                more = await self._redrive_of(self._group, search, done)
                if not more and len(done) < limit:
                    of_nobody = self._search(1, only).wanted(None, await self.marks(), 0)
                    waiting, more = await self.letters.oldest(of_nobody)
                    more = await self._redrive_of(None, search, done) if waiting else more
        except (*KAFKA_ERRORS, RedriveRefused) as error:
            if not done:
                raise
            log.warning("a redrive ended after %d dead letters: %s", len(done), one_line(error))
            more = True
        return Returned(done, more)

    async def _redrive_of(self, owner: str | None, search: Search, done: list[Redriven]) -> bool:
        """Send back letters of one owner, add them to `done`, and return whether there may be more."""
        async with self._fenced(owner) as (producer, marks):

            async def send(chosen: Sequence[Record]) -> None:
                await self._send_back(producer, owner, chosen, marks)

            return await self._each(owner, marks, search, done, send)

    async def _count(self, limit: int, only: Filter) -> Returned:
        search, done, more, marks = self._search(limit, only), list[Redriven](), False, await self.marks()
        for owner in (self._group, None):

            async def mark(chosen: Sequence[Record], owner: str | None = owner) -> None:
                for record in chosen:
                    marks.add(owner, record.partition, [(record.offset, record.offset + 1)])

            more = more or await self._each(owner, marks, search, done, mark)
        return Returned(done, more)

    async def _each(
        self,
        owner: str | None,
        marks: Marks,
        search: Search,
        done: list[Redriven],
        act: Callable[[Sequence[Record]], Awaitable[None]],
    ) -> bool:
        """Pass letters of one owner to `act`, and add them to `done`; return whether there may be more.

        `act` marks them.
        """
        more = True
        while more and len(done) < search.limit and asyncio.get_running_loop().time() < search.late:
            chosen, more = await self.letters.oldest(search.wanted(owner, marks, len(done)))
            await act(chosen)
            done += [Redriven(record.partition, record.offset) for record in chosen]
        return more

    def _search(self, limit: int, only: Filter) -> Search:
        late = asyncio.get_running_loop().time() + self._limits.begin_within_s
        return Search(limit, only, self._limits.transaction_bytes, late)

    async def _redrive_one(self, partition: int, offset: int) -> Returned:
        async with self._turn():
            record = await self._requested(partition, offset)
            owner = owner_of(letter_of(record))
            async with self._fenced(owner) as (producer, marks):
                if marks.contains(owner, partition, offset):
                    raise SentBefore(f"dead letter {partition}/{offset} was sent back before")
                await self._send_back(producer, owner, [record], marks)
        return Returned([Redriven(partition, offset)], more=False)

    async def _requested(self, partition: int, offset: int) -> Record:
        record = await self.letters.at(partition, offset)
        if record is None:
            raise NoSuchLetter(f"there is no dead letter {partition}/{offset}")
        letter = letter_of(record)
        if letter.topic != self._topic:
            known = "does not say which topic it came from" if letter.topic is None else f"came from {letter.topic}"
            raise NoSuchLetter(f"dead letter {partition}/{offset} {known}: only those of {self._topic} are sent back")
        if is_omitted(letter):
            raise TooLarge(
                f"its record was too large to be read, and is not in the dead letter: it stays on {letter.topic}, "
                f"partition {letter.partition}, offset {letter.offset}, until its retention ends"
            )
        if not self.is_ours(letter):
            raise RedriveNotNow(f"dead letter {partition}/{offset} is of the group {letter.group}: ask its consumer")
        return record

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait up to 4 s for this instance's other redrives; end one that takes too long. Raises `RedriveNotNow`."""
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._limits.turn_s):
                await self._lock.acquire()
        except TimeoutError:
            raise RedriveNotNow("other redrives of this instance are under way: try again") from None
        try:
            async with asyncio.timeout_at(start + self._limits.work_s):
                await self._marks_topic.check()
                yield
        finally:
            self._lock.release()

    @asynccontextmanager
    async def _fenced(self, owner: str | None) -> AsyncIterator[tuple[AIOKafkaProducer, Marks]]:
        """Fence all other redrives of the owner's letters; what was sent back is read after that, when it is final.

        Raises `RedriveNotNow`.
        """
        producer = AIOKafkaProducer(
            **self._options,
            transactional_id=f"{self._dead_topic if owner is None else owner}-redrive",
            transaction_timeout_ms=int(TRANSACTION_S * 1_000),
            max_request_size=max(map(self._cluster.max_message_bytes, (self._dead_topic, self._marks_topic.name))),
        )
        try:
            await producer.start()
            yield producer, await self._marks_topic.settled()
        except ProducerFenced:
            raise RedriveNotNow("another redrive has begun: try again") from None
        finally:
            await close_producer(producer)

    async def _send_back(
        self, producer: AIOKafkaProducer, owner: str | None, chosen: Sequence[Record], marks: Marks
    ) -> None:
        """Write records and marks, which are added to `marks`, in one transaction."""
        if not chosen:
            return
        mark_records = self._marks_to_write(owner, chosen, marks)
        sent: list[asyncio.Future[object]] = []
        try:
            async with transaction(producer):
                for record in chosen:
                    letter = letter_of(record)
                    batch = producer.create_batch()  # `send` takes no record that has neither key nor value
                    batch.append(timestamp=None, key=letter.key, value=letter.value, headers=self._headers_of(letter))
                    partition = self._partition_for(letter, record)
                    sent.append(await producer.send_batch(batch, self._topic, partition=partition))
                for key, value in mark_records:
                    mark = producer.send(self._marks_topic.name, value, key=key, partition=0, headers=marks.headers)
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
            await asyncio.gather(*sent, return_exceptions=True)  # retrieves the errors, or asyncio logs each

    def _marks_to_write(self, owner: str | None, chosen: Sequence[Record], marks: Marks) -> list[tuple[bytes, bytes]]:
        """Add records to the marks; return the changed marks.

        Raises `TooLarge` when the marks topic does not accept one: held letters leave gaps in it.
        """
        offsets: dict[int, Intervals] = defaultdict(list)
        for record in chosen:
            offsets[record.partition].append((record.offset, record.offset + 1))
        written = []
        allowed = self._cluster.max_message_bytes(self._marks_topic.name)
        for partition, sent in offsets.items():
            passed = self.letters.passed.get((marks.topic_id, owner, partition), [])
            key, value = marks.add(owner, partition, [*passed, *sent])
            if (needed := size_of_batch(key, value, marks.headers)) > allowed:
                raise TooLarge(
                    f"what was sent back of partition {partition} is too scattered to be marked: that takes {needed} "
                    f"bytes, and {self._marks_topic.name} takes {allowed} (max.message.bytes). Raise it, or send back "
                    "the oldest letters that are held, one by one"
                )
            written.append((key, value))
        return written

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
