"""List the newest dead letters, and count them by reason."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from apps.chassis.http.admission import Share
from apps.chassis.kafka.search import DEFAULT_LIMITS, SearchLimits
from apps.consumer.browsing.counted_answers import counted
from apps.consumer.browsing.cursors import read_offsets, write_offsets
from apps.consumer.browsing.record_view import View
from apps.consumer.browsing.topic_search import Filter, newest
from apps.consumer.redriving.letter_view import DeadLetter, show_letter
from apps.consumer.redriving.letters import letter_of, owner_of
from apps.consumer.redriving.marks import contains, last_outside, outside
from apps.consumer.stream_consumer import StreamConsumer
from contracts.record import Record, memory_of

MAX_LETTERS = 1_000
"""Dead letters of one answer, and of one redrive."""
COUNT_LIMITS = SearchLimits(bytes=4 * 1024 * 1024)
COUNT_S = 3.0
"""Seconds after which a count returns what it has, like a search."""


class DeadLetters(msgspec.Struct):
    """Dead letters, the newest first; `next` given as `before` leads to those before them, null when there are none.

    `waiting_for_transaction` more stand behind another client's open transaction, and are listed when that has ended.
    `notes` says so, and what else an open transaction hides.
    """

    dead_letters: list[DeadLetter]
    next: str | None
    waiting_for_transaction: int
    notes: list[str]


class Reason(msgspec.Struct):
    """Dead letters with one type of error: how many, how many can be sent back, the times of the ends (ms).

    `redriven` were sent back; `oldest_redrivable` is the time of the oldest that can be.
    """

    error_type: str | None
    letters: int
    redrivable: int
    newest: int
    oldest: int
    redriven: int = 0
    oldest_redrivable: int | None = None


class Reasons(msgspec.Struct):
    """The newest 1,000 dead letters that match, by the type of their error, the most frequent first.

    `redrivable` counts those that can be sent back and were not. A count ends after 3 s with fewer; `more` is whether
    older ones were not looked at.
    `redriven` were sent back; `oldest_redrivable` is the time of the oldest that can be (ms).
    `waiting_for_transaction` newer ones stand behind another client's open transaction, and are not counted.
    """

    letters: int
    redrivable: int
    reasons: list[Reason]
    more: bool
    waiting_for_transaction: int
    redriven: int
    oldest_redrivable: int | None


async def newest_letters(  # noqa: PLR0913, PLR0917 - the parameters of a call
    one: StreamConsumer,
    view: View,
    limit: int,
    only: Filter,
    cursor: Mapping[int, int] | None,
    limits: SearchLimits = DEFAULT_LIMITS,
    *,
    discarded: bool,
    share: Share | None = None,
) -> DeadLetters:
    """Return the newest letters that match: either those that were discarded, or the others.

    With the share of a call they are only made when its answer is. Raises 503 when there is no room for that.
    """
    log, partitions = one.letter_log, one.cluster.partitions.get(one.letter_log.dead.topic, 0)
    marks = await log.marks()
    gone = {partition: marks.all_discarded(partition) for partition in range(partitions)}
    unlisted = {partition: outside(offsets) if discarded else offsets for partition, offsets in gone.items()}

    def is_listed(record: Record) -> bool:
        purged = marks.purged(owner_of(letter_of(record)), record.partition)
        is_hidden = record.offset < purged or contains(unlisted[record.partition], record.offset)
        return not is_hidden and (only.also is None or only.also(record))

    def skip(partition: int, offset: int) -> int:
        return last_outside(unlisted[partition], offset)

    found = await newest(log.dead, partitions, only._replace(also=is_listed), limit, cursor, skip, limits)

    def shown(record: Record) -> DeadLetter:
        return show_letter(view, record, marks, one.redriver)

    waiting = await log.waiting(only.partition)
    notes = await log.notes(waiting)
    following = write_offsets(found.before) if found.before else None
    if share is None:
        return DeadLetters([*map(shown, found.records)], following, waiting, notes)
    await share.turn(share.taken_bytes)
    return DeadLetters(counted(share, found.records, shown, memory_of(found.records)), following, waiting, notes)


async def count_by_reason(one: StreamConsumer, view: View, only: Filter, *, discarded: bool) -> Reasons:
    """Count the newest letters that match, some at a time: a count needs the memory of few letters."""
    late = asyncio.get_running_loop().time() + COUNT_S
    reasons, left, cursor = dict[str | None, Reason](), MAX_LETTERS, None
    while True:
        found = await newest_letters(one, view, left, only, cursor, COUNT_LIMITS, discarded=discarded)
        _count_letters(found.dead_letters, reasons)
        left -= len(found.dead_letters)
        if found.next is None or not left or asyncio.get_running_loop().time() > late:
            break
        cursor = read_offsets(found.next)
    counted = sorted(reasons.values(), key=lambda reason: -reason.letters)
    return Reasons(
        letters=MAX_LETTERS - left,
        redrivable=sum(reason.redrivable for reason in counted),
        reasons=counted,
        more=found.next is not None,
        waiting_for_transaction=found.waiting_for_transaction,
        redriven=sum(reason.redriven for reason in counted),
        oldest_redrivable=min(filter(None, (reason.oldest_redrivable for reason in counted)), default=None),
    )


def _count_letters(newest_first: Sequence[DeadLetter], reasons: dict[str | None, Reason]) -> None:
    for one in newest_first:
        reason = reasons.setdefault(one.error_type, Reason(one.error_type, 0, 0, one.timestamp, one.timestamp))
        reason.letters += 1
        reason.oldest = one.timestamp
        reason.redriven += one.redriven
        if one.redrivable:
            reason.redrivable += 1
            reason.oldest_redrivable = one.timestamp
