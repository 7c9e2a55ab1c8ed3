"""What a service remembers of calls once they have ended."""

import gc
import tracemalloc
from collections.abc import Iterator

import pytest
from serving import answered

from apps.chassis.http.query import MAX_PARAMETERS
from apps.chassis.setting_reading import read_settings
from tests.event_services import create_consumer

pytestmark = pytest.mark.anyio

LONG_TEXT = "a" * 30_000
CALLS = {
    "a cookie": ("/session", {"cookie": "{}=" + LONG_TEXT}, 200),
    "many cookies": ("/session", {"cookie": "{};" + "; ".join(f"{number}=" for number in range(5_000))}, 200),
    "a host": ("/livez", {"host": "{}" + LONG_TEXT}, 421),
    "a media type": ("/session/start", {"content-type": "{}" + LONG_TEXT}, 415),
    "an unknown parameter": ("/livez?{}" + LONG_TEXT, {}, 400),
    "many unknown parameters": ("/livez?{}" + "".join(f"&{number}=" for number in range(5_000)), {}, 400),
    "a call that is refused for a parameter": ("/consumers/messages?limit=0&q={}" + LONG_TEXT, {}, 400),
    "a path": ("/problems/{}" + LONG_TEXT, {}, 404),
}


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("path", "headers", "status"), CALLS.values(), ids=CALLS.keys())
async def test_of_long_paths_queries_and_headers_nothing_stays_in_memory(
    path: str, headers: dict[str, str], status: int
) -> None:
    app = create_consumer(read_settings({"API_KEY": "s3cret-of-operators", "ALLOWED_HOSTS": "localhost"}))
    before = 0
    for number in range(60):
        own = {name: value.format(number) for name, value in headers.items()}
        method = "POST" if "content-type" in headers else "GET"
        start, *_ = await answered(path.format(number), own, b"{}", app=app, method=method)
        assert start["status"] == status
        if number == 9:
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
    gc.collect()
    assert tracemalloc.get_traced_memory()[0] - before < 10 * len(LONG_TEXT)


QUERIES = {
    "as many as are read": "&".join(f"{number}=" for number in range(MAX_PARAMETERS)),
    "many": "&".join(f"{number}=" for number in range(10_000)),
    "long": LONG_TEXT,
    "repeated": "limit=1" + "&limit=1" * (MAX_PARAMETERS - 1),
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
async def test_a_query_with_many_faults_is_answered_in_few_words(query: str) -> None:
    app = create_consumer(read_settings({}))
    start, body = await answered(f"/consumers/messages?{query}", {}, b"", app=app, method="GET")
    assert start["status"] == 400
    assert len(body["body"]) < 4_000


async def test_a_long_value_where_few_are_allowed_is_not_repeated_as_a_whole() -> None:
    start, body = await answered(f"/producers/events?receipts={LONG_TEXT}", {"content-type": "application/json"}, b"[]")
    assert start["status"] == 400
    assert len(body["body"]) < 4_000
