"""Count the records behind an open transaction: what it hides is neither read nor the end of a topic."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.log_reader import LogReader

LOOK_TIMEOUT_S = 1.0
"""Seconds to count where a call can do without the number."""


class OpenTransactions:
    """The open transactions on a topic. `stable` reads only committed records, `every` reads all."""

    def __init__(self, stable: LogReader, every: LogReader) -> None:
        self.stable = stable
        self.every = every

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self.stable.open(), self.every.open():
            yield

    async def hidden(self, partitions: int) -> dict[int, tuple[int, int]]:
        """Return the range of offsets that an open transaction hides in each partition, without those that have none.

        Raises the errors of `LogReader`. The end is read first: new records must not look like hidden ones.
        """
        end = await self.every.ends(partitions) if partitions else {}
        stable = await self.stable.ends(partitions) if partitions else {}
        return {
            partition: (stable[partition], end[partition]) for partition in end if stable[partition] < end[partition]
        }

    async def waiting(self, partitions: int, only: int | None = None) -> int:
        """Return how many records wait behind an open transaction, of `only` one partition or of all."""
        hidden = await self.hidden(partitions)
        return sum(stop - start for partition, (start, stop) in hidden.items() if only in {None, partition})

    async def waiting_if_known(self, partitions: int, only: int | None = None) -> int | None:
        """Return what `waiting` does, None when Kafka does not answer within 1 s."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return await self.waiting(partitions, only)
        except KAFKA_ERRORS:
            return None


def in_words(topic: str, waiting: int | None) -> str | None:
    """Return that records of a topic wait, None when none does, or the number is not known."""
    if not waiting:
        return None
    records = "1 record waits" if waiting == 1 else f"{waiting} records wait"
    return f"{topic}: {records} behind another client's open transaction, unseen until that ends"
