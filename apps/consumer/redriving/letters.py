"""Finds the dead letters that an operator action is about, the oldest first."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple
from uuid import UUID

from apps.chassis.kafka.clients import size_of_batch
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.log_reader import in_groups
from apps.chassis.kafka.log_truncation import LastRead
from apps.chassis.kafka.open_transactions import OpenTransactions
from apps.chassis.kafka.search import merged_by_time
from apps.consumer.browsing.topic_search import Filter
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.beginnings import Beginning, Beginnings, remember
from apps.consumer.redriving.deletions import Deletions
from apps.consumer.redriving.marks import Intervals, Marks, contains, merged, minus, next_outside, outside
from apps.consumer.redriving.refusals import DeletedMeanwhile, RedriveNotNow
from contracts.dead_letter import DeadLetter, history, is_omitted, read, redrive_headers
from contracts.record import Record, place_of, size_of

READ_BYTES = 256 * 1024
"""Bytes of keys and values that are read of a partition at a time."""
MAX_ROUNDS = 3
"""How often a dead letter is sent back before it is held: then only when it is requested by itself."""

PartitionStart = tuple[Sequence[Record], bool]
"""The first wanted letters of a partition, and whether there may be more behind them."""


class Wanted(NamedTuple):
    """Letters of an owner that `only` selects and that an action may be about: at most `limit`.

    They have at most `max_bytes`, but for one of each partition. The search ends when it is `late` (event loop time).
    A redrive leaves held letters out, and those of deleted keys; it adds the places of the latter to `deleted`.
    """

    owner: str | None
    marks: Marks
    limit: int
    max_bytes: int
    late: float
    deleted: set[tuple[int, int]]
    only: Filter = Filter()
    action: Action = Action.REDRIVE

    def unwanted(self, partition: int) -> Intervals:
        """Return the offsets of a partition whose letters the action is not about, because of their marks."""
        if self.action is Action.RESTORE:
            return outside(self.marks.discarded(self.owner, partition))
        return self.marks.of(self.owner, partition)


class Letters:
    """The dead letters of one topic. `passed` has the offsets without letters of an owner, by topic id."""

    def __init__(
        self,
        transactions: OpenTransactions,
        cluster: Cluster,
        topic: str,
        max_rounds: int = MAX_ROUNDS,
        deletions: Deletions | None = None,
    ) -> None:
        self.passed: dict[tuple[UUID | None, str | None, int], Intervals] = {}
        self._reader = transactions.stable
        self._transactions = transactions
        self._cluster = cluster
        self._topic = topic
        self._max_rounds = max_rounds
        self._deletions = deletions
        self._beginnings = Beginnings()
        self._last_read = LastRead(self._reader)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self._transactions.open(), self._deletions.open() if self._deletions else nullcontext():
            yield

    def is_held(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter is held: it was sent back too often, or is too large for the topic.

        A letter without its record's value is never sent back.
        """
        _, _, rounds = history(letter.headers)
        too_large = size_sent_back(letter) > self._cluster.max_message_bytes(self._topic)
        return rounds >= self._max_rounds or is_omitted(letter) or too_large

    async def read_deletions(self, letters: Sequence[DeadLetter], late: float) -> None:
        """Find out which keys of letters were deleted, where the stream takes deletions. Raises `RedriveNotNow`."""
        if self._deletions is not None:
            await self._deletions.read_for(letters, late)

    async def is_deleted(self, letter: DeadLetter) -> bool:
        """Return whether a letter is older than a deletion of its key, as far as `read_deletions` found out."""
        return self._deletions is not None and await self._deletions.is_deleted(letter)

    async def check_deletions(self, letters: Sequence[DeadLetter]) -> None:
        """Raise `DeletedMeanwhile` when keys of letters were deleted since the letters were selected."""
        if self._deletions is None:
            return
        await self._deletions.read_again(letters)
        if keys := {letter.key for letter in letters if await self._deletions.has_tombstone(letter)}:
            raise DeletedMeanwhile("the key of a dead letter was deleted meanwhile: try again", keys)

    async def oldest(self, wanted: Wanted) -> tuple[list[Record], bool]:
        """Return the oldest letters that are wanted, and whether there may be more.

        When it is late, they are the oldest of the partitions that were read by then.
        """
        search = self._search_for(wanted.action, wanted.only)
        first, end = await self._offsets_of_known()
        if wanted.only.since is not None:
            first = await self._reader.at_time(wanted.only.since, end)
        starts = {
            partition: self._start_of(wanted, search, partition, (first[partition], end[partition]))
            for partition in first
            if wanted.only.partition in {None, partition}
        }
        try:
            await self._read_until_late(wanted, starts)
        finally:
            if search == self._search_for(wanted.action, wanted.only):
                self._remember(search, starts.values(), is_late=asyncio.get_running_loop().time() >= wanted.late)
        return oldest([one.result for one in starts.values()], wanted.limit)

    async def others(
        self, topic_id: UUID | None, owner: str | None, partitions: Collection[int]
    ) -> dict[int, Intervals]:
        """Return the offsets in partitions that are known to have no letter of an owner."""
        places = {partition: (topic_id, owner, partition) for partition in partitions}
        if any(self.passed.get(place) for place in places.values()):
            await self._offsets_of_known()
        return {partition: self.passed.get(place, []) for partition, place in places.items()}

    async def at(self, partition: int, offset: int) -> Record | None:
        """Return the dead letter at a place, None when there is none."""
        first, end = await self.offsets()
        if partition in end and first[partition] <= offset < end[partition]:
            async for records in self._reader.read({partition: (offset, offset + 1)}):
                return records[0]
        return None

    async def check_visible(self, partition: int, offset: int) -> None:
        """Raise `RedriveNotNow` when an open transaction hides what is at a place."""
        hidden = await self._transactions.hidden(self._cluster.partition_count(self._reader.topic))
        start, stop = hidden.get(partition, (0, 0))
        if start <= offset < stop:
            raise RedriveNotNow(f"it waits for the end of a transaction that began at offset {start}: try again then")

    async def waiting_if_known(self, only: int | None = None) -> int | None:
        """Return how many records wait behind another client's open transaction, in `only` one partition or in all.

        Return None when Kafka does not answer within 1 s.
        """
        return await self._transactions.waiting_if_known(self._cluster.partitions.get(self._reader.topic, 0), only)

    async def offsets(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return the first offset of each partition of the dead letters, and the one behind its last record."""
        return await self._reader.offsets(self._cluster.partition_count(self._reader.topic))

    async def _offsets_of_known(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return what `offsets` does; forget what is known of partitions that have lost letters since."""
        first, end = await self.offsets()
        lost = await self._last_read.lost(first, end)
        for place in [place for place in self.passed if place[2] in lost]:
            del self.passed[place]
            self._beginnings.forget(place)
        return first, end

    def _start_of(self, wanted: Wanted, search: Hashable, partition: int, bounds: tuple[int, int]) -> "_Start":
        first, end = bounds
        place = (wanted.marks.topic_id, wanted.owner, partition)
        unwanted = wanted.unwanted(partition)
        beginnings = self._beginnings.of(place, unwanted)
        beginning = beginnings.get(search, Beginning())
        known = merged([*unwanted, *self.passed.get(place, [])])
        return _Start(place, unwanted, (next_outside(known, max(first, beginning.at)), end), beginnings, beginning)

    def begin_again(self, action: Action, only: Filter) -> None:
        """Let the next call look at all letters again that may be wanted by then, once one has come to the end."""
        self._beginnings.begin_again(self._search_for(action, only))

    def _search_for(self, action: Action, only: Filter) -> Hashable:
        """Return what decides which letters are left out for good."""
        return action, only, self._cluster.max_message_bytes(self._topic)

    async def _read_until_late(self, wanted: Wanted, starts: Mapping[int, "_Start"]) -> None:
        while groups := list(in_groups({number: one.left for number, one in starts.items() if not one.is_full})):
            for ranges in groups:
                if asyncio.get_running_loop().time() >= wanted.late:
                    return
                await self._read_on(wanted, {partition: starts[partition] for partition in ranges})

    async def _read_on(self, wanted: Wanted, starts: Mapping[int, "_Start"]) -> None:
        """Read on in some partitions; each has an equal share of the bytes."""
        ranges = {partition: start.left for partition, start in starts.items()}
        records, reached = await self._reader.some(ranges, READ_BYTES * len(ranges))
        own = [(record, letter) for record in records if owner_of(letter := letter_of(record)) == wanted.owner]
        selected = await self._selected(wanted, starts, own)
        owned = offsets_of([record for record, _ in own])
        self._last_read.add(records)
        for partition, start in starts.items():
            at, end = start.left
            others = minus([(at, min(reached[partition], self._last_read.end(partition)))], owned.get(partition, []))
            self.passed[start.place] = passed = merged([*self.passed.get(start.place, []), *others])
            letters = [(record, letter) for record, letter in selected if record.partition == partition]
            start.is_full = not await self._add(wanted, start, letters)
            if not start.is_full:
                start.left = next_outside(merged([*start.unwanted, *passed]), reached[partition]), end

    def _remember(self, search: Hashable, starts: Iterable["_Start"], *, is_late: bool) -> None:
        """Remember where the next call begins."""
        for start in starts:
            _, _, partition = start.place
            reached = min(start.reached, self._last_read.end(partition))
            remember(start.beginnings, search, start.beginning.moved(reached, start.deleted_from, is_late=is_late))

    async def _add(self, wanted: Wanted, start: "_Start", letters: Sequence[tuple[Record, DeadLetter]]) -> bool:
        """Add letters to the first ones of a partition; return whether there was room and time for all.

        Where there was not, what is left begins with the first that was not added.
        """
        share = wanted.max_bytes // self._cluster.partition_count(self._reader.topic)
        for record, letter in letters:
            is_full = start.found and start.size + size_of(record) > share
            if is_full or len(start.found) == wanted.limit or asyncio.get_running_loop().time() >= wanted.late:
                start.left = record.offset, start.left[1]
                return False
            if wanted.action is Action.REDRIVE and await self.is_deleted(letter):
                wanted.deleted.add(place_of(record))
                if start.deleted_from is None and not start.found:
                    start.deleted_from = record.offset
                continue
            start.found.append(record)
            start.size += size_of(record)
        return True

    async def _selected(
        self, wanted: Wanted, starts: Mapping[int, "_Start"], own: Sequence[tuple[Record, DeadLetter]]
    ) -> list[tuple[Record, DeadLetter]]:
        """Return the letters that an action is about by their marks, their record and what was asked for."""
        selected = [
            (record, letter)
            for record, letter in own
            if not contains(starts[record.partition].unwanted, record.offset)
            and letter.topic == self._topic
            and wanted.only.matches(record)
        ]
        if wanted.action is Action.REDRIVE:
            selected = [(record, letter) for record, letter in selected if not self.is_held(letter)]
            await self.read_deletions([letter for _, letter in selected], wanted.late)
        return selected


@dataclass
class _Start:
    """The first wanted letters of a partition: those that were found, and the offsets that are left to be read.

    `place` is that of its offsets in `Letters.passed`. It `is_full` when it has what an action takes of a partition.
    """

    place: tuple[UUID | None, str | None, int]
    unwanted: Intervals
    left: tuple[int, int]
    beginnings: dict[Hashable, Beginning]
    beginning: Beginning
    deleted_from: int | None = None
    found: list[Record] = field(default_factory=list)
    size: int = 0
    is_full: bool = False

    @property
    def result(self) -> PartitionStart:
        at, end = self.left
        return self.found, at < end

    @property
    def reached(self) -> int:
        """The offset before which no letter is wanted."""
        return self.found[0].offset if self.found else min(self.left)


def letter_of(record: Record) -> DeadLetter:
    """Return the dead letter in a record."""
    return read(record.key, record.value, record.headers)


def offsets_of(records: Sequence[Record]) -> dict[int, Intervals]:
    """Return the offsets of records in each partition."""
    offsets: dict[int, Intervals] = defaultdict(list)
    for record in records:
        offsets[record.partition].append((record.offset, record.offset + 1))
    return offsets


def halves(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Return some records in two parts, or one; those of a key are in the same part, so that they keep their order."""
    keys = [*dict.fromkeys(record.key for record in records)]
    first = {*keys[: len(keys) // 2]}
    parts = [[record for record in records if (record.key in first) is is_first] for is_first in (True, False)]
    return [part for part in parts if part]


def owner_of(letter: DeadLetter) -> str | None:
    """Return the group that owns a letter, None when it names none."""
    return letter.group or None


def size_sent_back(letter: DeadLetter) -> int:
    """Return the bytes of the batch in which a dead letter is sent back by itself."""
    return size_of_batch(letter.key, letter.value, redrive_headers(letter))


def oldest(starts: Sequence[PartitionStart], limit: int) -> tuple[list[Record], bool]:
    """Merge the starts of partitions by age, each in offset order; return `limit` records, and whether there are more.

    Nothing is taken beyond the end of a start that has more behind it: that may be older than what the others have. One
    that was not read in time keeps nothing back: of very many partitions none would ever be sent back.
    """
    by_age = merged_by_time(chain.from_iterable(records for records, _ in starts))
    ends = {place_of(records[-1]) for records, has_more in starts if has_more and records}
    safe = next((number for number, record in enumerate(by_age, 1) if place_of(record) in ends), len(by_age))
    chosen = by_age[: min(limit, safe)]
    return chosen, any(has_more for _, has_more in starts) or len(chosen) < len(by_age)
