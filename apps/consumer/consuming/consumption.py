"""Process a batch: decode -> handler (retry, bisect) -> dead-letter limit -> dead letters -> commit.

Good records go to the handler and bad ones to the dead letters. Then the subscriber commits the batch, and it is
counted and shown. In this order a crash at any point loses nothing, no record is dead-lettered before its neighbours
were handled, and nothing counts as consumed that will be redelivered.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Sequence
from datetime import UTC, datetime
from typing import Any

from apps.chassis.kafka.answers import Answers
from apps.chassis.observability.logs import one_line, without_values
from apps.chassis.observability.traces import Traces
from apps.consumer.consuming.abandonment import Abandonment
from apps.consumer.consuming.acceptance import Acceptance
from apps.consumer.consuming.attempts import MAX_ERROR_CHARACTERS, Attempts
from apps.consumer.consuming.batch import Handle
from apps.consumer.consuming.dead_letter_limit import DeadLetterLimiter
from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.decode import Decode, is_deletion, sort_out
from apps.consumer.consuming.findings import Finding, Partition, completed
from apps.consumer.consuming.outcome import Outcome, bad_record, finished_part
from apps.consumer.consuming.pending_letters import GIVE_WAY_S, PendingLetters, WriteDeadLetters
from apps.consumer.consuming.policy import DEFAULT, Policy
from apps.consumer.consuming.redelivery import Newer, Redelivery, nothing_newer
from apps.consumer.consuming.redrive_addressing import divide
from apps.consumer.consuming.resource import OPENING, HandlerResource
from contracts.record import Record, fields_of, name_of, place_of

log = logging.getLogger(__name__)

UNREADABLE_FOR_S = 10.0
"""Seconds after which an unreadable batch that was not met again counts as read or skipped."""
MAX_REASONS = 30
"""Most types of errors that dead letters are counted by. A handler may raise any number; the rest share one label."""
OTHER_REASON = "other"
REASONS = ("Tombstone", "DecodeError", "ValidationError", "UnicodeDecodeError", "Reject")
"""Types of errors whose counters exist from the start, as 0."""


class Halted(Exception):
    """Too many records were refused: the code must be at fault, not the data. The message names the last of them.

    `reason` is the message without what its error quotes, for the log.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Consumption:
    """What a service has consumed since it started, across its connections.

    `halted` is the reason why it does not consume, until `resume`; `halted_for` is the same without quotes of errors,
    `halted_at` the partition and offset of the record that it names.
    `paused` is whether an operator wants its partitions paused. `dead_letters` counts them by the type of their error,
    `rebalances` counts assignments, `passed_over` the records that were sent back for another group. `batch_records` is
    the size of the next batch. `last_trouble` is the `last_error` without quotes of values, `last_error_at` its time.
    `answers` are those of Kafka to polls.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the steps of which it is composed
        self,
        decode: Decode,
        show: Callable[[Sequence[Record]], None],
        handle: Handle,
        write_dead_letters: WriteDeadLetters,
        traces: Traces | None = None,
        policy: Policy = DEFAULT,
        *,
        group: str | None = None,
        resource: HandlerResource | None = None,
        give_way_s: float = GIVE_WAY_S,
    ) -> None:
        self.consumed = self.passed_over = self.rebalances = 0
        self.dead_letters = Counter(dict.fromkeys(REASONS, 0))
        self.paused = False
        self.halted: str | None = None
        self.halted_for = ""
        self.halted_at = 0, 0
        self.last_error: str | None = None
        self.last_trouble: str | None = None
        self.last_error_at: datetime | None = None
        self.idle_since = time.monotonic()
        self.busy_since: float | None = None
        self.answers = Answers()
        self.policy = policy
        self.batch_records = policy.batching.records
        self.attempts = Attempts(decode, handle, self.note_error)
        self.abandonment = Abandonment(self.attempts.cancel)
        self.resource = resource or HandlerResource()
        self.resource.note_error = self.note_error
        self.acceptance = Acceptance()
        self.letters = PendingLetters(write_dead_letters, policy.retry, self.attempts.note_failure, give_way_s)
        self.redelivery = Redelivery(self.attempts, self.abandonment, policy, self.resource)
        self._limiter = DeadLetterLimiter(policy.dead_letter_limit)
        self._decode, self._show = decode, show
        self._group = group
        self._traces = traces or Traces()
        self._unreadable: tuple[str, float] = "", 0.0

    @property
    def dead_lettered(self) -> int:
        """The number of dead-lettered records."""
        return self.dead_letters.total()

    @property
    def batch_age(self) -> float:
        """The age of the in-flight batch in seconds, its commit included; 0 without a batch."""
        return time.monotonic() - self.busy_since if self.busy_since else 0.0

    @property
    def max_records(self) -> int:
        """The largest number of records for the next poll."""
        return self.batch_records + self.redelivery.extra_records

    @property
    def retrying(self) -> str | None:
        """Why records are retried, without quotes of errors; None when they are not."""
        attempts = self.attempts
        if self.resource.trouble is not None:
            return f"retrying: {self.resource.trouble}"
        if self.letters.trouble is not None:
            return f"retrying: dead letters cannot be written: {self.letters.trouble}"
        if not (self.redelivery.waiting or attempts.is_struggling):
            return None if self.resource.is_open else f"retrying: {OPENING}"
        outage = self.redelivery.outage
        why = "the handler fails for too many records" if outage else "records fail in the handler"
        return f"retrying: {why}: {attempts.failures} attempts failed, the last with {attempts.kind}"

    @property
    def failing_since(self) -> datetime | None:
        """When what is retried first failed; None while nothing is retried."""
        failing = self.attempts, self.resource, self.letters
        began = [one.failing_since for one in failing if one.failing_since]
        return datetime.fromtimestamp(min(began), UTC) if began and self.retrying and not self.halted else None

    @property
    def next_retry_at(self) -> datetime | None:
        """When what is retried will be tried again, at the latest; None during an attempt, and without a retry."""
        now, waiting = time.time(), (self.redelivery, self.resource, self.letters)
        times = [one.retry_at for one in waiting if one.retry_at and one.retry_at > now]
        return datetime.fromtimestamp(min(times), UTC) if times and self.retrying and not self.halted else None

    def handler_error(self, *, quotes: bool = True) -> str | None:
        """Return the error of the in-flight or retried batch, and where the record stands that fails alone.

        With `quotes` it may quote values.
        """
        attempts, failing = self.attempts, self.redelivery.failing
        if self.halted:
            return self.halted if quotes else self.halted_for
        if self.letters.trouble is not None:
            return self.letters.error if quotes else self.letters.trouble
        if not (attempts.failures or self.retrying):
            return None
        if failing is None or failing.error is None:
            return attempts.error if quotes else attempts.kind
        error = one_line(failing.error) if quotes else without_values(failing.error)
        return f"{name_of(failing.record)}: {error[:MAX_ERROR_CHARACTERS]}"

    @property
    def unreadable(self) -> str | None:
        """Unreadable batches, of the last 10 s or just before the in-flight batch; None when all could be read."""
        what, seen = self._unreadable
        return what if (self.busy_since or time.monotonic()) - seen < UNREADABLE_FOR_S else None

    def note_unreadable(self, what: str) -> None:
        """Note that a batch cannot be read: its partition waits until it can be read, or an operator seeks past it."""
        if self.unreadable != what:
            log.error(what)
        if self.unreadable != what or self.last_error != what:
            self.note_error(what, what)
        self._unreadable = what, time.monotonic()

    def resume(self, *, accept: bool) -> None:
        """Consume again after a stop or a halt; with `accept`, dead-letter the bad records that wait."""
        self.halted = None
        self.abandonment.withdraw("rebalance", "stop")
        self.forget()
        self.acceptance.end()
        if accept:
            self.accept()

    def accept(self) -> None:
        """Dead-letter the bad records that wait, without a limit."""
        self.acceptance.begin()
        self._limiter.forget()
        self.abandonment.end_backoff()

    def assigned(self, partitions: Collection[Partition]) -> None:
        """Set the currently assigned partitions."""
        self.abandonment.withdraw("rebalance")
        self.idle_since = time.monotonic()  # a newly assigned partition could not be polled before
        self.rebalances += 1
        self.forget(lambda partition: partition not in partitions)

    def forget(self, is_gone: Callable[[Partition], bool] = lambda _: True) -> None:
        """Forget unfinished records of partitions, by default of all: they will not be redelivered as they were."""
        self.letters.forget(is_gone)
        self.redelivery.forget(is_gone)

    def note_error(self, error: str, without_quotes: str) -> None:
        """Note that an error happened now."""
        self.last_error, self.last_trouble, self.last_error_at = error, without_quotes, datetime.now(UTC)

    def forget_quotes(self) -> None:
        """Keep of the last error only what quotes no value."""
        self.last_error = self.last_trouble

    async def consume(self, records: Sequence[Record], newer: Newer = nothing_newer) -> Outcome:
        """Handle a batch and write its dead letters; return the outcome to `settle` after the commit.

        When it raises, nothing of the batch may be committed. `newer` returns whether records wait behind the batch.
        """
        try:
            if not self.halted:
                if self.abandonment.is_asked:
                    self._limiter.forget_reviewed()  # the last batch may be uncommitted
                    return finished_part(records, (), list(map(id, records)))
                own, others = divide(records, self._group)
                with self._traces.handling(own):
                    outcome = await self._consume(own, newer)
                passed_over = sum(not outcome.redelivers(one) for one in others)
                return outcome._replace(passed_over=passed_over) if others else outcome
        except Halted as reason:
            self.halted, self.halted_for = str(reason), reason.reason
            self.note_error(self.halted, self.halted_for)
            log.critical("halted: %s", reason.reason)
        self.busy_since = None
        await self.abandonment.wait()  # the watch over the consume loop ends this connection
        raise Halted(self.halted or "", self.halted_for)

    def settle(self, outcome: Outcome) -> None:
        """Count a committed batch, and show its handled records, and its deletions: older records of their keys go."""
        self._limiter.count()
        deletions = [one.record for one in outcome.bad if is_deletion(self._decode, one.record)]
        failed = [one.position for one in outcome.bad if one.position is not None]
        self.redelivery.window.add(len(outcome.good) + len(outcome.bad), failed)
        self.acceptance.note_recovered(outcome.recovered)
        self.consumed += len(outcome.good)
        self.passed_over += outcome.passed_over
        for letter in outcome.bad:
            name = type(letter.error).__name__
            is_counted = name in self.dead_letters or len(self.dead_letters) < MAX_REASONS
            self.dead_letters[name if is_counted else OTHER_REASON] += 1
        self.letters.settle(outcome.bad)
        if outcome.bad:
            self._report(outcome.bad)
        if self.last_error != self.last_trouble and (deletions or any(one.value is None for one in outcome.good)):
            self.forget_quotes()  # of a value that is deleted now, perhaps
        hidden = {id(one.record) for one in outcome.bad} - set(map(id, deletions))
        self._show([one for one in outcome.records if id(one) not in hidden] if deletions else outcome.good)

    async def _consume(self, records: Sequence[Record], newer: Newer) -> Outcome:
        good, values, bad = self._sort_out(records)
        accepted = self.acceptance.partitions_of(records)
        findings: Sequence[Finding] = ()
        if values:
            began = time.monotonic()
            findings = await self.redelivery.handle(good, values, newer, accept=bool(accepted))
            if not findings:
                self._adapt_size(len(good), time.monotonic() - began)
        bad += [bad_record(one) for one in findings if one.is_bad]
        undecided = [id(one.record) for one in findings if one.is_undecided]
        outcome = self._review(finished_part(records, bad, undecided), accepted)
        if outcome.bad and (unwritten := await self._dead_letter(outcome.bad, records, newer)):
            undecided += [id(one.record) for one in unwritten]
            outcome = self._review(finished_part(records, bad, undecided), accepted)
        redelivered = [one for one in records if outcome.redelivers(one)] if outcome.redelivered else []
        known = completed(findings, good) if redelivered else ()
        kept = [one for one in known if outcome.redelivers(one.record)]
        self.redelivery.keep(records, kept, len(redelivered))
        unclean = {one.record.partition for one in outcome.bad} | {number for _, number in outcome.redelivered}
        return outcome._replace(recovered=accepted - unclean)

    def _review(self, outcome: Outcome, accepted: Container[int]) -> Outcome:
        """Return an outcome as it is; raise `Halted` when too many of its records were refused."""
        if excess := self._limiter.review(outcome.records, outcome.bad, accepted):
            self.halted_at = place_of(record := excess.bad.record)
            why, error = f"{excess.reason}: {name_of(record)}", excess.bad.error
            raise Halted(f"{why}: {one_line(error)[:MAX_ERROR_CHARACTERS]}", f"{why}: {without_values(error)}")
        return outcome

    def _sort_out(self, records: Sequence[Record]) -> tuple[Sequence[Record], list[Any], list[BadRecord]]:
        """Return the good records, their decoded values, and the bad records. What has a dead letter is bad."""
        if not (decided := self.letters.decided(records)):
            return sort_out(self._decode, records)
        good, values, bad = sort_out(self._decode, [one for one in records if id(one) not in decided])
        return good, values, [*bad, *decided.values()]

    async def _dead_letter(
        self, bad: Sequence[BadRecord], records: Sequence[Record], newer: Newer
    ) -> Sequence[BadRecord]:
        """Write dead letters; return those that are not written yet. Records of other partitions wait for none."""
        unwritten = await self.letters.write(bad)
        waiting = {one.record.partition for one in unwritten}
        if waiting.issuperset(one.partition for one in records):  # or it would be redelivered without a pause
            await self.letters.wait(self.abandonment, newer)
            unwritten = self.letters.unwritten(bad)
        return unwritten

    def _report(self, bad: Sequence[BadRecord]) -> None:
        first, kind = bad[0].record, type(bad[0].error).__name__
        fields = fields_of(first) | {"records": len(bad), "error": kind}
        counted = (
            f"{len(bad)} records were dead-lettered, the first of them" if bad[1:] else "1 record was dead-lettered:"
        )
        log.warning("%s %s: %s", counted, name_of(first), kind, extra=fields)
        place, error = name_of(bad[-1].record), bad[-1].error
        self.note_error(f"{place}: {one_line(error)}", f"{place}: {without_values(error)}")

    def _adapt_size(self, records: int, seconds: float) -> None:
        """Limit the next batch by how long the handler took for a number of records."""
        batching = self.policy.batching
        if batching.seconds is not None:
            fitting = int(records * batching.seconds / max(seconds, 1e-9))
            self.batch_records = max(1, min(batching.records, fitting, 2 * max(records, self.batch_records)))
