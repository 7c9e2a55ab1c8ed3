"""Reads the marks topic: which dead letters were sent back or discarded, once that is final.

What was marked of letters that their partition has lost since does not count.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from apps.chassis.kafka.clients import ClientOptions
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.kafka.open_transactions import OpenTransactions
from apps.chassis.kafka.topic_settings import Unusable
from apps.consumer.redriving.mark_times import replaced_from, times_of
from apps.consumer.redriving.marks import DATED_UP_TO, DatedMark, Marks
from apps.consumer.redriving.refusals import RedriveNotNow
from contracts.record import Record

OTHERS_S = 2.0
"""Seconds that a redrive waits for the open transactions of other groups."""
SETTLING_S = 0.1
"""Seconds between two checks whether the transactions of other groups have ended."""


_Read = tuple[Record, DatedMark | None]
"""A record of the topic, and what `Marks.read` made of it."""


class MarksTopic:
    """The topic, of one partition, that records which letters of a dead-letter topic were sent back or discarded.

    `every` reads all records of the dead-letter topic, also those of open transactions.
    """

    def __init__(
        self, options: ClientOptions, cluster: Cluster, name: str, every: LogReader, reader: Callable[..., LogReader]
    ) -> None:
        self.name = name
        self._cluster = cluster
        self._every = every
        self._marks = reader(options, name)
        self._uncommitted = reader(options, name, committed_only=False)
        self._transactions = OpenTransactions(self._marks, self._uncommitted)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self._transactions.open():
            yield

    async def read(self) -> Marks:
        """Return which dead letters were sent back or discarded. Raises the errors of `LogReader`.

        Marks of an older topic of the same name are ignored.
        """
        first, end = await self._marks.offsets(1)
        return await self._read(first[0], end[0])

    async def why_incomplete(self) -> str | None:
        """Return that an open transaction hides marks, None when none does. Raises the errors of `LogReader`."""
        if not await self._transactions.waiting(1):
            return None
        return (
            f"{self.name}: a transaction has not ended, and hides which dead letters were sent back or discarded last"
        )

    async def check(self) -> None:
        """Raise `RedriveNotNow` when Kafka may delete marks: their letters would be sent back again."""
        topic = self.name
        try:
            await self._cluster.check_settings()  # of all topics: a refusal names what each takes now
        except Unusable as error:
            raise RedriveNotNow(f"whether {topic} keeps what was sent back is not known: {error}") from None
        if deletions := self._cluster.deletions[topic]:
            wrong = "; ".join(map(str, deletions))
            raise RedriveNotNow(f"topic {topic}: {wrong}. Set cleanup.policy=compact on it, without delete, and retry")

    async def until_visible(self, late: float) -> None:
        """Wait until all readers see the committed marks, or it is `late`: Kafka confirms a commit before they do."""
        with suppress(*KAFKA_ERRORS, RedriveNotNow):
            async with asyncio.timeout_at(late):
                await self._bounds()

    async def settled(self) -> Marks:
        """Return the marks once all are visible: an open transaction of another group hides those after it."""
        first, written = await self._bounds()
        if first:
            raise RedriveNotNow(
                f"topic {self.name}: what stood before offset {first} was deleted, and with it which dead "
                "letters were sent back. Delete the topic to begin with none sent back; it is created again"
            )
        marks = await self._read(0, written)
        if marks.unreadable:
            raise RedriveNotNow(f"which dead letters were sent back is not known: {marks.unreadable}")
        return marks

    async def _bounds(self) -> tuple[int, int]:
        """Return the first offset and the end of the topic, once no open transaction hides a record before that."""
        (first, _), (_, written) = await asyncio.gather(self._marks.offsets(1), self._uncommitted.offsets(1))
        waited_until = asyncio.get_running_loop().time() + OTHERS_S
        while (await self._marks.offsets(1))[1][0] < written[0]:
            if asyncio.get_running_loop().time() >= waited_until:
                raise RedriveNotNow("a redrive of another group has not ended, and hides what was sent back: try again")
            await asyncio.sleep(SETTLING_S)
        return first[0], written[0]

    async def headers(self, marks: Marks, ends: Mapping[int, int]) -> dict[int, Sequence[tuple[str, bytes]]]:
        """Return the headers of marks that end before an offset of each partition. Raises the errors of `LogReader`."""
        times = await times_of(self._every, ends)
        dated = {partition: [(DATED_UP_TO, b"%d" % at)] for partition, at in times.items()}
        return {partition: [*marks.headers, *dated.get(partition, [])] for partition in ends}

    async def _read(self, first: int, end: int) -> Marks:
        marks, latest = Marks(await self._cluster.topic_id(self._every.topic)), dict[bytes | None, _Read]()
        async for records in self._marks.read({0: (first, end)}):
            for record in records:
                latest[record.key] = record, marks.read(record)
        partitions = self._cluster.partitions.get(self._every.topic, 0)
        dated = [(record, mark) for record, mark in latest.values() if mark and mark.partition < partitions]
        replaced = await replaced_from(self._every, {mark for _, mark in dated})
        for record, mark in dated:
            if mark in replaced:
                marks.read(record, replaced[mark])
        return marks
