"""Consume a recreated topic from its beginning: offsets of the old topic mean nothing in it.

Kafka deletes a group's commits together with the topic. But a consumer that is disconnected at that moment continues at
its old position, and would skip the earlier records of the new topic.
"""

import asyncio
from contextlib import suppress

from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.consumer.consuming.commits import Commits
from apps.consumer.consuming.unplanned_moves import Move
from apps.consumer.operating.control import Control, NotNow

LOOK_EVERY_S = 5.0
"""Seconds between two looks at the topic's id."""


async def watch_topic(control: Control, commits: Commits) -> None:
    """Until cancelled, move each position that belongs to a deleted topic to the beginning of the new one."""
    while True:
        with suppress(*KAFKA_ERRORS, NotNow, ValueError):
            for partition, (before, after) in (await control.leave_deleted_topic()).items():
                commits.moves.report(Move(partition, "recreated", before, after, after))  # those before it were deleted
        await asyncio.sleep(LOOK_EVERY_S)
