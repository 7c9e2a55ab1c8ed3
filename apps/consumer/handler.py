"""What is done with people: the file to replace with your own."""

from collections.abc import Sequence

from apps.consumer.policy import Policy
from contracts.person import Person

POLICY = Policy()
"""How many records a batch has, how they are retried and when the consumer halts: see `apps/consumer/policy.py`."""


async def handle(people: Sequence[Person]) -> None:
    """Do your work with a batch of people, in the order of their partitions; return when it is done.

    Afterwards the batch is committed. Delivery is at least once: after a crash, a rebalance or an error, people come
    again, so doing it twice must do no harm.

    When it raises, the same people are handed over once more, then halves of them, until those that fail stand alone.
    Each of these is retried and dead-lettered once another record succeeds; until then, and while more than a tenth
    fails, they are retried with growing pauses for as long as it takes. Raise `apps.consumer.attempts.Reject` for what
    must not be tried again: a hundred of those in a row halt the consumer.

    Each attempt gets a list and people of its own. `SystemExit`, the cancellation of its own task and the like are
    failures like any other. A call that takes longer than 4 s at a stop or a seek, or 9 s at a rebalance, is cancelled.

    The default does nothing: window, counters and dead letters are kept whatever stands here.
    """
