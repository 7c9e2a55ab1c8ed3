"""How often a batch is tried: the same again after growing pauses, then in halves until the culprits stand alone."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from apps.chassis.logs import one_line, without_values
from apps.consumer.dead_letters import BadRecord
from apps.consumer.window import Record, fields_of
from contracts.person import Person

log = logging.getLogger(__name__)

Handle = Callable[[Sequence[Person]], Awaitable[None]]

MOST = 10
"""Attempts of a batch before it is halved: with the pauses between them, some 25 s."""
OUTAGE = 5
"""Records that fail one after the other, each tried to the last, before it counts as the handler's and not theirs."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two attempts; each pause is twice the one before, give or take a fifth."""


class Reject(Exception):
    """For a handler to raise: what it got must not be tried again as it is.

    Of several people, the halves are tried at once, until those that are rejected stand alone; they are dead-lettered.
    """


class GivenUp(Exception):
    """The batch in hand was not done, and its partitions are to be given up: it comes again, here or elsewhere."""


class Halted(Exception):
    """So much is bad that it must be the code and not the data; the message says what.

    `reason` says it for the log, without the message of the `error` that was the last.
    """

    def __init__(self, reason: str, error: BaseException | None = None) -> None:
        super().__init__(reason if error is None else f"{reason}: {one_line(error)}")
        self.reason = reason if error is None else f"{reason}: {without_values(error)}"


class Escaped(Exception):
    """What a handler let out that is no `Exception`: `SystemExit`, or the cancellation of something of its own."""


class _Failed(NamedTuple):
    """How handling some records failed, and how often; `accepted` is whether any number may be refused."""

    error: Exception
    tries: int
    accepted: bool


class Attempts:
    """Gets work done in spite of errors. `failures` counts those of the batch in hand, `error` is the last, of `kind`.

    `in_a_row` records that the handler rejects one after the other are too many, and so are five that it fails for.
    """

    def __init__(self, leaving: asyncio.Event, in_a_row: int, most: int = MOST) -> None:
        self.failures = 0
        self.error: str | None = None
        self.kind = ""
        self._leaving = leaving
        self._most = most
        self._too_many = in_a_row
        self._in_a_row = 0
        self._worn_out = 0
        self._told = False

    async def handle(
        self, handle: Handle, records: Sequence[Record], people: Sequence[Person], *, accept: bool = False
    ) -> list[BadRecord]:
        """Have people handled; return the records that the handler refuses for good.

        Raises `GivenUp` when the partitions are to be given up before it is done, and `Halted` when it refuses too many
        and that is not accepted.
        """
        self._in_a_row = self._worn_out = 0
        self._told = False
        with self._counted():
            return await self._until_handled(handle, records, people, accept=accept)

    async def _until_handled(
        self, handle: Handle, records: Sequence[Record], people: Sequence[Person], *, accept: bool
    ) -> list[BadRecord]:
        while True:
            try:
                await _call(handle, people)
            except Exception as error:  # noqa: BLE001 - whatever the handler raises, no record may be lost by it
                self._note(error)
                self._tell(error, records, again=self.failures == self._most)
                if self.failures >= self._most or isinstance(error, Reject):
                    return await self._isolate(handle, records, people, _Failed(error, self.failures, accept))
                await self._pause()
            else:
                return []

    async def insist(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`, as often as it takes. Raises `GivenUp` when the partitions are to be given up first."""
        with self._counted():
            while True:
                try:
                    return await work()
                except Exception as error:  # noqa: BLE001 - whatever is wrong, the bad records must not be lost
                    self._note(error)
                    if self.failures in {1, self._most}:
                        log.warning("dead letters could not be written, and are tried again: %s", without_values(error))
                    await self._pause()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count failures of what is in hand; there are none when it is done, or given up."""
        self.failures = 0
        try:
            yield
        finally:
            self.failures = 0

    async def _isolate(
        self, handle: Handle, records: Sequence[Record], people: Sequence[Person], failed: _Failed
    ) -> list[BadRecord]:
        """Try the halves of what failed, the first before the second, so that keys keep their order."""
        if len(records) == 1:
            return await self._alone(handle, records[0], people[0], failed)
        refused: list[BadRecord] = []
        middle = len(records) // 2
        for half in (slice(middle), slice(middle, None)):
            if self._leaving.is_set():
                raise GivenUp
            self.failures = 0
            try:
                await _call(handle, people[half])
            except Exception as error:  # noqa: BLE001 - as above
                self._note(error)
                self._tell(error, records[half])
                again = _Failed(error, failed.tries + 1, failed.accepted)
                refused += await self._isolate(handle, records[half], people[half], again)
            else:
                self._in_a_row = self._worn_out = 0
        return refused

    async def _alone(self, handle: Handle, record: Record, person: Person, failed: _Failed) -> list[BadRecord]:
        """Try one record as often as a batch: what failed may have been the handler, and not the record."""
        error, tries = failed.error, failed.tries
        while self.failures < self._most and not isinstance(error, Reject):
            await self._pause()
            try:
                await _call(handle, [person])
            except Exception as again:  # noqa: BLE001 - as above
                self._note(again)
                self._tell(again, [record])
                error, tries = again, tries + 1
            else:
                self._in_a_row = self._worn_out = self.failures = 0
                return []
        self._in_a_row += 1
        self._worn_out += not isinstance(error, Reject)
        if not failed.accepted and (self._in_a_row >= self._too_many or self._worn_out >= OUTAGE):
            raise Halted(f"the handler refuses {self._in_a_row} records in a row", error)
        self.failures = 0
        return [BadRecord(record, error, tries)]

    def _tell(self, error: Exception, records: Sequence[Record], *, again: bool = False) -> None:
        """Log what failed, once for each batch with the stack of the handler, or `again` without; no rejection."""
        if isinstance(error, Reject) or (self._told and not again):
            return
        log.warning(
            "a batch of %d records failed %d times, and is tried again: %s",
            len(records),
            self.failures,
            without_values(error),
            exc_info=None if self._told else error,
            extra=fields_of(records[0]) | {"records": len(records), "error": type(error).__name__},
        )
        self._told = True

    def _note(self, error: Exception) -> None:
        self.failures += 1
        self.error, self.kind = one_line(error), type(error).__name__

    async def _pause(self) -> None:
        """Wait before the next attempt, longer each time. Raises `GivenUp` when the partitions are to be given up."""
        pause = min(FIRST_PAUSE * 2 ** min(self.failures - 1, 10), LONGEST_PAUSE)
        try:
            async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load, guards nothing
                await self._leaving.wait()
        except TimeoutError:
            return
        raise GivenUp


async def _call(handle: Handle, people: Sequence[Person]) -> None:
    """Call the handler; raises `Escaped` for whatever comes out of it that would end the consume loop."""
    try:
        await handle(people)
    except (Exception, GeneratorExit):
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # it is the loop itself that is cancelled
        raise Escaped(one_line(error)) from error
