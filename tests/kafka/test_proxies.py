"""What callers behind a real nginx are answered."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from proxies import nginx
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
