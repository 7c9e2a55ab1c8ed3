"""What is done with people: the file to replace with your own."""

from collections.abc import Sequence

from contracts.person import Person


async def handle(people: Sequence[Person]) -> None:
    """Do your work with a batch of people, in the order of their partitions; return when it is done.

    Afterwards the batch is committed. Delivery is at least once: after a crash, a rebalance or an error, people come
    again, so doing it twice must do no harm.

    When it raises, the same people come again, after pauses that grow to 5 s; after ten attempts their halves, until
    those that cannot be handled stand alone; each is tried ten times alone before it is dead-lettered. Raise
    `apps.consumer.attempts.Reject` for what must not be tried again. When it rejects a hundred in a row, or fails for
    five in a row to the last, the consumer halts instead.

    The default does nothing: window, counters and dead letters are kept whatever stands here.
    """
