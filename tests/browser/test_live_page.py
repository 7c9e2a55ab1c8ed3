"""The live page in a real browser, on both services and a real Kafka; whatever is not on this machine is wrong."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from csv import reader
from dataclasses import dataclass, field
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, Request, Route, ViewportSize, expect
from services import PATIENCE, Pipeline, Raw, Service, event, value_of

from apps.consumer.browsing.record_view import View, show
from apps.consumer.browsing.routes import StoredMessages
from contracts.sensitive import Sensitive
from contracts.stream import Stream
from tests.batches import Stored
from tests.handlers import REFUSED
from tools.ports import free_ports

T = TypeVar("T")

PATIENCE_MS = 20_000
NEWEST = 30
"""Records that the page shows."""
DESKTOP = ViewportSize(width=1280, height=800)
PHONE = ViewportSize(width=375, height=812)
IMAGE = "<img src=x onerror=window.ran='name'>"
SCRIPT = "</script><script>window.ran = 'key'</script>"
"""What would run if a page made HTML of it."""


def elsewhere(work: Callable[..., T], *arguments: object) -> T:
    """Do what runs an event loop of its own: in this thread there is Playwright's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work, *arguments).result()


@dataclass
class Site:
    """Both services, for a browser; `refusing` is the file whose presence makes the handler refuse."""

    pipeline: Pipeline
    refusing: Path
    producer: Service = field(init=False)
    consumer: Service = field(init=False)
    consumer_port: str = field(default_factory=lambda: str(free_ports(1)[0]))

    @property
    def url(self) -> str:
        return f"http://localhost:{self.consumer_port}"

    def start_producer(self) -> Service:
        self.producer = self.pipeline.producer(CORS_ORIGINS=self.url)
        return self.producer

    def start_consumer(self) -> Service:
        variables = {
            "CONSUMER_PORT": self.consumer_port,
            "PRODUCER_URL": f"http://localhost:{self.producer.port}",
            "REFUSING": str(self.refusing),
        }
        self.consumer = self.pipeline.consumer("refusing", **variables)
        return self.consumer

    @property
    def consumed(self) -> int:
        return int(self.consumer.status()["messages_consumed_count"])

    def write(self, *records: Raw) -> None:
        """Write records, and wait until each was handled or dead-lettered."""
        status = self.consumer.status()
        elsewhere(self.pipeline.write, records)
        self.consumer.until_consumed(status["messages_consumed_count"] + status["dead_lettered_count"] + len(records))

    def pipeline_ends(self) -> list[int]:
        """Return the end offset of each partition."""
        return [*elsewhere(self.pipeline.end_offsets).values()]

    def letters(self) -> list[dict[str, Any]]:
        return list(self.consumer.get("/consumers/dead-letters", limit=100)["dead_letters"])


@pytest.fixture(scope="module")
def site(chromium: str, bootstrap_servers: str, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both services, once a browser is there."""
    assert chromium
    refusing = tmp_path_factory.mktemp("handler") / "refuses"
    refusing.touch()
    with Pipeline(bootstrap_servers, logs) as pipeline:
        site = Site(pipeline, refusing)
        with site.start_producer() as producer, site.start_consumer() as consumer:
            producer.until_healthy()
            consumer.until_healthy()
            yield site
            site.consumer.__exit__()  # the one of a restart, if there was one


@dataclass
class Tab:
    """A tab of the browser, and what it asked of others than both services, or did against its own rules."""

    page: Page
    wrong: list[str] = field(default_factory=list)

    def empty(self, site: Site) -> None:
        """Leave it as a new one: that would take four times as long."""
        self.page.unroute_all(behavior="ignoreErrors")
        for other in self.page.context.pages:
            if other != self.page:
                other.close()
        self.page.context.clear_permissions()
        self.page.set_viewport_size(DESKTOP)
        self.page.emulate_media(color_scheme="null")
        devtools = self.page.context.new_cdp_session(self.page)
        devtools.send("Storage.clearDataForOrigin", {"origin": site.url, "storageTypes": "all"})
        devtools.detach()
        self.wrong.clear()

    def note_error(self, error: Error) -> None:
        self.wrong.append(str(error))

    def note_broken_rule(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text or "Uncaught" in message.text:
            self.wrong.append(message.text)

    def note_what_is_elsewhere(self, request: Request) -> None:
        if urlsplit(request.url).hostname not in {"localhost", "127.0.0.1", None}:  # a blob is nowhere
            self.wrong.append(request.url)


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Tab]:
    with browser.new_context(locale="en-GB", viewport=DESKTOP) as context:
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        tab = Tab(context.new_page())
        tab.page.on("console", tab.note_broken_rule)
        tab.page.on("pageerror", tab.note_error)
        context.on("request", tab.note_what_is_elsewhere)  # a route would take each request twice the work
        yield tab


@pytest.fixture
def page(tab: Tab, site: Site) -> Iterator[Page]:
    """The live page, while the consumer runs; it asked nobody but both services, and broke none of its own rules."""
    site.consumer.post("/consumers/start")
    tab.empty(site)
    tab.page.goto(site.url)
    expect(state(tab.page)).to_have_text("running")
    yield tab.page
    assert tab.wrong == []


def state(page: Page) -> Locator:
    return page.locator("#state")


def total_lag(page: Page) -> int:
    return int((page.locator("#lag-total").text_content() or "0").replace(",", ""))


def rows(page: Page, text: str) -> Locator:
    """The listed records in which a text stands."""
    return page.locator("#record-list > tr").filter(has_text=text)


def go_to(page: Page, tab: Literal["Overview", "Records", "Dead letters"]) -> None:
    """Choose a tab."""
    page.get_by_role("navigation", name="Sections").get_by_role("link", name=tab).click()


def create(page: Page, number: int) -> None:
    """Create records on the page, and return to the overview."""
    go_to(page, "Records")
    page.get_by_label("New records").fill(str(number))
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.locator("#ask-question")).to_contain_text(f"{number} invented records will be written to events")
    page.locator("[name=ask-yes]").click()
    expect(page.locator("#create output")).to_have_text(f"{number} were created.")
    go_to(page, "Overview")


def serious(page: Page) -> list[Any]:
    """Return what keeps somebody from using what is shown."""
    found = Axe().run(page).response["violations"]
    return [one for one in found if one["impact"] in {"serious", "critical"}]


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Wait for a condition while the page goes on."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def test_records_created_on_the_page_arrive_on_it(page: Page, site: Site) -> None:
    before = site.consumed
    create(page, 7)
    expect(page.locator("#facts dd").first).to_have_text(f"{before + 7:,}")
    expect(page.locator("#lag-rows td:last-child")).to_have_text(["this instance"] * 6)
    expect(page.locator("#member-rows td").last).to_have_text("0, 1, 2, 3, 4, 5")
    expect(page.locator("#rebalance")).to_contain_text("this instance joined the group")
    go_to(page, "Records")
    expect(page.locator("#record-list > tr")).to_have_count(min(before + 7, NEWEST))
    page.locator("#record-list a").first.click()
    shown = json.loads(page.locator("#record pre").text_content() or "")
    assert shown.keys() == event().keys()


def test_while_it_is_stopped_the_lag_grows_and_after_a_start_it_falls(page: Page, site: Site) -> None:
    until(page, lambda: site.consumer.status()["lag"] == 0)
    page.get_by_role("button", name="Stop").focus()
    page.keyboard.press("Enter")
    expect(state(page)).to_have_text("stopped")
    expect(page.locator("#control-said")).to_be_focused()
    create(page, 40)
    until(page, lambda: total_lag(page) == 40)
    expect(page.locator("#lag-rows td:last-child")).to_have_text(["nobody"] * 6)
    page.get_by_role("button", name="Start", exact=True).click()
    expect(state(page)).to_have_text("running")
    until(page, lambda: total_lag(page) == 0)
    page.get_by_role("button", name="Pause").click()
    expect(state(page)).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(state(page)).to_have_text("running")
    assert site.consumer.status()["state"] == "running"


def test_a_seek_asks_first_and_says_how_many_records_it_concerns(page: Page, site: Site) -> None:
    site.write(Raw(value_of(event())), Raw(value_of(event())))
    before, handled = site.consumed, sum(site.pipeline_ends())
    place, said = page.get_by_label("Consume from"), page.locator("#control-said")
    seek = page.get_by_role("button", name="Seek …")
    expect(place).to_have_value("")  # nothing is chosen before somebody chooses
    seek.click()
    expect(said).to_have_text("")
    place.select_option("beginning")
    seek.click()
    expect(page.locator("#ask-question")).to_have_text(
        f"events, all partitions, from the beginning: up to {handled:,} records will be handled again; "
        "no record will be skipped and never handled. "
        "Records that fail again become dead letters again, also those that are dead letters already."
    )
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(said).to_have_text("Nothing was moved.")
    assert site.consumed == before
    seek.click()
    page.get_by_role("button", name="Seek", exact=True).click()
    expect(said).to_have_text(
        "events is consumed from the beginning: " + ", ".join(f"partition {p} from offset 0" for p in range(6)) + "."
    )
    until(page, lambda: site.consumed > before)
    place.select_option("offset")
    page.locator("#seek [name=partition]").fill("0")
    page.locator("#seek [name=offset]").fill("999999")
    seek.click()
    expect(said).to_contain_text("That failed: partition 0 has offsets")
    place.select_option("time")
    page.locator("#seek [name=time]").fill("2020-01-01T00:00:00")
    until(page, lambda: site.consumer.status()["lag"] == 0)
    seek.click()
    with_zone = re.compile("^1 Jan 2020, 00:00:00 [A-Z]")
    expect(page.locator("#ask-question time")).to_have_attribute("title", with_zone)
    page.get_by_role("button", name="Seek", exact=True).click()
    expect(said).to_have_text("events is consumed from 2020-01-01 00:00:00: partition 0 from offset 0.")
    expect(said.locator("time")).to_have_attribute("title", with_zone)
    actions = page.locator("#action-rows > tr")
    expect(actions.nth(0)).to_contain_text("seekstream events, to 2020-01-01 00:00:00, partition 0done")
    expect(actions.nth(1)).to_contain_text(
        "seek: dry runstream events, to 2020-01-01 00:00:00, partition 0only counted"
    )
    expect(actions.nth(1).locator("time").last).to_have_attribute("title", with_zone)


def test_a_dead_letter_that_is_sent_back_arrives(page: Page, site: Site) -> None:
    site.refusing.touch()
    before = site.letters()
    waiting = len([one for one in before if not one["redriven"]])
    old = event("the-old-one", text=REFUSED)
    site.write(Raw(value_of(old), b"the-old-one"), Raw(b"not json", b"bad"))
    expect(page.locator("#dead-count")).to_have_text(str(waiting + 2))  # from every tab
    go_to(page, "Dead letters")
    letters = page.locator("#dead-list > tr")
    expect(letters).to_have_count(len(before) + 2)
    page.get_by_label("Reason").fill("the text")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(letters).to_have_count(1)
    expect(letters.first).to_contain_text("the text refused is not taken")
    assert "tab=dead&reason=the+text" in page.url
    site.refusing.unlink()
    letters.first.get_by_role("button").click()
    expect(page.locator("#dead-said")).to_contain_text("1 was sent back.")
    expect(letters.first).to_contain_text("sent back")
    expect(letters.first.locator("a").first).to_be_focused()
    none = page.get_by_role("button", name="Send back all that match (0) …")  # the filter holds
    expect(none).to_be_disabled()
    expect(none).to_have_attribute("title", "There is none to send back.")
    page.get_by_role("button", name="Show all").click()
    expect(letters).to_have_count(len(before) + 2)
    page.get_by_role("button", name="Send back all").click()
    expect(page.locator("#ask-question")).to_contain_text(f"{waiting + 1} dead letter")
    page.get_by_role("button", name=f"Send back {waiting + 1}").click()
    expect(page.locator("#dead-said")).to_contain_text(f"{waiting + 1} w")  # bad ones are dead-lettered again
    expect(letters).to_have_count(len(before) + 2 + waiting + 1)
    reason = page.locator("#reasons a").first
    reason.click()
    expect(reason).to_have_attribute("aria-current", "true")
    expect(page.locator("[name=redrive]")).to_be_focused()
    go_to(page, "Records")
    expect(rows(page, REFUSED)).to_have_count(2)  # the first one and the one that was sent back


def test_a_hostile_record_is_text_and_nothing_of_it_runs(page: Page, site: Site) -> None:
    hostile = event("hostile", text=IMAGE + SCRIPT)
    headers = ((IMAGE, SCRIPT.encode()), ("null", None), ("bytes", b"\xff"))
    site.write(Raw(value_of(hostile), SCRIPT.encode(), headers), Raw(SCRIPT.encode(), IMAGE.encode(), headers))
    go_to(page, "Records")
    row = rows(page, "hostile")
    expect(row).to_contain_text(SCRIPT)
    row.locator("a").click()
    panel = page.locator("#record")
    expect(panel.locator("dt", has_text=IMAGE)).to_have_count(1)
    expect(panel.locator("dd", has_text=SCRIPT)).to_have_count(2)  # the header and the key
    expect(panel.locator("dd", has_text="base64 /w==")).to_have_count(1)
    go_to(page, "Dead letters")
    page.locator("#dead-list > tr").filter(has_text="JSON").first.locator("a").first.click()
    expect(page.locator("#letter pre")).to_have_text(SCRIPT)
    assert page.evaluate("window.ran") is None
    assert page.locator("main :is(img, script, i:not(.key))").count() == 0


def test_records_are_found_on_the_topic(page: Page, site: Site) -> None:
    text = f"{60 * 'x'} Ada Sought"  # which a row cuts off before the match, unless it begins later
    site.write(*(Raw(value_of(event(f"ada-{number}", text=text)), b"sought") for number in range(120)))
    go_to(page, "Records")
    search = page.locator("#search")
    page.get_by_label("Contains").fill("Ada Sought")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#record-list > tr")).to_have_count(100)
    page.locator("#record-list a").first.click()  # beside the open record a row has less room
    expect(page.locator("#record pre")).to_be_visible()
    mark = page.locator("#record-list mark").first
    expect(mark).to_have_text("Ada Sought")
    ends = "node => [node, node.closest('td')].map((one) => one.getBoundingClientRect().right)"
    end, end_of_cell = mark.evaluate(ends)
    assert end < end_of_cell
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#record-list > tr")).to_have_count(120)
    expect(page.locator("#records-said")).to_contain_text("120 found;")
    search.locator("[name=key]").fill("no such key")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#records-said")).to_contain_text("0 found;")
    page.go_back()
    expect(search.locator("[name=key]")).to_have_value("")
    expect(page.locator("#record-list > tr")).to_have_count(100)
    page.locator("#lookup [name=partition]").fill("0")
    page.locator("#lookup [name=offset]").fill("0")
    page.get_by_role("button", name="Look up").click()
    expect(page.locator("#record pre")).to_be_visible()
    assert page.url.endswith("open=0-0")
    page.locator("#lookup [name=offset]").fill("999999")
    page.get_by_role("button", name="Look up").click()
    expect(page.locator("#record")).to_contain_text("nothing was written there yet")
    page.get_by_role("button", name="Back to the newest").click()
    expect(page.locator("#record-list > tr")).to_have_count(NEWEST)
    expect(page.locator("#record")).to_be_hidden()


def test_the_page_survives_a_restart_of_the_service(page: Page, site: Site) -> None:
    site.write(*(Raw(value_of(event())) for _ in range(NEWEST)), Raw(b"not json", b"bad"))
    go_to(page, "Dead letters")
    send_back = page.locator("#dead-list").get_by_role("button", name="Send back").first
    expect(send_back).to_be_enabled()
    page.route("**/dead-letters?*", lambda call: call.abort())
    expect(page.locator("body")).to_have_attribute("data-failing", "dead letters")
    elsewhere(site.consumer.__exit__)
    expect(state(page)).to_have_text("unknown")
    expect(page.locator("#notices")).to_have_text(
        re.compile(r"^Service gone since \S+: no answer\. What is dimmed is from before\. Trying again\.$")
    )
    assert (page.locator("#head").text_content() or "").count("no answer") == 1
    for off in (send_back, page.locator("[name=reload]"), page.get_by_role("button", name="Filter", exact=True)):
        expect(off).to_be_disabled()
    assert serious(page) == []
    page.get_by_label("Show the discarded").check()
    expect(page.locator("#no-letters")).to_have_text("The dead letters cannot be read: no answer")
    expect(page.locator("#dead-list > tr")).to_have_count(0)  # those that were listed are not the discarded
    go_to(page, "Overview")
    for button in ("Start", "Stop", "Pause", "Resume", "Seek …"):
        off = page.get_by_role("button", name=button, exact=True)
        expect(off).to_be_disabled()
        expect(off).to_have_attribute("title", "The service does not answer.")
    page.unroute("**/dead-letters?*")
    site.start_consumer()
    expect(state(page)).to_have_text("running")
    expect(page.locator("#notices .trouble")).to_have_count(0)
    expect(page.locator("#facts")).to_have_css("opacity", "1")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    go_to(page, "Records")
    expect(page.locator("#record-list > tr")).to_have_count(NEWEST)


def test_who_signs_in_is_named_and_sees_what_their_key_allows(page: Page, site: Site, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ada:the-key-that-reads roles=read\ngrace:the-key-of-grace roles=read,read:sensitive,operate\n")
    nobody_listens = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}

    def sign_in(key: str) -> None:
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")

    with site.pipeline.consumer("refusing", REFUSING="", API_KEY_FILE=str(keys), **nobody_listens) as consumer:
        consumer.until_answers("/livez", 200)
        page.goto(f"http://localhost:{consumer.port}")
        expect(page.locator("#notices")).to_contain_text("needs a key with the role read")
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        sign_in("a-key-of-nobody-at-all")
        expect(page.locator("#sign-in-said")).to_have_text("That failed: the key is not accepted")
        sign_in("the-key-that-reads")
        expect(page.locator("#who")).to_have_text("ada: read (sensitive fields are masked)")
        expect(page.locator("#last-error")).to_contain_text("127.0.0.1:1")
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        expect(page.locator("#actions")).to_be_hidden()
        assert page.evaluate("document.cookie") == ""
        see_what_is_masked(page)
        page.evaluate("document.body.append('shown to ada')")
        page.context.clear_cookies(name=re.compile("^consumer_session"))  # as another tab does that signs out
        expect(page.locator("body")).not_to_contain_text("shown to ada", timeout=20_000)
        expect(page.locator("#who")).to_have_text("")
        consumer.http.post("/consumers/pause", headers={"X-API-Key": "the-key-that-reads"})
        sign_in("the-key-of-grace")
        expect(page.locator("#who")).to_have_text("grace: read, read:sensitive, operate")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("#control-said")).to_contain_text(": it is stopped.")
        rows = page.locator("#action-rows > tr")
        expect(rows).to_have_text([re.compile("grace *stop *stream events *done"), re.compile("ada *pause *refused")])
        plain = rows.first.locator("td").last.evaluate("node => getComputedStyle(node).color")
        expect(rows.last.locator("td").last).not_to_have_css("color", plain)


def test_a_sign_out_that_fails_says_where_and_is_offered_again(page: Page, site: Site) -> None:
    port = free_ports(1)[0]
    own, key = f"http://localhost:{port}", "a-key-of-everybody"
    settings = {"API_KEY": key, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "CONSUMER_PORT": str(port), "REFUSING": ""}
    with (
        site.pipeline.producer(CORS_ORIGINS=own, **settings) as producer,
        site.pipeline.consumer("refusing", PRODUCER_URL=f"http://localhost:{producer.port}", **settings) as consumer,
    ):
        for service in (producer, consumer):
            service.until_answers("/livez", 200)
        page.goto(f"{own}/?tab=records&q=Sesame")
        expect(page.locator("#produce :is(input, textarea):not([autocomplete=off])")).to_have_count(0)
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        for name, service in (("producer", producer), ("consumer", consumer)):
            silent = f"http://localhost:{service.port}/session/end"
            page.route(silent, lambda call: call.abort())
            page.get_by_role("button", name="Sign out").click()
            said = f"That failed: the session at the {name} does not end: no answer"
            expect(page.locator("#sign-out-said")).to_have_text(said)
            expect(page.locator("#who")).to_contain_text("operate")
            page.unroute(silent)
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("#who")).to_have_text("")
        expect(page).to_have_url(f"{own}/?tab=records")
        assert not [one for one in page.context.cookies() if "_session" in str(one.get("name"))]


def answering(body: bytes) -> Callable[[Route], None]:
    return lambda route: route.fulfill(body=body, content_type="application/json")


def see_what_is_masked(page: Page) -> None:
    """Look at a record as the service shows it to a key without `read:sensitive`."""
    kind = msgspec.defstruct("Kind", [("id", Annotated[str, Sensitive()]), ("mood", str)])
    stream = Stream[Any]("events", kind, key=lambda one: one.id)
    record = Stored(key=b"Sesame", value=b'{"id": "Sesame", "mood": "happy"}', headers=[("whose", b"Sesame")])
    shown = show(View(stream.decode, stream.masking), record)
    answer = StoredMessages(1, [shown], None, 1, None)
    for path, content in {"messages?*": answer, "messages/0/0*": shown}.items():
        page.route(f"**/consumers/{path}", answering(msgspec.json.encode(content)))
    go_to(page, "Records")
    row = page.locator("#record-list > tr")
    expect(row).to_contain_text('masked{"id":"…","mood":"happy"}')
    assert "read:sensitive" in str(row.get_by_text("masked").get_attribute("title"))
    row.get_by_role("link").click()
    expect(page.locator("#record")).to_contain_text("whose")
    expect(page.locator("#record").get_by_text("masked")).to_be_visible()
    expect(page.get_by_role("button", name="Send again")).to_have_count(0)
    assert "Sesame" not in page.content()
    page.unroute_all()
    go_to(page, "Overview")


def test_one_call_that_fails_or_hangs_hides_nothing_else(page: Page, site: Site) -> None:
    hanging: list[Route] = []

    def leave_unanswered(route: Route) -> None:
        hanging.append(route)

    page.route("**/consumers/history?*", leave_unanswered)
    page.route("**/consumers/group?*", lambda route: route.fulfill(status=503, body="neither a problem nor JSON"))
    expect(page.locator("#notices")).to_contain_text("Cannot read group: it answers 503")
    consumed = page.locator("#facts dd").first
    before = consumed.text_content()
    elsewhere(lambda: site.producer.post("/producers/events/generate?number=3"))
    expect(consumed).not_to_have_text(before or "")
    page.unroute("**/consumers/group?*")
    expect(page.locator("#notices")).not_to_contain_text("group")
    until(page, lambda: bool(hanging))
    page.wait_for_timeout(100)
    assert len(hanging) == 1  # one at a time
    hanging[0].abort()


def test_without_a_producer_that_answers_no_records_can_be_created(page: Page, site: Site) -> None:
    page.route(f"http://localhost:{site.producer.port}/**", lambda route: route.abort())
    go_to(page, "Records")
    expect(page.locator("#create")).to_be_hidden()
    expect(page.get_by_role("button", name="New record …")).to_be_hidden()
    expect(page.locator("#no-producer")).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")
    expect(page.locator("#create")).to_be_visible()


def test_nothing_keeps_anybody_from_using_the_page(page: Page, site: Site) -> None:
    site.write(Raw(value_of(event())), Raw(b"not json", b"bad"))
    schemes: list[Literal["light", "dark"]] = ["light", "dark"]
    opened = {"Overview": "#lag-rows tr", "Records": "#record pre", "Dead letters": "#letter pre"}
    for tab, selector in opened.items():
        page.set_viewport_size(DESKTOP)
        go_to(page, tab)  # type: ignore[arg-type]  # the names of the tabs
        page.get_by_text("As a table").click() if tab == "Overview" else page.locator(".list:visible a").first.click()
        expect(page.locator(selector).first).to_be_visible()
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            assert serious(page) == []
        page.set_viewport_size(PHONE)
        expect(page.locator(".fold form:visible")).to_have_count(0)  # it would fill the first screen
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_record_is_sent_again_with_another_text(page: Page, site: Site) -> None:
    site.write(Raw(value_of(event("ada", text="It snows.")), b"ada"))
    go_to(page, "Records")
    rows(page, "It snows.").locator("a").click()
    page.get_by_role("button", name="Send again …").click()
    form = page.locator("#produce")
    expect(form.get_by_role("heading")).to_have_text("Send again")
    expect(form.get_by_label("id")).to_have_value("ada")
    form.get_by_label("number").fill("151")
    expect(form.locator(".wrong").nth(1)).to_contain_text("150")  # while it is typed
    form.get_by_label("number").fill("36")
    form.get_by_label("text").fill("It hails.")
    form.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#produce-said")).to_contain_text("ada was written to partition")
    another = form.get_by_role("button", name="Send another")
    another.click()  # again by accident
    expect(page.locator("#ask-question")).to_have_text("This very record was just sent.")
    page.keyboard.press("Enter")  # "Cancel" has the focus
    form.get_by_label("text").fill("It pours.")
    another.click()
    expect(page.locator("#produce-said")).to_contain_text("ada was written to partition")
    page.locator("#produce-said a").click()
    expect(form).to_be_hidden()
    expect(page.locator("#record pre")).to_contain_text("It pours.")
    page.get_by_role("link", name="Records of this key").click()
    expect(page.locator("#record-list .value")).to_have_text([re.compile(text) for text in ("pours", "hails", "snows")])


def test_a_link_shows_what_its_sender_saw_and_back_leads_back(page: Page, site: Site) -> None:
    site.write(Raw(value_of(event("linked", text="linked text")), b"linked"))
    go_to(page, "Records")
    page.locator("#search [name=key]").fill("linked")
    page.keyboard.press("Enter")
    page.locator("#record-list a").click()
    expect(page.locator("#record pre")).to_contain_text("linked text")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#search [name=key]")).to_have_value("linked")
    expect(other.locator("#record pre")).to_contain_text("linked text")
    page.get_by_role("link", name="Dead letters of this key").click()
    expect(page.locator("#no-letters")).to_have_text("None.")
    expect(page.locator("#no-letters")).to_be_visible()
    for _ in range(2):
        page.go_back()
    expect(page.locator("#record")).to_be_hidden()
    for _ in range(2):
        page.go_back()
    expect(page.locator("#control")).to_be_visible()


def test_chosen_columns_stay_and_what_is_listed_is_exported(page: Page, site: Site) -> None:
    site.write(Raw(value_of(event("exported", number=7, text='=1+1;"=2\n@3;4\t -5')), b"exported"))
    go_to(page, "Records")
    page.locator("#search [name=key]").fill("exported")
    page.keyboard.press("Enter")
    page.get_by_text("Columns").click()
    page.get_by_role("checkbox", name="number").check()
    expect(page.locator("#record-list [data-name=number]")).to_have_text(["7"])
    page.reload()
    expect(page.locator("#record-list [data-name=number]")).to_have_text(["7"])
    with page.expect_download() as csv:
        page.get_by_role("button", name="Export CSV").click()
    assert csv.value.suggested_filename == "events.csv"
    content = csv.value.path().read_bytes().decode()
    head, line = reader(StringIO(content, newline=""))
    assert head[3:] == ["key", "id", "number", "text", "not decoded"]
    assert line[3:] == ["exported", "exported", "7", "'=1+1;\"'=2\n'@3;4\t '-5", ""]
    for separator in ",;\t":
        cells = chain.from_iterable(reader(StringIO(content, newline=""), delimiter=separator))
        assert not [cell for cell in cells if cell.lstrip(' "').startswith(("=", "+", "-", "@"))], "would be run"
    with page.expect_download() as ndjson:
        page.get_by_role("button", name="Export NDJSON").click()
    (record,) = map(json.loads, ndjson.value.path().read_text().splitlines())
    assert record["value"]["number"] == 7


def test_the_last_hour_is_drawn_and_read_out(page: Page, site: Site) -> None:
    create(page, 5)
    until(page, lambda: len(site.consumer.get("/consumers/history")["points"]) > 1)
    page.reload()
    expect(page.locator("#rate-line")).to_have_attribute("aria-label", re.compile("consumed/s"))
    page.locator("#rate-line").hover()
    expect(page.locator("#history-at")).to_have_text(re.compile(r"^At \S+: .*(consumed/s|did not run)"))
    page.get_by_text("As a table").click()
    expect(page.locator("#history-rows tr").first).to_be_visible()


def show_letters(page: Page, key: str) -> Locator:
    """Show the dead letters of a key; return their rows."""
    go_to(page, "Dead letters")
    page.locator("#letter-filter [name=key]").fill(key)
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(page).to_have_url(re.compile(f"key={key}"))
    return page.locator("#dead-list > tr")


def refuse(site: Site, key: str, number: int) -> None:
    """Have some records of a key dead-lettered by the handler."""
    site.refusing.touch()
    site.write(*(Raw(value_of(event(f"{key}-{at}", text=REFUSED)), key.encode()) for at in range(number)))


def test_selected_dead_letters_are_discarded_and_a_discard_is_undone(page: Page, site: Site) -> None:
    refuse(site, "chosen", 3)
    letters, said = show_letters(page, "chosen"), page.locator("#dead-said")
    expect(letters).to_have_count(3)
    expect(page.get_by_role("button", name="Send back all that match (3) …")).to_be_enabled()
    for row in (0, 2):
        letters.nth(row).get_by_role("checkbox").check()
    expect(page.get_by_role("button", name="Send back the selected (2) …")).to_be_enabled()
    page.get_by_role("button", name="Discard the selected (2) …").click()
    expect(page.locator("#ask-question")).to_contain_text("2 dead letters of events will be discarded")
    page.keyboard.press("Enter")  # "Cancel" has the focus
    expect(said).to_have_text("Nothing was changed.")
    page.get_by_role("button", name="Discard the selected (2) …").click()
    page.get_by_role("button", name="Discard 2", exact=True).click()
    expect(said).to_contain_text("2 were discarded.")
    expect(letters).to_have_count(1)
    restores: list[str] = []
    page.on("request", lambda request: restores.append(request.url) if "/restore?" in request.url else None)
    page.get_by_role("button", name="Undo").click()
    expect(said).to_have_text("2 were restored.")
    assert ["dry_run" in url for url in restores] == [True, False]  # one call, not one a dead letter
    page.get_by_role("button", name="Reload").click()
    expect(letters.get_by_role("button", name="Send back")).to_have_count(3)


def test_all_dead_letters_that_match_are_discarded_and_found_again_among_the_discarded(page: Page, site: Site) -> None:
    refuse(site, "kept", 1)  # older, so that it would be taken first
    refuse(site, "thrown", 3)
    letters, said = show_letters(page, "thrown"), page.locator("#dead-said")
    none_yet = {
        "discarded": 0,
        "dead_letters": [],
        "more": True,
        "would_discard": 0,
    }  # behind more than a call can read
    page.route("**/discard?*dry_run=*", lambda route: route.fulfill(json=none_yet), times=1)
    page.get_by_role("button", name="Discard all that match (3) …").click()
    expect(page.locator("#ask-question")).to_contain_text("3 dead letters of events (Key: thrown) will be")
    page.get_by_role("button", name="Discard 3", exact=True).click()
    expect(said).to_contain_text("3 were discarded.")
    expect(letters).to_have_count(0)
    discard = page.get_by_role("button", name="Discard all that match (0) …")
    expect(discard).to_be_disabled()
    expect(discard).to_have_attribute("title", "There is none to discard.")
    assert [one["key"]["text"] for one in site.letters()].count("thrown") == 0
    page.get_by_role("checkbox", name="Show the discarded").check()
    expect(letters).to_have_count(3)
    expect(letters.first).to_contain_text("discarded")
    expect(page.get_by_role("button", name=re.compile("^Send back all"))).to_be_hidden()
    letters.first.get_by_role("button", name="Restore").click()
    expect(said).to_have_text("1 was restored.")
    page.get_by_role("button", name="Restore all that match (2) …").click()
    page.get_by_role("button", name="Restore 2", exact=True).click()
    expect(said).to_have_text("2 were restored.")
    page.get_by_role("checkbox", name="Show the discarded").uncheck()
    expect(letters).to_have_count(3)
    site.refusing.unlink()
    page.get_by_role("button", name="Send back all that match (3) …").click()
    page.get_by_role("button", name="Send back 3", exact=True).click()
    expect(said).to_contain_text("3 were sent back.")
    expect(said).to_contain_text("3 were sent back. 3 consumed, 0 failed again.")
    expect(said.get_by_role("listitem")).to_have_text([re.compile(r"^partition \d+, offset \d+: consumed$")] * 3)
    said.get_by_role("link").first.click()
    expect(page.locator("#record .sign")).to_have_text("sent back")
    expect(page.locator("#record")).to_contain_text("thrown")
    assert len([one for one in site.letters() if one["key"] == {"text": "kept"} and not one["redriven"]]) == 1


def test_an_opened_dead_letter_is_discarded_restored_and_sent_back_and_its_arrival_is_marked(
    page: Page, site: Site
) -> None:
    refuse(site, "alone", 2)
    letters, letter = show_letters(page, "alone"), page.locator("#letter")
    letters.first.locator("a").first.click()
    letter.get_by_role("button", name="Discard").click()
    expect(page.locator("#ask-question")).to_contain_text("1 dead letter of events will be discarded")
    page.get_by_role("button", name="Discard 1", exact=True).click()
    expect(letters).to_have_count(1)
    page.get_by_role("checkbox", name="Show the discarded").check()
    expect(letters.first).to_contain_text("discarded")
    letters.first.locator("a").first.click()
    letter.get_by_role("button", name="Restore").click()
    expect(letters).to_have_count(0)
    page.get_by_role("checkbox", name="Show the discarded").uncheck()
    expect(letters).to_have_count(2)
    letters.first.locator("a").first.click()
    site.refusing.unlink()
    letter.get_by_role("button", name="Send back").click()
    expect(letter.locator("dd").first).to_have_text("sent back")
    expect(letter).to_contain_text(re.compile(r"Sent back at \S+: 1 consumed, 0 failed again\."))
    expect(letter.get_by_role("button", name="Send back")).to_have_count(0)
    page.set_viewport_size(PHONE)
    page.locator("#dead-said a").click(trial=True)  # the panel does not cover the answer
    page.set_viewport_size(DESKTOP)
    expect(letters.get_by_role("button", name="Send back")).to_have_count(1)
    letter.get_by_role("link", name="Show its arrival").click()
    expect(page.locator("#record-list > tr")).to_have_count(1)
    expect(page.locator("#record-list .value")).to_contain_text("sent back")
    page.locator("#record-list a").click()
    expect(page.locator("#record .sign")).to_have_text("sent back")
    page.locator("#record").get_by_role("link", name="Records of this key").click()
    expect(page.locator("#record-list > tr")).to_have_count(3)
    expect(page.locator("#record-list .sign")).to_have_count(1)  # the other two are as they were written


def test_dead_letters_of_a_key_are_deleted_for_good_once_their_number_is_confirmed(page: Page, site: Site) -> None:
    refuse(site, "gone", 3)
    go_to(page, "Dead letters")
    delete, said = page.get_by_role("button", name="Delete for good …"), page.locator("#dead-said")
    expect(delete).to_be_disabled()  # without a filter it would be all
    letters = show_letters(page, "gone")
    letters.first.get_by_role("button", name="Send back").click()
    expect(said).to_contain_text("1 was sent back.")
    expect(letters).to_have_count(4)  # it was refused again
    letters.filter(has_text="sent back").locator("a").first.click()
    page.locator("#letter").get_by_role("link", name="failed again").click()  # that it failed again, and where
    expect(page.locator("#letter .trouble").first).to_contain_text("Reject")
    expect(page.locator("#letter dd").first).to_have_text("can be sent back")
    page.locator("#letter").get_by_role("link", name="Close").click()
    page.get_by_label("Reason").fill("reject")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason")).to_have_value("Reject")  # as the list calls it
    expect(letters).to_have_count(4)
    delete.click(force=True)
    expect(said).to_have_text(
        "Filter by a key alone, or by “To time” alone: only such dead letters can be deleted for good."
    )
    page.get_by_label("Reason").fill("")
    page.keyboard.press("Enter")
    delete.click()
    expect(page.locator("#ask-question")).to_have_text(
        "4 dead letters of events (Key: gone) will be deleted for good, with those that were sent back or discarded, "
        "and those of other groups. Nothing brings them back. Deletions that no handler has carried out stay until "
        "they are sent back or discarded."
    )
    page.keyboard.press("Enter")  # "Cancel" has the focus
    expect(said).to_have_text("Nothing was changed.")
    expect(letters).to_have_count(4)
    delete.click()
    page.get_by_role("button", name="Delete 4 for good").click()
    expect(said).to_have_text("4 were deleted for good.")
    expect(letters).to_have_count(0)
    assert [one for one in site.letters() if one["key"] == {"text": "gone"}] == []
    page.locator("#letter-filter [name=key]").fill("")
    page.locator("#letter-filter [name=to]").fill("2020-01-02T03:04:05")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(page.locator("#dead .fold summary span")).to_have_text("To time: 2020-01-02 03:04:05")  # not in UTC
    delete.click()
    expect(said).to_have_text("There is none to delete.")


def test_an_opened_dead_letter_says_in_words_what_is_wrong_where_and_what_changed(page: Page, site: Site) -> None:
    wrong = (b'{"id": "odd", "number": 1.0, "text": 5}', b'{"id": "odd", "number": 200, "text": "so"}')
    site.write(*(Raw(value, b"odd") for value in wrong))
    letters, letter = show_letters(page, "odd"), page.locator("#letter")
    expect(letters).to_have_count(2)
    expect(page.locator("#dead")).not_to_contain_text("msgspec")
    reason = page.locator("#reasons a").filter(has_text="ValidationError")
    expect(reason.locator("time")).to_have_attribute("title", re.compile("UTC|GMT|time", re.IGNORECASE))
    letters.first.locator("a").first.focus()
    for key in ("Shift+Tab", "Tab", "Enter"):
        page.keyboard.press(key)
    expect(letter.get_by_role("link", name="Close")).to_be_focused()  # not behind all rows of the list
    page.keyboard.press("Enter")
    expect(letter).to_be_hidden()
    expect(letters.first.locator("a").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(letter).to_contain_text("ValidationError: Expected `int` <= 150 - at `$.number`")
    expect(letter).to_contain_text("1 try")
    expect(letter.locator("mark.wrong")).to_have_text("200")
    expect(letter.get_by_role("group", name="Value", exact=True)).to_contain_text('"number": 200')
    changes = letter.get_by_role("group", name="Changes of the value")
    expect(changes.locator("del")).to_have_text(['"number": 1.0,', '"text": 5'])
    expect(changes.locator("ins")).to_have_text(['"number": 200,', '"text": "so"'])
    letter.get_by_role("link", name=re.compile(", partition 0, offset")).click()
    expect(page.locator("#record pre")).to_have_text(re.compile('"number": 200'))
    expect(page.locator("#record .trouble")).to_contain_text("ValidationError: Expected `int` <= 150 - at `$.number`")
    page.get_by_role("link", name=re.compile(r"^Dead letters like it \([1-9]\d* to send back, since ")).click()
    expect(page.get_by_label("Reason")).to_have_value("ValidationError: Expected `int` <= 150 - at `$.number`")
    expect(letters).to_have_text([re.compile("Expected `int` <= 150")])  # not the other one, of the same type
    expect(page.locator("#matching")).to_have_text(re.compile(r"^These match: 1 to send back, since \S+\.$"))
    letters.first.get_by_role("button", name="Send back").click()  # it is refused again
    expect(page.locator("#dead-said")).to_contain_text("1 was sent back. 0 consumed, 1 failed again.")
    page.get_by_role("button", name="Reload").click()
    expect(page.locator("#matching")).to_have_text(
        re.compile(r"^These match: 1 to send back, since \S+; 1 sent back before\.$")
    )


def test_a_record_says_why_it_is_a_dead_letter_also_once_newer_ones_failed(page: Page, site: Site) -> None:
    refuse(site, "older", 1)
    refuse(site, "newer", 1)
    letters = show_letters(page, "older")
    expect(letters).to_have_count(1)
    letters.locator(".from a").click()
    record = page.locator("#record")
    expect(record.locator(".trouble")).to_contain_text("Reject: ")
    expect(record.get_by_role("link", name=re.compile(r"^Dead letters like it \([1-9]"))).to_be_visible()
    record.get_by_role("link", name="Its dead letter").click()
    expect(page.locator("#letter .trouble").first).to_contain_text("Reject: ")


def test_the_stack_of_a_handler_is_shown_where_the_dead_letter_has_it(page: Page, site: Site) -> None:
    async def write_as_spring_does() -> None:
        headers = [
            ("kafka_dlt-original-topic", site.pipeline.topic.encode()),
            ("kafka_dlt-exception-fqcn", b"java.lang.IllegalStateException"),
            ("kafka_dlt-exception-stacktrace", b"java.lang.IllegalStateException\n\tat Handler.handle(Handler.java:7)"),
        ]
        async with AIOKafkaProducer(bootstrap_servers=site.pipeline.bootstrap_servers) as producer:
            await producer.send_and_wait(
                site.pipeline.dead_letter_topic, value_of(event()), key=b"java", headers=headers
            )

    elsewhere(lambda: asyncio.run(write_as_spring_does()))
    show_letters(page, "java").first.locator("a").first.click()
    expect(page.locator("#letter")).to_contain_text("IllegalStateException")
    page.get_by_text("Stack of the handler").click()
    expect(page.get_by_role("group", name="Stack")).to_contain_text("Handler.java:7")


def test_value_key_and_call_of_a_record_are_copied(page: Page, site: Site) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    site.write(Raw(value_of(event("copied", text="to be copied")), b"copied"))
    go_to(page, "Records")
    rows(page, "to be copied").locator("a").click()

    def copied(name: str) -> str:
        button = page.get_by_role("button", name=f"Copy {name}").element_handle()
        button.click()
        until(page, lambda: button.text_content() == "Copied")
        text: str = page.evaluate("navigator.clipboard.readText()")
        return text

    assert json.loads(copied("value"))["text"] == "to be copied"
    assert copied("key") == "copied"
    call = re.fullmatch(r"curl '(.+)'", copied("curl"))
    assert call
    assert httpx.get(call[1]).json()["value"]["text"] == "to be copied"


def test_a_new_record_begins_made_up_and_may_be_written_as_raw_json(page: Page) -> None:
    go_to(page, "Records")
    form, raw = page.locator("#produce"), page.get_by_label("Raw JSON")
    page.get_by_role("button", name="New record …").click()
    expect(form.get_by_label("id")).not_to_have_value("")
    first = form.get_by_label("id").input_value()
    form.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="New record …").click()
    expect(form.get_by_label("id")).not_to_have_value(re.compile(f"^({re.escape(first)})?$"))
    form.get_by_label("text").fill("It thaws.")
    raw.check()
    value = form.get_by_label("Value as JSON")
    expect(value).to_have_value(re.compile('"text": "It thaws."'))
    value.fill('{"id": "raw", "number": 8, "text": ')
    expect(form.locator("#produce-json .wrong")).to_have_text(re.compile("^Write valid JSON: .*end of JSON"))
    value.fill('{"id": "raw", "number": 8, "text": rain}')
    expect(form.locator("#produce-json .wrong")).to_contain_text('"text": rain')  # where it breaks
    raw.click()
    expect(raw).to_be_checked()  # invalid JSON fits into no fields
    value.fill('{"id": "raw", "number": 8, "text": "It pours."}')
    raw.uncheck()
    expect(form.get_by_label("text")).to_have_value("It pours.")
    form.get_by_label("number").fill("9")
    raw.check()
    form.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#produce-said")).to_contain_text("raw was written to partition")
    page.locator("#produce-said a").click()
    expect(page.locator("#record pre")).to_contain_text('"number": 9')


def test_a_value_of_few_is_chosen_and_a_yes_or_no_is_ticked_and_both_are_sent_as_what_they_are(page: Page) -> None:
    sent: list[Any] = []

    def with_choices(route: Route) -> None:
        document = route.fetch().json()
        fields = document["components"]["schemas"]["Event"]["properties"]
        fields["text"] = {"enum": ["rain", "snow"]}
        fields["number"] = {"enum": [1, 2, None]}
        fields["sure"] = {"type": "boolean"}
        route.fulfill(json=document)

    def take(route: Route) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(json={"delivered": 1, "receipts": [{"id": "chosen", "partition": 0, "offset": 0}]})

    page.route("**/asyncapi.json", with_choices)
    page.route("**/producers/events", take)
    page.route(
        "**/producers/events/sample", lambda route: route.fulfill(json={"id": "chosen", "number": 2, "text": "rain"})
    )
    go_to(page, "Records")
    page.get_by_role("button", name="New record …").click()
    form = page.locator("#produce")
    expect(form.get_by_label("number")).to_have_value("2")
    expect(form.get_by_label("text").locator("option")).to_have_text(["rain", "snow"])
    form.get_by_label("text").select_option("snow")
    form.get_by_label("sure").check()
    form.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#produce-said")).to_contain_text("chosen was written to")
    assert sent == [{"id": "chosen", "number": 2, "text": "snow", "sure": True}]


def test_a_long_search_says_how_far_it_is_and_stops_when_it_is_told_to(page: Page) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/consumers/messages?*q=*", hold)
    go_to(page, "Records")
    page.locator("#search [name=q]").fill("a needle")
    page.keyboard.press("Enter")
    said, stop = page.locator("#records-said"), page.get_by_role("button", name="Stop the search")
    answer = {"messages": [], "total": 0, "scanned": 100_000, "reached": 1_700_000_000_000, "next": "further"}
    until(page, lambda: len(held) == 1)
    held[0].fulfill(json=answer)
    expect(said).to_have_text(re.compile("^Searching … 0 found; 100,000 records looked at, back to 2023-11-1"))
    until(page, lambda: len(held) == 2)
    assert "before=further" in held[1].request.url
    stop.click()
    held[1].fulfill(json=answer)
    expect(said).to_have_text(re.compile("^0 found; 200,000 records looked at.*there are more"))
    expect(stop).to_be_hidden()
    page.get_by_role("button", name="Go on").click()
    until(page, lambda: len(held) == 3)
    held[2].fulfill(json=answer | {"next": None, "reached": None})
    expect(said).to_have_text(
        re.compile(r"^0 found; 300,000 records looked at; there are no more as of \S+\. Upper and lower case matter")
    )
    page.get_by_role("button", name="Search again").click()
    until(page, lambda: len(held) == 4)
    held[3].fulfill(json=answer | {"next": None, "reached": None})
    expect(said).to_contain_text("0 found; 100,000 records looked at; there are no more")
    page.get_by_role("button", name="Search", exact=True).click()
    until(page, lambda: len(held) == 5)
    held[4].fulfill(json=answer | {"next": None, "reached": None})


def test_a_record_that_is_closed_before_it_was_read_does_not_open_again(page: Page, site: Site) -> None:
    site.write(Raw(value_of(event())))
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/consumers/messages/0/*", hold)
    go_to(page, "Records")
    page.locator("#record-list a").first.click()
    page.locator("#record").get_by_role("link", name="Close").click()
    until(page, lambda: bool(held))
    with page.expect_response("**/consumers/messages/0/*"):
        held[0].continue_()
    expect(page.locator("#record")).to_be_hidden()
    assert page.locator("#record").text_content() == ""


def test_the_last_hour_has_a_gap_where_the_service_was_down(page: Page) -> None:
    now = int(time.time() * 1_000)
    ages = [*range(3_000, 2_000, -10), *range(1_000, 0, -10)]
    points = [{"at": now - age * 1_000, "consumed": 5.0, "dead_lettered": 0.0, "lag": 232} for age in [*ages, -60]]
    page.route("**/consumers/history?*", lambda route: route.fulfill(json={"step_seconds": 10, "points": points}))
    page.mouse.move(0, 0)  # where no drawing is
    page.reload()  # rather than wait until it asks again
    expect(page.locator("#history-at")).to_have_text(re.compile("^Now: .*, lag 0$"))  # though that clock is ahead
    line = page.locator("#rate-line .consumed")
    expect(line).to_have_attribute("d", re.compile("^(M[^M]+){3}$"))  # a stroke before the gap, one after it, and now
    page.locator("#rate-line").hover()  # its middle
    expect(page.locator("#history-at")).to_contain_text("the service did not run")


@pytest.mark.parametrize("name", ["time", "from"])
def test_a_field_for_a_time_has_room_for_am_and_pm(browser: Browser, site: Site, name: str) -> None:
    with browser.new_context(locale="en-US", viewport=DESKTOP) as context:
        page = context.new_page()
        page.goto(f"{site.url}/?tab={'overview' if name == 'time' else 'records'}")
        page.locator("#seek [name=to]").select_option("time", force=True)
        field = page.locator(f"form:visible [name={name}]")
        given, needed = field.evaluate(
            """node => {
              const widths = [node.offsetWidth];
              node.style.width = "max-content";
              return [...widths, node.offsetWidth];
            }"""
        )
        assert given >= needed


def test_where_nothing_hovers_a_button_says_in_itself_why_it_is_off(browser: Browser, site: Site) -> None:
    site.consumer.post("/consumers/start")
    with browser.new_context(locale="en-GB", viewport=PHONE, is_mobile=True, has_touch=True) as context:
        page = context.new_page()
        page.goto(site.url)
        expect(start := page.get_by_role("button", name="Start", exact=True)).to_have_attribute(
            "title", "It is running."
        )
        reason = "node => getComputedStyle(node, '::after').content"
        assert start.evaluate(reason).startswith('"It is running."')
        assert page.get_by_role("button", name="Stop", exact=True).evaluate(reason) == "none"
