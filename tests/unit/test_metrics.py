import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from litestar import Litestar
from litestar.testing import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from samples import EVENT, as_json

from apps.chassis.observability import metrics as module
from apps.chassis.settings import Settings
from apps.consumer.consuming.batch import Batch, Reject
from apps.consumer.operating.metrics import HandlerMetrics
from apps.producer.publishing.lanes import Limits
from tests.batches import batch_of
from tests.event import EVENTS, Event
from tests.event_services import create_consumer, create_producer

pytestmark = pytest.mark.anyio

APPS: dict[str, Callable[..., Litestar]] = {"producer": create_producer, "consumer": create_consumer}
OUT_OF_REACH = Settings(kafka_bootstrap_servers="127.0.0.1:1")
OWN = {
    "producer": {
        "producer_records_total",
        "producer_records_in_flight",
        "producer_bytes_in_flight",
        "producer_connections_replaced_total",
        "producer_acknowledgement_seconds_bucket",
    },
    "consumer": {
        "consumer_records_consumed_total",
        "consumer_records_dead_lettered_total",
        "consumer_records_passed_over_total",
        "consumer_handler_seconds_bucket",
        "consumer_handler_attempts_total",
        "consumer_batch_failures",
        "consumer_batch_age_seconds",
        "consumer_commit_failures_total",
        "consumer_partitions",
        "consumer_rebalances_total",
        "consumer_restarts_total",
        "consumer_state",
    },
}
BOTH = pytest.mark.parametrize("service", APPS)

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(params=APPS)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(service: str) -> Iterator[TestClient[Litestar]]:
    with TestClient(APPS[service](OUT_OF_REACH)) as client:
        yield client


def scraped(client: TestClient[Litestar]) -> Series:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation for family in families)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((name, frozenset(labels.items())))


def of_events(series: Series, name: str, **labels: str) -> float | None:
    return value(series, name, stream="events", **labels)


def test_a_service_with_no_kafka_reports_all_that_it_measures(service: str, client: TestClient[Litestar]) -> None:
    series = scraped(client)
    names = {name for name, _ in series}
    assert OWN[service] <= names
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "python_info"} <= names
    assert not [name for name in names if name.endswith("_created")]
    assert of_events(series, "service_healthy") == 0
    assert of_events(series, "kafka_connected") == 0
    (info,) = [dict(labels) for name, labels in series if name == "service_info"]
    assert info["service"] == service


async def test_callers_who_ask_at_the_same_time_share_what_is_made_for_them(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone may ask: made for each of many who ask at once, metrics held up all other work for seconds."""
    made: list[Collector] = []

    def noted(metrics: Collector) -> bytes:
        made.append(metrics)
        return b"all"

    monkeypatch.setattr(module, "generate_latest", noted)
    app: Any = APPS[service](OUT_OF_REACH)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as many:
        answers = await asyncio.gather(*(many.get("/metrics") for _ in range(20)))
    assert {answer.text for answer in answers} == {"all"}
    assert len(made) <= 2  # one for the first, one for all who asked meanwhile


def test_an_answer_counts_by_its_route_and_status_and_never_by_its_path(client: TestClient[Litestar]) -> None:
    client.get("/livez")
    client.get("/livez?verbose=1")
    client.head("/livez")
    client.get("/nowhere/4711")
    client.get("/nowhere/4712")
    client.delete("/livez")
    client.request("BREW", "/livez")
    client.get("/schema-ui/swagger_style.css")
    series = scraped(client)
    requests = {
        tuple(dict(labels)[label] for label in ("method", "route", "status")): number
        for (name, labels), number in series.items()
        if name == "http_requests_total"
    }
    assert requests == {
        ("GET", "/livez", "200"): 2,  # HEAD counts as the GET that it asks for
        ("GET", "/livez", "400"): 1,
        ("GET", "unmatched", "404"): 2,
        ("DELETE", "unmatched", "405"): 1,
        ("other", "unmatched", "405"): 1,
        ("GET", "/schema-ui/{file_path}", "200"): 1,
    }
    assert value(series, "http_request_duration_seconds_count", method="GET", route="/livez") == 3


def test_two_applications_of_one_process_count_apart(service: str, client: TestClient[Litestar]) -> None:
    client.get("/livez")
    with TestClient(APPS[service](OUT_OF_REACH)) as another:
        labels = {"method": "GET", "route": "/livez", "status": "200"}
        assert value(scraped(another), "http_requests_total", **labels) is None
    assert value(scraped(client), "http_requests_total", **labels) == 1


def test_events_that_could_not_be_sent_are_counted_and_a_streamed_answer_too() -> None:
    with TestClient(create_producer(OUT_OF_REACH, limits=Limits(connect_s=0.01))) as client:
        events = b"[" + as_json(id="1") + b"," + as_json(id="2") + b"]"
        client.post("/producers/events", content=events, headers={"content-type": "application/json"})
        lines = as_json(id="3") + b"\nnot json\n"
        client.post("/producers/events", content=lines, headers={"content-type": "application/x-ndjson"})
        series = scraped(client)
    assert of_events(series, "producer_records_total", outcome="not_written") == 3
    assert of_events(series, "producer_records_total", outcome="delivered") == 0
    assert of_events(series, "producer_records_in_flight") == 0
    for status in ("503", "200"):
        labels = {"method": "POST", "route": "/producers/events", "status": status}
        assert value(series, "http_requests_total", **labels) == 1


def test_a_consumer_is_in_one_state_and_reports_nothing_of_a_lag_that_it_does_not_know() -> None:
    with TestClient(create_consumer(OUT_OF_REACH)) as client:
        assert states(scraped(client)) == {"starting"}
        client.post("/consumers/stop")
        series = scraped(client)
    assert states(series) == {"stopped"}
    assert of_events(series, "service_healthy") == 1
    assert not [name for name, _ in series if name.startswith("consumer_lag")]


def states(series: Series) -> set[str]:
    found = {dict(labels)["state"]: number for (name, labels), number in series.items() if name == "consumer_state"}
    assert found.keys() == {"starting", "running", "retrying", "paused", "stopped", "reconnecting", "halted"}
    return {state for state, number in found.items() if number}


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "ok"),
        (ValueError("any"), "failed"),
        (Reject(), "rejected"),
        (asyncio.CancelledError(), "broken_off"),
    ],
)
async def test_a_call_of_the_handler_counts_by_how_it_ended_and_changes_nothing(
    error: BaseException | None, result: str
) -> None:
    handled: list[Event] = []

    async def handle(batch: Batch[Event]) -> None:
        if error:
            raise error
        handled.extend(batch.values)

    registry = CollectorRegistry()
    raised: BaseException | None = None
    try:
        await HandlerMetrics(registry).timed("events", handle)(batch_of(EVENTS, EVENT))
    except (Exception, asyncio.CancelledError) as caught:  # noqa: BLE001 - any error of the handler
        raised = caught
    assert raised is error
    assert handled == ([] if error else [EVENT])
    attempts = "consumer_handler_attempts_total"
    calls = {one: registry.get_sample_value(attempts, {"stream": "events", "result": one}) for one in RESULTS}
    assert calls == {each: float(each == result) for each in RESULTS}
    assert registry.get_sample_value("consumer_handler_seconds_count", {"stream": "events"}) == 1


RESULTS = ("ok", "failed", "rejected", "broken_off")
