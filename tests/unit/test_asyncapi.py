"""The AsyncAPI document, checked with the JSON schema of AsyncAPI that stands in the script of the page."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator
from litestar import Litestar
from litestar.routes import HTTPRoute
from litestar.testing import TestClient
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from apps.chassis.setting_reading import read_settings
from apps.chassis.settings import Settings
from contracts.dead_letter import LETTER_FIELDS, NAMES, NAMES_ALWAYS, WRITTEN_FIELD
from tests.event import EVENTS, Event
from tests.event_services import create_consumer, create_producer

APPS: dict[str, Callable[..., Litestar]] = {"producer": create_producer, "consumer": create_consumer}
BOTH = pytest.mark.parametrize("service", APPS)
ASYNCAPI = "http://asyncapi.com/definitions/3.0.0"
SETTINGS = {
    "KAFKA_BOOTSTRAP_SERVERS": "secret.internal:9092",
    "EVENTS_TOPIC": "events",
    "EVENTS_PARTITIONS": "12",
    "EVENTS_REPLICATION": "3",
    "EVENTS_DEAD_LETTER_TOPIC": "events-dead",
    "EVENTS_GROUP_ID": "group-of-ours",
}


def document_of(app: Litestar) -> dict[str, Any]:
    (route,) = (route for route in app.routes if route.path == "/asyncapi.json" and isinstance(route, HTTPRoute))
    handler, _ = route.route_handler_map["GET"]
    answer: Any = handler.fn()
    found: dict[str, Any] = msgspec.json.decode(answer)
    return found


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    settings = read_settings(SETTINGS, [EVENTS])
    return {name: document_of(create_app(settings)) for name, create_app in APPS.items()}


@pytest.fixture(scope="module")
def definitions() -> Registry[Any]:
    """The definitions of AsyncAPI 3.0.0, of which its root consists; no package has them in a file."""
    package = find_spec("litestar_asyncapi")
    assert package
    assert package.origin
    (script,) = (Path(package.origin).parent / "assets/ui/assets").glob("react-*.js")
    (literal,) = re.findall(rf'JSON\.parse\(`(\{{"{ASYNCAPI}/(?:[^`\\]|\\.)*)`\)', script.read_text())
    found: dict[str, Any] = msgspec.json.decode(re.sub(r"\\(.)", r"\1", literal))
    resources = [(name, Resource.from_contents(each, DRAFT7)) for name, each in found.items()]
    return Registry().with_resources(resources)


def errors_of(document: dict[str, Any], definitions: Registry[Any]) -> list[str]:
    """Return what is wrong with a document by the schema of AsyncAPI 3.0.0."""
    allowed = {"asyncapi", "info", "defaultContentType", "servers", "channels", "operations", "components"}
    wrong = [f"{name} is unknown" for name in document.keys() - allowed]
    wrong += [] if document["asyncapi"] == "3.0.0" else ["another version"]
    for part in document.keys() - {"asyncapi", "defaultContentType"}:
        validator = Draft7Validator({"$ref": f"{ASYNCAPI}/{part}.json"}, registry=definitions)
        wrong += [f"{part} {error.json_path}: {error.message}" for error in validator.iter_errors(document[part])]
    return wrong


@BOTH
def test_the_document_follows_the_schema_of_asyncapi(
    service: str, documents: dict[str, dict[str, Any]], definitions: Registry[Any]
) -> None:
    assert errors_of(documents[service], definitions) == []


@BOTH
def test_all_that_the_document_refers_to_is_there(service: str, documents: dict[str, dict[str, Any]]) -> None:
    document = documents[service]
    references = re.findall(r'"\$ref":"#/([^"]+)"', msgspec.json.encode(document).decode())
    assert references
    for reference in references:
        found: Any = document
        for part in reference.split("/"):
            found = found[part]


@BOTH
def test_both_topics_are_described_as_they_are_configured(service: str, documents: dict[str, dict[str, Any]]) -> None:
    channels = documents[service]["channels"]
    assert {channel["address"] for channel in channels.values()} == {"events", "events-dead"}
    for channel in channels.values():
        kafka = channel["bindings"]["kafka"]
        assert (kafka["topic"], kafka["partitions"], kafka["replicas"]) == (channel["address"], 12, 3)
        assert kafka["topicConfiguration"]["min.insync.replicas"] == 2
    assert channels["events-dead-letters"]["bindings"]["kafka"]["topicConfiguration"]["retention.ms"] == -1


def test_each_service_says_what_it_does(documents: dict[str, dict[str, Any]]) -> None:
    done = {
        service: {(one["action"], one["channel"]["$ref"].split("/")[-1]) for one in document["operations"].values()}
        for service, document in documents.items()
    }
    assert done == {
        "producer": {("send", "events")},
        "consumer": {("receive", "events"), ("send", "events-dead-letters"), ("send", "events")},
    }
    kafka = documents["consumer"]["operations"]["receive-events"]["bindings"]["kafka"]
    assert (kafka["groupId"]["enum"], kafka["clientId"]["enum"]) == (["group-of-ours"], ["consumer"])
    kafka = documents["producer"]["operations"]["send-events"]["bindings"]["kafka"]
    assert (kafka["clientId"]["enum"], "groupId" in kafka) == (["producer"], False)


@BOTH
def test_an_event_is_described_by_the_struct_itself(service: str, documents: dict[str, dict[str, Any]]) -> None:
    components = documents[service]["components"]
    message = components["messages"]["Event"]
    assert message["payload"] == {"$ref": "#/components/schemas/Event"}
    assert components["schemas"]["Event"] == msgspec.json.schema(Event)["$defs"]["Event"]
    assert message["bindings"]["kafka"]["key"]["type"] == "string"


@BOTH
def test_the_headers_of_a_dead_letter_are_those_that_are_written(
    service: str, documents: dict[str, dict[str, Any]]
) -> None:
    headers = documents[service]["components"]["messages"]["DeadLetter"]["headers"]
    assert tuple(headers["properties"]) == (*NAMES, WRITTEN_FIELD.header)
    assert tuple(headers["required"]) == NAMES_ALWAYS
    for said in LETTER_FIELDS:
        described = headers["properties"][said.header]
        _, written = said.pack("text" if said.packing is None else 1)
        if described["type"] == "integer":
            assert (f"{len(written or b'')} bytes", described["format"]) in [("4 bytes", "int32"), ("8 bytes", "int64")]
            assert f"{len(written or b'')} bytes, big-endian" in described["description"]
        else:
            assert (described["type"], written) == ("string", b"text")


@BOTH
def test_the_document_does_not_reveal_where_the_brokers_are(service: str, documents: dict[str, dict[str, Any]]) -> None:
    assert "secret" not in msgspec.json.encode(documents[service]).decode()


@BOTH
def test_the_document_is_served(service: str) -> None:
    app = APPS[service](Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    with TestClient(app) as client:
        answer = client.get("/asyncapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == document_of(app)
