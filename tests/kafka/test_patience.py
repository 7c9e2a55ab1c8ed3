from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from services import NO_TLS, REDRIVE, Pipeline, Raw, Service, both, event

from tools.local_kafka import LocalKafka

ANSWERED_WITHIN_S = 10.0
"""Seconds that a caller waits for any answer, by the contract."""
SLACK_S = 1.0
"""Seconds more, for a machine that does other things too."""


class Call(NamedTuple):
    method: str
    path: str
    body: Any = None


LOOKS = [
    Call("GET", "/health-check"),
    Call("GET", "/metrics"),
    Call("GET", "/consumers/status"),
    Call("GET", "/consumers/group"),
    Call("GET", "/consumers/messages"),
    Call("GET", "/consumers/messages?scope=topic"),
    Call("GET", "/consumers/messages?scope=topic&from=2020-01-01T00:00:00Z&to=2030-01-01T00:00:00Z"),
    Call("GET", "/consumers/messages/0/0"),
    Call("GET", "/consumers/dead-letters"),
    Call("POST", "/consumers/seek", {"to": "beginning"}),
    Call("POST", "/consumers/pause"),
    Call("POST", "/consumers/resume"),
    Call("POST", REDRIVE, {"partition": 0, "offset": 0}),
    Call("POST", "/consumers/dead-letters/restore", {"partition": 0, "offset": 0}),
    *[Call("POST", REDRIVE, {"limit": 10})] * 6,
    *[Call("POST", "/consumers/dead-letters/discard", {"limit": 10})] * 6,
]
SENDS = [
    Call("GET", "/health-check"),
    Call("GET", "/metrics"),
    Call("POST", "/producers/events", [event()]),
    Call("POST", "/producers/events/generate?number=10"),
]


@pytest.fixture(scope="module")
def silent(startable_kafka: None, logs: Path) -> Iterator[tuple[Service, Service]]:
    """A producer and a consumer whose Kafka was there, and does not answer any more."""
    assert startable_kafka is None
    with LocalKafka() as kafka:
        pipeline = Pipeline(kafka.bootstrap_servers[0], logs)
        with both(pipeline) as (producer, consumer):
            pipeline.write([Raw(b"bad")])
            consumer.until_consumed(1)
            kafka.suspend(0)
            try:
                yield producer, consumer
            finally:
                kafka.resume(0)


def answer_to(service: Service, call: Call) -> tuple[str, int | None]:
    """Return the status of an answer, None when a caller has lost patience."""
    try:
        with httpx.Client(base_url=service.http.base_url, timeout=ANSWERED_WITHIN_S + SLACK_S, verify=NO_TLS) as http:
            return f"{call.method} {call.path}", http.request(call.method, call.path, json=call.body).status_code
    except httpx.TimeoutException:
        return f"{call.method} {call.path}", None


def answers_to(calls: Mapping[Service, list[Call]]) -> list[tuple[str, int | None]]:
    """Make all calls at the same time."""
    both = list(chain.from_iterable(((service, call) for call in those) for service, those in calls.items()))
    with ThreadPoolExecutor(len(both)) as pool:
        return list(pool.map(lambda one: answer_to(*one), both))


def test_every_call_of_both_services_is_answered_in_time_while_kafka_does_not_answer(
    silent: tuple[Service, Service],
) -> None:
    producer, consumer = silent
    answers = answers_to({producer: SENDS, consumer: LOOKS})
    assert [call for call, status in answers if status is None] == []
    assert {status for call, status in answers if "redrive" in call} <= {409, 503}
    assert {status for _, status in answers} <= {200, 409, 503}


@pytest.mark.parametrize("path", ["/consumers/stop", "/consumers/start"])
def test_stopping_and_starting_are_answered_in_time_while_kafka_does_not_answer(
    silent: tuple[Service, Service], path: str
) -> None:
    _, consumer = silent
    answers = answers_to({consumer: [Call("POST", path)] * 2 + [Call("GET", "/consumers/status")]})
    assert [status for _, status in answers] == [200] * 3


def test_operator_actions_on_a_handler_that_does_not_end_are_answered_in_time_and_blame_no_kafka(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """Each of them waits for the handler, one after the other: those whose turn does not come are refused."""
    with pipeline.stuck_consumer(tmp_path / "handled") as consumer:
        seek, stop = Call("POST", "/consumers/seek", {"to": "beginning"}), Call("POST", "/consumers/stop")
        answers = answers_to({consumer: [seek] * 3})
        answers += answers_to({consumer: [seek, seek, stop, Call("POST", "/consumers/pause")]})
        answers += answers_to({consumer: [stop, stop, Call("POST", "/consumers/resume")]})
        assert [call for call, status in answers if status is None] == []
        assert {status for _, status in answers} <= {200, 409}
        assert answers[-2][1] == 200, "a stop that waits for another stop is no less one"
        assert consumer.status()["state"] == "stopped"
