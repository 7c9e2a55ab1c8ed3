"""What both services give to a browser: their pages, and what the headers let those do."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from apps.chassis.settings import Settings
from apps.consumer.page.routes import FOLDER
from tests.event import EVENTS
from tests.event_services import create_consumer, create_producer

PRODUCER = "http://producer.example:8000"
PAGE = "http://page.example"
SETTINGS = Settings(
    kafka_bootstrap_servers="127.0.0.1:1", producer_url=PRODUCER, cors_origins=f"{PAGE},http://localhost:8001"
)


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def consumer() -> Iterator[TestClient[Litestar]]:
    with TestClient(create_consumer(SETTINGS)) as client:
        yield client


@pytest.fixture(scope="module")
def producer() -> Iterator[TestClient[Litestar]]:
    with TestClient(create_producer(SETTINGS)) as client:
        yield client


def loaded(page: str) -> list[str]:
    return [
        address
        for tag, attributes in Elements(page).found
        for name in ("src", "href")
        if tag in {"script", "link"} and (address := attributes.get(name)) and not address.startswith("data:")
    ]


def policy_of(headers: dict[str, str]) -> dict[str, str]:
    directives = headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (directive.partition(" ") for directive in directives)}


def test_the_page_runs_nothing_but_its_own_files_and_calls_nobody_but_both_services(
    consumer: TestClient[Litestar],
) -> None:
    answer = consumer.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert policy_of(dict(answer.headers)) == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": f"'self' {PRODUCER}",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_without_a_producer_the_page_calls_its_own_service_alone() -> None:
    with TestClient(create_consumer(Settings(kafka_bootstrap_servers="127.0.0.1:1"))) as client:
        answer = client.get("/")
    assert policy_of(dict(answer.headers))["connect-src"] == "'self'"
    assert '<meta name="producer-url" content="">' in answer.text


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://events.example/kafka/producer", " https://events.example/kafka/producer/"),  # all that is below it
        ("/kafka/producer", ""),
    ],
)
def test_a_producer_behind_a_path_may_be_called_there(url: str, source: str) -> None:
    with TestClient(create_consumer(Settings(kafka_bootstrap_servers="127.0.0.1:1", producer_url=url))) as client:
        answer = client.get("/")
    assert policy_of(dict(answer.headers))["connect-src"] == f"'self'{source}"
    assert f'<meta name="producer-url" content="{url}">' in answer.text


def test_the_page_knows_where_the_producer_is(consumer: TestClient[Litestar]) -> None:
    assert f'<meta name="producer-url" content="{PRODUCER}">' in consumer.get("/").text


def test_every_file_of_the_page_is_served_and_hardened_alike(consumer: TestClient[Litestar]) -> None:
    wanted = loaded(consumer.get("/").text)
    assert len(wanted) == 2
    for module in FOLDER.glob("*.js"):
        wanted += [f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', module.read_text())]
    for path in wanted:
        answer = consumer.get(f"/{path}")
        kind = "css" if path.endswith("css") else "javascript"
        assert (answer.status_code, answer.headers["content-type"]) == (200, f"text/{kind}; charset=utf-8")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_nothing_of_the_page_needs_an_exception_from_its_policy() -> None:
    page = (FOLDER / "index.html").read_text()
    for tag, attributes in Elements(page).found:
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    scripts = "".join(module.read_text() for module in FOLDER.glob("*.js"))
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?://(?!www\.w3\.org)", scripts
    )


def test_the_fragment_of_a_link_gives_the_focus_to_nothing_that_a_key_changes() -> None:
    """A browser focuses the element whose id the fragment is: the visitor's next key would press it, or stand in it."""
    found = Elements((FOLDER / "index.html").read_text()).found
    controls = [attributes for tag, attributes in found if tag in {"button", "input", "select", "summary", "textarea"}]
    links = [attributes for tag, attributes in found if tag == "a" and "id" in attributes]
    assert len(controls) > 50
    assert not [attributes for attributes in controls if "id" in attributes]
    assert all("data-inside" in attributes for attributes in links), "they lead to another view of the page alone"


SEARCH = "/?tab=records&stream=events&q=ada&open=0-1&tab=%22&key=stream=x"


@pytest.mark.parametrize(
    ("address", "leads_to"),
    [
        (SEARCH, "./?tab=records&stream=events"),
        ("/?q=ada", "./"),
        ("/?stream=%0d%0aSet-Cookie", "./"),
        ("/?tab=dead&tab=records;q=x", "./?tab=dead"),
    ],
)
@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-planet"])
def test_a_link_of_another_page_lets_the_page_search_nothing(
    consumer: TestClient[Litestar], address: str, leads_to: str, site: str
) -> None:
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    answer = consumer.get(address, headers=link, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, leads_to)
    there = consumer.get(leads_to.removeprefix("."), headers=link, follow_redirects=False)
    assert there.status_code == 200  # a redirect keeps the site that the browser names
    prefetched = {**link, "Sec-Fetch-Site": "none", "Sec-Purpose": "prefetch;prerender"}
    assert consumer.get(address, headers=prefetched, follow_redirects=False).status_code == 403


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}])
def test_an_address_that_is_entered_or_linked_by_the_page_itself_keeps_its_search(
    consumer: TestClient[Litestar], headers: dict[str, str]
) -> None:
    link = {**headers, "Sec-Fetch-Mode": "navigate"}
    assert consumer.get(SEARCH, headers=link, follow_redirects=False).status_code == 200


def test_the_scripts_of_the_page_stay_few_enough_to_read_in_an_hour() -> None:
    assert sum(len(module.read_text().splitlines()) for module in FOLDER.glob("*.js")) < 1_600


def test_the_producers_first_page_leads_to_the_live_page_and_to_the_calls(producer: TestClient[Litestar]) -> None:
    answer = producer.get("/")
    leads = [attributes.get("href") for tag, attributes in Elements(answer.text).found if tag == "a"]
    assert {f"{PAGE}/", "schema"} <= set(leads)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path in loaded(answer.text):
        assert producer.get(f"/{path}").status_code == 200
    for lead in leads:
        assert lead
        assert lead.startswith(PAGE) or producer.get(f"/{lead}").status_code in {200, 503}


def test_a_producer_that_no_page_may_call_leads_to_none() -> None:
    with TestClient(create_producer(Settings(kafka_bootstrap_servers="127.0.0.1:1"))) as client:
        assert "live page" not in client.get("/").text
        answer = client.get("/livez", headers={"Origin": PAGE})
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_behind_a_prefix_an_origin_alone_leads_to_no_live_page() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", cors_origins=PAGE, root_path="/kafka/producer")
    with TestClient(create_producer(settings)) as client:
        assert "live page" not in client.get("/").text


@pytest.mark.parametrize("asked", [{"Method": "PUT"}, {"Method": "POST", "Headers": "x-other"}])
def test_what_cors_does_not_allow_is_refused_by_a_problem(
    asked: dict[str, str], producer: TestClient[Litestar]
) -> None:
    headers = {f"Access-Control-Request-{name}": value for name, value in asked.items()}
    answer = producer.options("/producers/events", headers={"Origin": PAGE, **headers})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert "CORS" in answer.json()["detail"]


def test_a_page_without_a_key_learns_that_it_needs_one() -> None:
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", cors_origins=PAGE, api_key="a-key-of-operators")
    with TestClient(create_producer(settings)) as client:
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        assert client.options("/producers/basic_producer", headers=asked).status_code == 204
        answer = client.post("/producers/basic_producer", headers={"Origin": PAGE})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:8001"])
def test_a_page_that_is_allowed_may_call_the_producer_with_a_key(origin: str, producer: TestClient[Litestar]) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-api-key",
    }
    answer = producer.options("/producers/events", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == origin
    refused = producer.post("/producers/events/generate?number=0", headers={"Origin": origin})
    assert refused.status_code == 400
    assert refused.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("origin", ["http://evil.example", f"{PAGE}.evil.example", "https://page.example", "null"])
def test_no_other_page_may_read_what_the_producer_answers(origin: str, producer: TestClient[Litestar]) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for answer in (producer.options("/producers/events", headers=asked), producer.get("/livez", headers=asked)):
        assert "access-control-allow-origin" not in answer.headers


def test_no_page_may_use_a_method_that_the_producer_has_no_call_for(producer: TestClient[Litestar]) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "DELETE"}
    assert producer.options("/producers/events", headers=asked).status_code == 400


def test_a_record_to_begin_with_is_made_up_and_not_sent(producer: TestClient[Litestar]) -> None:
    answer = producer.get("/producers/events/sample", headers={"Origin": PAGE})  # there is no Kafka to send it to
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert EVENTS.decode_strictly(answer.content).id
    assert producer.get("/producers/events/sample").content != answer.content
