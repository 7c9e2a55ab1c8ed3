"""Knows which dead letters are older than the deletion of their key: sent back, they would undo it.

A deletion is a tombstone of the key behind the letter's record, on the topic itself, so this is also known after a
restart. The topic is read from the oldest such record on; what was read is remembered, so the next call reads on.
After partitions were added, the tombstone may be in another partition than the record. So for a letter whose key is
not written to its partition any more, all partitions are read, and there the times are compared. So are they for a
letter of another writer that does not name the whole place of its record, and where the topic does not have the
letter's record at its offset: a recreated topic has other records there, or none yet.

Kafka compacts away tombstones too, but only after the records before them. So on a compacted topic a letter whose
record is gone counts as deleted: a tombstone, or a newer record of its key, has replaced it. So does one whose key has
another partition now, or that does not name its place, once Kafka may have forgotten the tombstone.

A deletion may have been dead-lettered too. What a redrive made of it stands for where it stood first: letters of what
was written between the two are newer than it. It counts for its own place if it does not name the first one, and not at
all if it was sent back for another group, which alone handles it.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

from apps.chassis.internals.fetched_batches import is_tombstone
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.log_reader import FETCH_BYTES, in_groups
from apps.chassis.kafka.log_truncation import LastRead
from apps.chassis.kafka.open_transactions import OpenTransactions
from apps.consumer.consuming.redrive_addressing import divide
from apps.consumer.redriving.refusals import DeletedMeanwhile, RedriveNotNow
from contracts.dead_letter import ROUNDS, DeadLetter, first_place
from contracts.partitioning import partitions_of
from contracts.record import Place, Record, place_of

READ_BYTES = 1024 * 1024
"""Bytes of keys and values that are read at a time, or as much as is fetched of several partitions."""
MAX_TOMBSTONES = 500_000
"""Most tombstones that are remembered, some 200 bytes each."""
MAX_GONE = 100_000
"""Most records of which it is remembered that they are gone."""
CLOCKS_DIFFER_MS = 60_000
"""By how much the times of records in different partitions may be wrong."""
HIDDEN_S = 2.0
"""Seconds for reading what open transactions hide before a redrive commits its own."""
JUST_COME_S = 0.5
"""Seconds for Kafka to show a deletion that has just come, also while it ends a transaction in front of it."""
LOOK_S = 0.02
"""Seconds between two looks at it."""
TOMBSTONES_KEPT_MS = 86_400_000
"""How long a compacted topic keeps tombstones at least, by default (`delete.retention.ms`)."""


class Deletions:
    """The tombstones of a topic for a group, as far as they were read: the last one of each key in a partition."""

    def __init__(
        self,
        transactions: OpenTransactions,
        cluster: Cluster,
        group: str,
        max_tombstones: int = MAX_TOMBSTONES,
        just_come_s: float = JUST_COME_S,
    ) -> None:
        self._transactions = transactions
        self._log = transactions.stable
        self._cluster = cluster
        self._group = group
        self._max_tombstones = max_tombstones
        self._just_come_s = just_come_s
        self._topic_id: UUID | None = None
        self._read: dict[int, tuple[int, int]] = {}
        self._last_read = LastRead(self._log)
        self._tombstones: dict[tuple[int, int], tuple[int, int]] = {}  # offset and time
        self._sent_back: dict[tuple[int, int], _SentBack] = {}
        self._gone: set[tuple[int, int, int | None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self._transactions.open():
            yield

    async def read_for(self, letters: Sequence[DeadLetter], late: float) -> None:
        """Read the topic from the oldest record of some letters to its end, with what comes to it meanwhile.

        Raises `RedriveNotNow` when it is `late` (event loop time), there are too many, or an open transaction hides
        one, which it may yet abort; a further call reads on.
        """
        reached = await self._read_on(letters, late)
        coming = await self._behind(reached, letters, late)
        loop = asyncio.get_running_loop()
        patient_until = min(late, loop.time() + self._just_come_s)
        while coming := [one for one in coming if one.offset >= reached.get(one.partition, 0)]:
            if loop.time() >= patient_until:
                raise RedriveNotNow(
                    f"a deletion of the key of a dead letter waits on {self._log.topic} for the end of another "
                    "client's transaction: try again then"
                )
            await asyncio.sleep(LOOK_S)
            reached = await self._read_on(letters, late)

    async def read_again(self, letters: Sequence[DeadLetter]) -> None:
        """Read on before a transaction sends letters back, and in it.

        Raises `DeletedMeanwhile` when a deletion of one of their keys has just come, or an open transaction hides it.
        Deletions that a redrive has written do not count: among them are those of this one.
        """
        reached = await self._read_on(letters, math.inf)
        coming = await self._behind(reached, letters, asyncio.get_running_loop().time() + HIDDEN_S)
        if keys := {one.key for one in coming if ROUNDS not in dict(one.headers)}:
            raise DeletedMeanwhile(
                f"a deletion of the key of a dead letter has just come to {self._log.topic}, or waits there for the "
                "end of another client's transaction: try again then",
                keys,
            )

    async def _read_on(self, letters: Sequence[DeadLetter], late: float) -> dict[int, int]:
        """Read what `read_for` does as far as no open transaction hides it; return up to where, by partition."""
        letters = [letter for letter in letters if _may_undo_deletions(letter)]
        if not letters:
            return {}
        if (topic_id := await self._cluster.topic_id(self._log.topic)) != self._topic_id:
            self._topic_id = topic_id
            self._forget()
        first, end = await self._log.offsets(self._cluster.partition_count(self._log.topic))
        if await self._last_read.lost(first, end):
            self._forget()  # other records take the places of those that were read
        starts = await self._log.at_time(min(map(_since, letters)), end)
        for letter in letters:
            if letter.partition in starts and letter.offset is not None:
                starts[letter.partition] = min(starts[letter.partition], letter.offset + 1)
        has_moved, own = any(map(self._has_moved, letters)), {letter.partition for letter in letters}
        partitions = [partition for partition in end if has_moved or partition in own]
        reaching = {partition: end[partition] for partition in partitions}
        await self._read_up_to(
            reaching, {partition: max(starts[partition], first[partition]) for partition in end}, late
        )
        for partition in partitions:  # what is behind the last record, like the end of a transaction, may be lost
            start, _ = self._read[partition]
            self._read[partition] = start, max(start, self._last_read.end(partition))
        return reaching

    async def _behind(self, reached: Mapping[int, int], letters: Sequence[DeadLetter], late: float) -> Sequence[Record]:
        """Return the deletions of keys of letters behind some places, whether an open transaction hides them or not.

        Raises `RedriveNotNow` when it is `late`.
        """
        if not reached:
            return []
        found, keys = list[Record](), {letter.key for letter in letters}
        ends = await self._transactions.every.ends(self._cluster.partition_count(self._log.topic))
        left = {partition: (start, ends[partition]) for partition, start in reached.items()}
        while groups := list(in_groups(left)):
            for ranges in groups:
                if asyncio.get_running_loop().time() >= late:
                    count = _count(left)
                    raise RedriveNotNow(f"{count} records behind an open transaction are left to be read: try again")
                records, places = await self._transactions.every.some(ranges, _bytes_of(ranges))
                own, _ = divide(records, self._group)
                found += [one for one in own if is_tombstone(one) and one.key in keys]
                left |= {partition: (at, ends[partition]) for partition, at in places.items()}
        return found

    async def has_tombstone(self, letter: DeadLetter) -> bool:
        """Return whether a deletion of its key that was read is newer than a letter."""
        if not _may_undo_deletions(letter):
            return False
        for partition in range(self._cluster.partition_count(self._log.topic)):
            deleted_at, time_ms = self._tombstones.get((partition, hash(letter.key)), (-1, -1))
            offset = letter.offset if partition == letter.partition else None
            if offset is not None and deleted_at > offset:
                return True
            if time_ms >= _since(letter) and (offset is None or await self._is_gone(letter)):
                return True
            sent_back = self._sent_back.get((partition, hash(letter.key)))
            if sent_back and await self._was_newer(sent_back, letter):
                return True
        return False

    async def _was_newer(self, deletion: "_SentBack", letter: DeadLetter) -> bool:
        """Return whether a deletion that was sent back was newer than a letter, and is gone from where it stood first.

        While it is there, it was read itself. Older records of its key in the partition do not outlast it.
        """
        if letter.offset is not None and letter.partition == deletion.partition:
            return deletion.offset > letter.offset and await self._is_gone(letter)
        return deletion.time_ms >= _since(letter) and not await self._is_there(deletion, letter.key)

    async def is_deleted(self, letter: DeadLetter) -> bool:
        """Return whether a letter, for which the topic was read, is older than a deletion of its key."""
        if await self.has_tombstone(letter):
            return True
        if not (_may_undo_deletions(letter) and self._cluster.may_be_compacted(self._log.topic)):
            return False
        is_forgotten = _since(letter) < time.time() * 1_000 - self._tombstones_kept_ms()
        return (self._has_moved(letter) and is_forgotten) or (_has_place(letter) and await self._is_gone(letter))

    def _has_moved(self, letter: DeadLetter) -> bool:
        """Return whether the key of a letter may be written to another partition now than its record was."""
        if letter.key is None:
            return False
        now = partitions_of([letter.key], self._cluster.partition_count(self._log.topic))
        return not _has_place(letter) or now != [letter.partition]

    def _tombstones_kept_ms(self) -> int:
        return int(self._cluster.configs.get(self._log.topic, {}).get("delete.retention.ms", TOMBSTONES_KEPT_MS))

    async def _read_up_to(self, ends: Mapping[int, int], starts: Mapping[int, int], late: float) -> None:
        """Read partitions from `starts`, or where an earlier call has come to, up to their `ends`."""
        for partition in ends:
            if starts[partition] < self._read.get(partition, (math.inf, 0))[0]:
                self._read[partition] = starts[partition], starts[partition]
        while groups := list(in_groups(left := {one: (self._read[one][1], end) for one, end in ends.items()})):
            for ranges in groups:
                if asyncio.get_running_loop().time() >= late:
                    where = f"{self._log.topic}, {_count(left)} records are left"
                    raise RedriveNotNow(f"deletions are still being looked for on {where}: try again")
                records, places = await self._log.some(ranges, _bytes_of(ranges))
                self._keep(records)
                self._last_read.add(records)
                self._read |= {partition: (self._read[partition][0], at) for partition, at in places.items()}

    def _keep(self, records: Sequence[Record]) -> None:
        """Remember the tombstones among records. Raises `RedriveNotNow` when there are too many."""
        own, _ = divide(records, self._group)
        for record in own:
            if is_tombstone(record):
                known, place = (record.partition, hash(record.key)), Place(record.topic, *place_of(record))
                if (first := first_place(record.headers, place)) == place:
                    self._tombstones[known] = record.offset, record.timestamp
                else:
                    self._sent_back[known] = _SentBack(first.partition, first.offset, record.timestamp)
        if len(self._tombstones) + len(self._sent_back) > self._max_tombstones:
            self._forget()
            raise RedriveNotNow(
                f"more than {self._max_tombstones} keys were deleted on {self._log.topic} since the oldest of the "
                "dead letters: send back newer ones (`from`), and discard or purge the older ones"
            )

    async def _is_gone(self, letter: DeadLetter) -> bool:
        """Return whether the topic does not have the record of a letter at its place: not any more, or it never had."""
        partition, offset = letter.partition or 0, letter.offset or 0
        if (place := (partition, offset, letter.timestamp)) in self._gone:
            return True
        record = await self._record(partition, offset)
        if record is not None and _is_of(letter, record):
            return False
        if len(self._gone) >= MAX_GONE:
            self._gone.clear()
        self._gone.add(place)
        return True

    async def _is_there(self, deletion: "_SentBack", key: bytes | None) -> bool:
        """Return whether the topic has a deletion where it stood first."""
        record = await self._record(deletion.partition, deletion.offset)
        return record is not None and is_tombstone(record) and (record.offset, record.key) == (deletion.offset, key)

    async def _record(self, partition: int, offset: int) -> Record | None:
        """Return the first record of a partition at or after an offset, None when there is none."""
        exists = partition < self._cluster.partition_count(self._log.topic)
        return await self._log.record(partition, offset) if exists else None

    def _forget(self) -> None:
        for known in (self._read, self._tombstones, self._sent_back, self._gone):
            known.clear()


class _SentBack(NamedTuple):
    """Where a deletion stood before it was first sent back, and when it was last sent back."""

    partition: int
    offset: int
    time_ms: int


def _count(ranges: Mapping[int, tuple[int, int]]) -> int:
    return sum(max(0, end - at) for at, end in ranges.values())


def _bytes_of(ranges: Mapping[int, tuple[int, int]]) -> int:
    return max(READ_BYTES, FETCH_BYTES * len(ranges))


def _has_place(letter: DeadLetter) -> bool:
    """Return whether a letter names the whole place of its record on the topic."""
    return letter.partition is not None and letter.offset is not None


def _may_undo_deletions(letter: DeadLetter) -> bool:
    """Return whether a letter has a key whose deletion it may undo.

    A letter that is itself a deletion, and does not name its place, cannot be told from a later one.
    """
    return letter.key is not None and (letter.value is not None or _has_place(letter))


def _is_of(letter: DeadLetter, record: Record) -> bool:
    """Return whether a record at the partition of a letter is the one that was dead-lettered."""
    return (record.offset, record.key) == (letter.offset, letter.key) and letter.timestamp in {None, record.timestamp}


def _since(letter: DeadLetter) -> int:
    """Return the time (ms) from which on a deletion in another partition counts; 0 if that of the record is wrong."""
    latest = time.time() * 1_000 + CLOCKS_DIFFER_MS
    return 0 if letter.timestamp is None or letter.timestamp > latest else max(0, letter.timestamp - CLOCKS_DIFFER_MS)
