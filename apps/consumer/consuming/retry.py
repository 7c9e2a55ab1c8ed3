"""Handle batches in spite of failures: retry, bisect, and tell poison records from an outage of the handler.

A failed batch is retried once, then bisected without pauses. A record that fails alone is a suspect. It is poison only
when another record succeeds after it failed; it is then retried a few times and dead-lettered. Until then, and in an
outage, nothing is dead-lettered. The suspects stay uncommitted and are retried with backoff, and newer records of other
keys show whether the handler works.

Each attempt gets its own list and freshly decoded values, so that a handler cannot change what is recorded here.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from aiokafka.errors import KafkaError

from apps.chassis.observability.logs import one_line, without_values
from apps.consumer.consuming.abandonment import Leaving
from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.findings import MOST_RECORDS, Found, Memory
from apps.consumer.consuming.halt_limit import is_redriven
from apps.consumer.consuming.handler_isolation import BrokenOff, HandlerCall
from apps.consumer.consuming.outage import FailureWindow
from apps.consumer.consuming.policy import DEFAULT, Policy
from contracts.record import Record, fields_of

log = logging.getLogger(__name__)

Handle = Callable[[Sequence[Any]], Awaitable[None]]
Newer = Callable[[], Awaitable[bool]]
"""Returns whether records wait behind the in-flight batch."""

FAILURES_IN_A_ROW = 20
"""Consecutive failed calls after which a batch is not bisected further until a pause."""
FAILING_S = 60.0
"""Seconds of consecutive failed calls, likewise."""
STRUGGLING_S = 3.0
"""Seconds of consecutive failed calls after which the state is `retrying`."""
LONGEST_WRITE_PAUSE_S = 5.0
"""Seconds of the longest pause between attempts to write dead letters."""
GIVE_WAY_S = 2.0
"""Seconds after which a batch whose dead letters cannot be written is redelivered, so that other partitions go on."""
LONGEST_S = 300.0
"""Seconds after which a batch is redelivered, so that the consumer polls: far less than Kafka's poll timeout."""
EARLIEST_S = 1.0
"""Shortest pause, in seconds, before newer records may end it."""
LOOK_S = 0.1
"""Seconds between two checks for newer records during a pause."""
LONGEST_ERROR = 1_000
"""Characters of the last error that are kept."""


class Reject(Exception):
    """Raise this from a handler for records that must not be retried.

    For several records, the halves are tried at once, until each rejected record is alone; it is dead-lettered.
    """


class Halted(Exception):
    """So many records were refused that the code must be at fault, not the data; the message has their number.

    `reason` is the message without the last `error`, for the log.
    """

    def __init__(self, reason: str, error: BaseException | None = None) -> None:
        super().__init__(reason if error is None else f"{reason}: {one_line(error)}")
        self.reason = reason if error is None else f"{reason}: {without_values(error)}"


class Verdict(NamedTuple):
    """The result of a batch: the rejected records, the poison records, and those that are not decided yet.

    `unfinished` and `found` name records by their `id`, as a trial does: in memory all offsets are 0.
    """

    refused: Sequence[BadRecord] = ()
    poison: Sequence[BadRecord] = ()
    unfinished: Collection[int] = ()
    found: Mapping[int, Found] = {}

    @property
    def is_bad(self) -> bool:
        """Whether a part of the batch is unfinished."""
        return bool(self.refused or self.poison or self.unfinished)


async def nothing_newer() -> bool:
    """Return that no record waits behind the batch."""
    return False


class Attempts:
    """Handles the batches of a stream, one at a time.

    `failures` counts the failed calls since the last finished batch, `error` is the last one and `kind` its type.
    `unwritten` is why dead letters cannot be written. `waiting` is whether records are retried with pauses. `outage` is
    whether so many records fail that the handler must be at fault.
    """

    def __init__(self, decode: Callable[[bytes], object], handle: Handle, policy: Policy = DEFAULT) -> None:
        self.failures = 0
        self.error: str | None = None
        self.kind = ""
        self.waiting = False
        self.outage = False
        self.unwritten: str | None = None
        self.call = HandlerCall(Reject, KafkaError)
        self.leaving = Leaving(self.call.break_off)
        self.policy = policy
        self.memory = Memory()
        self.successes = 0
        self._decode = decode
        self._handle = handle
        self.failed = FailureWindow(policy.outage)
        self._failed_at: Mapping[int, int] = {}
        self._waits = 0
        self._successes_at_wait = 0
        self._wants_newer = False
        self._redelivered = 0
        self._is_woken = False
        self._is_told = False
        self._failing_since: float | None = None
        self._is_due = asyncio.Event()

    @property
    def is_retrying(self) -> bool:
        """Whether records are retried with pauses, or the handler has failed for some seconds without a success."""
        since = self._failing_since
        return self.waiting or (since is not None and time.monotonic() - since > STRUGGLING_S)

    @property
    def extra_records(self) -> int:
        """How many extra records a poll must return, so that some follow the suspects."""
        return self._redelivered if self._wants_newer else 0

    def end_pause(self) -> None:
        """Redeliver the waiting batch now."""
        self._is_due.set()

    async def handle(
        self,
        records: Sequence[Record],
        values: Sequence[Any] | None,
        *,
        accept: bool = False,
        newer: Newer = nothing_newer,
    ) -> Verdict:
        """Handle a batch; `values` are decoded for the first attempt.

        With `accept` every failing record counts as poison. Records are unfinished only when the batch was abandoned,
        or when they cannot be told from an outage yet. They are to be redelivered.
        """
        known = self.memory.recall(records)
        trial = Trial(self, records, known, accept=accept)
        if not self._waits or accept:
            await trial.run(values)
        elif not self._needs_pause(known) or await self._pause(newer):
            await trial.run_carefully()
        else:
            trial.is_abandoned = True
        return self._conclude(trial, accept=accept)

    def keep(self, records: Sequence[Record], verdict: Verdict, redelivered: Collection[int]) -> None:
        """Remember what was learned about the records that are to be `redelivered`."""
        known = {place: verdict.found[place] for place in redelivered if place in verdict.found}
        self.memory.keep(records, known)
        self._redelivered = min(len(redelivered), MOST_RECORDS)
        if not self.memory and not redelivered:
            self._forget()

    def count(self, finished: int, poison: Sequence[BadRecord]) -> None:
        """Count committed records, and those dead-lettered as poison, towards the outage limit."""
        places = (id(one.record) for one in poison)
        self.failed.add(finished, [self._failed_at[place] for place in places if place in self._failed_at])

    def retain(self, partitions: Collection[tuple[str, int]]) -> None:
        """Forget what was learned about other partitions: they are assigned to other members."""
        self.unwritten = None
        if self.memory:
            self.memory.retain(partitions)
            if not self.memory:
                self._forget()

    def drop(self, partitions: Collection[tuple[str, int]]) -> None:
        """Forget what was learned about these partitions: Kafka has deleted records of them that were unfinished."""
        self.unwritten = None
        self.memory.drop(partitions)
        if not self.memory:
            self._forget()

    def forget(self) -> None:
        """Forget what was learned about unfinished records, before an operator has them read again."""
        self.unwritten = None
        self._forget()

    def _forget(self) -> None:
        self.memory.forget()
        self.waiting = self.outage = self._wants_newer = False
        self.failures = self._waits = 0
        self._failing_since = None

    async def attempt(self, records: Sequence[Record], values: Sequence[Any] | None = None) -> Exception | None:
        """Call the handler with freshly decoded values; return its error, if any. Raises `BrokenOff`."""

        async def call() -> None:
            if values is None:
                await self._handle([self._decode(record.value or b"") for record in records])
            else:
                await self._handle(values)

        try:
            await self.call.run(call)
        except BrokenOff:
            raise
        except Exception as error:  # noqa: BLE001 - no error of the handler may lose a record
            self._note(error, records)
            error.__cause__ = None  # its traceback, and this one's, would keep the values as long as the error
            return error.with_traceback(None)
        self.successes += 1
        self._failing_since = None
        return None

    async def insist(self, work: Callable[[], Awaitable[None]], within_s: float = GIVE_WAY_S) -> bool:
        """Write dead letters, retrying for some seconds; return False when their records are to be redelivered first.

        Until it works, `unwritten` is why not. The records of other partitions must not wait for it.
        """
        began, tries = time.monotonic(), 1
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - whatever is wrong, the bad records must not be lost
                reason, tries = without_values(error), tries + 1
                if self.unwritten != reason:
                    log.warning("dead letters could not be written, retrying: %s", reason)
                self.unwritten, self.error = reason, one_line(error)[:LONGEST_ERROR]
                self.failures += 1
            else:
                self.unwritten = None
                return True
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self.policy.retry.pause_s(tries), LONGEST_WRITE_PAUSE_S)):
                    await self.leaving.wait()
            if self.leaving.is_set() or time.monotonic() - began > within_s:
                return False

    def _needs_pause(self, known: Collection[int]) -> bool:
        """Return whether no call has succeeded since these records failed."""
        return self.outage or (bool(known) and self.successes == self._successes_at_wait)

    def _conclude(self, trial: "Trial", *, accept: bool) -> Verdict:
        self._failed_at = trial.failed_at
        if not trial.is_abandoned and not accept:
            self.outage = trial.is_outage()
            trial.doubt(everything=self.outage or trial.has_untried())
        unfinished = trial.unfinished()
        if unfinished and not trial.is_abandoned:
            progress = trial.has_succeeded and not self.outage
            self._waits = 1 if progress else self._waits + 1
            self.waiting = self.waiting or self._waits > 1 or self.outage
            self._wants_newer = not trial.has_untried()
            self._successes_at_wait = self.successes
        self._is_told = self._is_told and bool(unfinished)
        found = dict(trial.found()) if unfinished or trial.refused or trial.poison else {}
        poison = [BadRecord(one.record, one.error, one.tries) for one in trial.poison.values()]
        return Verdict(list(trial.refused.values()), poison, unfinished, found)

    async def _pause(self, newer: Newer) -> bool:
        """Wait before the next attempt; return False when the batch is to be redelivered: now or later.

        Newer records end a pause, unless untried ones are pending or there is an outage.
        """
        if self._is_woken:
            self._is_woken = False
            return True
        loop = asyncio.get_running_loop()
        pause = self.policy.retry.pause_s(self._waits) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, not a secret
        began, earliest = loop.time(), min(pause, EARLIEST_S)
        self._is_due.clear()
        self.waiting = self.waiting or pause > 0
        while (left := began + pause - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_S)):
                    await self.leaving.wait()
            if self.leaving.is_set() or self._is_due.is_set():
                return False
            if self._wants_newer and not self.outage and loop.time() - began >= earliest and await newer():
                self._is_woken = True
                return False
        return not self.leaving.is_set()

    def _note(self, error: Exception, records: Sequence[Record]) -> None:
        """Count a failure; log the first one of a batch with the handler's stack, unless it is a rejection."""
        self.failures += 1
        self._failing_since = self._failing_since or time.monotonic()
        self.error, self.kind = one_line(error)[:LONGEST_ERROR], type(error).__name__
        if self._is_told or isinstance(error, Reject):
            return
        self._is_told = True
        log.warning(
            "a batch of %d records failed, retrying: %s",
            len(records),
            without_values(error),
            exc_info=error,
            extra=fields_of(records[0]) | {"records": len(records), "error": type(error).__name__},
        )


class Suspect:
    """A record that failed alone; later records of its key are `held`, so that their order is kept.

    `failed_at` is the number of successful calls of the handler before its last failure.
    """

    def __init__(self, record: Record, error: Exception, tries: int, failed_at: int) -> None:
        self.record = record
        self.error = error
        self.tries = tries
        self.failed_at = failed_at
        self.held: list[Record] = []


class Chunk(NamedTuple):
    """Records that are tried together, and how often they were tried before."""

    records: Sequence[Record]
    tries: int = 0


class Trial:
    """One batch while it is tried: its pending records, and what was learned about the others.

    `failed_at` has the stream position of each failing record that counts towards an outage.
    """

    def __init__(
        self, attempts: Attempts, records: Sequence[Record], known: Mapping[int, Found], *, accept: bool
    ) -> None:
        self.refused: dict[int, BadRecord] = {}
        self.poison: dict[int, Suspect] = {}
        self.failed_at: dict[int, int] = {}
        self.has_succeeded = False
        self.is_abandoned = False
        self._done: set[int] = set()
        self._is_done = False
        self._suspects: dict[int, Suspect] = {}
        self._attempts = attempts
        self._accept = accept
        self._records = records
        self._known = known
        self._pending: deque[Chunk] = deque()
        self._began = time.monotonic()
        self._failing_since: float | None = None
        self._failures_in_a_row = self._rejected_in_a_row = 0
        self._retrying_s = 0.0
        if known:
            self._recall()

    async def run(self, values: Sequence[Any] | None) -> None:
        """Try the batch, retry it once, then bisect it; records that are already decided are left out."""
        try:
            if self._known or not await self._is_all_done(values):
                await self._decide()
        except BrokenOff:
            self.is_abandoned = True

    async def run_carefully(self) -> None:
        """Try few records alone, and the rest only when one of them succeeds, or another has since they failed."""
        if not self._known:  # those that failed before are not in this batch: other partitions', or deleted
            self._pending.append(Chunk(self._records))
        try:
            if self._has_news() or await self._probe():
                if self._attempts.outage:
                    self._acquit()
                await self._decide()
        except BrokenOff:
            self.is_abandoned = True

    def has_untried(self) -> bool:
        """Return whether pending records could still show that the handler works."""
        return any(self._without_held(chunk).records for chunk in self._pending)

    def is_outage(self) -> bool:
        """Return whether so many records fail that the handler must be at fault."""
        window = self._attempts.failed
        tried = len(self._done) + len(self.refused) + len(self.poison) + len(self._suspects)
        return bool(self.failed_at) and window.exceeded(self.failed_at.values(), window.seen + tried)

    def doubt(self, *, everything: bool) -> None:
        """Suspect poison again if no success followed it and other records are undecided, or `everything`."""
        if everything or self.unfinished():
            successes = self._attempts.successes
            doubtful = {place for place, one in self.poison.items() if everything or one.failed_at == successes}
            self._suspects |= {place: self.poison.pop(place) for place in doubtful}

    def unfinished(self) -> list[int]:
        """Return the records that are to be redelivered."""
        if self._is_done:
            return []
        decided = self._done | self.refused.keys() | self.poison.keys()
        return [place for place in map(id, self._records) if place not in decided]

    def found(self) -> Iterator[tuple[int, Found]]:
        """Yield what was learned about each record."""
        for place in self._done:
            yield place, Found("done")
        for place, bad in self.refused.items():
            yield place, Found("refused", bad.error, bad.tries)
        for place, one in self.poison.items():
            yield place, Found("poison", one.error, one.tries, one.failed_at)
        for place, one in self._suspects.items():
            yield place, Found("suspect", one.error, one.tries, one.failed_at)

    def _recall(self) -> None:
        """Apply what is already known: only the other records are pending."""
        rest = []
        for record in self._records:
            place = id(record)
            found = self._known.get(place)
            if found is None:
                rest.append(record)
            elif found.kind == "refused" and found.error is not None:
                self.refused[place] = BadRecord(record, found.error, found.tries)
            elif isinstance(found.error, Exception):
                self._set_apart(Suspect(record, found.error, found.tries, found.failed_at))
                if found.kind == "poison":
                    self.poison[place] = self._suspects.pop(place)
            else:
                self._done.add(place)
        self._pending.append(Chunk(rest))

    async def _is_all_done(self, values: Sequence[Any] | None) -> bool:
        """Try the batch as a whole, twice unless it is rejected; leave it pending when it fails."""
        tries = 1
        error = await self._try(Chunk(self._records), values)
        if error is not None and not isinstance(error, Reject) and not self._must_stop():
            tries, error = 2, await self._try(Chunk(self._records))
        if error is not None:
            self._failed(Chunk(self._records, tries), error)
        self._is_done = error is None
        return self._is_done

    async def _decide(self) -> None:
        """Learn as much as possible now about the pending records and the suspects."""
        await self._judge()
        while self._pending and not self._must_stop():
            await self._isolate()
            await self._judge()  # records held behind a suspect follow

    async def _isolate(self) -> None:
        """Bisect the pending records until each failing record is alone, the first half before the second."""
        while self._pending and not self._must_stop():
            chunk = self._without_held(self._pending.popleft())
            if not chunk.records:
                continue
            error = await self._try(chunk)
            if error is None:
                self._done.update(map(id, chunk.records))
                await self._judge()
            else:
                self._failed(Chunk(chunk.records, chunk.tries + 1), error)

    def _failed(self, chunk: Chunk, error: Exception) -> None:
        """Divide a failed part; a single record is refused when it was rejected, and otherwise suspect."""
        middle, first = len(chunk.records) // 2, id(chunk.records[0])
        tries = chunk.tries + (self._known[first].tries if first in self._known else 0)
        if middle:
            halves = chunk.records[middle:], chunk.records[:middle]
            self._pending.extendleft(Chunk(half, chunk.tries) for half in halves)
        elif isinstance(error, Reject):
            self._refuse(chunk.records[0], error, tries)
        else:
            self._set_apart(Suspect(chunk.records[0], error, tries, self._attempts.successes))

    async def _judge(self) -> None:
        """Retry suspects that failed before the last success, in the order of each key; one that fails again is poison.

        A key has several suspects when poison was doubted after later records of its key were tried.
        """
        undecided: set[object] = set()
        for suspect in self._in_order():
            if self._must_stop():
                return
            key = _key_of(suspect.record) or id(suspect.record)
            if key not in undecided and (self._accept or suspect.failed_at < self._attempts.successes):
                began = time.monotonic()
                await self._try_again(suspect)
                self._retrying_s += time.monotonic() - began
            if id(suspect.record) in self._suspects:
                undecided.add(key)

    def _in_order(self) -> list[Suspect]:
        """Return the suspects by partition and offset."""
        return sorted(self._suspects.values(), key=lambda one: (one.record.partition, one.record.offset))

    async def _try_again(self, suspect: Suspect) -> None:
        retry = self._attempts.policy.retry
        for _ in range(retry.attempts if self._retrying_s < retry.budget_s else 1):
            error = await self._try_alone(suspect)
            if not isinstance(error, Exception) or isinstance(error, Reject):
                return
            if self._attempts.leaving.is_set():
                return
        place = id(suspect.record)
        self.poison[place] = self._suspects.pop(place)
        self._release(suspect)

    async def _try_alone(self, suspect: Suspect) -> Exception | None:
        """Try a suspect; it is cleared when it succeeds or is rejected."""
        place = id(suspect.record)
        in_a_row = self._failures_in_a_row
        error = await self._try(Chunk([suspect.record]))
        suspect.tries += 1
        if error is None or isinstance(error, Reject):
            del self._suspects[place]
            self.failed_at.pop(place, None)
            self._release(suspect)
        if error is None:
            self._done.add(place)
        elif isinstance(error, Reject):
            self._refuse(suspect.record, error, suspect.tries)
        else:
            suspect.error, suspect.failed_at = error, self._attempts.successes
            self._failures_in_a_row = in_a_row  # this failure was expected
        return error

    def _has_news(self) -> bool:
        """Return whether a record of another batch succeeded after a suspect of this one failed."""
        successes = self._attempts.successes
        return not self._attempts.outage and any(one.failed_at < successes for one in self._suspects.values())

    async def _probe(self) -> bool:
        """Try a suspect and a few untried records alone; return whether the handler decided about one of them."""
        if self._suspects:
            firsts = {_key_of(one.record) or id(one.record): one for one in reversed(self._in_order())}
            error = await self._try_alone(random.choice(list(firsts.values())))  # noqa: S311 - not a secret
            if error is None or isinstance(error, Reject):
                return True
        for record in self._pick():
            if self._must_stop():
                return False
            error = await self._try(Chunk([record]))
            if error is None:
                self._done.add(id(record))
                return True
            self._failed(Chunk([record], 1), error)
            if isinstance(error, Reject):
                return True
        return False

    def _pick(self) -> Iterator[Record]:
        """Take the newest and a random pending record, each the first of its key: this keeps the order."""
        pending = [record for chunk in self._pending for record in self._without_held(chunk).records]
        first_of_key: dict[object, Record] = {}
        for record in pending:
            first_of_key.setdefault(_key_of(record) or id(record), record)
        self._pending = deque([Chunk(pending)])
        candidates = list(first_of_key.values())
        newest = candidates[-1:]
        others = candidates[:-1]
        for picked in newest + random.sample(others, min(1, len(others))):
            self._pending = deque([Chunk([record for record in self._pending[0].records if record is not picked])])
            yield picked

    def _acquit(self) -> None:
        """Make all undecided records pending again: the handler seems to work again after an outage."""
        self._suspects.clear()
        self.poison.clear()
        self.failed_at.clear()
        decided = self._done | self.refused.keys()
        self._pending = deque([Chunk([record for record in self._records if id(record) not in decided])])

    async def _try(self, chunk: Chunk, values: Sequence[Any] | None = None) -> Exception | None:
        error = await self._attempts.attempt(chunk.records, values)
        if error is None:
            self.has_succeeded = True
            self._failures_in_a_row = self._rejected_in_a_row = 0
            self._failing_since = None
        elif not isinstance(error, Reject):
            self._failing_since = self._failing_since or time.monotonic()
            self._failures_in_a_row += not all(map(is_redriven, chunk.records))  # these failures are expected
        return error

    def _must_stop(self) -> bool:
        """Return whether to stop trying for now: the batch is abandoned, or the handler seems to be down."""
        rejected = self._rejected_in_a_row >= self._attempts.policy.halt.consecutive
        too_long = time.monotonic() - self._began > LONGEST_S
        if self._attempts.leaving.is_set() or too_long or (rejected and not self._accept):
            self.is_abandoned = True
        if self.is_abandoned or self._accept:
            return self.is_abandoned
        since = self._failing_since
        too_long = since is not None and time.monotonic() - since > FAILING_S
        return too_long or self._failures_in_a_row >= FAILURES_IN_A_ROW or self.is_outage()

    def _refuse(self, record: Record, error: Exception, tries: int) -> None:
        self._rejected_in_a_row += 1
        self.refused[id(record)] = BadRecord(record, error, tries)

    def _set_apart(self, suspect: Suspect) -> None:
        place = id(suspect.record)
        self._suspects[place] = suspect
        if not self._accept and not is_redriven(suspect.record):
            tried = len(self._done) + len(self.refused) + len(self.poison) + len(self._suspects)
            self.failed_at[place] = self._attempts.failed.seen + tried

    def _release(self, suspect: Suspect) -> None:
        """Make the records pending that were held behind a suspect."""
        if suspect.held:
            self._pending.appendleft(Chunk(suspect.held))
            suspect.held = []

    def _without_held(self, chunk: Chunk) -> Chunk:
        """Hold records whose key waits for a suspect; return the others."""
        if not self._suspects:
            return chunk
        waiting = {_key_of(one.record): one for one in self._suspects.values() if one.record.key is not None}
        ready = []
        for record in chunk.records:
            suspect = waiting.get(_key_of(record))
            if suspect is None:
                ready.append(record)
            else:
                suspect.held.append(record)
        return Chunk(ready, chunk.tries)


def _key_of(record: Record) -> tuple[int, bytes] | None:
    return None if record.key is None else (record.partition, record.key)
