"""Reads dead letters for those who list them, with connections of its own: no operator action waits for a list."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.open_transactions import OpenTransactions, in_words
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.marks_topic import MarksTopic


class LetterLog:
    """The dead letters of one topic, and their marks. Every call raises the errors of `LogReader`."""

    def __init__(
        self,
        options: ClientOptions,
        cluster: Cluster,
        dead_topic: str,
        marks_topic: str,
        reader: Callable[..., LogReader],
    ) -> None:
        self.dead = reader(options, dead_topic)
        self._cluster = cluster
        every = reader(options, dead_topic, committed_only=False)
        self._transactions = OpenTransactions(self.dead, every)
        self._marks_topic = MarksTopic(options, cluster, marks_topic, every, reader)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self._transactions.open(), self._marks_topic.open():
            yield

    async def marks(self) -> Marks:
        """Return which dead letters were sent back or discarded."""
        return await self._marks_topic.read()

    async def waiting(self, only: int | None = None) -> int:
        """Return how many records wait behind another client's open transaction, in `only` one partition or in all."""
        return await self._transactions.waiting(self._cluster.partition_count(self.dead.topic), only)

    async def notes(self, waiting: int | None) -> list[str]:
        """Return what a list may lack, because open transactions hide it; `waiting` letters among that."""
        notes = in_words(self.dead.topic, waiting), await self._marks_topic.why_incomplete()
        return [note for note in notes if note]
