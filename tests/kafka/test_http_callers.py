"""Callers as they are: curl, Java, nginx and HTTP/1.0, with what they offer and how they frame."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from proxies import nginx
from services import Pipeline, Service, both, event, said_by, value_of, wait_until

OFFERS = {
    "none": "",
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "websocket": "Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: "
    "YWJjZGVmZ2hpamtsbW5vcA==\r\nSec-WebSocket-Version: 13\r\n",
}
HIDDEN = (
    b"POST /producers/events/generate?number=7 HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 0\r\n\r\n"
)
LAST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
JAVA = """
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.io.ByteArrayInputStream;

public class Post {
    public static void main(String[] given) throws Exception {
        var client = HttpClient.newHttpClient();
        var body = given[1].getBytes("UTF-8");
        for (var publisher : new HttpRequest.BodyPublisher[] {
            BodyPublishers.ofByteArray(body), BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))
        }) {
            var request = HttpRequest.newBuilder(URI.create(given[0]))
                .header("Content-Type", "application/json").POST(publisher).build();
            System.out.println(client.send(request, BodyHandlers.ofString()).statusCode());
        }
    }
}
"""
"""Posts a body with its length and in chunks, by a client with its defaults: it offers `Upgrade: h2c`."""
IDLE_S = 6.0
"""Seconds for which a connection is idle here: longer than the 5 s that servers take by default."""


@pytest.fixture(scope="module")
def pipeline(bootstrap_servers: str, logs: Path) -> Iterator[Pipeline]:
    with Pipeline(bootstrap_servers, logs) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def services(pipeline: Pipeline) -> Iterator[tuple[Service, Service]]:
    with both(pipeline) as services:
        yield services


@pytest.fixture
def curl() -> list[str]:
    """A curl that offers HTTP/2, and its arguments of each call; where CI runs there must be one."""
    path = shutil.which("curl")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no curl on this machine")
    return [path, "--silent", "--show-error", "--fail", "--max-time", "30", "--http2", "--data-binary", "@-"]


def statuses_of(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", said)]


def posts_of(service: Service) -> list[str]:
    paths = service.get("/schema/openapi.json")["paths"]
    return [path.replace("{stream}", "events") for path, calls in paths.items() if "post" in calls]


def made_offsets(pipeline: Pipeline) -> int:
    return sum(pipeline.end_offsets().values())


def test_every_post_takes_a_body_for_the_body_whatever_upgrade_is_offered_and_runs_nothing_of_it(
    pipeline: Pipeline, services: tuple[Service, Service]
) -> None:
    body = HIDDEN  # which is no JSON, so that calls that read it refuse it
    framings = (
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    )
    for service in services:
        for path in posts_of(service):
            if path.endswith(("/basic_producer", "/generate")):  # whose body counts for nothing, and which adds events
                continue
            seen = set()
            for offer in OFFERS.values():
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{offer}".encode()
                for framing in framings:
                    before = made_offsets(pipeline)
                    seen.add(tuple(statuses_of(said_by(service, head + framing + LAST))))
                    assert made_offsets(pipeline) == before, path
            assert len(seen) == 1, (path, seen)
            status, last = seen.pop()
            assert last == 200
            assert status == 400 or path.rpartition("/")[2] in {"stop", "pause", "resume"}, (path, status)
    services[1].post("/consumers/start")


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize("options", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]])
def test_curl_that_offers_http_2_has_its_events_delivered(
    services: tuple[Service, Service], curl: list[str], content_type: str, options: list[str]
) -> None:
    producer, _ = services
    url = f"http://127.0.0.1:{producer.port}/producers/events"
    answered = subprocess.run(
        [*curl, *options, "-H", f"Content-Type: {content_type}", "--write-out", "%{stderr}%{http_code}", url],
        input=value_of(event()) + b"\n",
        capture_output=True,
        check=True,
    )
    answer = json.loads(answered.stdout)
    receipt = answer["receipts"][0] if "receipts" in answer else answer
    assert receipt["offset"] >= 0
    assert answered.stderr == (b"201" if "receipts" in answer else b"200")


def test_a_java_client_with_its_defaults_has_its_events_delivered(
    services: tuple[Service, Service], tmp_path: Path
) -> None:
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("there is no Java compiler on this machine")
    producer, _ = services
    source = tmp_path / "Post.java"
    source.write_text(JAVA)
    url = f"http://127.0.0.1:{producer.port}/producers/events"
    command = [java, "-XX:TieredStopAtLevel=1", str(source), url, value_of(event()).decode()]
    answered = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert answered.stdout.split() == [b"201", b"201"]


def test_a_proxy_keeps_its_connection_to_a_service_while_nothing_is_sent_and_passes_offers_on(
    services: tuple[Service, Service], curl: list[str], tmp_path: Path
) -> None:
    producer, _ = services
    pool = f"upstream producer {{ server 127.0.0.1:{producer.port}; keepalive 1; }}"
    kept = """
        location / { proxy_pass http://producer; proxy_http_version 1.1; proxy_set_header Connection ""; }
        location /offering/ {
            proxy_pass http://producer/; proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";
        }
    """

    def post(port: int, path: str = "/producers/events") -> None:
        command = [*curl, "-H", "Content-Type: application/json", f"http://127.0.0.1:{port}{path}"]
        subprocess.run(command, input=value_of(event()), check=True, capture_output=True)

    def connections() -> set[int]:
        """Return the ports from which others are connected to the producer, but for this test's own client."""
        of_service = psutil.Process(producer.process.pid).net_connections("tcp")
        own = {one.laddr.port for one in psutil.Process().net_connections("tcp")}
        return {
            one.raddr.port for one in of_service if one.status == "ESTABLISHED" and one.laddr.port == producer.port
        } - own

    with nginx(tmp_path, kept, http=pool) as port:
        post(port, "/offering/producers/events")
        post(port)
        pooled = wait_until(connections)
        time.sleep(IDLE_S)
        assert connections() == pooled
        post(port)
        assert connections() == pooled
