"""How services start and end: without a Kafka, with a wrong setting, and at SIGTERM in the middle of their work."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from services import Pipeline, assert_end_well, both, event, wait_until

from tools.local_kafka import LocalKafka
from tools.ports import free_ports

BOUND = 10.0


@pytest.fixture
def nowhere(logs: Path) -> Pipeline:
    """A pipeline without a Kafka."""
    return Pipeline(f"127.0.0.1:{free_ports(1)[0]}", logs)


@pytest.mark.usefixtures("startable_kafka")
def test_both_services_start_without_kafka_say_so_and_work_once_it_is_there(nowhere: Pipeline) -> None:
    port = int(nowhere.bootstrap_servers.rpartition(":")[2])
    with nowhere.producer() as producer, nowhere.consumer() as consumer:
        for service in (producer, consumer):
            service.until_answers("/livez", 200)
            place = str(service.http.base_url).rstrip("/")
            started = f"listens on {place}, for Kafka at {nowhere.bootstrap_servers}, topics: {nowhere.topic}"
            assert started in service.log.read_text()
            health = service.http.get("/health-check")
            assert health.status_code == 503
            assert health.json()["status"] == "unavailable"
            assert health.json()["kafka"] == "connecting"
            wait_until(lambda one=service: nowhere.bootstrap_servers in one.http.get("/health-check").json()["detail"])  # type: ignore[misc]  # mypy cannot infer it
        assert consumer.status()["state"] in {"starting", "reconnecting"}
        assert consumer.messages() == []
        for path, body in (("/producers/events/generate", {}), ("/producers/events", event())):
            began = time.monotonic()
            answer = producer.http.post(path, json=body)
            assert time.monotonic() - began < BOUND
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert answer.headers["content-type"].startswith("application/problem+json")
        lines = producer.http.post(
            "/producers/events",
            content=json.dumps(event()).encode() + b"\nbad\n",
            headers={"content-type": "application/x-ndjson"},
        )
        assert [json.loads(line)["outcome"] for line in lines.text.splitlines()] == ["not_written", "not_written"]

        with LocalKafka(port=port):
            producer.until_healthy()
            consumer.until_healthy()
            environment = {"PATH": "", "KAFKA_BOOTSTRAP_SERVERS": nowhere.bootstrap_servers}
            check = [sys.executable, "-m", "apps.consumer", "--check"]
            checked = subprocess.run(check, env=environment, check=True, capture_output=True, text=True)
            assert checked.stdout == f"the settings are valid, and Kafka answers at {nowhere.bootstrap_servers}\n"
            events = producer.send(10)
            consumer.until_consumed(10)
            assert {message["key"] for message in consumer.messages()} == {one["id"] for one in events}
            assert {record.partition for record in nowhere.records()} <= set(range(6))
            assert len(nowhere.end_offsets()) == 6


def test_services_end_at_sigterm_with_status_0_idle_or_with_half_sent_requests(pipeline: Pipeline) -> None:
    head = b"POST /producers/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: 1000\r\n\r\n{"
    with (
        both(pipeline) as (producer, consumer),
        socket.create_connection(("127.0.0.1", producer.port)) as one,
        socket.create_connection(("127.0.0.1", producer.port)) as other,
    ):
        one.sendall(head % b"application/json")
        other.sendall(head % b"application/x-ndjson")
        producer.until_answers("/livez", 200)
        assert_end_well(producer, consumer)


def test_services_end_at_sigterm_although_kafka_never_answered(nowhere: Pipeline) -> None:
    with nowhere.producer() as producer, nowhere.consumer() as consumer:
        for service in (producer, consumer):
            service.until_answers("/livez", 200)
        assert_end_well(producer, consumer)


def test_a_handler_that_does_not_end_is_broken_off_and_its_batch_is_redelivered(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    ledger = tmp_path / "handled"
    with pipeline.stuck_consumer(ledger) as consumer:
        consumer.terminate()
        assert consumer.exit_status(11) == 1
    with pipeline.recording_consumer(ledger):
        wait_until(lambda: "one\n" in ledger.read_text())


def test_sigterm_in_the_middle_of_a_batch_commits_it(pipeline: Pipeline, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    with pipeline.producer() as producer, pipeline.recording_consumer(ledger, LEDGER_SECONDS="2") as consumer:
        producer.until_healthy()
        consumer.until_healthy()
        producer.post("/producers/events", json=[event("one key") for _ in range(50)])
        wait_until(lambda: ledger.exists() and "begin" in ledger.read_text())
        assert_end_well(consumer)
        handled = ledger.read_text().count("one key")
        assert handled > 0
        assert pipeline.committed() == handled


def test_a_taken_port_or_a_missing_file_ends_the_start_with_one_line_that_names_the_setting(nowhere: Pipeline) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for service, line in (
            (nowhere.producer(PRODUCER_PORT=port), "PRODUCER_PORT: "),
            (nowhere.producer(PRODUCER_PORT=port, PRODUCER_WORKERS="2"), "PRODUCER_PORT: "),
            (nowhere.consumer(CONSUMER_PORT=port), "CONSUMER_PORT: "),
            (nowhere.consumer(LIVENESS_PORT=port), f"LIVENESS_PORT: cannot listen on 127.0.0.1:{port}: "),
            (
                nowhere.producer(KAFKA_SECURITY_PROTOCOL="SSL", KAFKA_SSL_CAFILE="missing"),
                "KAFKA_SSL_CAFILE: cannot read 'missing'",
            ),
        ):
            with service:
                assert service.exit_status(timeout=30) == 1
                (said,) = service.log.read_text().splitlines()
                assert said.startswith(line)
