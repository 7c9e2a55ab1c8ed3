"""What callers behind a real nginx are answered."""

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from proxies import documented_location, nginx
from services import Pipeline, Service, event

LINES = {"content-type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def producer(shared: Pipeline) -> Iterator[Service]:
    with shared.producer() as service:
        yield service.until_healthy()


def chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 65_536):
        yield body[start : start + 65_536]


@pytest.mark.parametrize(
    ("directives", "query"),
    [
        ("", ""),
        ("proxy_http_version 1.1;", ""),
        ("proxy_http_version 1.1; proxy_request_buffering off;", "?receipts=at-end"),
    ],
)
def test_sixty_thousand_lines_behind_nginx_are_all_answered(
    producer: Service, shared: Pipeline, tmp_path: Path, directives: str, query: str
) -> None:
    before = sum(shared.end_offsets().values())
    body = b"".join(json.dumps(event(f"{len(directives)}-{n}")).encode() + b"\n" for n in range(60_000))
    upstream = f"proxy_pass http://127.0.0.1:{producer.port}; {directives}"
    location = f"location / {{ {upstream} }}"
    with nginx(tmp_path, location, server="client_max_body_size 100m;") as port:
        url = f"http://127.0.0.1:{port}/producers/events{query}"
        content = chunks(body) if query else body  # of no announced length
        answer = httpx.post(url, content=content, headers=LINES, timeout=100)
    assert answer.status_code == 200
    receipts = [json.loads(line) for line in answer.text.splitlines()]
    assert [receipt["id"] for receipt in receipts] == [f"{len(directives)}-{n}" for n in range(60_000)]
    assert all("offset" in receipt for receipt in receipts)
    assert sum(shared.end_offsets().values()) - before == 60_000


class Echo(BaseHTTPRequestHandler):
    """Answers a deletion with its path and query, as they came."""

    def do_DELETE(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.requestline.split()[1].encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_the_documented_prefix_leaves_the_path_as_it_was_sent_or_a_deletion_would_name_another_key(
    tmp_path: Path,
) -> None:
    def delete(path: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("DELETE", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    keys = "ada", "%2Fada", "%2F%2Fada", "x%2F..%2Fada", "..%2Fevents%2Fada", "%2E%2E", "a%20b%3F%25", "%C3%A9", ""
    paths = "/", "//ada", "/./ada", *(f"{path}{key}" for path in ("/people/", "/people?key=") for key in keys)
    outside = "/a/other/..%2Fservice/x", "/a/other/../service/x", "/a//service/x", "/a/%73ervice/x"
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with nginx(tmp_path, documented_location("/a/service", server.server_port)) as port:
                assert [delete(f"/a/service{path}") for path in paths] == [(200, path) for path in paths]
                assert [delete(path)[0] for path in outside] == [404] * len(outside)
        finally:
            server.shutdown()
