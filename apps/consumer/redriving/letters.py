"""Finds the dead letters that an operator action is about, the oldest first."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple
from uuid import UUID

from apps.chassis.kafka.clients import size_of_batch
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.open_transactions import OpenTransactions
from apps.chassis.kafka.search import merged_by_time
from apps.consumer.browsing.topic_search import Filter
from apps.consumer.redriving.actions import Action
from apps.consumer.redriving.deletions import Deletions
from apps.consumer.redriving.marks import Intervals, Marks, contains, merged, minus, next_outside, outside
from apps.consumer.redriving.refusals import RedriveNotNow
from contracts.dead_letter import DeadLetter, history, is_omitted, read, redrive_headers
from contracts.record import Record, place_of, size_of

READ_BYTES = 256 * 1024
"""Bytes of keys and values that are read at a time."""
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
        self.dead_topic = transactions.stable.topic
        self._reader = transactions.stable
        self._transactions = transactions
        self._cluster = cluster
        self._topic = topic
        self._max_rounds = max_rounds
        self._deletions = deletions

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
        """Raise `RedriveNotNow` when the key of a letter was deleted since the letters were selected."""
        if self._deletions is None:
            return
        await self._deletions.read_again(letters)
        for letter in letters:
            if await self._deletions.has_tombstone(letter):
                raise RedriveNotNow("the key of a dead letter was deleted meanwhile: try again")

    async def oldest(self, wanted: Wanted) -> tuple[list[Record], bool]:
        """Return the oldest letters that are wanted, and whether there may be more."""
        first, end = await self.offsets()
        starts = [
            await self._start_of(wanted, partition, first[partition], end[partition])
            for partition in first
            if wanted.only.partition in {None, partition}
        ]
        return oldest(starts, wanted.limit)

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

    async def waiting(self, only: int | None = None) -> int:
        """Return how many records wait behind another client's open transaction, in `only` one partition or in all."""
        return await self._transactions.waiting(self._cluster.partition_count(self._reader.topic), only)

    async def waiting_if_known(self, only: int | None = None) -> int | None:
        """Return what `waiting` does, None when Kafka does not answer within 1 s."""
        return await self._transactions.waiting_if_known(self._cluster.partitions.get(self._reader.topic, 0), only)

    async def offsets(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return the first offset of each partition of the dead letters, and the one behind its last record."""
        return await self._reader.offsets(self._cluster.partition_count(self._reader.topic))

    async def _start_of(self, wanted: Wanted, partition: int, first: int, end: int) -> PartitionStart:
        """Return the first letters of a partition that are wanted; each partition has an equal share of the bytes."""
        found: list[Record] = []
        size, share = 0, wanted.max_bytes // self._cluster.partition_count(self._reader.topic)
        unwanted = wanted.unwanted(partition)
        place = (wanted.marks.topic_id, wanted.owner, partition)
        passed = self.passed.get(place, [])
        at = next_outside(merged([*unwanted, *passed]), first)
        while at < end:
            if asyncio.get_running_loop().time() >= wanted.late:
                return found, True
            records, reached = await self._reader.some({partition: (at, end)}, READ_BYTES)
            own = [(record, letter) for record in records if owner_of(letter := letter_of(record)) == wanted.owner]
            for record, letter in await self._selected(wanted, unwanted, own):
                if len(found) == wanted.limit or (found and size + size_of(record) > share):
                    return found, True
                if wanted.action is Action.REDRIVE and await self.is_deleted(letter):
                    wanted.deleted.add(place_of(record))
                    continue
                found.append(record)
                size += size_of(record)
            others = minus([(at, reached[partition])], [(record.offset, record.offset + 1) for record, _ in own])
            self.passed[place] = passed = merged([*passed, *others])
            at = next_outside(merged([*unwanted, *passed]), reached[partition])
        return found, False

    async def _selected(
        self, wanted: Wanted, unwanted: Intervals, own: Sequence[tuple[Record, DeadLetter]]
    ) -> list[tuple[Record, DeadLetter]]:
        """Return the letters that an action is about by their marks, their record and what was asked for."""
        selected = [
            (record, letter)
            for record, letter in own
            if not contains(unwanted, record.offset) and letter.topic == self._topic and wanted.only.matches(record)
        ]
        if wanted.action is Action.REDRIVE:
            selected = [(record, letter) for record, letter in selected if not self.is_held(letter)]
            await self.read_deletions([letter for _, letter in selected], wanted.late)
        return selected


def letter_of(record: Record) -> DeadLetter:
    """Return the dead letter in a record."""
    return read(record.key, record.value, record.headers)


def offsets_of(records: Sequence[Record]) -> dict[int, Intervals]:
    """Return the offsets of records in each partition."""
    offsets: dict[int, Intervals] = defaultdict(list)
    for record in records:
        offsets[record.partition].append((record.offset, record.offset + 1))
    return offsets


def owner_of(letter: DeadLetter) -> str | None:
    """Return the group that owns a letter, None when it names none."""
    return letter.group or None


def size_sent_back(letter: DeadLetter) -> int:
    """Return the bytes of the batch in which a dead letter is sent back by itself."""
    return size_of_batch(letter.key, letter.value, redrive_headers(letter))


def oldest(starts: Sequence[PartitionStart], limit: int) -> tuple[list[Record], bool]:
    """Merge the starts of partitions by age, each in offset order; return `limit` records, and whether there are more.

    Nothing is taken beyond the end of a start that has more behind it: that may be older than what the others have.
    """
    by_age = merged_by_time(chain.from_iterable(records for records, _ in starts))
    ends = {place_of(records[-1]) if records else None for records, has_more in starts if has_more}
    if None in ends:
        return [], True
    safe = next((number for number, record in enumerate(by_age, 1) if place_of(record) in ends), len(by_age))
    chosen = by_age[: min(limit, safe)]
    return chosen, bool(ends) or len(chosen) < len(by_age)
