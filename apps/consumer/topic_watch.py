"""A topic that was deleted and made anew is read from its beginning: offsets of the old one mean nothing in it.

Kafka deletes what a group has committed in a topic together with it; but a consumer that is cut off at that moment goes
on at its old position, and would pass over what the new topic has before it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from uuid import UUID

from aiokafka.errors import KafkaError

from apps.consumer.control import Control, NotNow

log = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two looks at the topic's id."""


async def watch_topic(topic_id: Callable[[], Awaitable[UUID | None]], control: Control) -> None:
    """Until cancelled, have a topic that has another id than it had consumed from its beginning.

    One that is made anew while consumption is stopped has nothing committed, and begins there anyway.
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
                await control.seek("beginning")
                is_new = False
                log.warning("the topic was made anew, and is consumed from its beginning")
        await asyncio.sleep(EVERY)
