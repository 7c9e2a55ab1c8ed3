"""A second message, added as `docs/how-to/add-a-message.md` says, has everything that the first one has."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from copies import copy_with, size_of
from prometheus_client.parser import text_string_to_metric_families
from services import Pipeline, Raw, Service, wait_until

HOW_TO = "add-a-message.md"
MAX_FILES, MAX_LINES = 3, 60


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to which the message was added."""
    copy = copy_with(HOW_TO, tmp_path_factory.mktemp("project"))
    subprocess.run([sys.executable, "-m", "tools.schema"], cwd=copy, check=True)
    return copy


@pytest.fixture(scope="module")
def orders(project: Path, bootstrap_servers: str, logs: Path) -> Iterator[dict[str, Service]]:
    """Both services of the copy, with topics of their own."""
    name = f"test-{uuid4().hex[:12]}"
    pipeline = Pipeline(bootstrap_servers, logs, name)
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        **{f"PEOPLE_{key}": f"{name}-people{value}" for key, value in NAMES.items()},
        **{f"ORDERS_{key}": f"{name}-orders{value}" for key, value in NAMES.items()},
    }
    with (
        Service("producer", ["-m", "apps.producer"], logs, environment, project) as producer,
        Service("consumer", ["-m", "apps.consumer"], logs, environment, project) as consumer,
    ):
        for service in (producer, consumer):
            service.until_healthy()
        yield {"producer": producer, "consumer": consumer}
    topics = [f"{name}-{stream}{suffix}" for stream in ("people", "orders") for suffix in ("", "-dlt", "-dlt-redriven")]
    pipeline.delete_topic(*topics)


NAMES = {"TOPIC": "", "DEAD_LETTER_TOPIC": "-dlt", "GROUP_ID": "-group"}
"""Settings of each stream, and what distinguishes their values."""


def order(number: int, **fields: object) -> dict[str, object]:
    return {"order_id": f"ord-{number}", "amount_cents": 1_999, "note": None, **fields}


def of_orders(consumer: Service) -> dict[str, object]:
    status = consumer.get("/consumers/status", stream="orders")["streams"]
    assert status.keys() == {"orders"}
    return dict(status["orders"])


def test_it_takes_at_most_three_files_and_sixty_lines() -> None:
    files, lines = size_of(HOW_TO)
    assert files <= MAX_FILES
    assert lines <= MAX_LINES


def test_it_passes_the_checks_of_the_project(project: Path) -> None:
    changed = ["contracts/order.py", "contracts/__init__.py", "apps/consumer/handlers.py"]
    types = ["mypy", "tests/unit/test_kubernetes.py"]  # a test that uses all streams
    for check in (["ruff", "check"], ["ruff", "format", "--check"], types):
        command = [sys.executable, "-m", *check, *changed]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_it_is_sent_one_by_one_in_lists_and_in_lines(orders: dict[str, Service]) -> None:
    producer, consumer = orders["producer"], orders["consumer"]
    before = int(str(of_orders(consumer)["messages_consumed_count"]))
    assert producer.post("/producers/orders", json=order(1))["receipts"][0]["id"] == "ord-1"
    assert producer.post("/producers/orders", json=[order(2), order(3)])["delivered"] == 2
    lines = "".join(json.dumps(order(number)) + "\n" for number in (4, 5))
    answer = producer.http.post("/producers/orders", content=lines, headers={"content-type": "application/x-ndjson"})
    assert [json.loads(line)["id"] for line in answer.text.splitlines()] == ["ord-4", "ord-5"]
    wait_until(lambda: of_orders(consumer)["messages_consumed_count"] == before + 5)
    (shown,) = consumer.messages(stream="orders", key="ord-2")
    assert shown["value"] == order(2)
    place = f"/consumers/messages/{shown['partition']}/{shown['offset']}"
    assert consumer.get(place, stream="orders")["value"] == order(2)
    found = consumer.get("/consumers/messages", stream="orders", scope="topic", q="ord-3")["messages"]
    assert [one["value"] for one in found] == [order(3)]


def test_a_wrong_one_is_refused_with_its_place(orders: dict[str, Service]) -> None:
    answer = orders["producer"].http.post("/producers/orders", json=[order(1), order(2, amount_cents=0)])
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, "$[1].amount_cents")
    answer = orders["producer"].http.post("/producers/orders", json=order(1, colour="red"))
    assert (answer.status_code, "colour" in answer.json()["detail"]) == (400, True)


def test_made_up_ones_are_sent_and_consumed(orders: dict[str, Service]) -> None:
    before = int(str(of_orders(orders["consumer"])["messages_consumed_count"]))
    made = orders["producer"].post("/producers/orders/generate", params={"number": 20})
    assert len(made) == 20
    assert all(1 <= len(one["order_id"]) <= 64 and one["amount_cents"] >= 1 for one in made)
    wait_until(lambda: of_orders(orders["consumer"])["messages_consumed_count"] == before + 20)


def test_dead_letters_of_each_stream_are_shown_and_sent_back_apart(
    orders: dict[str, Service], bootstrap_servers: str
) -> None:
    consumer, topic = orders["consumer"], str(of_orders(orders["consumer"])["topic"])
    Pipeline(bootstrap_servers, Path(), topic).write([Raw(b"no order")])
    wait_until(lambda: of_orders(consumer)["dead_lettered_count"] == 1)
    (letter,) = consumer.letters(stream="orders")
    assert (letter["origin"]["topic"], letter["value"]["text"], letter["redriven"]) == (topic, "no order", False)
    assert consumer.letters(stream="people") == []
    sent_back = consumer.post("/consumers/dead-letters/redrive", json={"limit": 10})
    assert [one["stream"] for one in sent_back["dead_letters"]] == ["orders"]
    wait_until(lambda: of_orders(consumer)["dead_lettered_count"] == 2)
    assert consumer.status()["streams"]["people"]["dead_lettered_count"] == 0


def test_each_stream_is_stopped_and_shown_by_itself(orders: dict[str, Service]) -> None:
    consumer = orders["consumer"]
    status = consumer.post("/consumers/pause", params={"stream": "orders"})
    assert {name: one["state"] for name, one in status["streams"].items()} == {"orders": "paused"}
    states = {name: one["state"] for name, one in consumer.status()["streams"].items()}
    assert states == {"people": "running", "orders": "paused"}
    assert consumer.status()["state"] == "paused"
    assert consumer.get("/health-check", stream="people")["detail"] == "people are consumed"
    consumer.post("/consumers/resume")
    wait_until(lambda: consumer.status()["state"] == "running")
    answer = consumer.http.post("/consumers/pause", params={"stream": "order"})
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (400, "stream")


def test_it_is_measured_and_documented(orders: dict[str, Service], project: Path) -> None:
    for service in orders.values():
        families = text_string_to_metric_families(service.http.get("/metrics").text)
        streams = {sample.labels.get("stream") for family in families for sample in family.samples}
        assert streams == {None, "people", "orders"}
        document = service.get("/asyncapi.json")
        assert "orders" in document["channels"]
        assert document["components"]["schemas"]["Order"]["required"] == ["order_id", "amount_cents"]
    paths = orders["producer"].get("/schema/openapi.json")["paths"]
    assert {"/producers/orders", "/producers/orders/generate"} <= paths.keys()
    body = paths["/producers/orders"]["post"]["requestBody"]["content"]["application/json"]
    assert body["example"] == {"order_id": "ord-1", "amount_cents": 1_999}
    assert json.loads((project / "contracts" / "orders.schema.json").read_text())["$defs"].keys() == {"Order"}
