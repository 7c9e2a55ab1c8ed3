"""Consumes people, one call of the handler each, and keeps the newest."""

import os
from collections import deque

from fastapi import FastAPI
from faststream.kafka.fastapi import KafkaRouter

from benchmarks.tutorial.person import Person

router = KafkaRouter(os.environ["KAFKA_BOOTSTRAP_SERVERS"], logger=None)
messages: deque[Person] = deque(maxlen=10_000)
consumed = 0


@router.subscriber(os.environ["PEOPLE_TOPIC"], group_id=os.environ["CONSUMER_GROUP_ID"], auto_offset_reset="earliest")
async def consume(person: Person) -> None:
    """Keep a person."""
    global consumed  # noqa: PLW0603 - as in a tutorial
    consumed += 1
    messages.append(person)


@router.get("/health-check")
async def health_check() -> dict[str, str]:
    """Answer when the application has started, which is when the group was joined."""
    return {"status": "ok"}


@router.get("/consumers/status")
async def status() -> dict[str, int]:
    """Return how many people were consumed."""
    return {"messages_consumed_count": consumed}


app = FastAPI()
app.include_router(router)
