"""Retry what fails of one batch: isolate its failing records, and distinguish poison from an outage of the handler.

The batch is bisected: of what fails a third is tried next, and what succeeds grows, until each failing record is a
suspect alone. Once another call succeeds, each suspect that failed before is judged: it is retried a few times. If it
fails again it is poison. While suspects succeed after all, the handler fails at random: it is judged more often then.
"""

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from apps.consumer.consuming.attempts import Attempts, CallResult
from apps.consumer.consuming.batch import NotTried, Reject
from apps.consumer.consuming.containment import BrokenOff
from apps.consumer.consuming.findings import FailureWindow, Finding, Recoveries
from apps.consumer.consuming.redrive_addressing import is_redriven
from contracts.record import Record

FAILURES_IN_A_ROW = 20
"""Consecutive failed calls after which a batch is not bisected further until the next backoff."""
REJECTIONS_IN_A_ROW = 100
"""Consecutive rejected records, likewise: the dead-letter limit may halt the stream first."""
SPLIT = 3
"""How much smaller the next chunk is after one that failed: a handler that raises has handled what is before in vain.

Of 80 records one that fails is isolated with 35 repeated, by halves with 48, where a call costs as much as 2 records.
"""
GROWTH = 4
"""How much larger the next chunk is after one that succeeded."""
MAX_JUDGED_ONCE = 2
"""Redelivered records that may be poison by one judgement: more of them may have met a single success in an outage."""
JUDGEMENTS_OF_MANY = 5
"""Judgements that a record needs while many records are failing: then a success may be luck in an outage."""
MAX_TRIAL_S = 300.0
"""Seconds after which a batch is redelivered, so that the consumer polls: far less than Kafka's poll timeout."""


class Trial:
    """Tries one batch: decides about as many of its records as possible now.

    `findings` are about all records of a redelivered batch. Those of a new one begin empty: records that were done in
    their first call get none. `chunk_limit` returns how many of the pending records may be tried at once, by default
    all. With `accept`, records that fail again are poison even in an outage, as an operator wants.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a decision depends on
        self,
        records: Sequence[Record],
        values: Sequence[Any],
        findings: list[Finding],
        attempts: Attempts,
        window: FailureWindow,
        recoveries: Recoveries,
        is_asked_to_stop: Callable[[], bool],
        *,
        retries: int,
        chunk_limit: Callable[[int], int] = int,
        accept: bool = False,
    ) -> None:
        self.findings = findings
        self.has_answered = self.has_named = self.is_abandoned = False
        self._records, self._values = records, values
        self._attempts = attempts
        self._window, self._recoveries = window, recoveries
        self._is_redelivery = any(one.tries for one in findings)
        self._chunk_limit = chunk_limit
        self._is_asked_to_stop = is_asked_to_stop
        self._retries = retries
        self._accept = accept
        self._failures_in_a_row = self._rejections_in_a_row = 0
        self._tried = sum(one.state != "pending" for one in findings)
        self._first_new = len(findings)
        self._first_pending = 0
        self._suspects = [one for one in findings if one.state == "suspect"]
        self._poison: list[Finding] = []
        self._failed_chunk: Sequence[Finding] = ()
        self._deadline = time.monotonic() + MAX_TRIAL_S
        if accept:
            for one in findings:
                one.position = None

    async def bisect(self) -> None:
        """Decide about pending records, in their order."""
        size = len(self._records)
        if not self._first_new and self._chunk_limit(size) == size:
            result = await self._hand_over(size)
            if not isinstance(result.error, Reject) and not self._must_stop() and (failed := self._failed(result)):
                await self._attempt(failed)  # many errors pass
            size = max(1, size // SPLIT)
        await self._judge()
        while not self._must_stop() and (limit := min(size, self._chunk_limit(self._pending()))):
            if self._first_new == self._tried and not self._suspects:
                chunk_size, result = limit, await self._hand_over(limit)
            elif chunk := self.ready(min(limit, self._part_of_failed() or limit)):
                chunk_size, result = len(chunk), await self._attempt(chunk)
            else:
                break
            size = GROWTH * chunk_size if result.error is None else max(1, chunk_size // SPLIT)
            await self._judge()
        self._begin_findings(self._pending())

    async def resume(self, *, outage: bool) -> None:
        """Probe few records alone; bisect once one of them succeeds, or another has since they failed."""
        self._begin_findings(self._pending())
        successes = self._attempts.successes
        firsts = self._first_undecided()  # others of their keys wait for them
        has_news = not outage and any(one.state == "suspect" and one.successes < successes for one in firsts)
        if not has_news and not await self._probe():
            return
        if outage:  # it seems to be over, and says nothing about the records that failed in it
            for one in self._suspects:
                one.state, one.position, one.judged = "pending", None, 0
            self._tried -= len(self._suspects)
            self._suspects = []
        await self.bisect()

    def _part_of_failed(self) -> int:
        """Return a third of the rest of a chunk that failed: one of its records fails, so that all would fail again."""
        self._failed_chunk = [one for one in self._failed_chunk if one.state == "pending"]
        return -(-len(self._failed_chunk) // SPLIT)

    def _pending(self) -> int:
        return len(self._records) - self._tried

    def ready(self, max_records: int = 1) -> list[Finding]:
        """Return the first pending records, at most `max_records`, without those behind a suspect of their key."""
        waiting = {one.key for one in self._suspects}
        findings, first = self.findings, self._first_pending
        while first < len(findings) and findings[first].state != "pending":
            first += 1
        self._first_pending = first
        known = (one for one in islice(findings, first, None) if one.state == "pending" and one.key not in waiting)
        ready = list(islice(known, max_records))
        while len(ready) < max_records and (new := self._begin_findings(max_records - len(ready))):
            ready += [one for one in new if one.key not in waiting]
        return ready

    def _begin_findings(self, count: int) -> list[Finding]:
        """Return findings about the next new records."""
        new = [Finding(record) for record in self._records[self._first_new : self._first_new + count]]
        self.findings += new
        self._first_new += len(new)
        return new

    def is_outage(self) -> bool:
        """Return whether too many records fail: the handler must be at fault."""
        failing = self._failing()
        return bool(failing) and self._window.is_exceeded(failing, self._position())

    def _failing(self) -> list[int]:
        """Return the positions of failing records, except those that are expected to fail."""
        return [one.position for one in (*self._suspects, *self._poison) if one.position is not None]

    def doubt(self, *, outage: bool) -> None:
        """Suspect poison again when the handler may have failed too.

        That is so in an outage, while untried records are left, and of poison that was judged too rarely. Of poison
        after which no call has succeeded it is so while other records are undecided. It is so too for more than two
        of them in a redelivery, or where the handler names failures: one lucky success may explain their judgements.
        Poison stays poison once a later record of its key is done: its own turn cannot come after that one.
        """
        poison = self._not_overtaken([one for one in self.findings if one.state == "poison"])  # of earlier trials too
        everything, needed = outage or bool(self.ready()), self._judgements_needed()
        for one in poison:
            if everything or one.judged < needed:
                one.state = "suspect"
        last = [one for one in poison if one.successes == self._attempts.successes]
        is_undecided = any(one.is_undecided for one in self.findings)
        for one in last:
            if is_undecided or (
                (self._is_redelivery or self.has_named) and len(last) > MAX_JUDGED_ONCE and one.judged == needed
            ):
                one.state = "suspect"

    def _not_overtaken(self, poison: Sequence[Finding]) -> list[Finding]:
        """Return the poison of whose keys no later record is done."""
        keys = {one.record.key for one in poison}
        done: dict[object, int] = {}
        undecided = {id(one.record) for one in self.findings if one.state != "done"} if keys else set()
        for record in self._records[: self._first_new] if keys else ():
            if record.key in keys and id(record) not in undecided:
                done[record.partition, record.key] = record.offset
        return [one for one in poison if done.get(one.key, -1) <= one.record.offset]

    def _judgements_needed(self) -> int:
        """Return how often a record must be judged: more often when suspects recover, or many records are failing."""
        needed = self._recoveries.judgements_needed(self._attempts.successes)
        are_many = self._window.are_many(self._failing(), self._position())
        return max(needed, JUDGEMENTS_OF_MANY) if are_many else needed

    async def _judge(self) -> None:
        """Retry suspects that failed before the last success, in the order of each key; failing again makes poison."""
        undecided: set[object] = set()
        for one in self._suspects.copy():
            if one.key not in undecided and (self._accept or one.successes < self._attempts.successes):
                if self._must_stop():
                    return
                await self._retry(one)
            if one.state == "suspect":
                undecided.add(one.key)

    async def _retry(self, suspect: Finding) -> None:
        for _ in range(self._retries):
            await self._attempt([suspect])
            if suspect.state != "suspect" or self.is_abandoned or self._is_asked_to_stop():
                return
        suspect.judged += 1
        if self._accept or suspect.judged >= self._judgements_needed():
            suspect.state = "poison"
            self._suspects.remove(suspect)
            self._poison.append(suspect)

    def _first_undecided(self) -> Collection[Finding]:
        """Return the first undecided finding of each key."""
        firsts: dict[object, Finding] = {}
        for one in self.findings:
            if one.is_undecided:
                firsts.setdefault(one.key, one)
        return firsts.values()

    async def _probe(self) -> bool:
        """Try a suspect, the newest and another untried record alone, until the handler decides about one.

        Each is the first undecided record of its key, so that the order is kept.
        """
        firsts = self._first_undecided()
        suspects = [one for one in firsts if one.state == "suspect"]
        untried = [one for one in firsts if one.state == "pending"]
        for one in [*_any_of(suspects), *untried[-1:], *_any_of(untried[:-1])]:
            self.is_abandoned = self.is_abandoned or self._is_asked_to_stop()
            if self.is_abandoned:
                return False
            await self._attempt([one])
            if not one.is_undecided:
                return True
        return False

    def _failed(self, first: CallResult) -> list[Finding]:
        """Return what to try once more after a first call.

        Of records that it named those are judged at once after which another one was done.
        """
        if first.error is not None:
            return [one for one in self.findings if one.is_undecided]
        return [one for one in self._suspects if one.successes == self._attempts.successes]

    async def _hand_over(self, count: int) -> CallResult:
        """Call the handler with the next new records, for the first time."""
        chunk = slice(self._first_new, self._first_new + count)
        result = await self._attempts.call(self._records[chunk], self._values[chunk])
        if result.is_success:
            self.has_answered = True
            self._failures_in_a_row = self._rejections_in_a_row = 0
            self._first_new += count
            self._tried += count
        else:
            self._conclude(self._begin_findings(count), result)
        return result

    async def _attempt(self, chunk: Sequence[Finding]) -> CallResult:
        result = await self._attempts.call([one.record for one in chunk], tries=[one.tries for one in chunk])
        self._conclude(chunk, result)
        return result

    def _conclude(self, chunk: Sequence[Finding], result: CallResult) -> None:
        """Note what a call says about its records: an error decides only about a record that was alone with it."""
        error = result.error
        if isinstance(error, BrokenOff):
            self.is_abandoned = True
            return
        is_new = any(one.state == "pending" and not is_redriven(one.record) for one in chunk)
        rest = self._conclude_named(chunk, result.named) if result.named else chunk
        for one in rest:
            one.tries += 1
        if error is None:
            for one in rest:
                if one.state == "suspect":
                    self._recoveries.note(one, self._attempts.successes)
                self._decide(one, "done")
            if rest:
                self.has_answered = True
                self._failures_in_a_row = self._rejections_in_a_row = 0
        else:
            self._failed_chunk = rest if len(rest) > 1 else ()
            if len(rest) == 1:
                self._conclude_alone(rest[0], error, self._position())
        errors = result.named.values() if error is None else [error]
        if not (error is None and rest) and not all(isinstance(one, Reject) for one in errors):
            # a suspect or redriven record is expected to fail: that says nothing about the handler
            self._failures_in_a_row += is_new

    def _conclude_named(self, chunk: Sequence[Finding], named: Mapping[int, Exception]) -> list[Finding]:
        """Note what a call says of the records that it named; return the others.

        A record after the named one succeeded after its failure.
        """
        failing: set[object] = set()
        self.has_named = True
        before = self._position()
        last_done = next(index for index in range(len(chunk) - 1, -2, -1) if index not in named)
        for index, error in named.items():
            one = chunk[index]
            if isinstance(error, NotTried) and one.key in failing:
                continue
            one.tries += 1
            self._conclude_alone(one, error, before + index + 1)
            if one.state == "suspect":
                failing.add(one.key)
                one.successes -= index < last_done
        return [one for index, one in enumerate(chunk) if index not in named]

    def _conclude_alone(self, one: Finding, error: Exception, position: int) -> None:
        """Note an error that is of one record alone."""
        if isinstance(error, Reject):
            one.error = error
            self._decide(one, "rejected")
            self.has_answered = True
            self._rejections_in_a_row += 1
            return
        one.error, one.successes = error, self._attempts.successes
        if one.state != "suspect":
            self._tried += one.state == "pending"
            one.state = "suspect"
            self._suspects.append(one)
        if one.position is None and not self._accept and not is_redriven(one.record):
            one.position = position

    def _decide(self, one: Finding, state: Literal["done", "rejected"]) -> None:
        self._tried += one.state == "pending"
        if one.state == "suspect":
            self._suspects.remove(one)
        one.state = state

    def _position(self) -> int:
        return self._window.seen + self._tried

    def _must_stop(self) -> bool:
        """Return whether to stop for now: the batch is abandoned, or the handler seems to be down."""
        if self._is_asked_to_stop() or time.monotonic() > self._deadline:
            self.is_abandoned = True
        if self.is_abandoned or self._accept:
            return self.is_abandoned
        failing = self._failures_in_a_row >= FAILURES_IN_A_ROW or self._rejections_in_a_row >= REJECTIONS_IN_A_ROW
        return failing or self.is_outage()


def _any_of(findings: Sequence[Finding]) -> list[Finding]:
    return random.sample(findings, min(1, len(findings)))
