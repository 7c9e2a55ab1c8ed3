import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from quotas import Quota, set_quota
from services import NO_TLS, Lines, Pipeline, Service, assert_end_well, both, event, in_time, wait_until

from tools.local_kafka import LocalKafka

BOUND = 10.0
SLACK = 1.0
"""Seconds more than the contract's, for a machine that does other things too."""


@pytest.fixture(scope="module")
def kafka(startable_kafka: None) -> Iterator[LocalKafka]:
    """A broker that tests may kill."""
    assert startable_kafka is None
    with LocalKafka() as running:
        yield running


@pytest.fixture
def pipeline(kafka: LocalKafka, logs: Path) -> Pipeline:
    return Pipeline(kafka.bootstrap_servers[0], logs)


class Callers:
    """Callers that send events, one request after the other, and note the outcome of each."""

    def __init__(self, producer: Service, count: int = 3) -> None:
        self.reported: dict[str, str] = {}
        self.longest = 0.0
        self.statuses: set[int] = set()
        self.untrue: list[str] = []
        self.unanswered: list[str] = []
        self._url = f"http://127.0.0.1:{producer.port}/producers/events"
        self._numbers = itertools.count()
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def those(self, outcome: str) -> set[str]:
        return {event_id for event_id, reported in list(self.reported.items()) if reported == outcome}

    def _call(self) -> None:
        with httpx.Client(timeout=60, verify=NO_TLS) as http:
            while not self._enough.is_set():
                events = [event(f"caller-{next(self._numbers)}") for _ in range(20)]
                began = time.monotonic()
                try:
                    answer = http.post(self._url, json=events)
                except httpx.TransportError as error:
                    self.unanswered.append(repr(error))
                    continue
                self.longest = max(self.longest, time.monotonic() - began)
                self._note(events, answer)
                self._enough.wait(0.05)  # some 20 calls a second

    def _note(self, events: list[dict[str, Any]], answer: httpx.Response) -> None:
        self.statuses.add(answer.status_code)
        if not answer.headers.get("content-type", "").endswith("json"):
            self.untrue.append(f"{answer.status_code} {answer.headers} {answer.text[:200]}")
            return
        if answer.status_code == 503 and "retry-after" not in answer.headers:
            self.untrue.append(f"503 without Retry-After: {answer.text[:200]}")
        receipts = answer.json().get("receipts")
        if receipts is None:  # nothing was tried
            receipts = [{"id": one["id"], "outcome": "not_written"} for one in events]
        if [receipt["id"] for receipt in receipts] != [one["id"] for one in events]:
            self.untrue.append(f"receipts of others: {answer.text[:200]}")
        for receipt in receipts:
            self.reported[receipt["id"]] = receipt.get("outcome", "delivered")


def assert_truthful(callers: Callers, pipeline: Pipeline) -> None:
    assert callers.untrue == []
    assert callers.unanswered == []
    assert callers.statuses <= {201, 207, 503}
    assert callers.longest < BOUND + SLACK
    on_topic = [record.key.decode() for record in pipeline.records() if record.key]
    assert callers.those("delivered") <= set(on_topic), "an acknowledged record is missing"
    assert not callers.those("not_written") & set(on_topic), "a record was written after all"
    assert len(on_topic) == len(set(on_topic)), "a record stands there twice"


def lines_since(service: Service, already: int) -> list[str]:
    return service.log.read_text().splitlines()[already:]


@pytest.mark.parametrize("manner", ["killed", "suspended"])
def test_a_broker_that_is_gone_for_a_while_costs_no_acknowledged_record_and_needs_no_human(
    kafka: LocalKafka, pipeline: Pipeline, manner: str
) -> None:
    with both(pipeline) as (producer, consumer):
        said = {service: len(lines_since(service, 0)) for service in (producer, consumer)}
        with Callers(producer) as callers:
            wait_until(lambda: len(callers.those("delivered")) > 200)
            if manner == "killed":
                kafka.kill(0)
            else:
                kafka.suspend(0)
            for service in (producer, consumer):
                service.until_answers("/health-check", 503)
                assert service.answers("/livez", 200)
            wait_until(lambda: callers.those("unknown"), what="for callers to hear of it")
            if manner == "killed":
                kafka.start(0)
            else:
                kafka.resume(0)
            producer.until_healthy()
            consumer.until_healthy()
            delivered = len(callers.those("delivered"))
            wait_until(lambda: len(callers.those("delivered")) > delivered + 200)
        assert_truthful(callers, pipeline)
        consumer.until_consumed(len(pipeline.records()))
        wait_until(lambda: consumer.status()["lag"] == 0)
        for service, already in said.items():
            lines = lines_since(service, already)
            assert len(lines) < 40, "an outage fills no disk:\n" + "\n".join(lines)
            assert not any("Traceback" in line for line in lines), "\n".join(lines)


def test_lines_that_are_streamed_through_an_outage_are_each_answered_in_time(
    kafka: LocalKafka, pipeline: Pipeline
) -> None:
    async def talk(producer: Service) -> dict[str, str]:
        reported: dict[str, str] = {}
        async with Lines.opened(producer) as lines:
            receipts = lines.receipts()

            async def outcome_of(event_id: str) -> str:
                began = time.monotonic()
                await lines.send(json.dumps(event(event_id)).encode())
                receipt = await anext(receipts)
                assert receipt["id"] == event_id
                assert time.monotonic() - began < BOUND + SLACK
                reported[event_id] = receipt.get("outcome", "delivered")
                return reported[event_id]

            assert await outcome_of("before") == "delivered"
            kafka.suspend(0)
            try:
                assert await outcome_of("meanwhile") == "unknown"
            finally:
                kafka.resume(0)
            for attempt in range(20):
                if await outcome_of(f"after-{attempt}") == "delivered":
                    break
            await lines.end()
        return reported

    with pipeline.producer() as producer:
        producer.until_healthy()
        reported = in_time(talk(producer))
        on_topic = pipeline.records_by_key()
        assert list(reported.values())[-1] == "delivered"
        for event_id, outcome in reported.items():
            assert outcome == "unknown" or (event_id in on_topic) == (outcome == "delivered")


def test_services_end_at_sigterm_although_kafka_has_gone_and_tell_their_callers_the_truth(
    kafka: LocalKafka, pipeline: Pipeline
) -> None:
    with both(pipeline) as services, Callers(services[0]) as callers:
        wait_until(lambda: callers.those("delivered"))
        kafka.suspend(0)  # worse than killed: connections stay open and nothing answers
        try:
            services[0].until_answers("/health-check", 503)
            assert_end_well(*services)
        finally:
            kafka.resume(0)
    assert callers.untrue == []


@contextmanager
def quota(kafka: LocalKafka, client_id: str, name: Quota, bytes_per_second: float) -> Iterator[None]:
    """Limit all clients of a name: on a Kafka that other tests share, these would be slow meanwhile."""
    (server,) = kafka.bootstrap_servers
    set_quota(server, client_id, name, bytes_per_second)
    try:
        yield
    finally:
        set_quota(server, client_id, name, None)


def test_a_fetch_quota_is_reported_as_such_and_holds_up_no_client_of_another_purpose(
    kafka: LocalKafka, pipeline: Pipeline
) -> None:
    pipeline.create_topics(1)
    pipeline.fill(4_000)
    with quota(kafka, "consumer", "consumer_byte_rate", 20_000), pipeline.consumer() as consumer:
        consumer.until_healthy()
        wait_until(lambda: consumer.status()["throttled_seconds"] > 1)
        health = consumer.http.get("/health-check")
        assert health.status_code == 200
        assert "Kafka throttles this client by its quota" in health.json()["detail"]
        assert consumer.status()["state"] == "running"
        assert consumer.status()["partitions"][0]["end"] == 4_000, "readers are not held up"
        assert len(consumer.get("/consumers/messages", scope="topic", limit=1_000)["messages"]) == 1_000
        metrics = consumer.http.get("/metrics").text
        assert float(metrics.partition('\nkafka_throttled_seconds_total{stream="events"} ')[2].partition("\n")[0]) > 1


def test_a_produce_quota_refuses_records_before_they_are_taken_and_says_when_to_come_back(
    kafka: LocalKafka, pipeline: Pipeline
) -> None:
    with pipeline.producer() as producer:
        producer.until_healthy()
        reported: dict[str, str] = {}

        def post(number: int) -> httpx.Response:
            events = [event(f"{number}-{index}") for index in range(1_000)]
            answer = producer.http.post("/producers/events", json=events)
            for receipt in answer.json().get("receipts", []):
                reported[receipt["id"]] = receipt.get("outcome", "delivered")
            return answer

        with quota(kafka, "producer", "producer_byte_rate", 50_000):
            answers = [post(number) for number in range(6)]
            refused = next(answer for answer in answers if answer.status_code == 503)
            assert refused.json()["type"] == "/problems/busy"
            assert "quota" in refused.json()["detail"]
            assert int(refused.headers["retry-after"]) > 2
            health = producer.http.get("/health-check")
            assert health.status_code == 200
            assert "Kafka throttles this client by its quota" in health.json()["detail"]
        assert "unknown" not in reported.values()
        assert "delivered" in reported.values()
        on_topic = {record.key.decode() for record in pipeline.records() if record.key}
        assert on_topic == {event_id for event_id, outcome in reported.items() if outcome == "delivered"}
