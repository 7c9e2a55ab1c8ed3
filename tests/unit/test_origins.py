"""What a web page that a developer opens can do to services of the same machine: nothing."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from litestar import Litestar
from litestar.routes import HTTPRoute
from litestar.testing import TestClient

from apps.chassis.http.origins import OriginPolicy
from apps.chassis.service import allowed_hosts_at
from apps.chassis.settings import Settings
from tests.event_services import create_consumer, create_producer

OWN = "127.0.0.1:8001"
ALLOWED = "https://portal.example"
POSTS = [
    ("producer", "/producers/events/generate?number=0"),
    ("producer", "/producers/events"),
    *(("consumer", f"/consumers/{action}") for action in ("stop", "start", "pause", "resume", "seek")),
    *(("consumer", f"/consumers/dead-letters/{action}") for action in ("redrive", "discard", "restore")),
]
EVERY_POST = pytest.mark.parametrize(("service", "path"), POSTS)
BOTH = pytest.mark.parametrize("service", ["producer", "consumer"])
Clients = dict[str, TestClient[Litestar]]


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", cors_origins=ALLOWED, allowed_hosts="localhost")
    with (
        TestClient(create_producer(settings), base_url=f"http://{OWN}") as producer,
        TestClient(create_consumer(settings), base_url=f"http://{OWN}") as consumer,
    ):
        yield {"producer": producer, "consumer": consumer}


FOREIGN = {
    "a page on the internet": {"Origin": "https://evil.example"},
    "as browsers say it": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "a sandboxed frame": {"Origin": "null"},
    "a sandboxed frame, opened by hand": {"Origin": "null", "Sec-Fetch-Site": "none"},
    "a form, which a browser lets say no origin": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    "another port": {"Origin": "http://127.0.0.1:9999"},
    "another port, as browsers say it": {"Origin": "http://127.0.0.1:9999", "Sec-Fetch-Site": "same-site"},
    "another port without origin": {"Sec-Fetch-Site": "same-site"},
    "another name of this machine": {"Origin": "http://localhost:8001"},
    "another address of this machine": {"Origin": "http://127.0.0.2:8001"},
    "a name that begins alike": {"Origin": "http://127.0.0.1:8001.evil.example"},
    "a name that ends alike": {"Origin": "http://evil-127.0.0.1:8001"},
    "the default port": {"Origin": "http://127.0.0.1"},
    "a word that no browser uses yet": {"Sec-Fetch-Site": "same-planet"},
    "an allowed page with another scheme": {"Origin": "http://portal.example"},
}


@pytest.mark.slow
@EVERY_POST
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_no_page_of_another_origin_changes_anything(
    clients: Clients, service: str, path: str, headers: dict[str, str]
) -> None:
    answer = clients[service].post(path, headers={"Content-Type": "text/plain", **headers}, content=b'{"to": "end"}')
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    assert answer.json()["type"] == "/problems/foreign-origin"
    assert "evil" not in answer.text
    assert not [name for name in answer.headers if name.startswith("access-control-allow-origin")]


OWN_CALLS = {
    "curl and shippers": {},
    "its own page": {"Origin": f"http://{OWN}", "Sec-Fetch-Site": "same-origin"},
    "its own page, over plain HTTP from elsewhere": {"Origin": f"http://{OWN}"},
    "its own page, behind a proxy that gives the service another name": {
        "Origin": "https://events.example",
        "Sec-Fetch-Site": "same-origin",
    },
    "likewise over plain HTTP": {"Origin": "http://events.example", "X-Forwarded-Host": "events.example"},
    "an allowed page": {"Origin": ALLOWED, "Sec-Fetch-Site": "cross-site"},
    "a tool that a user starts in a browser": {"Sec-Fetch-Site": "none"},
}


@EVERY_POST
@pytest.mark.parametrize("headers", OWN_CALLS.values(), ids=OWN_CALLS)
def test_its_own_page_an_allowed_one_and_what_is_no_browser_may_call(
    clients: Clients, service: str, path: str, headers: dict[str, str]
) -> None:
    answer = clients[service].post(path, headers={"Content-Type": "application/json", **headers}, content=b'{"x"')
    assert answer.status_code in {200, 400}


@BOTH
def test_an_origin_without_its_default_port_is_that_of_a_host_with_it(clients: Clients, service: str) -> None:
    for origin, host in (("https://localhost", "localhost:443"), ("http://localhost", "localhost:80")):
        headers = {"Origin": origin, "Host": host}
        assert clients[service].post("/nowhere", headers=headers).status_code == 404
        assert clients[service].post("/nowhere", headers={**headers, "Host": "localhost:81"}).status_code == 403


@BOTH
def test_a_service_with_tls_takes_no_page_without_it_for_its_own(clients: Clients, service: str) -> None:
    for scheme, status in (("https", 404), ("http", 403), ("ftp", 403)):
        answer = clients[service].post(f"https://{OWN}/nowhere", headers={"Origin": f"{scheme}://{OWN}"})
        assert answer.status_code == status
    assert clients[service].post("/nowhere", headers={"Origin": f"ftp://{OWN}"}).status_code == 403


LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
DOCUMENTS = {"/docs", "/schema", "/schema/openapi.json", "/schema/{path}", "/asyncapi", "/asyncapi.json"}
PAGES = {"/", "/problems/{name}", *DOCUMENTS}
STATIC = re.compile(r"/page/.*|/home.css")


@BOTH
@pytest.mark.parametrize("path", ["/", "/schema", "/livez", "/metrics", "/health-check", "/nowhere"])
def test_another_page_loads_nothing_that_is_here(clients: Clients, service: str, path: str) -> None:
    for site, mode in (("same-site", "no-cors"), ("cross-site", "cors"), ("same-planet", "no-cors")):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        assert clients[service].get(path, headers=headers).status_code == 403
        assert clients[service].head(path, headers=headers).status_code == 403


@BOTH
@pytest.mark.parametrize("site", ["same-site", "cross-site"])
def test_links_and_frames_of_another_page_lead_to_pages_alone_as_their_time_would_tell_what_a_call_finds(
    clients: Clients, service: str, site: str
) -> None:
    client, app = clients[service], clients[service].app
    paths = {route.path_format for route in app.routes if isinstance(route, HTTPRoute) and "GET" in route.methods}
    link = {**LINK, "Sec-Fetch-Site": site}
    reached = {path for path in paths if client.head(path, headers=link).status_code != 403}
    assert {path for path in reached if not STATIC.fullmatch(path)} == PAGES
    for path in ("/health-check/", "/session?x=/", "/nowhere"):
        answer = client.get(path, headers=link)
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/foreign-origin")
        assert "enter its address" in answer.json()["detail"]
    assert client.get("/?stream=events&tab=records&q=ada", headers=link).status_code == 200
    assert client.get("/docs", headers=link).status_code == 200
    for own in ("same-origin", "none"):  # a link of its own pages, and an address that a user enters
        assert client.get("/health-check", headers={**link, "Sec-Fetch-Site": own}).status_code != 403


PREFETCH = {**LINK, "Sec-Fetch-Site": "none", "Sec-Purpose": "prefetch;prerender"}


@BOTH
def test_another_page_opens_no_websocket_and_prefetches_nothing_but_pages(clients: Clients, service: str) -> None:
    websocket = {"Connection": "Upgrade", "Upgrade": "websocket"}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999"):
        answer = clients[service].get("/metrics", headers={**websocket, "Origin": origin})
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/foreign-origin")
    assert clients[service].get("/metrics", headers=PREFETCH).status_code == 403
    assert clients[service].get("/", headers=PREFETCH).status_code == 200
    for own in ({"Origin": f"http://{OWN}"}, {"Origin": ALLOWED}, {**PREFETCH, "Sec-Fetch-Site": "same-origin"}):
        assert clients[service].get("/metrics", headers=own).status_code == 200


@BOTH
def test_the_question_before_a_call_gives_another_page_no_permission(clients: Clients, service: str) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for path in ("/producers/events", "/consumers/seek", "/nowhere"):
        answer = clients[service].options(path, headers=asked)
        assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
        assert not [name for name in answer.headers if name.startswith("access-control")]


REBOUND = [
    "evil.example",
    "evil.example:8001",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil-localhost.example",
    "evil.example.:8001",
    "192.0.2.1",
    "[2001:db8::1]:8001",
    "[::ffff:7f00:1]:8001",  # to Python 3.13 it is loopback, and to browsers it is not
    "localhost:8001@evil.example",
    "localhost, evil.example",
    "localhost:8001:1",
    "127.1",
    "evil",  # a network gives its machines such names, and any name to one of them
    "evil:8001",
    "wpad.",
    "ai.",
    "",
]


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("host", REBOUND)
@pytest.mark.parametrize("path", ["/", "/livez", "/consumers/status", "/consumers/messages", "/schema/openapi.json"])
def test_a_page_whose_own_name_leads_here_reads_nothing(clients: Clients, service: str, path: str, host: str) -> None:
    answer = clients[service].get(path, headers={"Host": host})
    assert (answer.status_code, answer.headers["content-type"]) == (421, "application/problem+json")
    assert answer.json()["type"] == "/problems/unknown-host"
    assert "ALLOWED_HOSTS" in answer.json()["detail"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("turn", [1, -1], ids=["first", "last"])
@pytest.mark.parametrize(
    ("name", "values", "status"),
    [
        (b"host", [b"localhost", b"evil.example"], 421),
        (b"origin", [ALLOWED.encode(), b"https://evil.example"], 403),
        (b"sec-fetch-site", [b"same-origin", b"cross-site"], 403),
    ],
)
def test_of_a_header_that_is_given_twice_neither_is_believed(
    name: bytes, values: list[bytes], status: int, turn: int
) -> None:
    policy = OriginPolicy(Settings(cors_origins=ALLOWED, allowed_hosts="localhost"))
    host = [(b"host", b"localhost")] if status == 403 else []
    scope: Any = {"type": "http", "method": "POST", "headers": [*host, *((name, value) for value in values[::turn])]}
    refusal = policy.refusal(scope)
    assert refusal is not None
    assert refusal.status_code == status


@BOTH
@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "localhost.", "tool.localhost", "127.0.0.1:8001", "127.0.0.2", "[::1]:8001"]
)
def test_this_machine_may_be_called_by_any_of_its_own_names(clients: Clients, service: str, host: str) -> None:
    assert clients[service].get("/livez", headers={"Host": host}).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("events.example,*.events.svc", "events.example:8001", 200),
        ("events.example,*.events.svc", "EVENTS.example", 200),
        ("events.example,*.events.svc", "consumer.events.svc", 200),
        ("events.example,*.events.svc", "events.svc", 421),
        ("events.example,*.events.svc", "evil.example", 421),
        ("events.example", "10.1.2.3:8001", 200),  # Kubernetes' probes call a pod by its address
        ("events.example", "[fd00::1]:8001", 200),
        ("events.example", "localhost:8001", 200),
        ("events.example", "0.0.0.0:8001", 421),  # to browsers these are not this machine
        ("events.example", "[::]:8001", 421),
        ("events.example", "[::ffff:127.0.0.1]:8001", 421),
        ("events.example", "[::ffff:7f00:1]:8001", 421),
        ("events.example", "backend", 421),
        ("backend", "backend:8001", 200),  # as nginx calls an `upstream`
        ("*", "evil.example", 200),
        ("", "events.example", 200),
    ],
)
def test_the_names_that_an_operator_allows_are_answered(allowed: str, host: str, status: int) -> None:
    with TestClient(create_producer(Settings(kafka_bootstrap_servers="127.0.0.1:1", allowed_hosts=allowed))) as client:
        assert client.get("/livez", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("host", "address", "given", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1", "", "localhost"),
        ("::1", "::1", "", "localhost"),
        ("box", "127.0.1.1", "", "box,localhost"),
        ("127.0.0.1", "127.0.0.1", "events.example", "events.example"),
        ("0.0.0.0", "0.0.0.0", "", ""),  # noqa: S104 - nothing is bound
    ],
)
def test_what_only_this_machine_reaches_answers_to_its_names_alone_unless_configured_otherwise(
    host: str, address: str, given: str, allowed: str
) -> None:
    assert allowed_hosts_at(Settings(host=host, allowed_hosts=given), address) == allowed
