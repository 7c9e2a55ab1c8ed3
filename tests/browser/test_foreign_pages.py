"""What a page of somebody else can do, in a real browser, to both services of the same machine: nothing."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from services import Pipeline, Raw, Service, both, event, value_of

from tools.local_page import with_local_page
from tools.ports import free_ports

ATTACK = (Path(__file__).with_name("attack.js")).read_text()
NUMBER = 20
PATIENCE_MS = 20_000


class Evil(BaseHTTPRequestHandler):
    """A web server that serves an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Kittens</title>")

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Site:
    """Both services as a developer runs them, and a web server of somebody else on the same machine."""

    pipeline: Pipeline
    producer: Service
    consumer: Service
    evil_port: int

    def state(self) -> object:
        """Return what an operator, or a caller of the producer, would have changed."""
        status = self.consumer.status()
        kept = {name: status[name] for name in ("state", "member_id", "messages_consumed_count", "dead_lettered_count")}
        with ThreadPoolExecutor(1) as thread:  # in this one there is Playwright's event loop
            return kept, thread.submit(self.pipeline.end_offsets).result()


@pytest.fixture(scope="module")
def site(chromium: str, bootstrap_servers: str, logs: Path) -> Iterator[Site]:
    assert chromium
    ports = dict(zip(("PRODUCER_PORT", "CONSUMER_PORT"), map(str, free_ports(2)), strict=True))
    of_this_machine = with_local_page(ports)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    with Pipeline(bootstrap_servers, logs) as pipeline, both(pipeline, **of_this_machine) as (producer, consumer):
        producer.send(NUMBER)
        pipeline.write([Raw(value_of(event("seen-by-nobody")), b"seen-by-nobody"), Raw(b"not json", b"bad")])
        consumer.until_consumed(NUMBER + 2)
        yield Site(pipeline, producer, consumer, server.server_address[1])
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield context.new_page()


@pytest.mark.parametrize("host", ["evil.example", "localhost"])
def test_a_page_of_somebody_else_changes_nothing_and_reads_nothing(page: Page, site: Site, host: str) -> None:
    before = site.state()
    page.goto(f"http://{host}:{site.evil_port}/")
    for name in ("localhost", "127.0.0.1"):
        services = {"producer": site.producer.port, "consumer": site.consumer.port}
        urls = {service: f"http://{name}:{port}" for service, port in services.items()}
        tried = page.evaluate(ATTACK, {**urls, "event": event("of-somebody-else")})
        assert tried["calls"] > 40
        assert tried["read"] == []
    assert site.state() == before
    for service in (site.producer, site.consumer):
        asked = [line for line in service.log.read_text().splitlines() if " asked for " in line]
        assert [line for line in asked if ": refused: " not in line] == []


def test_a_page_whose_name_is_led_to_this_machine_changes_nothing_and_reads_nothing(
    browser: Browser, site: Site
) -> None:
    before = site.state()
    with browser.new_context(bypass_csp=True) as context:  # it was served from elsewhere, before its name led here
        page = context.new_page()
        for name, service in product(("rebound.example", "rebound"), (site.producer, site.consumer)):
            url = f"http://{name}:{service.port}"
            answer = page.goto(url)
            assert answer is not None
            assert answer.status == 421
            tried = page.evaluate(ATTACK, {"producer": url, "consumer": url, "event": event("of-somebody-else")})
            assert {line.rpartition(" ")[2] for line in tried["read"]} == {"421"}  # it reads that it may not
    assert site.state() == before


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_live_page_controls_the_consumer_and_creates_events_by_either_name(
    page: Page, site: Site, host: str
) -> None:
    page.goto(f"http://{host}:{site.consumer.port}/?tab=records")
    page.get_by_label("New records").fill("3")
    page.get_by_role("button", name="Create").click()
    page.locator("[name=ask-yes]").click()
    expect(page.locator("#create output")).to_have_text("3 were created.")
    page.get_by_role("link", name="Overview").click()
    for button, state in (("Pause", "paused"), ("Resume", "running")):
        page.get_by_role("button", name=button).click()
        expect(page.locator("#state")).to_have_text(state)


@pytest.mark.parametrize("host", ["evil.example", "localhost"])
def test_a_link_on_another_page_leads_to_the_live_page_and_to_no_search(page: Page, site: Site, host: str) -> None:
    own, evil = f"http://localhost:{site.consumer.port}", f"http://{host}:{site.evil_port}/"
    search = f"{own}/consumers/messages?stream=events&scope=topic&q=guess"
    frame = "url => { document.body.append(Object.assign(document.createElement('iframe'), {src: url})); }"
    link = "url => { location.href = url; }"
    page.goto(evil)
    with page.expect_response(search) as framed:
        page.evaluate(frame, search)
    page.evaluate(link, f"{own}/?tab=overview")
    expect(page.locator("#state")).to_have_text("running")
    page.goto(evil)
    with page.expect_response(search) as opened:
        page.evaluate(link, search)
    assert (framed.value.status, opened.value.status) == (403, 403)


@pytest.mark.parametrize("host", ["evil.example", "localhost"])
def test_a_window_that_another_page_opens_is_out_of_its_hands_and_no_key_presses_a_button_there(
    page: Page, site: Site, host: str
) -> None:
    page.goto(f"http://{host}:{site.evil_port}/")
    with page.expect_popup() as opened:
        page.evaluate("url => { window.opened = open(url); }", f"http://localhost:{site.consumer.port}/#stop")
    popup = opened.value
    expect(popup.locator("#state")).to_have_text("running")
    assert page.evaluate("opened.closed")
    stop = popup.get_by_role("button", name="Stop", exact=True)
    expect(stop).to_be_enabled()
    expect(stop).not_to_be_focused()
    popup.evaluate("() => { window.clicks = 0; onclick = () => { clicks += 1; }; }")
    popup.keyboard.down("Enter")
    popup.evaluate("document.querySelector('[aria-label=\"Control the consumer\"] button:nth-child(2)').focus()")
    expect(stop).to_be_focused()
    popup.keyboard.down("Enter")  # it was held
    assert popup.evaluate("clicks") == 0


@pytest.mark.parametrize("host", ["evil.example", "localhost"])
def test_the_live_page_searches_for_its_user_and_not_for_a_link_of_another_page(
    page: Page, site: Site, host: str
) -> None:
    own = f"http://localhost:{site.consumer.port}/?tab=records"
    search = f"{own}&q=seen-by-nobody"
    page.goto(f"http://{host}:{site.evil_port}/")
    page.evaluate("url => { location.href = url; }", search)
    page.wait_for_url(own)
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#search [name=q]")).to_have_value("")
    page.goto(search)  # entered
    page.reload()
    expect(page.locator("#search [name=q]")).to_have_value("seen-by-nobody")
    assert page.url == search


CLICKABLE = """name => {
  const button = document.querySelector(`button[name=${name}]`);
  const { x, y } = button.getBoundingClientRect();
  return document.elementFromPoint(x + 3, y + 3) === button;
}"""


def test_the_second_click_of_a_double_click_elsewhere_presses_nothing_where_the_page_has_just_come_up(
    page: Page, site: Site
) -> None:
    """Another page puts it under the pointer between the two: by a link, or by closing a window in front of it."""
    look = "window.clicks = getComputedStyle(document.body).pointerEvents"
    page.add_init_script(f"addEventListener('DOMContentLoaded', () => {{ {look}; }})")
    page.goto(f"http://localhost:{site.consumer.port}/?tab=overview")
    assert page.evaluate("clicks") == "none"
    page.wait_for_function(CLICKABLE, arg="stop")
    for comes_up in ("document.dispatchEvent(new Event('visibilitychange'))", "dispatchEvent(new Event('focus'))"):
        assert not page.evaluate(f"() => {{ {comes_up}; return ({CLICKABLE})('stop'); }}")
        page.wait_for_function(CLICKABLE, arg="stop")
    page.get_by_role("button", name="Stop", exact=True).hover()
    assert page.evaluate(f"() => {{ dispatchEvent(new Event('focus')); return ({CLICKABLE})('stop'); }}")
