"""Find records of the whole topic: the newest that match a filter, and one by its place."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.search import DEFAULT_LIMITS, Newest, SearchLimits, Skip, skip_nothing
from contracts.record import Record, latest_date

OUT_OF_ORDER_MS = 60 * 60 * 1_000
"""Milliseconds by which a record may be older than one before it in its partition, and still be found by `until`."""


class NoSuchRecord(Exception):
    """There is no record at a place; `next` is the next offset in the partition that has one, None without any."""

    def __init__(self, reason: str, following: int | None = None) -> None:
        super().__init__(reason)
        self.next = following


class Filter(NamedTuple):
    """Which records are wanted; times in milliseconds since 1970 UTC, `until` exclusive.

    `also` is a further condition.
    """

    key: bytes | None = None
    partition: int | None = None
    since: int | None = None
    until: int | None = None
    also: Callable[[Record], bool] | None = None

    def matches(self, record: Record) -> bool:
        """Return whether a record is wanted."""
        return (
            (self.key is None or record.key == self.key)
            and (self.partition is None or record.partition == self.partition)
            and (self.since is None or record.timestamp >= self.since)
            and (self.until is None or record.timestamp < self.until)
            and (self.also is None or self.also(record))
        )


async def newest(  # noqa: PLR0913, PLR0917 - what bounds a search
    log: LogReader,
    partitions: int,
    wanted: Filter,
    limit: int,
    cursor: Mapping[int, int] | None,
    skip: Skip = skip_nothing,
    limits: SearchLimits = DEFAULT_LIMITS,
) -> Newest:
    """Return the newest records that are wanted, going back from a cursor; raises the errors of `LogReader`."""
    first, end = await log.offsets(partitions)
    before = end
    if wanted.until is not None:
        before = await log.at_time(wanted.until + OUT_OF_ORDER_MS, end, latest_date())
    if cursor is not None:
        before = {number: min(cursor.get(number, 0), offset) for number, offset in before.items()}
    since = first if wanted.since is None else await log.at_time(wanted.since, end)
    if wanted.partition is not None:
        before = {number: offset for number, offset in before.items() if number == wanted.partition}
    return await log.newest(before, wanted.matches, limit, since, skip, limits)


async def record_at(log: LogReader, uncommitted: LogReader, partitions: int, partition: int, offset: int) -> Record:
    """Return a record; raises `NoSuchRecord`, which says why there is none, or the errors of `LogReader`."""
    first, end = await log.offsets(partitions)
    if partition not in end:
        raise NoSuchRecord(f"{log.topic} has no partition {partition}, but 0 to {len(end) - 1}")
    if offset >= end[partition]:
        written = (await uncommitted.ends(partitions))[partition]
        if offset < written:
            raise NoSuchRecord(f"it waits for the end of a transaction that began at offset {end[partition]}")
        raise NoSuchRecord(f"nothing was written there yet: the next record will have offset {written}")
    found = await log.record(partition, max(offset, first[partition]))
    if found is not None and found.offset == offset:
        return found
    following = None if found is None else found.offset
    if offset < first[partition]:
        raise NoSuchRecord(
            f"deleted: the records of partition {partition} begin at offset {first[partition]}", following
        )
    aborted = await uncommitted.record(partition, offset)
    if aborted is not None and aborted.offset == offset:
        raise NoSuchRecord("its transaction was aborted: it counts as never written", following)
    raise NoSuchRecord("no record: it was compacted away, or is the mark of a transaction's end", following)
