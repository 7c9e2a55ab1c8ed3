"""Consume a recreated topic from its beginning: offsets of the old topic mean nothing in it.

Kafka deletes a group's commits together with the topic. But a consumer that is disconnected at that moment continues at
its old position, and would skip the earlier records of the new topic.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from uuid import UUID

from aiokafka.errors import KafkaError

from apps.consumer.commits import Commits
from apps.consumer.control import Control, NotNow

log = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two looks at the topic's id."""


async def watch_topic(topic_id: Callable[[], Awaitable[UUID | None]], control: Control, commits: Commits) -> None:
    """Until cancelled, detect topics with a new id, consume them from their beginning, and report that.

    A topic that is recreated while consumption is stopped has no commits, and is consumed from there anyway.
    """
    known: set[UUID] = set()  # brokers that do not know of the new one yet go on telling the old one
    is_new = False
    while True:
        with suppress(KafkaError, OSError, TimeoutError):
            found = await topic_id()
            if found is not None and found not in known:
                is_new = bool(known)
                known.add(found)
        if is_new and control.stopped:
            is_new = False
        if is_new:
            with suppress(KafkaError, OSError, TimeoutError, NotNow, ValueError):
                before = await control.positions()
                sought = await control.seek("beginning")
                is_new = False
                log.warning("the topic was recreated, and is consumed from its beginning")
                for partition in sorted(sought.keys() & before.keys()):
                    commits.report(partition, "recreated", before[partition], sought[partition])
        await asyncio.sleep(EVERY)
