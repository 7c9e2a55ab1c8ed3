from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import calls_of
from services import Pipeline, Service, both, wait_until


@pytest.fixture(scope="module")
def services(bootstrap_servers: str, logs: Path) -> Iterator[dict[str, Service]]:
    """Both services, with events in every partition."""
    with Pipeline(bootstrap_servers, logs) as pipeline, both(pipeline) as (producer, consumer):
        producer.send(200)
        assert set(pipeline.end_offsets()) == {record.partition for record in pipeline.records()}
        consumer.until_consumed(200)
        yield {"producer": producer, "consumer": consumer}


def consuming(service: Service) -> Service:
    """Have a consumer consume, also after a call that stopped it."""
    service.post("/consumers/start")
    service.post("/consumers/resume")
    wait_until(lambda: service.status()["state"] == "running" and service.status()["partitions"])
    return service


@pytest.mark.parametrize("name", ["producer", "consumer"])
def test_every_documented_call_does_with_its_example_what_the_document_says(
    name: str, services: dict[str, Service]
) -> None:
    service = services[name]
    calls = list(calls_of(service.get("/schema/openapi.json")))
    assert len(calls) >= 5
    for call in calls:
        if name == "consumer":
            consuming(service)
        with service.http.stream(call.method, call.path, **call.options) as answer:  # one of them has no end
            assert answer.is_success, f"{call}: {answer.status_code}"
            kind = answer.headers["content-type"].partition(";")[0]
            assert kind in call.answers[answer.status_code], str(call)
