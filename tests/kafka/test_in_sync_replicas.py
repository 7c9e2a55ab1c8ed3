"""Health and a real Kafka agree on whether a topic takes records that all in-sync replicas must have."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError
from services import PATIENCE, ask

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.topic_settings import Topic
from apps.chassis.kafka.topic_writer import Content, TopicWriter
from apps.chassis.setting_reading import read_settings
from tools.local_kafka import LocalKafka

pytestmark = pytest.mark.usefixtures("startable_kafka")

WANTED = {"one": ([0], 2), "two": ([1, 2], 3), "three": ([0, 1, 2], 2)}
"""By topic: the brokers with its replicas, and its `min.insync.replicas`, which may be more than there are."""


def topic(name: str, brokers: list[int], least: int) -> NewTopic:
    configs = {"min.insync.replicas": str(least)}
    return NewTopic(name, -1, -1, replica_assignments={0: brokers}, topic_configs=configs)


async def takes_a_record(kafka: LocalKafka, topic: str) -> bool:
    """Return whether Kafka takes a record that all in-sync replicas must have."""
    options = {"bootstrap_servers": kafka.bootstrap_servers, "acks": "all", "request_timeout_ms": 1_000}
    async with AIOKafkaProducer(**options) as producer:
        try:
            await producer.send_and_wait(topic, b"value", partition=0)
        except KafkaError:
            return False
    return True


@asynccontextmanager
async def health_of(kafka: LocalKafka, topic: str) -> AsyncIterator[Cluster]:
    """Open what health asks about a topic."""
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": ",".join(kafka.bootstrap_servers)})
    cluster = Cluster(client_options(settings, "consumer"), [Topic(topic, 1, 1)])
    async with cluster.open():
        await cluster.ensure_topics()
        yield cluster


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - Kafka sets no event of ours
            await asyncio.sleep(0.2)


async def agree(kafka: LocalKafka) -> None:
    async with AsyncExitStack() as stack:
        health = {topic: await stack.enter_async_context(health_of(kafka, topic)) for topic in WANTED}

        async def says(topic: str, expected: str | None) -> bool:
            return (
                await takes_a_record(kafka, topic) == (expected is None) and await health[topic].trouble() == expected
            )

        for topic in WANTED:
            await until(partial(says, topic, None))
        kafka.kill(2)
        await until(partial(says, "two", "topic two: partition 0 has 1 of 2 in-sync replicas"))
        await until(partial(says, "one", None))
        await until(partial(says, "three", None))


async def written_once(kafka: LocalKafka) -> None:
    """Write to a partition without a leader, in vain; have its broker return; write again."""
    options = client_options(read_settings({"KAFKA_BOOTSTRAP_SERVERS": ",".join(kafka.bootstrap_servers)}), "test")
    async with health_of(kafka, "alone") as cluster:

        async def is_well() -> bool:
            return await cluster.trouble() is None

        writer = TopicWriter(options, "alone", cluster, ack_timeout_s=3)
        letter: dict[int, list[Content]] = {0: [(b"key", b"value", [])]}
        async with writer.open():
            kafka.kill(2)
            for _ in range(3):
                with pytest.raises((KafkaError, TimeoutError)):
                    await writer.write_to(letter)
            senders = [task for task in asyncio.all_tasks() if "Sender" in repr(task)]
            assert senders == [], "each would write its record once the broker is back"
            await asyncio.to_thread(kafka.start, 2)
            await until(is_well)
            await writer.write_to(letter)
        async with AIOKafkaConsumer("alone", bootstrap_servers=kafka.bootstrap_servers) as consumer:
            assert list((await consumer.end_offsets(consumer.assignment())).values()) == [1]


def test_what_could_not_be_written_for_a_while_is_written_once_and_leaves_no_producer_behind() -> None:
    with LocalKafka(brokers=3) as kafka:
        ask(kafka.bootstrap_servers, lambda admin: admin.create_topics([topic("alone", [2], 1)]))
        asyncio.run(written_once(kafka))


def test_health_asks_for_as_many_replicas_in_sync_as_kafka_and_no_more() -> None:
    with LocalKafka(brokers=3) as kafka:
        topics = [topic(name, *wanted) for name, wanted in WANTED.items()]
        ask(kafka.bootstrap_servers, lambda admin: admin.create_topics(topics))
        asyncio.run(agree(kafka))
