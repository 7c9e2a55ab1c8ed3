"""A dead letter that Kafka acknowledged is written once, however often those that were not are tried again."""

import asyncio
from collections.abc import Iterator
from itertools import repeat
from typing import Any
from uuid import UUID

import pytest
from aiokafka.errors import KafkaError, UnknownError
from streams import Stream

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.settings import Settings
from apps.consumer.consuming.dead_letters import BadRecord, DeadLetters

pytestmark = pytest.mark.anyio

FIRST, SECOND = UUID(int=1), UUID(int=2)


class DeadLetterTopic(Cluster):
    """A topic that has an id, and what was written to it; `answers` are those to the next batches."""

    def __init__(self) -> None:
        self.id = FIRST
        self.letters: list[bytes | None] = []
        self.answers: Iterator[Exception | None] = repeat(None)
        super().__init__(client_options(Settings(), "consumer"), [])

    async def topic_id(self, topic: str) -> UUID:  # noqa: ARG002 - there is one
        return self.id

    def recreate(self) -> None:
        self.id, self.letters = SECOND, []


class Producer:
    """Writes each record as a batch of its own."""

    def __init__(self, topic: DeadLetterTopic) -> None:
        self.topic = topic

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def partitions_for(self, _: str) -> set[int]:
        return {0}

    def create_batch(self) -> "OneRecord":
        return OneRecord()

    async def send_batch(self, batch: "OneRecord", *_: object, **__: object) -> "asyncio.Future[None]":
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if error := next(self.topic.answers):
            answer.set_exception(error)
        else:
            self.topic.letters.append(batch.key)
            answer.set_result(None)
        return answer


class OneRecord:
    """A batch that holds one record."""

    def __init__(self) -> None:
        self.key: bytes | None = None

    def append(self, *, key: bytes | None, **_: object) -> bool | None:
        if self.key is not None:
            return None
        self.key = key
        return True


async def bad_records(*ids: str) -> list[BadRecord]:
    async def refuse(batch: Any) -> None:  # noqa: ANN401 - of any kind
        for record in batch:
            batch.reject(record, "not taken")

    stream = Stream(refuse)
    for one in ids:
        stream.add(one, key=one.encode())
    await stream.consume(turns=5)
    return list(stream.letters)


@pytest.mark.parametrize("is_recreated", [False, True])
async def test_what_was_acknowledged_is_written_again_only_to_a_topic_that_was_recreated_since(
    *, is_recreated: bool
) -> None:
    topic, bad = DeadLetterTopic(), await bad_records("a", "b", "c")
    letters = DeadLetters(topic._options, "events-dlt", topic, "group", lambda **_: Producer(topic))
    topic.answers = iter([None, None, UnknownError()])
    async with letters.open():
        with pytest.raises(KafkaError):
            await letters.write(bad)
        assert topic.letters == [b"a", b"b"]
        if is_recreated:
            topic.recreate()
        topic.answers = repeat(None)
        await letters.write(bad)
    assert topic.letters == [b"a", b"b", b"c"]
