"""Refills the window from the topic, after a restart or when partitions came from another instance."""

import asyncio
import logging
from collections.abc import Collection

from apps.chassis.background import Background
from apps.chassis.kafka.consumer_groups import Committed
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.kafka.log_reader import LogReader
from apps.chassis.observability.logs import one_line
from apps.consumer.browsing.window import Window
from apps.consumer.consuming.decode import Decode, sort_out
from apps.consumer.consuming.redrive_addressing import divide
from contracts.record import Record, memory_of

log = logging.getLogger(__name__)

FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
"""Seconds before a refill that failed is tried again; each pause is twice the one before."""
MERGE_BYTES = 4 * 1024 * 1024
"""Bytes of records that are read before they are merged into the window, which is bounded."""


class Refill:
    """Reads the newest committed records into the window, of each assigned partition its share."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it is made of
        self,
        window: Window,
        reader: LogReader,
        committed: Committed,
        background: Background,
        decode: Decode,
        group: str,
    ) -> None:
        self._window = window
        self._reader = reader
        self._committed = committed
        self._background = background
        self._decode = decode
        self._group = group
        self._running: asyncio.Task[None] | None = None

    def begin(self, own: Collection[int]) -> None:
        """Refill for these partitions in the background, after `stop`."""
        self.stop()
        self._running = self._background.start(self._until_done(own), "refill of the window")

    def stop(self) -> None:
        """End a running refill, and invalidate the window: partitions may be another instance's."""
        if self._running is not None:
            self._running.cancel()
        self._window.invalidate()

    async def _until_done(self, own: Collection[int]) -> None:
        pause = FIRST_BACKOFF_S
        while True:
            try:
                await self._refill(own)
            except KAFKA_ERRORS as error:
                log.warning("the window could not be refilled, retrying: %s", one_line(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_BACKOFF_S)
            else:
                return

    async def _refill(self, own: Collection[int]) -> None:
        committed = await self._committed()
        first, end = await self._reader.offsets(len(committed))
        held = {
            partition: (first[partition], min(offset, end[partition]))
            for partition in own  # in a recreated topic, the committed offset may be beyond the end
            if (offset := committed.get(partition)) is not None
        }
        share = share_of_each([stop - start for start, stop in held.values()], self._window.size)
        ranges = {partition: (max(start, stop - share), stop) for partition, (start, stop) in held.items()}
        read: list[Record] = []
        try:
            async for records in self._reader.read(ranges):
                read += sort_out(self._decode, divide(records, self._group)[0])[0]
                if memory_of(read) > MERGE_BYTES:
                    self._window.refill(read)
                    read = []
        except KAFKA_ERRORS:  # a batch may be one that can never be read
            self._window.refill(read)
            raise
        self._window.refill(read)


def share_of_each(counts: Collection[int], size: int) -> int:
    """Return how many records each partition may have: even, but what short ones leave is for the others."""
    left = size
    for number, count in enumerate(sorted(counts)):
        share = -(-left // (len(counts) - number))
        if count >= share:
            return share
        left -= max(0, count)  # the records before the committed offset may all be deleted
    return size
