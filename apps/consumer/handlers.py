"""Your code: what to do with the records of each stream."""

from collections.abc import Mapping
from typing import Any

from apps.consumer.consuming.batch import Batch
from apps.consumer.consuming.policy import Policy
from apps.consumer.consuming.resource import AnyHandler
from contracts.person import PEOPLE, Person
from contracts.stream import Stream


async def handle_people(batch: Batch[Person]) -> None:
    """Do your work with `batch.values`, in the order of their partitions; return when it is done.

    The batch is then committed. Delivery is at least once: after a crash, a rebalance or an error, records are
    redelivered, so handling them twice must do no harm.

    `for record in batch` gives key, headers, place and attempt too. `batch.fail(record, error)` names one that failed,
    `batch.reject(record, reason)` one that must not be retried; all others are done. When the handler raises, the batch
    is retried once, then bisected until each failing record is alone. docs/how-to/write-a-handler.md says what follows.

    A plain `def` runs in a worker thread, so it may block. The default does nothing: window, counters and dead letters
    do not depend on it.
    """


HANDLERS: Mapping[Stream[Any], AnyHandler[Any]] = {PEOPLE: handle_people}
"""The handler of each stream, or `resource(...)` of one; a stream without one is consumed and shown only."""
POLICIES: Mapping[Stream[Any], Policy] = {}
"""How many records a batch has, how failures are retried, and when a stream halts; where it is not the default."""


async def handle_nothing(batch: Batch[Any]) -> None:
    """Do nothing: for a stream that is only shown."""
