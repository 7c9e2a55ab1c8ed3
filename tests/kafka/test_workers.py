"""A producer of several processes (PRODUCER_WORKERS) is one service to its callers and to those who operate it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import httpx
import psutil
import pytest
from services import NO_TLS, Pipeline, Service, assert_end_well, ended, event, wait_until


def workers_of(producer: Service) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(producer.process.pid).children()
    return found


def post(producer: Service, number: int = 1) -> list[dict[str, object]]:
    """Send events over a connection of its own, and return their receipts."""
    events = [event() for _ in range(number)]
    with httpx.Client(base_url=producer.http.base_url, timeout=30, verify=NO_TLS) as http:
        answer = http.post("/producers/events", json=events)
    assert answer.status_code == HTTPStatus.CREATED, answer.text
    receipts: list[dict[str, object]] = answer.json()["receipts"]
    return receipts


def delivered(producer: Service) -> float:
    with httpx.Client(base_url=producer.http.base_url, timeout=30, verify=NO_TLS) as http:
        lines = http.get("/metrics").text.splitlines()
    (line,) = [one for one in lines if one.startswith("producer_records_total") and '"delivered"' in one]
    return float(line.split()[-1])


def health(producer: Service) -> tuple[int, str]:
    with httpx.Client(base_url=producer.http.base_url, timeout=30, verify=NO_TLS) as http:
        answer = http.get("/health-check")
    return answer.status_code, answer.json()["detail"]


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def test_workers_write_on_their_own_and_are_healthy_and_counted_together(pipeline: Pipeline) -> None:
    with pipeline.producer(PRODUCER_WORKERS="2") as producer:
        producer.until_healthy()
        first, second = workers_of(producer)
        receipts: list[dict[str, object]] = []
        with suspended(first):
            receipts += post(producer, 10)
        with suspended(second):
            receipts += post(producer, 10)
            assert health(producer) == (503, "worker 2: does not answer")
        wait_until(lambda: health(producer) == (200, "events can be sent"))
        written = {(record.partition, record.offset): record.key for record in pipeline.records()}
        assert {(one["partition"], one["offset"]): str(one["id"]).encode() for one in receipts} == written
        assert delivered(producer) == len(written) == 20

        first.kill()
        wait_until(lambda: health(producer)[0] == 503)
        assert delivered(producer) == 20
        wait_until(lambda: health(producer)[0] == 200)
        post(producer, 5)
        assert delivered(producer) == 25 == len(pipeline.records())
        left = workers_of(producer)
        assert len(left) == 2
        assert first not in left
        assert_end_well(producer)
        assert all(map(ended, left))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_a_producer_that_ends_leaves_no_worker_behind_and_loses_nothing_acknowledged(
    number: signal.Signals, pipeline: Pipeline
) -> None:
    acknowledged: list[object] = []

    def keep_sending() -> None:
        while True:
            try:
                acknowledged.extend(one["id"] for one in post(producer))
            except (httpx.TransportError, AssertionError):
                return

    with pipeline.producer(PRODUCER_WORKERS="2") as producer:
        producer.until_healthy()
        workers = workers_of(producer)
        sending = threading.Thread(target=keep_sending)
        sending.start()
        wait_until(lambda: len(acknowledged) > 20)
        producer.process.send_signal(number)
        assert producer.exit_status(15) == (0 if number == signal.SIGHUP else -number)
        wait_until(lambda: all(map(ended, workers)))
        sending.join()
    assert set(acknowledged) <= pipeline.records_by_key().keys()
