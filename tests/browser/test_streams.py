"""A consumer of two streams in a browser: the page shows the state of each, and acts on the chosen one alone."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from services import Pipeline, Raw, Service, event, value_of

from tools.ports import free_ports

TWO_STREAMS_CONSUMER = str(Path(__file__).with_name("two_streams_consumer.py"))
PATIENCE_MS = 20_000


@dataclass
class Site:
    """A consumer of two streams; orders fail while the file `failing` is there."""

    events: Pipeline
    consumer: Service
    url: str
    failing: Path


@pytest.fixture(scope="module")
def site(chromium: str, bootstrap_servers: str, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert chromium
    failing = tmp_path_factory.mktemp("handler") / "failing"
    failing.touch()
    port = free_ports(1)[0]
    with Pipeline(bootstrap_servers, logs) as events, Pipeline(bootstrap_servers, logs) as orders:
        variables = {
            "CONSUMER_PORT": str(port),
            "FAILING": str(failing),
            "ORDERS_TOPIC": orders.topic,
            "ORDERS_DEAD_LETTER_TOPIC": orders.dead_letter_topic,
            "ORDERS_GROUP_ID": f"{orders.name}-group",
        }
        with events.running("consumer", TWO_STREAMS_CONSUMER, **variables) as consumer:
            consumer.until_healthy()
            with ThreadPoolExecutor(1) as thread:  # in this one there is the event loop of Playwright
                thread.submit(events.write, [Raw(value_of(event("ada")), key=b"ada")]).result()
                thread.submit(orders.write, [Raw(b'{"order_id": "ord-1"}', key=b"ord-1")]).result()
                thread.submit(orders.write, [Raw(b"not json", key=b"bad")], 1).result()
            yield Site(events, consumer, f"http://localhost:{port}", failing)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context(locale="en-GB") as context:
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        errors: list[str] = []
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        assert errors == []


def test_each_stream_is_shown_with_its_own_state_and_records_at_an_address_of_its_own(page: Page, site: Site) -> None:
    page.goto(site.url)
    links = page.get_by_role("navigation", name="Streams").get_by_role("link")
    expect(links).to_have_text(["eventsrunning", "ordersretryinglag 11 dead"])
    expect(page).to_have_title("running · events · orders retrying · Consumer")
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#health")).to_have_text("Health of events ok: events are consumed")
    expect(page.locator("#health")).to_have_class("muted")
    expect(page.locator("#others")).to_have_text("The service is unavailable because of orders.")
    page.get_by_role("link", name="Records").click()
    expect(page.locator("#record-list [data-name=key]")).to_have_text(["ada"])
    expect(links.last).to_have_attribute("href", "?stream=orders&tab=records")
    page.go_back()
    expect(links.last).to_have_attribute("href", "?stream=orders")
    links.last.click()
    expect(page).to_have_title("retrying, unavailable · orders · Consumer")
    expect(page.locator("#state")).to_have_text("retrying")
    expect(page.locator("#health")).to_contain_text("Health of orders unavailable: ")
    expect(page.locator("#last-error")).to_contain_text("no database")
    assert page.url == f"{site.url}/?stream=orders"
    page.go_back()
    expect(page).to_have_title("running · events · orders retrying · Consumer")


def test_a_button_changes_the_stream_that_is_shown_and_no_other(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/?stream=orders")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#state")).to_have_text("stopped")
    streams = site.consumer.status()["streams"]
    assert {name: one["state"] for name, one in streams.items()} == {"events": "running", "orders": "stopped"}
    page.get_by_role("link", name="events").click()
    expect(page).to_have_title("running · events · orders stopped · Consumer")
    page.go_back()
    site.failing.unlink()
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator("#facts dd").first).to_have_text("1")
    page.get_by_role("link", name="Records").click()
    (row := page.locator("#record-list > tr").filter(has_text="ord-1")).wait_for()
    expect(row.locator(".value")).to_have_text(['{"order_id":"ord-1"}'])
    assert page.url == f"{site.url}/?stream=orders&tab=records"


def test_the_answer_to_a_command_names_its_stream_and_takes_no_later_state_for_its_own(page: Page, site: Site) -> None:
    page.clock.install()
    page.goto(site.url)
    said = page.locator("#control-said")
    page.get_by_role("button", name="Pause").click()
    expect(said).to_have_text(re.compile(r"^Pause of events at \S+: it is paused\.$"))
    page.clock.fast_forward(15_000)
    site.consumer.post("/consumers/resume")
    expect(page.locator("#state")).to_have_text("running")
    expect(said).to_have_text(re.compile(r"^Pause of events at \S+\.$"))


def test_each_stream_is_red_as_soon_as_its_state_says_that_it_is_unavailable(page: Page, site: Site) -> None:
    well = {"status": "ok", "service": "consumer", "version": "0", "kafka": "connected", "detail": "all is well"}
    page.route("**/health-check?stream=orders", lambda route: route.fulfill(json=well))  # as it was read before

    def without_orders(route: Route) -> None:
        document = route.fetch().json()
        document["streams"]["orders"]["state"] = "reconnecting"
        route.fulfill(json=document)

    page.route("**/consumers/status", without_orders)
    page.goto(site.url)
    expect(page.locator("#streams .pill").last).to_have_text("reconnecting")
    expect(page.locator("#streams .pill").last).to_have_attribute("data-health", "unavailable")
    expect(page.locator("#others")).to_have_text("The service is unavailable because of orders.")


def test_the_number_of_dead_letters_is_the_same_in_the_head_and_at_the_tab_at_every_moment(
    page: Page, site: Site
) -> None:
    page.goto(f"{site.url}/?stream=orders&tab=dead")
    expect(page.locator("#streams [aria-current] .dead")).to_be_attached()
    page.evaluate(
        """() => {
          window.numbers = [];
          const text = (selector) => document.querySelector(selector).textContent;
          const head = () => text("#streams [aria-current] .dead").replace(" dead", "") || "0";
          const note = () => window.numbers.push([head(), text("#dead-count")]);
          new MutationObserver(note).observe(document.getElementById("head"), { childList: true, subtree: true });
        }"""
    )
    expect(page.locator("#dead-count")).to_have_text("1")
    page.get_by_role("button", name="Discard all (1) …").click()
    page.get_by_role("button", name="Discard 1", exact=True).click()
    expect(page.locator("#dead-count")).to_have_text("0")
    numbers = page.evaluate("window.numbers")
    assert ["0", "0"] in numbers
    assert [pair for pair in numbers if pair[0] != pair[1]] == []


def test_a_stream_that_is_not_there_is_named(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/?stream=unknown")
    expect(page.locator("#no-stream")).to_have_text('There is no stream "unknown" here: this is events.')
    expect(page.locator("#state")).to_have_text("running")


def test_what_failed_to_be_read_is_read_again_long_before_its_turn(page: Page, site: Site) -> None:
    counts = "**/consumers/dead-letters/reasons?stream=orders"
    page.clock.install()
    page.route(counts, lambda route: route.fulfill(status=503, body="neither a problem nor JSON"))
    page.goto(site.url)
    notices = page.locator("#notices")
    expect(notices).to_have_text("Cannot read dead-letter count of orders: it answers 503. Trying again.")
    page.unroute(counts)
    page.clock.pause_at(page.evaluate("Date.now() / 1_000") + 4)
    expect(notices).to_have_text("")


def test_what_was_not_read_yet_is_shown_by_dots(page: Page, site: Site) -> None:
    page.clock.install(time=0)
    page.clock.pause_at(1)  # so that no answer is late
    page.route("**/consumers/*", lambda _: None)
    on_overview = "#history-at, #lag-waiting, #group, #no-actions"
    for tab, places in {"overview": on_overview, "records": "#records-said", "dead": "#no-letters"}.items():
        page.goto(f"{site.url}?tab={tab}")
        expect(page.locator(places)).to_have_text(["…"] * len(places.split()))


def test_the_page_shows_no_record_that_the_topic_has_lost_meanwhile(page: Page, site: Site) -> None:
    page.goto(f"{site.url}?tab=records&key=ada")
    row = page.locator("#record-list > tr")
    row.locator("a").click()
    expect(page.locator("#record pre")).to_be_visible()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(site.events.delete_before, {0: 1}).result()
    expect(row).to_have_count(0)
    expect(page.locator("#record")).to_contain_text("It cannot be shown: ")
    expect(page.locator("#records-said")).to_have_text("The topic no longer has partition 0, offset 0.")
