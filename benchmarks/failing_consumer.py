"""A consumer with the handlers of `benchmarks.failing`, which starts it and reads the file of what they saw.

Its settings stand in the environment, see `Asked`.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from apps.chassis.service import serve
from apps.chassis.settings import Settings
from apps.consumer.app import create_app
from apps.consumer.consuming.batch import Batch, Handler, Received
from apps.consumer.consuming.each import each
from apps.consumer.consuming.resource import AnyHandler, resource
from contracts import STREAMS
from contracts.person import PEOPLE, Person
from contracts.stream import Stream

POISON = "poison"
"""The name of people for whom the handler fails."""


class Asked(Settings, frozen=True, kw_only=True):
    """Which handler is wanted, and the time that it takes for a record."""

    way: Literal["raise", "name", "note", "each"] = "raise"
    microseconds: float = 0.0
    milliseconds: float = 0.0
    concurrency: int = 1
    seen_file: str = ""


class Seen:
    """How many good records were handled, from when to when, and how long after they were written, in ms."""

    def __init__(self) -> None:
        self.count = 0
        self.first = self.last = 0.0
        self.delays: list[float] = []

    def note(self, timestamp: int) -> None:
        """Note that a record is handled."""
        self.last = time.time()
        self.first = self.first or self.last
        self.count += 1
        self.delays.append(self.last * 1_000 - timestamp)


def work(microseconds: float) -> None:
    """Keep the processor busy."""
    if not microseconds:
        return
    end = time.perf_counter_ns() + int(microseconds * 1_000)
    while time.perf_counter_ns() < end:
        pass


def raising(asked: Asked) -> Handler[Person]:
    """Return a handler that raises when it meets poison."""

    async def handle(batch: Batch[Person]) -> None:
        for person in batch.values:
            work(asked.microseconds)
            if person.name == POISON:
                raise ValueError(POISON)

    return handle


def naming(asked: Asked) -> Handler[Person]:
    """Return a handler that names poison, and does all others."""

    async def handle(batch: Batch[Person]) -> None:
        for record in batch:
            work(asked.microseconds)
            if record.value.name == POISON:
                batch.fail(record, POISON)

    return handle


def noting(seen: Seen, asked: Asked) -> Handler[Person]:
    """Return a handler that raises when it meets poison, and notes when it was done with a batch."""

    async def handle(batch: Batch[Person]) -> None:
        if any(person.name == POISON for person in batch.values):
            raise ValueError(POISON)
        for record in batch:
            work(asked.microseconds)
            seen.note(record.timestamp)

    return handle


def waiting(seen: Seen, asked: Asked) -> Handler[Person]:
    """Return a handler that waits for each record."""

    @each(concurrency=asked.concurrency)
    async def handle(_: Person, record: Received[Person]) -> None:
        await asyncio.sleep(asked.milliseconds / 1_000)
        seen.note(record.timestamp)

    return handle


@asynccontextmanager
async def opened(seen: Seen, asked: Asked) -> AsyncIterator[Handler[Person]]:
    """Yield the handler that is asked for; write what it saw when it is closed."""
    ways: dict[str, Callable[[], Handler[Person]]] = {
        "raise": partial(raising, asked),
        "name": partial(naming, asked),
        "note": partial(noting, seen, asked),
        "each": partial(waiting, seen, asked),
    }
    yield ways[asked.way]()
    if asked.seen_file:
        await asyncio.to_thread(Path(asked.seen_file).write_text, json.dumps(vars(seen)), encoding="utf-8")


if __name__ == "__main__":
    handlers: Mapping[Stream[Any], AnyHandler[Any]] = {PEOPLE: resource(partial(opened, Seen()), Asked)}
    serve(
        lambda settings, ending: create_app(settings, ending, streams=STREAMS, handlers=handlers),
        "consumer",
    )
