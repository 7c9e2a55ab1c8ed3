"""A call that is made without Litestar's steps around its handler is answered as all others."""

import gc
from http import HTTPStatus
from typing import Any

import pytest
from litestar import Litestar, Request, post
from litestar.testing import TestClient

from apps.chassis.application import Application
from apps.chassis.http.admission import Limit
from apps.chassis.http.authorization import cors
from apps.chassis.http.connection_limits import ALL_HERE
from apps.chassis.http.direct_calls import DIRECTLY, DirectCalls, Encoded
from apps.chassis.http.litestar_caches import LitestarCaches
from apps.chassis.setting_reading import read_settings
from tests.event_services import create_producer

pytestmark = pytest.mark.anyio

KEY, PAGE = "s3cret-of-operators", "https://page.example"
WRONG = b'{"no": "event"}'


def producer(limit: Limit | None = None, **environment: str) -> Litestar:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", **environment})
    return create_producer(settings, admission=limit)


async def answer_to_post(app: Litestar, **headers: str) -> int:
    """Return the status of the answer to a wrong body that the server has received as a whole."""
    sent: list[Any] = []

    async def receive() -> Any:  # noqa: ANN401 - an ASGI event
        return {"type": "http.request", "body": WRONG, "more_body": False}

    async def send(event: Any) -> None:  # noqa: ANN401 - likewise
        sent.append(event)

    named = {"host": "localhost", "content-type": "application/json", **headers}
    scope: Any = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/producers/events",
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
        ALL_HERE: True,
    }
    await app(scope, receive, send)
    return int(sent[0]["status"])


async def test_a_post_needs_the_key_and_a_wrong_one_counts_once() -> None:
    app = producer(API_KEY=KEY)
    assert await answer_to_post(app, x_api_key=KEY) == 400
    assert await answer_to_post(app) == 401
    assert await answer_to_post(app, x_api_key="of-somebody-else") == 401
    with TestClient(app) as client:
        assert 'api_key_refusals_total{reason="wrong"} 1.0' in client.get("/metrics").text


async def test_a_post_without_room_for_it_is_refused() -> None:
    assert await answer_to_post(producer(Limit(1_000_000, max_calls=0))) == 503


async def made(request: Request[Any, Any, Any]) -> Encoded:  # noqa: ARG001 - as routes have it
    return Encoded(b"{}", HTTPStatus.CREATED)


def test_a_page_of_an_allowed_origin_reads_the_answer_to_its_post() -> None:
    app = Application([post(opt={DIRECTLY: made})(made)], cors_config=cors([PAGE], ["POST"]))
    app.direct, app.outermost, app.caches = DirectCalls(app, Limit(1_000_000)), app.answer, LitestarCaches(app)
    with TestClient(app) as client:
        assert client.post("/", headers={"Origin": PAGE}).headers["access-control-allow-origin"] == PAGE


async def test_a_refused_post_leaves_nothing_to_the_garbage_collector() -> None:
    app = producer()
    assert await answer_to_post(app) == 400
    gc.collect()
    for _ in range(20):
        await answer_to_post(app)
    assert gc.collect() < 20
