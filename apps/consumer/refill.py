"""Refills the window from the topic, after a restart or when partitions came from another copy."""

import logging
from collections.abc import Collection

from aiokafka.errors import KafkaError

from apps.chassis.cluster import Committed
from apps.chassis.kafka import one_line
from apps.consumer.log_reader import LogReader
from apps.consumer.subscriber import sort_out
from apps.consumer.window import Record, Window

log = logging.getLogger(__name__)

PIECE = 4 * 1024 * 1024
"""Bytes of values that are read before they are merged into the window, which is bounded."""


async def refill(window: Window, reader: LogReader, read_committed: Committed, own: Collection[int]) -> None:
    """Put the newest records that the group has committed of its `own` partitions into the window.

    An even share of the window is read of each. When Kafka is out of reach the window stays as it is.
    """
    try:
        committed = await read_committed()
        first, _ = await reader.offsets(len(committed))
        share = -(-window.size // max(1, len(own)))
        ranges = {
            partition: (max(first[partition], offset - share), offset)
            for partition in own
            if (offset := committed.get(partition)) is not None
        }
        read: list[Record] = []
        async for records in reader.read(ranges):
            read += sort_out(records)[0]
            if sum(len(record.value or b"") for record in read) > PIECE:
                window.refill(read)
                read = []
        window.refill(read)
    except (KafkaError, OSError, TimeoutError) as error:
        log.warning("the window could not be refilled: %s", one_line(error))
