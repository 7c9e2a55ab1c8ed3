"""Write dead letters in the background: a partition whose letters cannot be written holds up no other partition."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from itertools import count

from apps.chassis.observability.logs import one_line, without_values
from apps.consumer.consuming.abandonment import Abandonment
from apps.consumer.consuming.attempts import MAX_ERROR_CHARACTERS
from apps.consumer.consuming.dead_letters import BadRecord, identity_of
from apps.consumer.consuming.findings import Partition
from apps.consumer.consuming.policy import Retry
from apps.consumer.consuming.redelivery import CHECK_NEWER_S, Newer
from contracts.record import Record

log = logging.getLogger(__name__)

WriteDeadLetters = Callable[[Sequence[BadRecord]], Awaitable[None]]

GIVE_WAY_S = 2.0
"""Seconds that a batch waits for its dead letters. Then their records are redelivered, so that others go on."""
MAX_BACKOFF_S = 5.0
"""Most seconds between two attempts to write the same letters."""


class PendingLetters:
    """Writes the dead letters of records that are not committed yet, each partition by itself.

    A letter that is being written is final: its record is not handled again. `trouble` is why letters cannot be
    written, without quotes of errors; `error` is the last error and `failing_since` the time of the first. `retry_at`
    is when some were or will be written again after a failure.
    """

    def __init__(
        self,
        write: WriteDeadLetters,
        retry: Retry,
        note_failure: Callable[[Exception], None],
        give_way_s: float = GIVE_WAY_S,
    ) -> None:
        self.error: str | None = None
        self.failing_since: float | None = None
        self.retry_at: float | None = None
        self._trouble: str | None = None
        self._write = write
        self._retry = retry
        self._note_failure = note_failure
        self._give_way_s = give_way_s
        self._letters: dict[Partition, dict[Hashable, BadRecord]] = {}
        self._writing: dict[Partition, asyncio.Task[None]] = {}
        self._cancelled: set[asyncio.Task[None]] = set()

    @property
    def trouble(self) -> str | None:
        """Why letters cannot be written, or None."""
        return self._trouble if self._writing else None

    def decided(self, records: Sequence[Record]) -> dict[int, BadRecord]:
        """Return the letters of redelivered records by the `id` of their record."""
        found = {}
        for record in records if self._letters else ():
            letters = self._letters.get((record.topic, record.partition))
            if letters and (letter := letters.get(identity_of(record))):
                found[id(record)] = letter._replace(record=record)
        return found

    async def write(self, bad: Sequence[BadRecord]) -> list[BadRecord]:
        """Write dead letters; return those that the first attempt has not written within 2 s, or that waited before."""
        if tried := self._begin(bad):
            _, late = await asyncio.wait(tried, timeout=self._give_way_s)
            if late and not self.trouble:
                self._report(f"no acknowledgement within {self._give_way_s:g} s")
        return self.unwritten(bad)

    def unwritten(self, bad: Sequence[BadRecord]) -> list[BadRecord]:
        """Return the letters that are not written yet. In each partition that is all of them, or none."""
        return [one for one in bad if _partition_of(one.record) in self._writing or not self._has(one)]

    async def wait(self, abandonment: Abandonment, newer: Newer) -> None:
        """Wait until some letters are written, or another record arrives, or the batch is abandoned; 2 s at most."""
        end = time.monotonic() + self._give_way_s
        while self._writing and (left := end - time.monotonic()) > 0 and not abandonment.is_asked:
            writing = self._writing.values()
            done, _ = await asyncio.wait(writing, timeout=min(left, CHECK_NEWER_S), return_when=asyncio.FIRST_COMPLETED)
            if done or await newer():
                return

    def settle(self, bad: Sequence[BadRecord]) -> None:
        """Forget letters whose records are committed."""
        for one in bad:
            partition = _partition_of(one.record)
            letters = self._letters.get(partition, {})
            letters.pop(identity_of(one.record), None)
            if not letters:
                self._letters.pop(partition, None)

    def forget(self, is_gone: Callable[[Partition], bool]) -> None:
        """Forget the letters of some partitions, and write them no further."""
        for partition in filter(is_gone, self._letters.copy()):
            del self._letters[partition]
            if task := self._writing.pop(partition, None):
                task.cancel()
                self._cancelled.add(task)  # asyncio itself refers weakly to tasks
                task.add_done_callback(self._cancelled.discard)

    def _has(self, one: BadRecord) -> bool:
        return identity_of(one.record) in self._letters.get(_partition_of(one.record), ())

    def _begin(self, bad: Sequence[BadRecord]) -> list[asyncio.Future[None]]:
        """Begin to write letters, but not in partitions with earlier ones that are not written yet.

        Return for each partition what is done after the first attempt.
        """
        if not self._writing:
            self._trouble = self.error = self.failing_since = None
        begun: dict[Partition, list[BadRecord]] = {}
        for one in bad:
            partition = _partition_of(one.record)
            if partition not in self._writing and not self._has(one):
                begun.setdefault(partition, []).append(one)
        tried = {partition: asyncio.get_running_loop().create_future() for partition in begun}
        for partition, letters in begun.items():
            self._letters.setdefault(partition, {}).update((identity_of(one.record), one) for one in letters)
            self._writing[partition] = asyncio.create_task(
                self._write_until_done(partition, letters, tried[partition]), name="dead letters"
            )
        return list(tried.values())

    async def _write_until_done(
        self, partition: Partition, letters: Sequence[BadRecord], tried: "asyncio.Future[None]"
    ) -> None:
        for tries in count(2):
            try:
                await self._write(letters)
                break
            except Exception as error:  # noqa: BLE001 - no error may lose the bad records
                self._note_failure(error)
                self.error = one_line(error)[:MAX_ERROR_CHARACTERS]
                self._report(without_values(error))
            finally:
                if not tried.done():
                    tried.set_result(None)
            backoff_s = min(self._retry.backoff_s(tries), MAX_BACKOFF_S)
            self.retry_at = time.time() + backoff_s
            await asyncio.sleep(backoff_s)
        del self._writing[partition]

    def _report(self, trouble: str) -> None:
        if self._trouble != trouble:
            log.warning("dead letters could not be written, retrying: %s", trouble)
        self._trouble = trouble
        self.failing_since = self.failing_since or time.time()


def _partition_of(record: Record) -> Partition:
    return record.topic, record.partition
