"""The places to seek to, and the offsets that they mean."""

import asyncio
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Literal

from aiokafka import AIOKafkaConsumer, TopicPartition

Place = Literal["beginning", "end"] | datetime | Mapping[int, int]
"""Where to seek to: an end of the topic, the first record at or after a time, or an offset in each partition."""


async def offsets_at(
    consumer: AIOKafkaConsumer, wanted: Collection[TopicPartition], place: Place
) -> dict[TopicPartition, int]:
    """Return the offset in each partition that a place means; behind the last record when nothing is so new."""
    if isinstance(place, Mapping):
        first, end = await asyncio.gather(consumer.beginning_offsets(wanted), consumer.end_offsets(wanted))
        for tp in wanted:
            if not first[tp] <= place[tp.partition] <= end[tp]:
                raise ValueError(f"partition {tp.partition} has offsets {first[tp]} to {end[tp]}")
        return {tp: place[tp.partition] for tp in wanted}
    if place == "beginning":
        return dict(await consumer.beginning_offsets(wanted))
    end = await consumer.end_offsets(wanted)
    if place == "end":
        return dict(end)
    found = await consumer.offsets_for_times({tp: int(place.timestamp() * 1_000) for tp in wanted})
    return {tp: found[tp].offset if found[tp] else end[tp] for tp in wanted}
