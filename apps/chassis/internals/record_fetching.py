"""Fetched records are handed out in bounded memory, and never lost behind a batch that cannot be read: a PROTECTION.

Reaches for the classes that aiokafka's fetcher makes: `MemoryRecords`, `PartitionRecords` and `FetchResult`, and for
`Fetcher.fetched_records` and `Fetcher.close`. Lost without it: the same as without `fetched_batches`, which makes the
records. No upstream issue is known.

A batch that cannot be read blocks only its own partition: earlier records, and those fetched from other partitions, are
returned first. aiokafka raises at once, and the poll loses the records that it had already taken.

A consumer closes while a fetch waits for its retry. aiokafka raises the cancellation of that fetch in the caller, which
then looks cancelled itself, and leaves the connections open.

Memory is bounded for any batch: a large batch is read in parts, a record of more than 16 MiB is returned without its
value, and a poll ends when its records have 8 MiB.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from functools import wraps
from itertools import chain, islice
from operator import length_hint
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.structs import TopicPartition

from apps.chassis.internals.fetched_batches import Batches, Fetched, FetchedRecord, Piece

REACHES = (
    "aiokafka.consumer.fetcher:MemoryRecords",
    "apps.chassis.internals.record_fetching:FetchResult.__base__.__init__(tp, assignment, partition_records, backoff)",
    "apps.chassis.internals.record_fetching:FetchResult.__base__.check_assignment(tp) uses _topic_partition",
    "apps.chassis.internals.record_fetching:FetchResult.__base__.getall(max_records)",
    "apps.chassis.internals.record_fetching:FetchResult.__base__._update_position uses _partition_records",
    "aiokafka.consumer.fetcher:Fetcher.fetched_records(partitions)",
    "aiokafka.consumer.fetcher:Fetcher.close uses _fetch_task, _pending_tasks",
    "aiokafka:AIOKafkaConsumer.getmany uses _fetcher",
)

POLL_BYTES = 8 * 1024 * 1024
"""Bytes of records after which a poll returns."""
CANCEL_AGAIN_S = 0.1
"""Seconds for the fetching to end before it is cancelled again."""


def read_fetched_fast() -> None:
    """Have every consumer of this process read so from now on, also those that exist."""
    fetcher.MemoryRecords = Fetched
    fetcher.PartitionRecords = PartitionRecords
    fetcher.FetchResult = FetchResult
    if not hasattr(fetcher.Fetcher.fetched_records, "__wrapped__"):
        fetcher.Fetcher.fetched_records = _bounded(fetcher.Fetcher.fetched_records)
        fetcher.Fetcher.close = _closing(fetcher.Fetcher.close)


class PassedOver(NamedTuple):
    """A poll returned no record of a partition, though it spent bytes to reach an offset; `at` is `time.monotonic`."""

    partition: TopicPartition
    offset: int
    at: float


class Budget:
    """How many bytes of records a poll may still take."""

    def __init__(self) -> None:
        self.left = POLL_BYTES
        self.passed_over: PassedOver | None = None


_budget: ContextVar[Budget | None] = ContextVar("budget of the current poll", default=None)


def _bounded(poll: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return the client's poll with one budget for all its partitions.

    Records before the asked offset count too: a small compressed batch can hold gigabytes of them. When they spent the
    budget, other tasks get a turn, and what is left is read with a new budget, within the time of the poll.
    """

    @wraps(poll)
    async def bounded(fetch: Any, partitions: Any, timeout: float = 0, max_records: int | None = None) -> Any:  # noqa: ANN401, ASYNC109 - as aiokafka calls it
        deadline = time.monotonic() + timeout
        while True:
            budget = Budget()
            token = _budget.set(budget)
            try:
                found = await poll(fetch, partitions, 0, max_records)
                left = deadline - time.monotonic()
                if not found and budget.left > 0 and left > 0:  # nothing was fetched yet
                    found = await poll(fetch, partitions, left, max_records)
                    left = deadline - time.monotonic()
            finally:
                _budget.reset(token)
            fetch.passes_over = None if found else budget.passed_over
            if found or budget.left > 0 or left <= 0:
                return found
            await asyncio.sleep(0)

    return bounded


def _closing(close: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return the fetcher's close, which first ends what it fetches."""

    @wraps(close)
    async def closing(fetch: Any) -> None:  # noqa: ANN401 - as aiokafka calls it
        while not fetch._fetch_task.done():
            fetch._fetch_task.cancel()  # it may lose one while it gives up partitions
            await asyncio.wait([fetch._fetch_task], timeout=CANCEL_AGAIN_S)
        for task in fetch._pending_tasks:
            task.cancel()
        await asyncio.gather(*fetch._pending_tasks, return_exceptions=True)
        fetch._pending_tasks.clear()
        await close(fetch)

    return closing


def passed_over(consumer: AIOKafkaConsumer) -> PassedOver | None:
    """Return what the last poll of a consumer passed over, None when it did not or returned records."""
    found: PassedOver | None = getattr(getattr(consumer, "_fetcher", None), "passes_over", None)
    return found


class PartitionRecords:
    """The records that were fetched of a partition, without those of aborted transactions where that is wanted.

    Deserializers of keys and values are not called. aiokafka's object references itself: after a seek or a
    rebalance, megabytes would wait for a garbage collection.
    """

    def __init__(self, tp: TopicPartition, records: Fetched, aborted: Any, offset: int, *options: Any) -> None:  # noqa: ANN401 - as aiokafka calls it
        self._pieces = Batches(tp, records, aborted, offset, *options).pieces()
        self._left: Iterator[FetchedRecord] = iter(())
        self._piece: list[FetchedRecord] = []
        self._behind = offset
        self.ended = False
        """Whether all records were returned."""

    def __iter__(self) -> Iterator[FetchedRecord]:
        return chain.from_iterable(self._in_turn())

    def __next__(self) -> FetchedRecord:
        return next(iter(self))

    @property
    def next_fetch_offset(self) -> int:
        """The offset of the first record that was not handed out."""
        left = length_hint(self._left)
        return self._piece[-left].offset if left else self._behind

    def take(self, max_records: int | None, budget: Budget) -> list[FetchedRecord]:
        """Return at most this many of the next records, until the budget is spent."""
        found = list(islice(self._left, max_records))
        while budget.left > 0 and (max_records is None or len(found) < max_records):
            piece = next(self._pieces, None)
            if piece is None:
                self.ended = True
                break
            budget.left -= piece.size
            self._begin(piece)
            found += islice(self._left, None if max_records is None else max_records - len(found))
        return found

    def _in_turn(self) -> Iterator[Iterator[FetchedRecord]]:
        yield self._left
        for piece in self._pieces:
            self._begin(piece)
            yield self._left

    def _begin(self, piece: Piece) -> None:
        self._piece, self._left, self._behind = piece.records, iter(piece.records), piece.behind


class FetchResult(fetcher.FetchResult):  # type: ignore[misc]  # aiokafka ships no types
    """Says that what was fetched of its partition cannot be read no sooner than at the second poll.

    The first hands out what was fetched of other partitions.
    """

    _error: CorruptRecordException | None = None
    _partition_records: PartitionRecords | None

    def getall(self, max_records: int | None = None) -> list[FetchedRecord]:
        """Return records, and count them as consumed. Raises `CorruptRecordException`."""
        error, self._error = self._error, None
        if not self.check_assignment(self._topic_partition):  # paused, or sought elsewhere
            return []
        if error is not None:
            raise error  # it is fetched again after the next poll
        if self._partition_records is None:
            return []
        budget = _budget.get() or Budget()
        spent = budget.left
        try:
            records = self._partition_records.take(max_records, budget)
        except CorruptRecordException as unreadable:
            self._error = unreadable
            return []
        if not records and budget.left < spent:
            sought = self._partition_records.next_fetch_offset
            budget.passed_over = PassedOver(self._topic_partition, sought, time.monotonic())
        self._update_position()
        if self._partition_records.ended:
            self._partition_records = None
        return records
