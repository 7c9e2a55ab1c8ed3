import os
import re
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import trustme
from overload import CALLERS, MAX_MEMORY_BYTES, memory_of, statuses_of_many
from services import PATIENCE, ROOT, Pipeline, Raw, event, value_of, wait_until

EVERYWHERE = "0.0.0.0"  # noqa: S104 - it is this that is tested


def test_callers_that_do_not_read_the_newest_events_cost_a_consumer_no_more_than_it_may_take(
    pipeline: Pipeline,
) -> None:
    large = value_of(event(text="a" * 30_000))
    newest = b"GET /consumers/messages?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with pipeline.consumer() as consumer, ExitStack() as connections:
        consumer.until_healthy()
        pipeline.write([Raw(large)] * 1_000)
        consumer.until_consumed(1_000)
        statuses = []
        for _ in range(CALLERS):
            unread = connections.enter_context(socket.socket())
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            unread.settimeout(PATIENCE)
            unread.connect(("127.0.0.1", consumer.port))
            unread.sendall(newest)
            statuses.append(unread.recv(12)[-3:])
            assert consumer.get("/livez") == {"status": "alive"}
            assert memory_of(consumer) < MAX_MEMORY_BYTES
        assert set(statuses) == {b"200", b"503"}
        assert statuses_of_many(consumer, "GET", "/consumers/messages?limit=1000", times=1) == {503}
        for path in ("/health-check", "/metrics"):
            assert consumer.answers(path, 200)
        connections.close()
        wait_until(lambda: consumer.answers("/consumers/messages?limit=1000", 200))


def test_with_a_key_only_those_who_have_it_change_anything(pipeline: Pipeline, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada:the-first-of-all-keys")
    with pipeline.producer(API_KEY_FILE=str(keys)) as producer:
        producer.until_healthy()
        assert producer.http.post("/producers/events", json=event()).status_code == 401
        producer.post("/producers/events", json=event(), headers={"X-API-Key": "the-first-of-all-keys"})
        keys.write_text("grace:the-second-of-all-keys")
        second = {"X-API-Key": "the-second-of-all-keys"}
        wait_until(lambda: producer.http.post("/producers/events", json=event(), headers=second).is_success)
        assert (
            producer.http.post(
                "/producers/events", json=event(), headers={"X-API-Key": "the-first-of-all-keys"}
            ).status_code
            == 401
        )
        variables = {**os.environ, "API_KEY_FILE": str(keys), "PRODUCER_PORT": str(producer.port)}
        called = [
            sys.executable,
            "-m",
            "tools.call",
            "producer",
            "POST",
            "/producers/events/generate?number=2",
        ]
        subprocess.run(called, cwd=ROOT, env=variables, check=True, capture_output=True)
        assert "of-all-keys" not in producer.log.read_text()
    assert len(pipeline.records()) == 4


def test_a_service_that_others_can_reach_starts_only_with_a_key_or_where_that_is_allowed(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    authority, certificate = trustme.CA(), tmp_path / "tls.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with (
        pipeline.producer(HOST=EVERYWHERE) as refused,
        pipeline.producer(HOST=EVERYWHERE, ALLOW_ANONYMOUS="true", SSL_CERTFILE=str(certificate)) as allowed,
        pipeline.producer(HOST=EVERYWHERE, API_KEY="a-key-of-operators") as guarded,
        httpx.Client(base_url=f"https://localhost:{allowed.port}", verify=trusted) as https,
    ):
        assert refused.exit_status(timeout=30) == 1
        (line,) = refused.log.read_text().splitlines()
        assert line.startswith("HOST: ")
        assert {"API_KEY", "ALLOW_ANONYMOUS=true"} <= {*re.findall(r"[A-Z_]+(?:=true)?", line)}
        guarded.until_healthy()
        wait_until(lambda: answers(https))
        sent = https.post("/producers/events", json=event(), headers={"Origin": f"https://localhost:{allowed.port}"})
        assert sent.status_code == 201


def answers(https: httpx.Client) -> bool:
    try:
        return https.get("/health-check").status_code == 200
    except httpx.TransportError:
        return False
