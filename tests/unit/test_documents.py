import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Any
from unittest.mock import patch
from urllib.parse import urljoin

import pytest
from documented import Call, calls_of, example_of, operations_of
from jsonschema import Draft202012Validator
from litestar import Litestar
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.testing import TestClient
from serving import answered

from apps.chassis.http import admission
from apps.chassis.http.admission import Limit
from apps.chassis.http.problem_kinds import KINDS, Kind
from apps.chassis.settings import Settings
from tests.event_services import create_consumer, create_producer

APPS: dict[str, Callable[..., Litestar]] = {"producer": create_producer, "consumer": create_consumer}
BOTH = pytest.mark.parametrize("service", APPS)
DOCUMENTS: dict[str, dict[str, Any]] = {
    name: create_app(Settings()).openapi_schema.to_schema() for name, create_app in APPS.items()
}
OPERATIONS = [
    pytest.param(service, operation, id=f"{service} {method} {path}")
    for service, document in DOCUMENTS.items()
    for method, path, operation in operations_of(document)
]
CALLS = [
    pytest.param(service, call, id=f"{service} {call}")
    for service, document in DOCUMENTS.items()
    for call in calls_of(document)
    if "event-stream" not in str(call.answers)  # it has no end
]


@pytest.mark.parametrize(("service", "operation"), OPERATIONS)
def test_every_call_says_what_it_does_and_what_each_parameter_and_answer_means(
    service: str, operation: dict[str, Any]
) -> None:
    assert operation["summary"]
    for parameter in operation.get("parameters", []):
        assert parameter.get("description"), f"{service}: {parameter['name']}"
        assert parameter["in"] != "path" or example_of(parameter) is not None
    for answer in operation["responses"].values():
        assert answer["description"]


@pytest.mark.parametrize(("service", "operation"), OPERATIONS)
def test_every_call_reports_the_problems_that_it_may_answer(service: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    assert {"400", "500"} <= answers.keys()  # a parameter that it does not know, and what nobody foresaw
    assert ("413" in answers) == ("415" in answers)
    assert "415" in answers or "requestBody" not in operation
    types = {"about:blank": None, **{kind.type: kind.status for kind in KINDS}}
    components = DOCUMENTS[service]["components"]
    for status, answer in answers.items():
        for described in answer.get("content", {}).values():
            if described["schema"] != {"$ref": "#/components/schemas/Problem"}:
                continue
            assert int(status) >= 400
            examples = [example["value"] for example in described["examples"].values()]
            assert examples
            for example in examples:
                assert example["status"] == int(status)
                assert types[example["type"]] in {None, int(status)}
                Draft202012Validator({**described["schema"], "components": components}).validate(example)


@pytest.mark.parametrize(("service", "operation"), OPERATIONS)
def test_every_body_has_an_example_that_follows_its_schema(service: str, operation: dict[str, Any]) -> None:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        example = example_of(content)
        assert example is not None
        schema = {**content["schema"], "components": DOCUMENTS[service]["components"]}
        Draft202012Validator(schema).validate(example)


@pytest.mark.parametrize(("service", "call"), CALLS)
def test_every_example_is_accepted_and_answered_as_documented_even_without_kafka(
    service: str, call: Call, clients: dict[str, TestClient[Litestar]]
) -> None:
    answer = clients[service].request(call.method, call.path, **call.options)
    assert answer.status_code in call.answers
    assert answer.status_code not in {400, 415}
    assert answer.headers["content-type"].partition(";")[0] in call.answers[answer.status_code]


@BOTH
def test_no_call_that_there_is_goes_unmentioned(service: str) -> None:
    app = APPS[service](Settings())
    listed = {(method, path) for method, path, _ in operations_of(DOCUMENTS[service])}
    there = {
        (str(method), route.path_format)
        for route in app.routes
        for method in getattr(route, "methods", set())
        if method != "OPTIONS"
        and re.match(r"/(consumers|producers|health-check|livez|metrics|problems)", route.path_format)
    }
    assert there
    assert there <= listed


@BOTH
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_type_of_a_problem_leads_to_what_it_means(
    service: str, kind: Kind, clients: dict[str, TestClient[Litestar]]
) -> None:
    meaning = clients[service].get(kind.type).json()
    assert (meaning["type"], meaning["status"], meaning["title"]) == (kind.type, kind.status, kind.title)
    assert meaning["meaning"]


@BOTH
def test_a_type_of_problem_that_there_is_not_is_a_problem(
    service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    answer = clients[service].get("/problems/nonsense")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "out-of-reach" in answer.json()["detail"]


@BOTH
@pytest.mark.parametrize("path", ["/schema", "/asyncapi"])
def test_a_page_may_load_nothing_from_elsewhere_and_run_no_script_but_its_own(
    path: str, service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    page = clients[service].get(path)
    policy = dict(each.split(" ", 1) for each in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert {
        source for sources in policy.values() for source in sources.split() if "//" in source or "*" in source
    } == set()
    assert "unsafe-inline" not in page.headers["content-security-policy"]
    assert ("unsafe-eval" in policy["script-src"]) == (path == "/asyncapi")  # which checks the document so
    scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert "<script" not in re.sub(r"<script( src=| id=\S+ type=\"application/json\"|>)", "", page.text)
    for script in scripts:
        assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy["script-src"]


@BOTH
@pytest.mark.parametrize("path", ["/asyncapi", "/asyncapi/"])
def test_the_page_of_what_goes_over_kafka_loads_nothing_from_another_host(
    path: str, service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    page = clients[service].get(path).text
    assert re.findall(r"https?://[^\s\"'<>]+|(?:src|href)=[\"']//[^\"']+", page) == []
    loaded = [urljoin(path, each) for each in re.findall(r"(?:src|href|schemaUrl)\"?[=:]\"([^\":]+)\"", page)]
    (module,) = re.findall(r"entryUrl\":\"(\./[^\"]+)", page)
    loaded.append(urljoin(loaded[-1], module))  # the script imports it from where it stands itself
    assert len(loaded) == 4
    for asset in loaded:
        assert clients[service].get(asset).status_code == 200


@BOTH
def test_behind_a_prefix_that_a_proxy_strips_no_address_in_an_answer_leads_out_of_it(service: str) -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", root_path="/a/kafka")
    with TestClient(APPS[service](settings)) as client:
        for problem in (client.get("/livez?x=1"), client.get("/livez", headers={"Sec-Fetch-Site": "cross-site"})):
            kind = problem.json()["type"]
            assert kind.startswith("/a/kafka/problems/")
            assert client.get(kind.removeprefix("/a/kafka")).json()["type"] == kind
        assert client.get("/nowhere").json()["type"] == "about:blank"
        document = client.get("/schema/openapi.json")
        assert document.json()["servers"] == [{"url": "/a/kafka"}]
        assert set(re.findall(r'"type":"([^"]*)/problems/', document.text)) == {"/a/kafka"}
        pages = [client.get(path) for path in ("/", "/docs", "/docs/", "/schema", "/schema/", "/asyncapi")]
        for page in pages:
            assert not re.findall(r"(?:src|href|Url|content)\"?[=:]\s*\"/", page.text)


@BOTH
def test_without_a_known_prefix_the_document_finds_the_service_from_where_it_stands_itself(
    service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    (server,) = clients[service].get("/schema/openapi.json").json()["servers"]
    assert urljoin("http://proxy.example/a/kafka/schema/openapi.json", server["url"]) == "http://proxy.example/a/kafka/"


def test_the_value_of_a_record_is_documented_as_the_type_of_the_streams_served() -> None:
    schemas = DOCUMENTS["consumer"]["components"]["schemas"]
    value = schemas["Message"]["properties"]["value"]
    assert value == {"oneOf": [{"$ref": "#/components/schemas/Event"}, {"type": "null"}]}
    assert {"$ref": "#/components/schemas/Event"} in schemas["StoredMessage"]["properties"]["value"]["oneOf"]


@BOTH
def test_an_unknown_path_among_the_documents_is_a_problem(
    service: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    answer = clients[service].get("/schema/nowhere")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["type"] == "about:blank"


@pytest.mark.parametrize("service", ["producer", "consumer"])
@pytest.mark.parametrize("folder", ["schema-ui", "asyncapi-ui"])
@pytest.mark.parametrize("name", ["nothing.js", ".", "%00", "a" * 300, "a/" * 3_000, "..%2f..%2fpyproject.toml"])
def test_a_file_that_no_page_has_is_not_found_whatever_it_is_called(
    service: str, folder: str, name: str, clients: dict[str, TestClient[Litestar]]
) -> None:
    answer = clients[service].get(f"/{folder}/{name}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    said = answer.json()["detail"]
    assert said in {"there is no such file", "Not Found"} or "encoded slash" in said


@BOTH
def test_the_document_is_encoded_once_and_names_the_cookie_of_the_host_that_a_caller_names(
    service: str,
) -> None:
    render = JsonRenderPlugin.render
    with (
        patch.object(JsonRenderPlugin, "render", autospec=True, side_effect=render) as encode,
        TestClient(APPS[service](Settings())) as client,
    ):
        hosts = ["localhost:1", "localhost:2", "localhost:1"]
        documents = [client.get("/schema/openapi.json", headers={"Host": host}).json() for host in hosts]
    cookies = [one["components"]["securitySchemes"]["Session"]["name"] for one in documents]
    assert cookies[0] == cookies[2] != cookies[1]
    assert all(cookie.startswith(f"{service}_session_") for cookie in cookies)
    encode.assert_called_once()


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/schema/openapi.json", "/asyncapi.json", "/schema-ui/openapi.js"])
async def test_the_documents_and_their_files_are_sent_one_at_a_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "TURN_S", 0.01)
    app = create_consumer(Settings(), admission=(limit := Limit(100_000_000)))
    async with limit.making:
        start, *_ = await answered(path, {}, b"", app=app, method="GET")
    assert start["status"] == 503
    start, *_ = await answered(path, {}, b"", app=app, method="GET")
    assert start["status"] == 200
