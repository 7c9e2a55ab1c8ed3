"""Deletes dead letters for good: those that are older than a time, or those of one key.

Kafka deletes only from the beginning of a partition on (DeleteRecords). So the letters that stay, up to the last one
that goes, are first written again behind all others. The same transaction writes their marks (sent back, discarded),
and that everything of their owner before that place is purged. It has the owner's transactional id, which fences
redrives. So each letter counts once at any time, in its old place or in its new one. When the purge dies before
DeleteRecords, what is purged is neither listed nor sent back; the next purge of the same letters deletes it.

A letter that must stay and that Kafka does not take again keeps those behind it in its partition, but no others.

A deletion that the handler has not carried out stays until it is sent back or discarded: without it nobody would ever
delete what the handler keeps of the key. Only its group can do either, so a purge may give up those of a retired one.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.errors import KafkaConnectionError

from apps.chassis.deadline import within
from apps.chassis.kafka.admin import Admin
from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.consumer_groups import DEAD, EMPTY
from apps.chassis.kafka.log_reader import LogReader
from apps.consumer.redriving.fences import Fences
from apps.consumer.redriving.letters import letter_of, owner_of
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.marks_topic import MarksTopic
from apps.consumer.redriving.refusals import RedriveNotNow, TooLarge
from apps.consumer.redriving.transactions import Transactions
from contracts.dead_letter import DeadLetter, first_written, is_omitted
from contracts.record import Record

MOVED_BYTES = 4 * 1024 * 1024
"""Bytes of keys and values that are read, and written again, at a time."""
MOVED_COMPRESSION = "gzip"
"""Compresses what is written again: a letter may have been too large for its topic without."""

Fenced = Callable[[str | None], Awaitable[tuple[AIOKafkaProducer, Marks]]]
"""Fence all other actions on an owner's letters, once; return the producer and the marks."""
Offsets = Mapping[int, int]
"""An offset in each partition."""


class Doomed(NamedTuple):
    """Which letters a purge is about: of a key, or first written before a time (ms since 1970 UTC).

    Of a `retired_group` also the deletions that it has not carried out.
    """

    key: bytes | None = None
    before: int | None = None
    retired_group: str | None = None

    def matches(self, record: Record) -> bool:
        """Return whether a purge is about a letter."""
        if self.before is not None:
            return first_written(record.headers, record.timestamp) < self.before
        return record.key == self.key

    def gives_up(self, letter: DeadLetter) -> bool:
        """Return whether a letter, if the purge is about it, goes even as a deletion that was not carried out."""
        return self.retired_group is not None and letter.group == self.retired_group


class Purged(NamedTuple):
    """How many letters were purged and written again, and where to continue: None when all were searched.

    `kept_deletions` are those that match too, and were left because the handler has not carried them out.
    """

    letters: int
    written_again: int
    cursor: Offsets | None
    kept_deletions: int = 0


class Found(NamedTuple):
    """How many letters are to be purged, where they end in each partition, and where to continue the search.

    `kept_deletions` match, and are not to be purged.
    """

    letters: int
    ends: Offsets
    cursor: Offsets | None
    kept_deletions: int


class PurgedInPart(TooLarge):
    """A letter cannot be written again, and so not those before it be deleted; the others are `purged`."""

    def __init__(self, message: str, purged: Purged) -> None:
        super().__init__(message)
        self.purged = purged


@dataclass
class Progress:
    """How far a purge has come: letters, the offset reached in each partition, and the letter where it is stuck.

    Letters that were first written before `expired_ms` are not written again.
    """

    late: float
    expired_ms: int = 0
    purged: int = 0
    written_again: int = 0
    reached: dict[int, int] = field(default_factory=dict)
    stuck: dict[int, Record] = field(default_factory=dict)


class Purger:
    """Purges dead letters of one topic, of all groups. Letters that are older than `kept_s` are not written again.

    `deleting_topic` is the topic of the stream when that takes deletions.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of a purge
        self,
        options: ClientOptions,
        cluster: Cluster,
        dead: LogReader,
        every: LogReader,
        group: str,
        fences: Fences,
        transactions: Transactions,
        marks_topic: MarksTopic,
        kept_s: int | None = None,
        deleting_topic: str | None = None,
    ) -> None:
        self._options = options
        self._cluster = cluster
        self._dead = dead
        self._every = every
        self._group = group
        self._fences = fences
        self._transactions = transactions
        self._marks_topic = marks_topic
        self._kept_s = kept_s
        self._deleting_topic = deleting_topic

    async def purge(self, doomed: Doomed, after: Offsets) -> Purged:
        """Purge letters, within 9 s; `after` continues an earlier search.

        Raises `PurgedInPart` or another `RedriveRefused`, or `KafkaError`, `OSError` and `TimeoutError` when Kafka is
        out of reach; each letter counts once then too, and purging again deletes the rest.
        """
        return await within(self._fences.limits.call_s, self._purge(doomed, after))

    async def count(self, doomed: Doomed, after: Offsets) -> Purged:
        """Return how many letters `purge` would purge now, and change nothing. Raises the errors of `LogReader`."""
        return await within(self._fences.limits.call_s, self._count(doomed, after))

    async def _count(self, doomed: Doomed, after: Offsets) -> Purged:
        await self._check_retired(doomed.retired_group)
        found = await self._search(doomed, await self._first_and_end(), after, await self._marks_topic.read())
        return Purged(found.letters, 0, found.cursor, found.kept_deletions)

    async def _purge(self, doomed: Doomed, after: Offsets) -> Purged:
        now, limits = asyncio.get_running_loop().time(), self._fences.limits
        if self._dead.topic not in self._cluster.configs:
            raise KafkaConnectionError(f"the settings of topic {self._dead.topic} are not known yet")
        if self._cluster.may_be_compacted(self._dead.topic):
            raise RedriveNotNow(
                f"topic {self._dead.topic} may be compacted: set cleanup.policy=delete on it, and retry"
            )
        await self._check_retired(doomed.retired_group)
        async with self._fences.turn(), AsyncExitStack() as stack:
            opened: dict[str | None, tuple[AIOKafkaProducer, Marks]] = {}

            async def fenced(owner: str | None) -> tuple[AIOKafkaProducer, Marks]:
                if owner not in opened:
                    opened[owner] = await stack.enter_async_context(self._fences.fenced(owner, MOVED_COMPRESSION))
                return opened[owner]

            _, marks = await fenced(self._group)
            first, end = await self._first_and_end()
            found = await self._search(doomed, (first, end), after, marks)
            progress = Progress(now + limits.begin_within_s, await self._expired_ms(fenced) if found.ends else 0)
            for partition, behind in found.ends.items():
                await self._purge_partition(doomed, partition, (first[partition], behind), fenced, progress)
            await self._delete_before(progress.reached)
        await self._marks_topic.until_visible(now + limits.visible_s)
        left = {p for p, behind in found.ends.items() if progress.reached.get(p) != behind} - progress.stuck.keys()
        # fewer letters than were found: another group has moved some meanwhile
        is_complete = not left and (progress.purged >= found.letters or progress.stuck)
        cursor = found.cursor if is_complete else first
        done = Purged(progress.purged, progress.written_again, cursor, found.kept_deletions)
        if progress.stuck:
            raise PurgedInPart(self._transactions.why_not_again(progress.stuck.values()), done)
        return done

    async def _check_retired(self, group: str | None) -> None:
        """Raise `RedriveNotNow` when a group can redrive or discard its deletions itself."""
        if group is None:
            return
        state, _ = await self._cluster.members(group, self._dead.topic)
        if group == self._group or state not in {EMPTY, DEAD}:
            raise RedriveNotNow(
                f"the group {group} is not retired ({state}): redrive or discard its deletions at its own consumer"
            )

    async def _first_and_end(self) -> tuple[Offsets, Offsets]:
        return await self._dead.offsets(self._cluster.partition_count(self._dead.topic))

    async def _search(self, doomed: Doomed, bounds: tuple[Offsets, Offsets], after: Offsets, marks: Marks) -> Found:
        """Search for letters to purge, also for those that are purged and that Kafka has not deleted.

        Copies of a purge that died are found too: clients that read uncommitted records still see them.
        """
        first, end = bounds
        start = {partition: max(offset, after.get(partition, 0)) for partition, offset in first.items()}
        late = asyncio.get_running_loop().time() + self._fences.limits.search_s / 2  # the rest is for the count
        ends, reached, is_whole = dict[int, int](), dict(start), True
        async with aclosing(self._every.read(_ranges(start, end))) as pieces:
            async for records in pieces:
                going = (record for record in records if self._goes(doomed, record, marks))
                ends |= {record.partition: record.offset + 1 for record in going}
                reached[records[0].partition] = records[-1].offset + 1
                if asyncio.get_running_loop().time() >= late:
                    is_whole = False
                    break
        letters, kept = await self._count_letters(doomed, _ranges(start, end if is_whole else reached), marks)
        return Found(letters, ends, None if is_whole else reached, kept)

    async def _count_letters(
        self, doomed: Doomed, ranges: Mapping[int, tuple[int, int]], marks: Marks
    ) -> tuple[int, int]:
        """Return how many letters are to be purged, and how many deletions are kept of those that match."""
        letters = kept = 0
        async with aclosing(self._dead.read(ranges)) as pieces:
            async for records in pieces:
                for record in filter(doomed.matches, records):
                    if record.offset >= marks.purged(owner_of(letter_of(record)), record.partition):
                        is_kept = not self._goes(doomed, record, marks)
                        letters, kept = letters + (not is_kept), kept + is_kept
        return letters, kept

    async def _purge_partition(
        self, doomed: Doomed, partition: int, places: tuple[int, int], fenced: Fenced, progress: Progress
    ) -> None:
        """Purge letters from the first place up to the second, until it is late or one cannot be written again."""
        at, behind = places
        while at < behind and partition not in progress.stuck:
            if asyncio.get_running_loop().time() >= progress.late:
                return
            at = await self._purge_some(doomed, partition, (at, behind), fenced, progress)
            progress.reached[partition] = at

    async def _purge_some(
        self, doomed: Doomed, partition: int, places: tuple[int, int], fenced: Fenced, progress: Progress
    ) -> int:
        """Purge some letters from the first place on; return what was reached."""
        records, reaching = await self._dead.some({partition: places}, MOVED_BYTES)
        by_owner, reached = defaultdict[str | None, list[Record]](list), reaching[partition]
        for record in records:
            _, marks = await fenced(owner := owner_of(letter_of(record)))
            if record.offset < marks.purged(owner, partition):
                continue
            if self._stays(doomed, record, marks, progress) and not self._transactions.fits_again(record):
                progress.stuck[partition], reached = record, record.offset
                break
            by_owner[owner].append(record)
        for owner, letters in by_owner.items():
            producer, marks = await fenced(owner)
            staying = [record for record in letters if self._stays(doomed, record, marks, progress)]
            going = sum(self._goes(doomed, record, marks) for record in letters)
            await self._transactions.move(producer, owner, partition, reached, staying, marks)
            progress.purged += going
            progress.written_again += len(staying)
        return reached

    def _goes(self, doomed: Doomed, record: Record, marks: Marks) -> bool:
        if not doomed.matches(record):
            return False
        return doomed.gives_up(letter_of(record)) or not self._is_unhandled_deletion(record, marks)

    def _stays(self, doomed: Doomed, record: Record, marks: Marks, progress: Progress) -> bool:
        is_expired = first_written(record.headers, record.timestamp) < progress.expired_ms
        is_left = is_expired and not self._is_unhandled_deletion(record, marks)
        return not (self._goes(doomed, record, marks) or is_left)

    def _is_unhandled_deletion(self, record: Record, marks: Marks) -> bool:
        """Return whether a letter is a deletion that was not carried out, and was neither sent back nor discarded."""
        if self._deleting_topic is None or record.value is not None or record.key is None:
            return False
        letter = letter_of(record)
        is_deletion = letter.topic == self._deleting_topic and not is_omitted(letter)
        return is_deletion and not marks.contains(owner_of(letter), record.partition, record.offset)

    async def _expired_ms(self, fenced: Fenced) -> int:
        """Return the time (ms) before which letters were kept long enough: written again, they would be once more.

        Kafka deletes them by its own clock, so that of this machine must not: a mark that changes nothing asks for it.
        Where that is not told, none were.
        """
        if self._kept_s is None:
            return 0
        producer, marks = await fenced(self._group)
        now = await self._transactions.move(producer, self._group, 0, 0, [], marks)
        return 0 if now is None else now - 1_000 * self._kept_s

    async def _delete_before(self, offsets: Offsets) -> None:
        """Have Kafka delete the letters before an offset in each partition."""
        topic, admin = self._dead.topic, Admin(self._options)
        before = {TopicPartition(topic, partition): RecordsToDelete(offset) for partition, offset in offsets.items()}
        try:
            if before:
                await admin.ask(lambda client: client.delete_records(before))
        finally:
            await admin.close()


def _ranges(start: Offsets, end: Offsets) -> dict[int, tuple[int, int]]:
    return {partition: (offset, end[partition]) for partition, offset in start.items()}
