"""Handle batches despite failures: failing records are bisected, and undecided ones are redelivered.

Nothing is dead-lettered while it is unknown whether the records or the handler are at fault. The suspects stay
uncommitted, and they are redelivered with backoff. Newer records of other keys show whether the handler works.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from apps.consumer.consuming.abandonment import Abandonment
from apps.consumer.consuming.attempts import Attempts
from apps.consumer.consuming.findings import (
    MAX_RECORDS,
    ChunkSize,
    FailureWindow,
    Finding,
    Memory,
    Partition,
    Recoveries,
)
from apps.consumer.consuming.policy import Policy
from apps.consumer.consuming.resource import HandlerResource
from apps.consumer.consuming.retry import Trial
from contracts.record import Record

Newer = Callable[[], Awaitable[bool]]
"""Returns whether records wait behind the in-flight batch."""

CHECK_NEWER_S = 0.5
"""Seconds between two checks for newer records during a backoff."""


async def nothing_newer() -> bool:
    """Return that no record waits behind the batch."""
    return False


class Redelivery:
    """Handles the batches of a stream, one at a time, each as often as it is redelivered.

    `waiting` is whether records are retried with backoff; `failing` is the first that failed alone. `outage` is whether
    too many records fail: the handler must be at fault. `window` has which of the last records failed. `retry_at` is
    when the backoff ends (`time.time`), unless newer records end it earlier; None without a backoff.
    """

    def __init__(self, attempts: Attempts, abandonment: Abandonment, policy: Policy, resource: HandlerResource) -> None:
        self.waiting = self.outage = False
        self.failing: Finding | None = None
        self.retry_at: float | None = None
        self.window = FailureWindow(policy.outage)
        self._attempts = attempts
        self._abandonment = abandonment
        self._resource = resource
        self._retry = policy.retry
        self._memory = Memory()
        self._recoveries = Recoveries()
        self._chunk_size = ChunkSize()
        self._waits = self._successes_at_wait = self._redelivered = 0
        self._wants_newer = self._is_woken = False

    @property
    def extra_records(self) -> int:
        """How many extra records a poll must return, so that some follow the suspects."""
        return self._redelivered if self._wants_newer else 0

    async def handle(
        self, records: Sequence[Record], values: Sequence[Any], newer: Newer, *, accept: bool
    ) -> list[Finding]:
        """Handle a batch; return findings about its records: those without one are done.

        `values` are decoded for the first attempt. With `accept` every failing record counts as poison. Records are
        undecided only when the batch was abandoned, or while they may fail because of an outage.
        """
        findings = self._memory.recall(records)
        is_due = accept or not self._waits
        is_due_now = is_due or self._knows_enough(findings) or await self._back_off(newer)
        self.retry_at = None
        if not (is_due_now and await self._resource.ready(self._abandonment)):
            return findings or [Finding(record) for record in records]
        trial = Trial(
            records,
            values,
            findings,
            self._attempts,
            self.window,
            self._recoveries,
            lambda: self._abandonment.is_asked,
            retries=self._retry.retries,
            chunk_limit=self._chunk_size.limit,
            accept=accept,
        )
        if is_due:
            await trial.bisect()
        else:
            await trial.resume(outage=self.outage)
        if trial.findings and not trial.is_abandoned and not accept:
            self._plan(trial)
        bad = sum(one.is_bad for one in trial.findings)
        self._chunk_size.note(len(records), bad, is_naming=trial.has_named)
        return trial.findings

    def keep(self, records: Sequence[Record], findings: Collection[Finding], redelivered: int) -> None:
        """Remember what was learned about the records that are to be redelivered, and their number."""
        self._memory.keep(records, [one for one in findings if one.tries])
        self._redelivered = min(redelivered, MAX_RECORDS)
        if not self._memory and not redelivered:
            self._begin_again()

    def forget(self, is_gone: Callable[[Partition], bool]) -> None:
        """Forget what is known of some partitions: their records will not be redelivered as they were."""
        self._memory.forget(is_gone)
        if self.failing and is_gone((self.failing.record.topic, self.failing.record.partition)):
            self.failing = None
        if not self._memory:
            self._begin_again()

    def _begin_again(self) -> None:
        self.failing = None
        self.waiting = self.outage = self._wants_newer = False
        self._waits = 0
        self._attempts.reset()
        self._recoveries.settle()

    def _knows_enough(self, findings: Sequence[Finding]) -> bool:
        """Return whether no backoff is due: all records are new, or a call has succeeded since they failed."""
        return not self.outage and (not findings or self._attempts.successes != self._successes_at_wait)

    def _plan(self, trial: Trial) -> None:
        """Plan the redelivery of what is undecided."""
        self.outage = trial.is_outage() or (self.outage and bool(trial.ready()))
        trial.doubt(outage=self.outage)
        self.failing = next((one for one in trial.findings if one.state == "suspect"), None)
        if any(one.is_undecided for one in trial.findings):
            self._waits = 1 if trial.has_answered and not self.outage else self._waits + 1
            if self._waits > 1 or self.outage:
                self.waiting = True
                self._resource.renew()
            self._wants_newer = not trial.ready()
            self._successes_at_wait = self._attempts.successes

    async def _back_off(self, newer: Newer) -> bool:
        """Wait before the next attempt; return False when the batch is to be redelivered first.

        Newer records end a backoff, unless untried ones are pending or there is an outage.
        """
        if self._is_woken:
            self._is_woken = False
            return True
        backoff_s = self._retry.backoff_s(self._waits) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, not a secret
        self.waiting = self.waiting or backoff_s > 0
        end = asyncio.get_running_loop().time() + backoff_s
        self.retry_at = time.time() + backoff_s
        while (left := end - asyncio.get_running_loop().time()) > 0:
            if await self._abandonment.wait(min(left, CHECK_NEWER_S)):
                return False
            if self._wants_newer and not self.outage and await newer():
                self._is_woken = True
                return False
        return not self._abandonment.is_asked
