"""Which dead letters were sent back: the records of the marks topic, and the offsets that they hold.

The marks topic has one record for each group and partition of the dead letters, so that groups which share a
dead-letter topic do not overwrite each other. Letters that name no group have their own records, which all groups
share. Earlier versions had one record for each partition, which all groups overwrote. Such a record is still read, and
its letters count as sent back for every group.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from contracts.record import Record

TOPIC_ID = "dead-letter-topic-id"
"""The header of a mark with the id of its topic: the name may be reused for a new topic."""

Intervals = list[tuple[int, int]]
"""Offsets, as ascending ranges of a first offset and an exclusive last one."""

CLOSE_OFFSETS = 500
"""Ranges with a smaller gap are read as one: skipping few offsets costs more than reading them."""


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

    def __init__(self, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self.headers = headers
        self.unreadable: str | None = None
        self._intervals: dict[MarkKey | int, Intervals] = {}

    def read(self, record: Record) -> None:
        """Add a record of the marks topic; ignore a record of an older topic of the same name."""
        told = [header for header in record.headers if header[0] == TOPIC_ID]
        if told and told != list(self.headers):
            return
        try:
            self._intervals[decode_key(record.key or b"")] = merged(decode_intervals(record.value or b"[]"))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.unreadable = f"{record.topic}-{record.partition} offset {record.offset} is no mark"

    def of(self, group: str | None, partition: int) -> Intervals:
        """Return the offsets of a group's letters in a partition that must not be sent back again."""
        return merged([*self._intervals.get(partition, []), *self._intervals.get(MarkKey(group, partition), [])])

    def holds(self, group: str | None, partition: int, offset: int) -> bool:
        """Return whether a letter of a group was sent back."""
        marked = self._intervals.get(MarkKey(group, partition), [])
        return holds(marked, offset) or holds(self._intervals.get(partition, []), offset)

    def add(self, group: str | None, partition: int, intervals: Intervals) -> None:
        """Mark more of a group's letters."""
        key = MarkKey(group, partition)
        self._intervals[key] = merged([*self._intervals.get(key, []), *intervals])

    def to_write(self, group: str | None, partition: int) -> tuple[bytes, bytes]:
        """Return key and value of the record that marks a group's letters in a partition."""
        key = MarkKey(group, partition)
        return msgspec.json.encode(key), msgspec.json.encode(self._intervals.get(key, []))


def holds(intervals: Intervals, offset: int) -> bool:
    """Return whether an offset is in the intervals."""
    place = bisect_right(intervals, (offset, math.inf)) - 1
    return place >= 0 and offset < intervals[place][1]


def merged(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """Return the same offsets as ascending ranges with gaps between them."""
    ranges: Intervals = []
    for start, stop in sorted(intervals):
        if start >= stop:
            continue
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        else:
            ranges.append((start, stop))
    return ranges


def rest_of(intervals: Intervals, start: int, stop: int) -> Intervals:
    """Return the offsets from `start` up to `stop`, exclusive, that are not in the intervals.

    Ranges that are close together are joined, with the offsets between them.
    """
    left: Intervals = []
    for marked_from, marked_to in [*intervals, (stop, stop)]:
        if start < min(marked_from, stop):
            if left and start - left[-1][1] <= CLOSE_OFFSETS:
                left[-1] = (left[-1][0], min(marked_from, stop))
            else:
                left.append((start, min(marked_from, stop)))
        start = max(start, marked_to)
    return left


def without(start: int, stop: int, offsets: Iterable[int]) -> Intervals:
    """Return the offsets from `start` up to `stop`, exclusive, except some of them."""
    ranges: Intervals = []
    for offset in sorted(offsets):
        ranges.append((start, offset))
        start = offset + 1
    return merged([*ranges, (start, stop)])
