"""A stream in memory: polls, commits and redelivers as the consume loop on a real Kafka does."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import pytest
from samples import Stored, stored_event, until

from apps.consumer.browsing.window import Window
from apps.consumer.consuming.batch import Batch, Handle, Reject
from apps.consumer.consuming.consumption import Consumption, Halted
from apps.consumer.consuming.dead_letters import BadRecord
from apps.consumer.consuming.policy import Batching, Policy, Retry
from tests.event import EVENTS, Event

AT_ONCE = Retry(first_backoff_s=0.0001, max_backoff_s=0.001)
"""Pauses that no test feels."""


def policy(records: int = 2_000, **others: object) -> Policy:
    return Policy(batching=Batching(records=records), **{"retry": AT_ONCE, **others})  # type: ignore[arg-type]  # policies


class Stream:
    """Records of some partitions, with the position and the committed offset in each, and what became of them."""

    def __init__(self, handle: Handle, policy: Policy | None = None, **options: Any) -> None:  # noqa: ANN401 - those of `Consumption`
        self.records: dict[int, list[Stored]] = {}
        self.positions: dict[int, int] = {}
        self.committed: dict[int, int] = {}
        self.letters: list[BadRecord] = []
        self.polls = 0
        self.window = Window(100_000)
        self.consumption = Consumption(
            EVENTS.decode, self.window.extend, handle, self._write, policy=policy or globals()["policy"](), **options
        )
        self._writes: Callable[[], None] = lambda: None

    async def _write(self, bad: Sequence[BadRecord]) -> None:
        self._writes()
        self.letters += bad

    def write_with(self, writes: Callable[[], None]) -> None:
        """Call this before dead letters are written; it may raise."""
        self._writes = writes

    def add(self, *ids: str, partition: int = 0, key: bytes | None = b"", **fields: object) -> None:
        """Append events; each has its id as its key unless another is given."""
        for event_id in ids:
            self.append(stored_event(0, id=event_id, **fields), partition, event_id.encode() if key == b"" else key)

    def append(self, record: Stored, partition: int = 0, key: bytes | None = b"key") -> None:
        """Append a record."""
        stood = self.records.setdefault(partition, [])
        record.partition, record.offset, record.key = partition, len(stood), key
        stood.append(record)

    @property
    def is_consumed(self) -> bool:
        return all(self.committed.get(partition, 0) == len(stood) for partition, stood in self.records.items())

    @property
    def lettered(self) -> list[str]:
        """The keys of the dead letters, in their order."""
        return [(letter.record.key or b"").decode() for letter in self.letters]

    async def newer(self) -> bool:
        return any(self.positions.get(partition, 0) < len(stood) for partition, stood in self.records.items())

    def poll(self) -> tuple[Stored, ...]:
        """Return the records of the next batch, partition by partition."""
        self.polls += 1
        found: list[Stored] = []
        for partition, stood in self.records.items():
            position = self.positions.get(partition, 0)
            found += stood[position : position + self.consumption.max_records - len(found)]
            self.positions[partition] = position + len([one for one in found if one.partition == partition])
        return tuple(found)

    async def turn(self) -> bool:
        """Poll, consume and commit once, as the consume loop does; return whether there was anything."""
        batch = self.poll()
        if batch:
            outcome = await self.consumption.consume(batch, self.newer)
            for (_, partition), offset in outcome.redelivered.items():
                self.positions[partition] = offset
            self.committed.update(self.positions)
            self.consumption.settle(outcome)
        return bool(batch)

    async def consume(self, turns: int = 1_000) -> None:
        """Consume until all is committed, or `turns` were taken."""
        for _ in range(turns):
            if not await self.turn() and self.is_consumed:
                return


class Handler:
    """Does what a script says with each call, and remembers what was done; `fails` tells for whom a call fails.

    With `names`, it names the records that fail and does the others; else the whole call fails.
    """

    def __init__(
        self,
        fails: Callable[[str], bool] = lambda _: False,
        error: BaseException | None = None,
        *,
        names: bool = False,
    ) -> None:
        self.fails = fails
        self.error = error or ConnectionError("no database")
        self.names = names
        self.calls: list[list[str]] = []
        self.done: list[str] = []

    async def __call__(self, batch: Batch[Event]) -> None:
        ids = [event.id for event in batch.values]
        self.calls.append(ids)
        failing = [*map(self.fails, ids)]
        if any(failing) and not self.names:
            raise self.error
        for record, fails in zip(batch, failing, strict=True):
            if fails:
                batch.fail(record, self.error)
            else:
                self.done.append(record.value.id)


def numbered(numbers: Iterable[int]) -> list[str]:
    return [f"{number:05}" for number in numbers]


class Consumer:
    """A consumption whose handler and dead letters are lists; `events` has them in the order in which they came."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of `Consumption`
        self.handled: list[Event] = []
        self.letters: list[BadRecord] = []
        self.events: list[str] = []
        self.rejected: set[str] = set()
        self.handler_error: Exception | None = None
        self.writer_error: Exception | None = None
        self.window = Window(1_000)
        options = {"policy": policy(), **options}
        self.consumption = Consumption(EVENTS.decode, self.window.extend, self.handle, self.write, **options)

    async def handle(self, batch: Batch[Event]) -> None:
        self.events.append("handler")
        if self.handler_error:
            raise self.handler_error
        if self.rejected & {event.id for event in batch.values}:
            raise Reject
        self.handled.extend(batch.values)

    async def write(self, bad: Sequence[BadRecord]) -> None:
        self.events.append("dead letters")
        if self.writer_error:
            raise self.writer_error
        self.letters.extend(bad)

    async def consume(self, *records: Stored) -> None:
        """Consume a batch whose commit is taken."""
        self.consumption.settle(await self.consumption.consume(records))

    @property
    def shown(self) -> list[int]:
        """The offsets of the records in the window."""
        return [record.offset for record in self.window.newest(1_000)[0]]

    @property
    def counters(self) -> tuple[int, int]:
        return self.consumption.consumed, self.consumption.dead_lettered

    async def broken_off(self, work: Coroutine[Any, Any, object], happened: Callable[[], object]) -> None:
        """Consume until something has happened, and break that off as a stop does."""
        consuming = asyncio.create_task(work)
        await until(happened)
        assert not consuming.done()
        self.consumption.abandonment.ask("stop")
        await consuming

    async def until_halted(self, work: Coroutine[Any, Any, object]) -> str:
        """Consume until so many records were refused that it halts, and break it off; return why it halted."""
        with pytest.raises(Halted) as halted:
            await self.broken_off(work, lambda: self.consumption.halted)
        return str(halted.value)
