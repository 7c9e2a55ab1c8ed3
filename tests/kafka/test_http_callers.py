"""Callers as they are: curl, Java, nginx and HTTP/1.0, with what they offer and how they frame."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from proxies import nginx
from services import Pipeline, Service, both, event, value_of, wait_until

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
def services(shared: Pipeline) -> Iterator[tuple[Service, Service]]:
    with both(shared) as services:
        yield services


@pytest.fixture
def curl() -> list[str]:
    """A curl that offers HTTP/2, and its arguments of each call; where CI runs there must be one."""
    path = shutil.which("curl")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no curl on this machine")
    return [path, "--silent", "--show-error", "--fail", "--max-time", "30", "--http2", "--data-binary", "@-"]


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
        location / {
            proxy_pass http://producer; proxy_http_version 1.1;
            proxy_set_header Host localhost; proxy_set_header Connection "";
        }
        location /offering/ {
            proxy_pass http://producer/; proxy_http_version 1.1; proxy_set_header Host localhost;
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
