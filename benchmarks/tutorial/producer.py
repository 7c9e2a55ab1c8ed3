"""Takes people over HTTP and publishes them one by one, each awaited."""

import os

from fastapi import FastAPI
from faststream.kafka.fastapi import KafkaRouter

from benchmarks.tutorial.person import Person

TOPIC = os.environ["PEOPLE_TOPIC"]

router = KafkaRouter(os.environ["KAFKA_BOOTSTRAP_SERVERS"], logger=None)


@router.get("/health-check")
async def health_check() -> dict[str, str]:
    """Answer when the application has started, which is when Kafka is connected."""
    return {"status": "ok"}


@router.post("/producers/person", status_code=201)
async def produce_person(person: Person) -> dict[str, int]:
    """Publish one person."""
    await router.broker.publish(person, TOPIC, key=person.id.encode())
    return {"delivered": 1}


@router.post("/producers/people", status_code=201)
async def produce_people(people: list[Person]) -> dict[str, int]:
    """Publish each of a list."""
    for person in people:
        await router.broker.publish(person, TOPIC, key=person.id.encode())
    return {"delivered": len(people)}


app = FastAPI()
app.include_router(router)
