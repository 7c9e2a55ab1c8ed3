"""Both services behind a real nginx with TLS and a path prefix, in a real browser: nothing leads out of the prefix."""

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
import trustme
from playwright.sync_api import Browser, Page, expect
from proxies import documented_location, nginx
from services import Pipeline, Service, event

from apps.chassis.http.health import VERSION
from tools.ports import free_ports

PREFIXES = {"producer": "/a/kafka/producer", "consumer": "/a/kafka/consumer"}
PATIENCE_MS = 20_000


@dataclass
class Site:
    """What a browser sees; the consumer knows its prefix and its host, and the producer does not."""

    origin: str
    producer: Service
    consumer: Service
    trust: ssl.SSLContext

    def url(self, service: str, path: str = "/") -> str:
        return f"{self.origin}{PREFIXES[service]}{path}"


@pytest.fixture(scope="module")
def site(chromium: str, bootstrap_servers: str, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert chromium
    folder = tmp_path_factory.mktemp("nginx")
    port, *others = free_ports(3)
    ports = dict(zip(("producer", "consumer"), others, strict=True))
    locations = {service: documented_location(prefix, ports[service]) for service, prefix in PREFIXES.items()}
    locations["producer"] = re.sub("proxy_set_header Host .*", "", locations["producer"])
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    certificate = folder / "certificate.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    tls = f"listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate};"
    origin = f"https://localhost:{port}"
    with (
        nginx(folder, "".join(locations.values()), server=tls),
        Pipeline(bootstrap_servers, logs) as pipeline,
        pipeline.producer(PRODUCER_PORT=str(ports["producer"])) as producer,
        pipeline.consumer(
            CONSUMER_PORT=str(ports["consumer"]),
            ROOT_PATH=PREFIXES["consumer"],
            PRODUCER_URL=f"{origin}{PREFIXES['producer']}/",
        ) as consumer,
    ):
        producer.until_healthy()
        consumer.until_healthy()
        yield Site(origin, producer, consumer, trust)


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A page that asks for nothing outside of the prefixes, is given all that it asks for, and breaks no rule."""
    with browser.new_context(ignore_https_errors=True) as context:
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page = context.new_page()
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
        page.on("console", lambda said: failed.append(said.text) if "Security Policy" in said.text else None)
        yield page
        of_network = [url for url in asked if urlsplit(url).scheme.startswith("http")]
        outside = [url for url in of_network if not url.startswith(f"{site.origin}/a/kafka/")]
        assert (outside, failed) == ([], [])


def test_the_live_page_shows_controls_and_creates_events_behind_a_prefix(page: Page, site: Site) -> None:
    page.goto(site.url("consumer", "/?tab=records"))
    page.get_by_label("New records").fill("3")
    page.get_by_role("button", name="Create").click()
    page.locator("[name=ask-yes]").click()
    expect(page.locator("#create output")).to_have_text("3 were created.")
    expect(page.locator("#record-list > tr")).to_have_count(3)
    page.get_by_role("link", name="Overview").click()
    for button, state in (("Pause", "paused"), ("Resume", "running")):
        page.get_by_role("button", name=button).click()
        expect(page.locator("#state")).to_have_text(state)


def test_a_new_record_is_sent_and_its_receipt_leads_to_it_behind_a_prefix(page: Page, site: Site) -> None:
    page.goto(site.url("consumer", "/?tab=records"))
    page.get_by_role("button", name="New record …").click()
    form = page.locator("#produce")
    expect(form.get_by_label("id")).not_to_have_value("")
    form.get_by_label("text").fill("behind a prefix")
    form.get_by_role("button", name="Send", exact=True).click()
    form.get_by_role("link", name="partition").click()
    expect(page.locator("#record pre")).to_contain_text("behind a prefix")
    expect(page).to_have_url(re.compile(f"^{re.escape(site.url('consumer'))}\\?tab=records&open=\\d+-\\d+$"))


def test_the_live_stream_of_records_passes_the_proxy(page: Page, site: Site) -> None:
    page.goto(site.url("consumer"))
    event = page.evaluate(
        """() => new Promise((resolve, reject) => {
          setTimeout(() => reject(new Error("no event came")), 15_000);
          const events = new EventSource("consumers/messages/stream");
          events.onmessage = (event) => { events.close(); resolve(event.data); };
          events.onopen = () => fetch("../producer/producers/events/generate?number=1", { method: "POST" });
        })"""
    )
    assert '"partition"' in event


@pytest.mark.parametrize("service", PREFIXES)
def test_each_link_of_a_first_page_leads_to_a_page_behind_the_prefix(page: Page, site: Site, service: str) -> None:
    page.goto(site.url(service))
    links = page.locator("a[href]:not([href^='#'])")
    expect(links.first).to_be_attached()
    for address in links.evaluate_all("links => links.map((link) => link.href)"):
        answer = page.goto(address)
        assert answer is not None
        assert answer.ok


@pytest.mark.parametrize(("service", "path"), [("consumer", "/docs")])
def test_a_call_can_be_tried_out_behind_a_prefix(page: Page, site: Site, service: str, path: str) -> None:
    page.goto(site.url(service, path))
    assert page.url.rstrip("/") == site.url(service, "/schema")
    call = page.locator(".opblock-get").filter(has_text="/livez")
    call.locator(".opblock-summary-control").click()
    call.get_by_role("button", name="Try it out").click()
    call.get_by_role("button", name="Execute").click()
    expect(call.locator(".live-responses-table .response .response-col_status")).to_contain_text("200")
    expect(call.locator(".request-url")).to_contain_text(site.url(service, "/livez"))


@pytest.mark.parametrize(("service", "path"), [("producer", "/asyncapi/")])
def test_the_topics_are_described_behind_a_prefix(page: Page, site: Site, service: str, path: str) -> None:
    page.goto(site.url(service, path))
    expect(page.locator("#asyncapi h1").first).to_have_text(f"{service.title()} {VERSION}")


def test_the_type_of_a_problem_leads_to_its_meaning_behind_the_prefix(site: Site) -> None:
    with httpx.Client(verify=site.trust) as http:
        url = site.url("consumer", "/consumers/seek")
        problem = http.post(url, json={"to": "nowhere"}).json()
        meaning = http.get(urljoin(url, problem["type"]))
        assert (meaning.status_code, meaning.json()["type"]) == (200, problem["type"])
        foreign = http.post(url, json={"to": "end"}, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert http.get(urljoin(url, foreign.json()["type"])).status_code == 200
        receipt = http.post(site.url("producer", "/producers/events"), json=event())
        assert receipt.status_code == 201


def test_behind_tls_a_page_of_the_same_origin_may_steer_and_none_that_only_looks_like_it(site: Site) -> None:
    foreign = [
        "null",
        "https://localhost",
        f"{site.origin}0",
        f"{site.origin}.evil.example",
        f"https://localhost.evil.example:{urlsplit(site.origin).port}",
        f"{site.origin}, {site.origin}",
    ]
    with httpx.Client(verify=site.trust) as http:
        nowhere = site.url("consumer", "/consumers/seek")
        answers = [
            http.post(nowhere, json={"to": "nowhere"}, headers={"Origin": one}) for one in [site.origin, *foreign]
        ]
        assert [answer.status_code for answer in answers] == [400] + [403] * len(foreign)
