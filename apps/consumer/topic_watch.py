"""A recreated topic is consumed from its beginning: offsets of the old one mean nothing in it.

Kafka deletes what a group has committed in a topic together with it; but a consumer that is cut off at that moment goes
on at its old position, and would pass over what the new topic has before it.
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
    """Until cancelled, have a topic that has another id than it had consumed from its beginning, and report that.

    A topic that is recreated while consumption is stopped has nothing committed, and is consumed from there anyway.
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
