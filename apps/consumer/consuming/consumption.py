"""Process a batch: the handler takes the good records, the dead letters take the bad ones, then all are counted."""

import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from apps.chassis.internals.record_fetching import OversizedRecord, TooLarge
from apps.chassis.observability.logs import one_line
from apps.chassis.observability.traces import Traces
from apps.consumer.consuming.batch_size import BatchSize
from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.halt_limit import Limit
from apps.consumer.consuming.policy import DEFAULT, Policy
from apps.consumer.consuming.redrive_addressing import divide
from apps.consumer.consuming.retry import Attempts, Halted, Handle, Newer, Verdict, nothing_newer
from contracts.record import Record, fields_of

log = logging.getLogger(__name__)

Decode = Callable[[bytes], object]
"""Decodes a record's value, as `Stream.decode` does; may raise anything."""
WriteDeadLetters = Callable[[Sequence[BadRecord]], Awaitable[None]]

FORGOTTEN = 10.0
"""Seconds after which an unreadable batch that was not met again counts as read or skipped."""

MOST_REASONS = 30
"""Most types of errors that dead letters are counted by. A handler may raise any number; the rest share one label."""
OTHER_REASON = "other"


class Tombstone(ValueError):
    """A record without a value, where the stream takes no deletions."""


REASONS = ("Tombstone", "DecodeError", "ValidationError", "UnicodeDecodeError", "Reject")
"""Types of errors whose counters exist from the start, as 0."""


class Outcome(NamedTuple):
    """The result of a batch: its handled records, and its dead letters, `poison` among them.

    `recovered` are partitions that had only good records after a start that accepted bad ones. `redelivered` has the
    first offset to read again of each partition (of a topic): only what comes before is finished. `passed_over` counts
    the finished records that were sent back for another group.
    """

    good: Sequence[Record]
    bad: Sequence[BadRecord] = ()
    poison: Sequence[BadRecord] = ()
    recovered: Collection[int] = ()
    redelivered: Mapping[tuple[str, int], int] = {}
    passed_over: int = 0


class Consumption:
    """What a service has consumed since it started, across its connections.

    `halted` is the reason why it does not consume, until `resume`; `halted_for` is the same without quotes of errors.
    `paused` is whether an operator wants its partitions paused. `accepting` is whether bad records of some partitions
    are dead-lettered without a limit. `dead_letters` counts them by the type of their error, `rebalances` counts
    assignments, `passed_over` the records that were sent back for another group.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it is made of
        self,
        decode: Decode,
        show: Callable[[Sequence[Record]], None],
        handle: Handle,
        write_dead_letters: WriteDeadLetters,
        traces: Traces | None = None,
        policy: Policy = DEFAULT,
        *,
        group: str | None = None,
    ) -> None:
        self.consumed = 0
        self.passed_over = 0
        self.dead_letters = Counter(dict.fromkeys(REASONS, 0))
        self.rebalances = 0
        self.paused = False
        self.halted: str | None = None
        self.halted_for = ""
        self.last_error: str | None = None
        self._unreadable: tuple[str, float] | None = None
        self._show = show
        self._decode = decode
        self.idle_since = time.time()
        self.busy_since: float | None = None
        self.limit = Limit(policy.halt)
        self.attempts = Attempts(decode, handle, policy)
        self.leaving = self.attempts.leaving
        self.size = BatchSize(policy.batching)
        self.accepting = False
        self._recovered: set[int] = set()
        self._group = group
        self._write_dead_letters = write_dead_letters
        self._traces = traces or Traces()

    @property
    def dead_lettered(self) -> int:
        """The number of dead-lettered records."""
        return self.dead_letters.total()

    @property
    def batch_age(self) -> float:
        """The age of the in-flight batch in seconds, its commit included; 0 without a batch."""
        return max(0.0, time.time() - self.busy_since) if self.busy_since else 0.0

    @property
    def most_records(self) -> int:
        """The largest number of records for the next poll."""
        return self.size.records + self.attempts.extra_records

    @property
    def wants_newer(self) -> bool:
        """Whether records behind the redelivered ones must tell whether the handler works."""
        return self.attempts.extra_records > 0

    @property
    def retrying(self) -> str | None:
        """Why records are retried, without quotes of errors; None when they are not."""
        attempts = self.attempts
        if attempts.unwritten is not None:
            return f"retrying: dead letters cannot be written: {attempts.unwritten}"
        if not attempts.is_retrying:
            return None
        why = "the handler fails for too many records" if attempts.outage else "records fail in the handler"
        return f"retrying: {why}: {attempts.failures} attempts failed, the last with {attempts.kind}"

    def note_unreadable(self, what: str) -> None:
        """Note that a batch cannot be read: its partition waits until it can be read, or an operator seeks past it."""
        if self.unreadable != what:
            log.error(what)
        self._unreadable = what, time.time()
        self.last_error = what

    @property
    def unreadable(self) -> str | None:
        """Unreadable batches, of the last 10 s or just before the in-flight batch; None when all could be read."""
        what, seen = self._unreadable or ("", 0.0)
        return what if (self.busy_since or time.time()) - seen < FORGOTTEN else None

    def resume(self, *, accept: bool) -> None:
        """Consume again after a stop or a halt.

        With `accept`, bad records of a partition are dead-lettered as `accept` does.
        """
        self.halted = None
        self.leaving.clear()
        self.attempts.forget()
        self.accepting = False
        if accept:
            self.accept()

    def accept(self) -> None:
        """Dead-letter the bad records of a partition until a batch has only good ones of it, or none wait there."""
        self.accepting = True
        self._recovered.clear()
        self.limit.forget()
        self.attempts.end_pause()

    def caught_up(self, partitions: Collection[int], assigned: Collection[int]) -> None:
        """End what was accepted of partitions in which no record waits: later records were not meant by it."""
        self._recovered.update(partitions)
        self.accepting = not self._recovered.issuperset(assigned)

    def assigned(self, partitions: Collection[tuple[str, int]]) -> None:
        """Set the currently assigned partitions, of a topic each."""
        self.leaving.clear()
        self.idle_since = time.time()  # a newly assigned partition could not be polled before
        self.rebalances += 1
        self.attempts.retain(partitions)

    async def consume(self, records: Sequence[Record], newer: Newer = nothing_newer) -> Outcome:
        """Handle a batch and write its dead letters; return the outcome to `settle` after the commit.

        When it raises, nothing of the batch may be committed. `newer` returns whether records wait behind the batch.
        """
        try:
            if not self.halted:
                if self.leaving.is_set():
                    self.limit.review((), ())  # the last reviewed batch may be uncommitted: it must not count with this
                    return Outcome((), redelivered=_firsts(records))
                own, others = divide(records, self._group)
                with self._traces.handling(own):
                    outcome = await self._consume(own, newer)
                passed_over = sum(one.offset < _first(outcome.redelivered, one) for one in others)
                return outcome._replace(passed_over=passed_over) if others else outcome
        except Halted as reason:
            self.halted = self.last_error = str(reason)
            self.halted_for = reason.reason
            self.leaving.clear()
            log.critical("halted: %s", reason.reason)
        self.busy_since = None
        await self.leaving.wait()  # the watch over the consume loop ends this connection
        raise Halted(self.halted or "")

    def settle(self, outcome: Outcome) -> None:
        """Count a committed batch, and show its records."""
        self.limit.count()
        self.attempts.count(len(outcome.good) + len(outcome.bad), outcome.poison)
        self._recovered.update(outcome.recovered)
        self.consumed += len(outcome.good)
        self.passed_over += outcome.passed_over
        for letter in outcome.bad:
            self.dead_letters[self._reason_of(letter)] += 1
        self._show(outcome.good)

    async def _consume(self, records: Sequence[Record], newer: Newer) -> Outcome:
        if not records:  # all were for other groups: that ends no halt
            self.limit.review((), ())
            return Outcome(())
        good, values, bad = sort_out(self._decode, records)
        accepted = {record.partition for record in records} - self._recovered if self.accepting else set()
        verdict = Verdict()
        if values:
            began = time.monotonic()
            verdict = await self.attempts.handle(good, values, accept=bool(accepted), newer=newer)
            if not verdict.is_bad:
                self.size.adapt(len(good), time.monotonic() - began)
        if not bad and not verdict.is_bad:
            self.attempts.keep(records, verdict, ())
            self.limit.review(records, ())
            self.limit.passed()
            return Outcome(good, recovered=accepted)
        bad += [*verdict.refused, *verdict.poison]
        outcome = self._finished(records, bad, verdict, accepted)
        if outcome.bad and not await self._dead_letter(outcome.bad):
            unwritten = [id(one.record) for one in outcome.bad]
            outcome = self._finished(
                records, bad, verdict._replace(unfinished=[*verdict.unfinished, *unwritten]), accepted
            )
        redelivered = [id(record) for record in records if record.offset >= _first(outcome.redelivered, record)]
        self.attempts.keep(records, verdict, redelivered)
        return outcome

    def _finished(
        self, records: Sequence[Record], bad: Sequence[BadRecord], verdict: Verdict, accepted: Collection[int]
    ) -> Outcome:
        """Return the finished part of a batch: in each partition the records before its first unfinished one.

        Raises `Halted` when too many of them were refused.
        """
        unfinished = set(verdict.unfinished)
        firsts = _firsts([record for record in records if id(record) in unfinished])
        finished = [record for record in records if record.offset < _first(firsts, record)]
        bad_of = {id(one.record): one for one in bad}
        of_handler = {id(one.record) for one in verdict.poison}
        refused: list[BadRecord] = []
        poison: list[BadRecord] = []
        for one in map(bad_of.get, map(id, finished)):
            if one is not None:
                (poison if id(one.record) in of_handler else refused).append(one)
        if excess := self.limit.review(finished, refused, poison, accepted):
            self.limit.halt()
            raise Halted(excess, refused[-1].error)
        return Outcome(
            [record for record in finished if id(record) not in bad_of],
            sorted([*refused, *poison], key=lambda one: (one.record.partition, one.record.offset)),
            poison,
            set(accepted) - {one.record.partition for one in bad} - {partition for _, partition in firsts},
            firsts,
        )

    async def _dead_letter(self, bad: Sequence[BadRecord]) -> bool:
        """Write dead letters, retrying until it works; return False when the batch is to be abandoned first."""
        if not await self.attempts.insist(partial(self._write_dead_letters, bad)):
            return False
        _tell(bad)
        self.last_error = f"{_place(bad[-1].record)}: {one_line(bad[-1].error)}"
        return True

    def _reason_of(self, letter: BadRecord) -> str:
        name = type(letter.error).__name__
        return name if name in self.dead_letters or len(self.dead_letters) < MOST_REASONS else OTHER_REASON


def sort_out(decode: Decode, records: Sequence[Record]) -> tuple[Sequence[Record], list[Any], list[BadRecord]]:
    """Return the good records, their decoded values, and the bad records; never raises."""
    with suppress(Exception):  # a record is bad: find it, below
        return records, [decode(record.value) for record in records], []  # type: ignore[arg-type]  # a null raises  # a third faster than one by one
    good, values, bad = [], [], []
    for record in records:
        try:
            if isinstance(record, OversizedRecord):
                raise TooLarge(record.detail)  # noqa: TRY301
            if record.value is None:
                raise Tombstone("a record without a value (tombstone)")  # noqa: TRY301
            values.append(decode(record.value))
            good.append(record)
        except Exception as error:  # noqa: BLE001 - a bad record must not stop its neighbours
            # its traceback and this list would form a reference cycle
            bad.append(BadRecord(record, error.with_traceback(None), tries=1))
    return good, values, bad


def _firsts(records: Sequence[Record]) -> dict[tuple[str, int], int]:
    """Return the first offset of each partition (of a topic) among some records."""
    firsts: dict[tuple[str, int], int] = {}
    for record in records:
        partition = record.topic, record.partition
        firsts[partition] = min(record.offset, firsts.get(partition, record.offset))
    return firsts


def _first(firsts: Mapping[tuple[str, int], int], record: Record) -> float:
    """Return the first offset of a record's partition; infinity when there is none."""
    return firsts.get((record.topic, record.partition), math.inf)


def _tell(bad: Sequence[BadRecord]) -> None:
    """Log dead-lettered records: their number, and the place and the type of error of the first."""
    first, kind = bad[0].record, type(bad[0].error).__name__
    fields = fields_of(first) | {"records": len(bad), "error": kind}
    log.warning("%d records were dead-lettered, the first of them %s: %s", len(bad), _place(first), kind, extra=fields)


def _place(record: Record) -> str:
    return f"{record.topic}-{record.partition} offset {record.offset}"
