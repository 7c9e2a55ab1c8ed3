"""The places to seek to, and the offsets that they mean."""

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Literal

from aiokafka import AIOKafkaConsumer, TopicPartition

Spot = Literal["beginning", "end"] | datetime | int
"""An end of a partition, its first record at or after a time, or an offset in it."""
Place = Spot | Mapping[int, Spot]
"""Where to seek to in all partitions, or in some."""


async def offsets_at(
    consumer: AIOKafkaConsumer, wanted: Collection[TopicPartition], place: Place
) -> dict[TopicPartition, int]:
    """Return the offset in each partition that a place means; behind the last record when nothing is so new."""
    if isinstance(place, Mapping):
        found = [await offsets_at(consumer, [tp], place[tp.partition]) for tp in wanted]
        return {tp: offset for of_one in found for tp, offset in of_one.items()}
    if isinstance(place, int):
        first, end = await asyncio.gather(consumer.beginning_offsets(wanted), consumer.end_offsets(wanted))
        for tp in wanted:
            if not first[tp] <= place <= end[tp]:  # records of open transactions follow
                within = f"{first[tp]} to {end[tp]} that can be consumed"
                raise ValueError(f"partition {tp.partition} has offsets {within}, got {place}")
        return dict.fromkeys(wanted, place)
    if place == "beginning":
        return dict(await consumer.beginning_offsets(wanted))
    end = await consumer.end_offsets(wanted)
    if place == "end":
        return dict(end)
    since = await consumer.offsets_for_times({tp: int(place.timestamp() * 1_000) for tp in wanted})
    return {tp: since[tp].offset if since[tp] else end[tp] for tp in wanted}
