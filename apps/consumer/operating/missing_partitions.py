"""Detect a group that holds no partitions: its topic was deleted, and its members do not know the new one yet."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import AIOKafkaConsumer

from apps.chassis.internals.client_parts import client_of_consumer
from apps.chassis.kafka.consumer_groups import Member
from apps.chassis.kafka.errors import KAFKA_ERRORS

ASK_TIMEOUT_S = 1.0
"""Seconds to ask for the members of the group; later it counts as unknown what they hold."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks at an instance without partitions."""

Members = Callable[[], Awaitable[tuple[str, Sequence[Member]]]]
"""Returns the state and the members of the group."""


class MissingPartitions:
    """Tells an instance whose group holds no partitions from one whose group has more members than partitions."""

    def __init__(self, members: Members) -> None:
        self._members = members

    async def reason(self, consumer: AIOKafkaConsumer | None) -> str | None:
        """Return why nothing is consumed when no member of the group holds a partition, else None; within 1 s."""
        if consumer is None or consumer.assignment():
            return None
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                state, members = await self._members()
        except KAFKA_ERRORS:
            return None
        if state != "Stable" or any(member.partitions for member in members):
            return None
        return "no member of the group holds a partition: the topic was deleted and created again, or is being created"

    async def watch(self, consuming: Callable[[], AIOKafkaConsumer | None], every_s: float = LOOK_EVERY_S) -> None:
        """Until cancelled, make the client look at the topic again; by itself it does so only every 10 s."""
        while True:
            await asyncio.sleep(every_s)
            consumer = consuming()
            if consumer is not None and await self.reason(consumer):
                client_of_consumer(consumer).force_metadata_update()
