"""What becomes of the long-lived Kafka clients when addresses, coordinators or the clock of Kafka change."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, GroupCoordinatorNotAvailableError, KafkaError
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata
from moving import Moving
from relay import Link, Relays, advertised_by
from services import Pipeline, Raw, Service, both, event, in_time, value_of, wait_until

from apps.chassis.internals.client_parts import fail_unwritten
from apps.chassis.internals.member_commits import commit_as_member
from apps.chassis.internals.protections import protect
from apps.chassis.kafka.client_journal import ClientId
from tools.local_kafka import LocalKafka
from tools.ports import free_ports

PROMPT_S = 10.0
"""Seconds within which an operator must be able to read what is wrong."""


@dataclass
class Doors:
    """Where a Kafka without a group coordinator is found; two of its doors lead to addresses that nobody reaches."""

    plain: str
    unresolved: str
    refusing: str
    behind_refusing: str


@pytest.fixture(scope="module")
def doors(startable_kafka: None) -> Iterator[Doors]:
    assert startable_kafka is None
    plain, unresolved, refusing, nowhere = free_ports(4)
    listeners = {"PLAINTEXT": f"127.0.0.1:{plain}", "UNRESOLVED": f"no.such.host.invalid:{unresolved}"}
    advertised = listeners | {"REFUSING": f"127.0.0.1:{nowhere}"}
    settings = {
        "listeners": f"UNRESOLVED://127.0.0.1:{unresolved},REFUSING://127.0.0.1:{refusing}",
        "advertised.listeners": ",".join(f"{name}://{place}" for name, place in advertised.items()),
        "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in ("CONTROLLER", *advertised)),
        "offsets.topic.replication.factor": "3",  # of one broker: the topic is never created
    }
    with LocalKafka(port=plain, settings=settings):
        yield Doors(*(f"127.0.0.1:{port}" for port in (plain, unresolved, refusing, nowhere)))


def until_named(service: Service, address: str, reason: str) -> None:
    """Wait until health and log name an address that the broker advertises, and why nobody reaches it."""
    service.until_answers("/livez", 200)

    def detail() -> str:
        return str(service.http.get("/health-check").json()["detail"])

    wait_until(lambda: address in detail(), PROMPT_S, "for the address to be named")
    assert "advertised.listeners" in detail()
    assert reason in detail()
    wait_until(lambda: address in service.log.read_text(), PROMPT_S)


def test_an_advertised_address_that_nobody_reaches_is_named_with_the_reason(doors: Doors, logs: Path) -> None:
    wrong = {
        doors.unresolved: f"no.such.host.invalid:{doors.unresolved.rpartition(':')[2]}",
        doors.refusing: doors.behind_refusing,
    }
    reasons = {doors.unresolved: "cannot be resolved", doors.refusing: "connection refused"}
    for bootstrap, address in wrong.items():
        pipeline = Pipeline(bootstrap, logs)
        with pipeline.producer() as producer, pipeline.consumer() as consumer:
            for service in (producer, consumer):
                until_named(service, address, reasons[bootstrap])
            assert address in consumer.status()["last_error"]
            answer = producer.http.post("/producers/events", json=event())
            assert address in answer.json()["detail"]


def test_a_group_without_a_coordinator_is_named_as_what_is_missing(doors: Doors, logs: Path) -> None:
    pipeline = Pipeline(doors.plain, logs)
    with pipeline.consumer() as consumer:
        consumer.until_answers("/livez", 200)

        def named() -> bool:
            said = consumer.http.get("/health-check").json()["detail"]
            return f"the coordinator of {pipeline.group} cannot be found" in said

        wait_until(named, PROMPT_S)
        assert consumer.http.get("/health-check").status_code == 503
        assert f"the coordinator of {pipeline.group}" in consumer.status()["last_error"]
        wait_until(lambda: f"the coordinator of {pipeline.group}" in consumer.log.read_text(), PROMPT_S)


def test_a_commit_whose_session_is_lost_while_it_looks_for_the_coordinator_is_not_sent(
    bootstrap_servers: str, logs: Path
) -> None:
    protect()
    pipeline = Pipeline(bootstrap_servers, logs)
    pipeline.create_topic(1)

    async def commit() -> OffsetAndMetadata | None:
        tp = TopicPartition(pipeline.topic, 0)
        options = {"bootstrap_servers": bootstrap_servers, "group_id": pipeline.group, "enable_auto_commit": False}
        async with AIOKafkaConsumer(pipeline.topic, **options) as consumer:
            await consumer.seek_to_beginning()
            coordinator = consumer._coordinator
            await coordinator._send_req(LeaveGroupRequest(pipeline.group, coordinator.member_id))
            coordinator.coordinator_dead()
            committing = asyncio.create_task(commit_as_member(consumer, {tp: OffsetAndMetadata(0, "lost")}))
            await asyncio.sleep(0)
            coordinator.reset_generation()
            with pytest.raises(CommitFailedError):
                await committing
            return await consumer.committed(tp)

    assert in_time(commit()) is None


async def coordinator_of(client: AIOKafkaClient, group: str) -> int:
    while True:
        try:
            return int(await client.coordinator_lookup(0, group))
        except GroupCoordinatorNotAvailableError:  # a new Kafka creates its topic first
            await asyncio.sleep(0.1)


async def hold_up(pipeline: Pipeline, joined: threading.Event, enough: threading.Event) -> None:
    """Join a group as a member that gives its partitions up for no rebalance, until it is enough."""
    client = AIOKafkaClient(bootstrap_servers=pipeline.bootstrap_servers)
    await client.bootstrap()
    try:
        coordinator = await coordinator_of(client, pipeline.group)
        protocols = [("roundrobin", RoundRobinPartitionAssignor.metadata({pipeline.topic}).encode())]
        member, code = "", -1
        while code:  # the first answer gives it its member id; a new Kafka is not ready for groups
            request = JoinGroupRequest(pipeline.group, 60_000, 60_000, member, None, "consumer", protocols)
            answer = await client.send(coordinator, request)
            member, code = answer.member_id, answer.error_code
        joined.set()
        await asyncio.to_thread(enough.wait)
        await client.send(coordinator, LeaveGroupRequest(pipeline.group, member))
    finally:
        await client.close()


def test_what_the_network_held_back_of_one_producer_is_not_written_behind_records_of_the_next(
    bootstrap_servers: str, logs: Path
) -> None:
    protect()
    pipeline = Pipeline(bootstrap_servers, logs)
    pipeline.create_topic(1)
    port = int(bootstrap_servers.rpartition(":")[2])
    slow = Link("127.0.0.2", port, advertised_by([port]), lambda: "127.0.0.2")

    async def write(network: Relays) -> None:
        client_id = ClientId("producer")
        client_id.journal.epochs.topic = pipeline.topic
        options = {"client_id": client_id, "acks": "all", "enable_idempotence": True}
        first = AIOKafkaProducer(bootstrap_servers=f"127.0.0.2:{port}", **options)
        await first.start()
        try:
            await first.send_and_wait(pipeline.topic, b"before")
            network.each([slow], Link.hold)
            held_back = await first.send(pipeline.topic, b"held back")
            async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, **options) as second:
                await second.send_and_wait(pipeline.topic, b"later")
                network.each([slow], Link.open)
                with pytest.raises(KafkaError):
                    await held_back
        finally:
            await fail_unwritten(first, 0.1)
            await first.stop()

    with Relays([slow]) as network:
        in_time(write(network))
    assert [record.value for record in pipeline.records()] == [b"before", b"later"]


def clients_in(group: dict[str, Any]) -> set[str]:
    return {member["client_id"] for member in group["members"]}


def test_a_member_that_holds_up_the_rebalance_is_what_the_consumer_says_it_waits_for(pipeline: Pipeline) -> None:
    joined, enough = threading.Event(), threading.Event()
    pipeline.create_topics(1)
    member = threading.Thread(target=lambda: asyncio.run(hold_up(pipeline, joined, enough)))
    member.start()
    try:
        assert joined.wait(PROMPT_S)
        waits = f"waiting for the rebalance of group {pipeline.group} since "
        with pipeline.consumer() as consumer:
            consumer.until_answers("/livez", 200)
            wait_until(lambda: waits in consumer.http.get("/health-check").json()["detail"], PROMPT_S + 2)
            assert waits not in str(consumer.status()["last_error"])  # it is no error
            wait_until(lambda: waits in consumer.log.read_text(), PROMPT_S)
            assert "consumer" in clients_in(consumer.get("/consumers/group"))
            consumer.post("/consumers/stop")
            assert "consumer" not in clients_in(consumer.get("/consumers/group")), "the group would wait for it next"
            enough.set()
            consumer.post("/consumers/start")
            consumer.until_healthy()
            assert "Traceback" not in consumer.log.read_text()
    finally:
        enough.set()
        member.join()


@contextmanager
def watched(consumer: Service) -> Iterator[list[dict[str, Any]]]:
    """Follow the live tail from its end at this moment; what it shows is in the list."""
    seen: list[dict[str, Any]] = []
    greeted = threading.Event()

    def follow() -> None:
        try:
            with httpx.stream("GET", f"http://127.0.0.1:{consumer.port}/consumers/messages/stream", timeout=60) as tail:
                lines = tail.iter_lines()
                assert next(lines).startswith("retry: ")
                greeted.set()
                data = (line for line in lines if line.startswith("data: {"))
                seen.extend(json.loads(line.removeprefix("data: ")) for line in data)
        except httpx.TransportError:
            return  # the service has ended

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        assert greeted.wait(PROMPT_S)
        yield seen
    finally:
        consumer.terminate()
        thread.join()


def keys_of(seen: list[dict[str, Any]]) -> set[str]:
    return {one["key"]["text"] for one in seen}


def test_all_clients_find_brokers_that_come_back_under_other_addresses(bootstrap_servers: str, logs: Path) -> None:
    direct = Pipeline(bootstrap_servers, logs)
    with direct, Moving(int(bootstrap_servers.rpartition(":")[2])) as broker:
        services = Pipeline(broker.bootstrap_servers, logs, direct.name)
        with both(services) as (producer, consumer), watched(consumer) as seen:
            direct.write([Raw(b"bad before", b"bad before")])
            producer.post("/producers/events", json=event("before"))
            wait_until(lambda: "before" in keys_of(seen))
            consumer.until_consumed(2)
            consumer.get("/consumers/messages", scope="topic")
            broker.vanish()
            for service in (producer, consumer):
                service.until_answers("/health-check", 503)
            broker.come_back_elsewhere()
            producer.until_healthy()
            consumer.until_healthy()
            restarts = consumer.status()["restarts"]
            direct.write([Raw(b"bad after", b"bad after"), Raw(value_of(event("after")), b"after")])
            wait_until(lambda: "after" in keys_of(seen), 15, "for the live tail")
            consumer.until_consumed(4)
            producer.post("/producers/events", json=event("at last"))
            assert consumer.get("/consumers/messages", scope="topic")["messages"]
            wait_until(lambda: consumer.status()["dead_lettered_count"] == 2)
            assert consumer.status()["restarts"] == restarts == 0, "a client that finds back is not replaced"


def test_refused_records_are_reported_with_the_brokers_words_and_make_the_service_unhealthy_until_some_are_taken(
    pipeline: Pipeline,
) -> None:
    with pipeline.producer() as producer:
        producer.until_healthy()
        pipeline.alter_topic(message_timestamp_before_max_ms="0")
        one = event("always the same")  # and so always to the same partition

        def refusal() -> httpx.Response | None:
            answer = producer.http.post("/producers/events", json=one)
            return answer if answer.status_code == 503 else None

        answer = wait_until(refusal)
        assert answer is not None
        (receipt,) = answer.json()["receipts"]
        assert receipt["outcome"] == "not_written"
        assert "Timestamp" in receipt["error"]
        assert "out of range" in receipt["error"]
        health = producer.http.get("/health-check")
        assert health.status_code == 503
        assert "out of range" in health.json()["detail"]
        assert "out of range" in producer.log.read_text()
        pipeline.alter_topic(message_timestamp_before_max_ms=str(2**62))
        wait_until(lambda: producer.http.post("/producers/events", json=one).status_code == 201)
        assert producer.answers("/health-check", 200)
