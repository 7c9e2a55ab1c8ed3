"""Your code: what to do with the records of each stream."""

from collections.abc import Mapping, Sequence
from typing import Any

from apps.consumer.consuming.policy import Policy
from apps.consumer.consuming.retry import Handle
from contracts.person import PEOPLE, Person
from contracts.stream import Stream


async def handle_people(people: Sequence[Person]) -> None:
    """Do your work with a batch of people, in the order of their partitions; return when it is done.

    The batch is then committed. Delivery is at least once: after a crash, a rebalance or an error, people are
    redelivered, so handling them twice must do no harm.

    When it raises, the same people are retried once, then bisected until each failing one is alone. It is retried and
    dead-lettered once another record succeeds. Until then, and while more than a tenth fails, it is retried with
    backoff for as long as it takes. Raise `Reject` of `apps.consumer.consuming.retry` for a record that must not be
    retried: a hundred of those in a row halt the stream.

    Each attempt gets its own list and people. `SystemExit`, the cancellation of its own task and the like are failures
    like any other. A call that takes longer than 4 s at a stop or a seek, or 9 s at a rebalance, is cancelled.

    The default does nothing: window, counters and dead letters do not depend on it.
    """


HANDLERS: Mapping[Stream[Any], Handle] = {PEOPLE: handle_people}
"""The handler of each stream; a stream without one is consumed and shown only."""
POLICIES: Mapping[Stream[Any], Policy] = {}
"""How many records a batch has, how failures are retried, and when a stream halts; where it is not the default."""


async def handle_nothing(values: Sequence[Any]) -> None:
    """Do nothing: for a stream that is only shown."""
