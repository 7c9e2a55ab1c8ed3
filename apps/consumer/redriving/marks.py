"""Which dead letters were sent back or discarded: the records of the marks topic, and the offsets that they mark.

The marks topic has one record for each group and partition of the dead letters, so that groups which share a
dead-letter topic do not overwrite each other. Letters that name no group have their own records, which all groups
share. Earlier versions had one record for each partition, which all groups overwrote. Such a record is still read, and
its letters count as sent back for every group.

A discarded letter is marked like one that was sent back, so that no version sends it back. A second record tells which
of the marked ones were discarded. A third one tells before which offset all letters were purged: they no longer count,
even before Kafka has deleted them.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple
from uuid import UUID

import msgspec

from apps.consumer.redriving.actions import Action
from contracts.record import Record

TOPIC_ID = "dead-letter-topic-id"
"""The header of a mark with the id of its topic: the name may be reused for a new topic."""
DATED_UP_TO = "dead-letters-dated-up-to"
"""The header of a mark with a time (ms): when it was written, no letter before the end of its offsets was later."""

Intervals = list[tuple[int, int]]
"""Offsets, as ascending ranges of a first offset and an exclusive last one."""
OFFSETS_END = 2**63 - 1
"""The offset after the last possible one."""
LATEST_MS = 10**18 - 1
"""The latest time of a mark: what is dated later is no date, and Kafka can look for none beyond 2**63 - 1."""


class MarkKey(msgspec.Struct, frozen=True):
    """The key of a mark, as JSON: a group (None for letters that name none), and a partition of the dead letters.

    For discarded letters, `discarded_by` is that group, and `group` is "". No letter has that group, so earlier
    versions, which know no `discarded_by`, ignore the mark. So is `purged_by` for purged letters.
    """

    group: str | None
    partition: int
    discarded_by: str | msgspec.UnsetType | None = msgspec.UNSET
    purged_by: str | msgspec.UnsetType | None = msgspec.UNSET


decode_key = msgspec.json.Decoder(int | MarkKey).decode
"""Reads the key of a mark; earlier versions wrote only the partition."""
decode_intervals = msgspec.json.Decoder(Intervals).decode


class DatedMark(NamedTuple):
    """The partition and the exclusive end of the offsets in a mark, and the time (ms) up to which it is dated."""

    partition: int
    end: int
    time: int


class Marks:
    """Which dead letters of one topic were sent back or discarded.

    `headers` identify the topic, where Kafka reports its id. `unreadable` names a mark that cannot be read: then it is
    unknown what was sent back.
    """

    def __init__(self, topic_id: UUID | None = None) -> None:
        self.topic_id = topic_id
        self.headers: Sequence[tuple[str, bytes]] = [(TOPIC_ID, str(topic_id).encode())] if topic_id else []
        self.unreadable: str | None = None
        self._intervals: dict[MarkKey | int, Intervals] = {}
        self._discarded: defaultdict[int, dict[str | None, Intervals]] = defaultdict(dict)
        self._purged: dict[tuple[str | None, int], int] = {}

    def read(self, record: Record, before: int = OFFSETS_END) -> DatedMark | None:
        """Add a record of the marks topic, as far as its offsets are `before` one; return up to when it is dated.

        None is a mark of an earlier version, which has no time. A record of an older topic of the same name is ignored.
        """
        topic_ids = [header for header in record.headers if header[0] == TOPIC_ID]
        if topic_ids and topic_ids != list(self.headers):
            return None
        try:
            key, intervals = decode_key(record.key or b""), merged(decode_intervals(record.value or b"[]"))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.unreadable = f"{record.topic}-{record.partition} offset {record.offset} is no mark"
            return None
        intervals = minus(intervals, [(before, OFFSETS_END)])
        self._keep(key, intervals)
        if not intervals or not isinstance(key, MarkKey) or (time := _time_in(record)) is None:
            return None
        return DatedMark(key.partition, intervals[-1][1], time)

    def _keep(self, key: MarkKey | int, intervals: Intervals) -> None:
        if isinstance(key, MarkKey) and key.discarded_by is not msgspec.UNSET:
            self._discarded[key.partition][key.discarded_by] = intervals
        elif isinstance(key, MarkKey) and key.purged_by is not msgspec.UNSET:
            self._purged[key.purged_by, key.partition] = intervals[-1][1] if intervals else 0
        else:
            self._intervals[key] = intervals

    def end(self, group: str | None, partition: int) -> int:
        """Return the offset behind the last letter of a group in a partition that has a mark, 0 when none has."""
        return max((stop for _, stop in self.of(group, partition)), default=0)

    def of(self, group: str | None, partition: int) -> Intervals:
        """Return the offsets of a group's letters in a partition that were sent back or discarded."""
        return merged([*self._intervals.get(partition, []), *self._intervals.get(MarkKey(group, partition), [])])

    def contains(self, group: str | None, partition: int, offset: int) -> bool:
        """Return whether a letter of a group was sent back or discarded."""
        return any(contains(self._intervals.get(key, []), offset) for key in (MarkKey(group, partition), partition))

    def discarded(self, group: str | None, partition: int) -> Intervals:
        """Return the offsets of a group's letters in a partition that were discarded, and not restored."""
        return self._discarded[partition].get(group, [])

    def all_discarded(self, partition: int) -> Intervals:
        """Return the offsets of the letters in a partition that any group has discarded."""
        return merged(chain.from_iterable(self._discarded[partition].values()))

    def purged(self, group: str | None, partition: int) -> int:
        """Return the offset before which all letters of a group in a partition were purged."""
        return self._purged.get((group, partition), 0)

    def is_discarded(self, partition: int, offset: int) -> bool:
        """Return whether the group of a letter has discarded it."""
        return any(contains(intervals, offset) for intervals in self._discarded[partition].values())

    def apply(
        self,
        action: Action,
        group: str | None,
        partition: int,
        offsets: Intervals,
        gaps: Sequence[tuple[int, int]] = (),
    ) -> list[tuple[bytes, bytes]]:
        """Mark letters of a group as an action leaves them; return key and value of each record to write.

        `gaps` are offsets without a letter of the group: marked as well, they join the ranges around them.
        """
        key = MarkKey(group, partition)
        marked, discarded = self._intervals.get(key, []), self.discarded(group, partition)
        match action:
            case Action.REDRIVE:
                marked = merged([*marked, *gaps, *offsets])
            case Action.DISCARD:
                marked, discarded = merged([*marked, *gaps, *offsets]), merged([*discarded, *offsets])
            case Action.RESTORE:
                marked, discarded = minus(marked, offsets), minus(discarded, offsets)
        self._intervals[key], self._discarded[partition][group] = marked, discarded
        changed = [(key, marked), (MarkKey("", partition, group), discarded)]
        return _encoded(changed[:1] if action is Action.REDRIVE else changed)

    def purge(
        self, group: str | None, partition: int, before: int, moved: Mapping[int, int]
    ) -> list[tuple[bytes, bytes]]:
        """Mark all letters of a group before an offset as purged; return key and value of each record to write.

        `moved` has the new offset of each letter that was written again, by its old one: it keeps its marks.
        """
        before = max(before, self.purged(group, partition))
        key, purged = MarkKey(group, partition), [(0, before)]
        sent, discarded = self.of(group, partition), self.discarded(group, partition)
        marked_again, discarded_again = (
            [(new, new + 1) for old, new in moved.items() if contains(marks, old)] for marks in (sent, discarded)
        )
        marked = merged([*purged, *self._intervals.get(key, []), *marked_again])
        discarded = merged([*minus(discarded, purged), *discarded_again])
        self._intervals[key], self._discarded[partition][group] = marked, discarded
        self._purged[group, partition] = before
        own = MarkKey("", partition, discarded_by=group), MarkKey("", partition, purged_by=group)
        return _encoded([(key, marked), *zip(own, (discarded, purged), strict=True)])


def _time_in(record: Record) -> int | None:
    """Return the time of a mark, None for one without a valid time."""
    digits = dict(record.headers).get(DATED_UP_TO) or b""
    return int(digits) if digits.isdigit() and len(digits) <= len(str(LATEST_MS)) else None


def _encoded(marks: Iterable[tuple[MarkKey, Intervals]]) -> list[tuple[bytes, bytes]]:
    return [(msgspec.json.encode(key), msgspec.json.encode(intervals)) for key, intervals in marks]


def contains(intervals: Intervals, offset: int) -> bool:
    """Return whether an offset is in the intervals."""
    return next_outside(intervals, offset) != offset


def next_outside(intervals: Intervals, offset: int) -> int:
    """Return the first offset, from `offset` on, that is not in the intervals."""
    place = bisect_right(intervals, (offset, math.inf)) - 1
    return max(offset, intervals[place][1]) if place >= 0 else offset


def last_outside(intervals: Intervals, end: int) -> int:
    """Return the end of the offsets before `end` that are not in the intervals, without those behind them."""
    place = bisect_left(intervals, (end,)) - 1
    return intervals[place][0] if place >= 0 and intervals[place][1] >= end else end


def merged(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """Return the same offsets as ascending ranges with gaps between them."""
    ranges: Intervals = []
    for start, stop in sorted(intervals):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(stop, ranges[-1][1]))
        elif start < stop:
            ranges.append((start, stop))
    return ranges


def outside(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """Return all offsets that are not in the intervals."""
    ranges = merged(intervals)
    return merged(zip([0, *(stop for _, stop in ranges)], [*(start for start, _ in ranges), OFFSETS_END], strict=True))


def minus(intervals: Intervals, removed: Intervals) -> Intervals:
    """Return the offsets of intervals without the removed ones."""
    return outside([*outside(intervals), *removed])
