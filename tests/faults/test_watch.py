from collections import Counter
from pathlib import Path

import psutil
import pytest
from services import Pipeline, event, wait_until

from tools.local_kafka import LocalKafka


@pytest.mark.parametrize(
    "broken",
    ["LogicSubscriber._run_consume_loop", "GroupCoordinator._coordination_routine", "Fetcher._fetch_requests_routine"],
)
def test_a_consume_loop_that_died_or_wedged_is_replaced_and_nothing_is_lost(
    bootstrap_servers: str, logs: Path, broken: str
) -> None:
    with (
        Pipeline(bootstrap_servers, logs) as pipeline,
        pipeline.producer() as producer,
        pipeline.consumer("cancelling") as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        producer.post("/producers/events", json=event(text=broken))
        consumer.until_consumed(1)
        made = producer.send(500)
        wait_until(lambda: consumer.status()["restarts"] >= 1 or consumer.status()["lag"] == 0, 45, broken)
        wait_until(
            lambda: {one["id"] for one in made} <= {m["key"] for m in consumer.messages(limit=1_000)}, 45, broken
        )
        wait_until(lambda: pipeline.committed() == sum(pipeline.end_offsets().values()), 45, broken)
        consumer.until_healthy()


def test_a_partition_without_a_leader_is_reported_as_unknown_and_leaves_no_connection_behind(logs: Path) -> None:
    with LocalKafka(brokers=3) as kafka:
        pipeline = Pipeline(",".join(kafka.bootstrap_servers), logs)
        with pipeline.producer() as producer:
            producer.until_healthy()
            process = psutil.Process(producer.process.pid)
            connections = len(process.net_connections())
            kafka.kill(1)
            producer.until_answers("/health-check", 503)
            for _ in range(4):
                answer = producer.http.post("/producers/events", json=[event() for _ in range(50)])
                outcomes = Counter(receipt.get("outcome") for receipt in answer.json()["receipts"])
                assert answer.status_code == 207
                assert outcomes[None] > 0
                assert outcomes["unknown"] + outcomes["not_written"] > 0
                assert answer.elapsed.total_seconds() < 10
            wait_until(lambda: len(process.net_connections()) <= connections + 6)
            kafka.start(1)
            producer.until_answers("/health-check", 200, timeout=10)
            producer.send(50)


def test_health_reports_the_truth_when_two_of_three_brokers_are_gone(logs: Path) -> None:
    with LocalKafka(brokers=3) as kafka:
        pipeline = Pipeline(",".join(kafka.bootstrap_servers), logs)
        with (
            pipeline.producer(EVENTS_REPLICATION="3") as producer,
            pipeline.consumer(EVENTS_REPLICATION="3") as consumer,
        ):
            for service in (producer, consumer):
                service.until_healthy()
            kafka.kill(0)
            kafka.kill(1)
            for service in (producer, consumer):
                service.until_answers("/health-check", 503, timeout=10)
            kafka.start(0, 1)
            for service in (producer, consumer):
                service.until_healthy()
