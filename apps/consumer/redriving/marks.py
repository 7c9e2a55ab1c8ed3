"""Which dead letters were sent back: the records of the marks topic, and the offsets that they mark.

The marks topic has one record for each group and partition of the dead letters, so that groups which share a
dead-letter topic do not overwrite each other. Letters that name no group have their own records, which all groups
share. Earlier versions had one record for each partition, which all groups overwrote. Such a record is still read, and
its letters count as sent back for every group.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from uuid import UUID

import msgspec

from contracts.record import Record

TOPIC_ID = "dead-letter-topic-id"
"""The header of a mark with the id of its topic: the name may be reused for a new topic."""

Intervals = list[tuple[int, int]]
"""Offsets, as ascending ranges of a first offset and an exclusive last one."""


class MarkKey(msgspec.Struct, frozen=True):
    """The key of a mark, as JSON: a group (None for letters that name none), and a partition of the dead letters."""

    group: str | None
    partition: int


decode_key = msgspec.json.Decoder(int | MarkKey).decode
"""Reads the key of a mark; earlier versions wrote only the partition."""
decode_intervals = msgspec.json.Decoder(Intervals).decode


class Marks:
    """Which dead letters of one topic were sent back.

    `headers` identify the topic, where Kafka reports its id. `unreadable` names a mark that cannot be read: then it is
    unknown what was sent back.
    """

    def __init__(self, topic_id: UUID | None = None) -> None:
        self.topic_id = topic_id
        self.headers: Sequence[tuple[str, bytes]] = [(TOPIC_ID, str(topic_id).encode())] if topic_id else []
        self.unreadable: str | None = None
        self._intervals: dict[MarkKey | int, Intervals] = {}

    def read(self, record: Record) -> None:
        """Add a record of the marks topic; ignore a record of an older topic of the same name."""
        topic_ids = [header for header in record.headers if header[0] == TOPIC_ID]
        if topic_ids and topic_ids != list(self.headers):
            return
        try:
            self._intervals[decode_key(record.key or b"")] = merged(decode_intervals(record.value or b"[]"))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.unreadable = f"{record.topic}-{record.partition} offset {record.offset} is no mark"

    def of(self, group: str | None, partition: int) -> Intervals:
        """Return the offsets of a group's letters in a partition that must not be sent back again."""
        return merged([*self._intervals.get(partition, []), *self._intervals.get(MarkKey(group, partition), [])])

    def contains(self, group: str | None, partition: int, offset: int) -> bool:
        """Return whether a letter of a group was sent back."""
        return any(contains(self._intervals.get(key, []), offset) for key in (MarkKey(group, partition), partition))

    def add(self, group: str | None, partition: int, intervals: Intervals) -> tuple[bytes, bytes]:
        """Mark more of a group's letters; return key and value of the record to write."""
        key = MarkKey(group, partition)
        self._intervals[key] = merged([*self._intervals.get(key, []), *intervals])
        return msgspec.json.encode(key), msgspec.json.encode(self._intervals[key])


def contains(intervals: Intervals, offset: int) -> bool:
    """Return whether an offset is in the intervals."""
    return next_outside(intervals, offset) != offset


def next_outside(intervals: Intervals, offset: int) -> int:
    """Return the first offset, from `offset` on, that is not in the intervals."""
    place = bisect_right(intervals, (offset, math.inf)) - 1
    return max(offset, intervals[place][1]) if place >= 0 else offset


def merged(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """Return the same offsets as ascending ranges with gaps between them."""
    ranges: Intervals = []
    for start, stop in sorted(intervals):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        elif start < stop:
            ranges.append((start, stop))
    return ranges


def without(start: int, stop: int, offsets: Iterable[int]) -> Intervals:
    """Return the offsets from `start` up to `stop`, exclusive, except some of them."""
    bounds = sorted(offsets)
    return merged(zip([start, *(offset + 1 for offset in bounds)], [*bounds, stop], strict=True))
