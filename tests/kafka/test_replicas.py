"""Three brokers with a replica each: what is written needs those in sync, and what is read may come from any."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError
from relay import Link, Relays, advertised_by
from services import PATIENCE, Pipeline, Raw, ask, event, value_of, wait_until

from apps.chassis.kafka.clients import client_options
from apps.chassis.kafka.cluster import Cluster
from apps.chassis.kafka.topic_settings import Topic
from apps.chassis.kafka.topic_writer import Content, TopicWriter
from apps.chassis.setting_reading import read_settings
from tools.local_kafka import LocalKafka

WANTED = {"one": ([0], 2), "two": ([1, 2], 3), "three": ([0, 1, 2], 2)}
"""By topic: the brokers with its replicas, and its `min.insync.replicas`, which may be more than there are."""
SERVICES_HOST = "127.0.0.2"
"""Where a service finds the brokers by way of relays."""
WRITTEN = 1_000
"""Events that are written at a time."""


@pytest.fixture(scope="module")
def cluster(startable_kafka: None) -> Iterator[LocalKafka]:
    """Three brokers, some of which tests kill."""
    assert startable_kafka is None
    with LocalKafka(brokers=3) as running:
        yield running


@pytest.fixture
def kafka(cluster: LocalKafka) -> LocalKafka:
    """Three brokers that run."""
    cluster.start(0, 1, 2)
    return cluster


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


def test_what_could_not_be_written_for_a_while_is_written_once_and_leaves_no_producer_behind(
    kafka: LocalKafka,
) -> None:
    ask(kafka.bootstrap_servers, lambda admin: admin.create_topics([topic("alone", [2], 1)]))
    asyncio.run(written_once(kafka))


def test_health_asks_for_as_many_replicas_in_sync_as_kafka_and_no_more(kafka: LocalKafka) -> None:
    topics = [topic(name, *wanted) for name, wanted in WANTED.items()]
    ask(kafka.bootstrap_servers, lambda admin: admin.create_topics(topics))
    asyncio.run(agree(kafka))


def test_a_consumer_reads_the_replica_in_its_rack_and_each_event_once_although_that_dies(
    kafka: LocalKafka, logs: Path, tmp_path: Path
) -> None:
    pipeline, ledger = Pipeline(",".join(kafka.bootstrap_servers), logs), tmp_path / "ledger"
    ask(kafka.bootstrap_servers, lambda admin: admin.create_topics([topic(pipeline.topic, [0, 1, 2], 2)]))
    ports = [int(address.rpartition(":")[2]) for address in kafka.bootstrap_servers]
    links = [Link(SERVICES_HOST, port, advertised_by(ports), lambda: SERVICES_HOST) for port in ports]
    reached = ",".join(f"{SERVICES_HOST}:{port}" for port in ports)
    written: Counter[str] = Counter()

    def handled() -> Counter[str]:
        return Counter(line for line in ledger.read_text().splitlines() if line != "begin")

    def bytes_for_more() -> list[int]:
        """Write more events; return how many bytes each broker answered until they were handled."""
        before = [link.answered_bytes for link in links]
        ids = [f"{len(written) + n}" for n in range(WRITTEN)]
        pipeline.write_batch(*(Raw(value_of(event(one))) for one in ids), max_batch_size=2**20)
        written.update(ids)
        wait_until(lambda: handled() == written, what="for each event to be handled once")
        return [link.answered_bytes - earlier for link, earlier in zip(links, before, strict=True)]

    ledger.touch()
    size = WRITTEN * len(value_of(event("0")))
    with (
        Relays(links),
        pipeline.recording_consumer(ledger, KAFKA_BOOTSTRAP_SERVERS=reached, CLIENT_RACK="rack-1") as consumer,
    ):
        consumer.until_healthy()
        wait_until(lambda: [answered > size for answered in bytes_for_more()] == [False, True, False])
        kafka.kill(1)
        assert bytes_for_more()[1] < size
        status = consumer.status()
        assert (status["moves"], status["skipped_count"]) == ([], 0)
