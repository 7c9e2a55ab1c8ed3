"""In every state of a real consumer, the live page shows what `/health-check` and `/consumers/status` answer."""

import asyncio
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from playwright.sync_api import APIResponse, Browser, Page, Route, expect
from quotas import set_quota
from services import PATIENCE, Pipeline, Raw, Service, event, value_of

from tools.local_kafka import LocalKafka
from tools.ports import free_ports

SHOWN = Path(__file__).with_name("shown.js").read_text()
PARTITIONS = 3
PATIENCE_MS = 20_000
COLOURS = {"running": "good", "stopped": "muted", "retrying": "warn"}
"""Colours of a state; the others are amber, or red while the service is unhealthy."""


@dataclass
class Site:
    """A consumer whose handler does what `steer` says, on a Kafka of its own."""

    kafka: LocalKafka
    pipeline: Pipeline
    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the consumer, on the port that the page calls."""
        self.steer("work")
        variables = {
            "CONSUMER_PORT": str(self.port),
            "STEER": str(self.folder / "steer"),
            "SLOW_BATCH_SECONDS": "1",
            "EVENTS_PARTITIONS": str(PARTITIONS),
        }
        self.service = self.pipeline.consumer("steered", **variables)
        self.service.until_healthy()

    def steer(self, action: str) -> None:
        """Make the handler `work`, `fail` or `wait`, in one step."""
        new = self.folder / "steer.new"
        new.write_text(action)
        new.rename(self.folder / "steer")

    def write(self, count: int) -> None:
        """Write events to the first partition."""
        elsewhere(lambda: self.pipeline.fill(count))

    def write_bad(self, count: int) -> None:
        """Write records that are no events to the last partition."""
        elsewhere(lambda: self.pipeline.write([Raw(b"not json")] * count, partition=PARTITIONS - 1))

    @contextmanager
    def open_transaction(self, count: int) -> Iterator[None]:
        """Write events in a transaction that stays open in the block, and is then aborted."""
        written, done = threading.Event(), threading.Event()

        async def hold() -> None:
            servers = self.pipeline.bootstrap_servers
            async with AIOKafkaProducer(bootstrap_servers=servers, transactional_id=self.pipeline.name) as producer:
                await producer.begin_transaction()
                for _ in range(count):
                    await producer.send(self.pipeline.topic, value_of(event()), partition=0)
                await producer.flush()
                written.set()
                await asyncio.to_thread(done.wait, PATIENCE)
                await producer.abort_transaction()

        with ThreadPoolExecutor(1) as thread:
            holding = thread.submit(asyncio.run, hold())
            try:
                assert written.wait(PATIENCE)
                yield
            finally:
                done.set()
                holding.result()


def elsewhere(work: Callable[[], object]) -> None:
    """Do what runs an event loop in another thread: in this one there is Playwright's."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


@pytest.fixture(scope="module")
def site(chromium: str, startable_kafka: None, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    assert chromium
    assert startable_kafka is None
    with LocalKafka() as kafka:
        site = Site(kafka, Pipeline(kafka.bootstrap_servers[0], logs), tmp_path_factory.mktemp("steered"))
        yield site
        site.service.__exit__()


@pytest.fixture(scope="module")
def open_page(browser: Browser, site: Site) -> Iterator[Page]:
    """One page that stays open through all states, and met no error of its own."""
    with browser.new_context(locale="en-GB") as context:
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://localhost:{site.port}")
        yield page
        assert errors == []


@pytest.fixture
def page(open_page: Page, site: Site) -> Page:
    """The page of a consumer that runs and has nothing left to do."""
    site.steer("work")
    site.service.post("/consumers/start", json={"accept": True})
    site.service.post("/consumers/resume")
    until(open_page, lambda: site.service.answers("/health-check", 200) and site.service.status()["lag"] == 0)
    return open_page


FOR_CALLERS = " (see last_error of the status)"
"""What health tells callers, and the page leaves out."""

HELD_BY = {"paused": "pause", "stopped": "stop"}
"""The operator action behind a state."""

OF_KAFKA = {"lag-rows", "group", "member-rows", "dead-count"}
"""What the page shows of answers that only Kafka can give."""


def count(number: int | None) -> str:
    return "\N{EN DASH}" if number is None else f"{number:,}"


def clock(time: str) -> str:
    """Return a time as the page writes it: with the day only when that is not today."""
    local = datetime.fromisoformat(time).astimezone()
    return f"{local:%H:%M:%S}" if local.date() == datetime.now().astimezone().date() else f"{local:%Y-%m-%d %H:%M:%S}"


def answered(service: Service) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what status and health answer now, with the time since when an operator holds up the stream."""
    health: dict[str, Any] = service.http.get("/health-check").json()
    status = service.status()
    if (action := HELD_BY.get(status["state"])) is not None:
        began = next(one["at"] for one in service.get("/consumers/actions")["actions"] if one["action"] == action)
        health["detail"] = health["detail"].replace("by an operator", f"by an operator at {clock(began)}")
    return status, health


def wanted(status: Mapping[str, Any], health: Mapping[str, Any]) -> dict[str, object]:
    """Return what the page has to show of these answers."""
    fit, state = health["status"] == "ok", status["state"]
    is_failing = status["failing_since"] and status["failing_since"] == status["last_error_at"]
    when = "failing since" if is_failing else "since" if status["last_error_lasts"] else "at"
    since = f" ({when} {clock(status['last_error_at'])})" if status["last_error_at"] else ""
    error = [f"Last error{since}: {status['last_error']}"] if status["last_error"] else []
    waiting = status["waiting_for_transaction"]
    return {
        "state": state,
        "state colour": COLOURS.get(state, "warn") if fit or state == "retrying" else "bad",
        "title": f"{state if fit else f'{state}, unavailable'} · Consumer",
        "health": without_seconds(f"Health {health['status']}{health_reason(status, health)}"),
        "health colour": "muted" if fit else "bad",
        "consumed": count(status["messages_consumed_count"]),
        "dead-lettered": count(status["dead_lettered_count"]),
        "skipped": count(status["skipped_count"]),
        "member": status["member_id"] or "none",
        "throttled": status["throttled_seconds"] > 0,
        "lag": count(status["lag"]),
        "drawn lag": "not known" if status["lag"] is None else count(status["lag"]),
        "waiting": f"{count(waiting)} behind an open transaction" if waiting else "",
        "partitions": {
            str(p["partition"]): [count(p["lag"]), count(p["committed"]), count(p["end"])] for p in status["partitions"]
        },
        "error": "; ".join([*error, *status["notes"]]),
        "error colour": "bad" if status["last_error_lasts"] else "muted",
        "dimmed": [],
        "banner": "",
    }


def health_reason(status: Mapping[str, Any], health: Mapping[str, Any]) -> str:
    """Return why the service is healthy or not; without the cause when the last error, which stands below, has it."""
    detail = health["detail"].removesuffix(FOR_CALLERS)
    kind, _, cause = detail.partition(": ") if re.match("[a-z]+: ", detail) else ("", "", detail)
    why = kind if cause in (status["last_error"] or "") else detail
    return f": {why}" if why else ""


def disagreement(page: Page, status: Mapping[str, Any], health: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """Return what the page shows otherwise than the service answers, and how."""
    want, shown = wanted(status, health), page.evaluate(SHOWN)
    shown["health"] = without_seconds(shown["health"])
    shown["partitions"] = {
        str(p["partition"]): shown["partitions"].get(str(p["partition"])) for p in status["partitions"]
    }
    if status["lag"] is None:  # then nobody can read the group, and what the page knows of it is dimmed
        shown["dimmed"] = [name for name in shown["dimmed"] if name not in OF_KAFKA]
        is_of_kafka = shown["banner"].startswith(("Cannot read ", "Kafka is out of reach."))
        shown["banner"] = "" if is_of_kafka else shown["banner"]
    if not want["error"]:
        shown["error colour"] = want["error colour"]
    found = {name: (shown[name], value) for name, value in want.items() if shown[name] != value}
    if (answer := re.search(r": it is (\w+)\.$", shown["answer"])) and answer[1] != status["state"]:
        found["answer"] = shown["answer"], f"that it is {status['state']}"
    return found


def without_seconds(text: str) -> str:
    """Leave out seconds: they differ from one answer to the next."""
    return re.sub(r"[\d.]+ s\b", "some s", text)


def agreed(
    page: Page,
    site: Site,
    state: str,
    *,
    fit: bool,
    when: Callable[[Mapping[str, Any]], bool] = lambda _: True,
) -> Mapping[str, Any]:
    """Wait until the service is in a state and the page shows the same of it at that moment; return the status."""
    deadline = time.monotonic() + PATIENCE_MS / 1_000
    found: object = "nothing was compared"
    while time.monotonic() < deadline:
        status, health = answered(site.service)
        if (status["state"], health["status"] == "ok") == (state, fit) and when(status):
            found = disagreement(page, status, health)
            if not found:
                return status
        page.wait_for_timeout(50)
    raise AssertionError(f"{found}; the service is {status['state']}: {health}")


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Wait for a condition while the page goes on."""
    deadline = time.monotonic() + PATIENCE_MS / 1_000
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def test_a_running_consumer_is_shown_as_it_is(page: Page, site: Site) -> None:
    before = site.service.status()["messages_consumed_count"]
    site.write(1_234)
    agreed(page, site, "running", fit=True, when=lambda status: status["messages_consumed_count"] == before + 1_234)


@pytest.mark.parametrize(("button", "state"), [("Pause", "paused"), ("Stop", "stopped")])
def test_a_consumer_that_an_operator_holds_up_is_shown_with_its_lag_and_is_healthy(
    page: Page, site: Site, button: str, state: str
) -> None:
    page.get_by_role("button", name=button).press("Enter")
    expect(page.locator("#control-said")).to_have_text(re.compile(rf"^{button} of events at \S+: it is {state}\.$"))
    expect(page.locator("#control-said")).to_be_focused()  # not the opposite button: Enter is soon pressed twice
    kept = "**/consumers/history?*"  # without a new point there, the drawing must end with the lag of the head
    page.route(kept, lambda route: route.fulfill(json={"step_seconds": 10, "points": []}))
    site.write(300)
    agreed(page, site, state, fit=True, when=lambda status: status["lag"] == 300)
    page.unroute(kept)


KAFKA_GONE = {
    "last_error": "Kafka at nowhere is out of reach",
    "last_error_at": "2026-01-31T12:00:00Z",
}


def with_kafka_gone(route: Route, *, lasts: bool = True) -> None:
    document = route.fetch().json()
    for one in (document, *document["streams"].values()):
        one.update({**KAFKA_GONE, "last_error_lasts": lasts})
    route.fulfill(json=document)


def test_a_failing_handler_makes_the_page_red_and_tells_the_error_and_since_when_it_fails(
    page: Page, site: Site
) -> None:
    site.steer("fail")
    site.write(40)
    status = agreed(page, site, "retrying", fit=False)
    assert "the database is down" in status["last_error"]
    expect(page.locator("#last-error")).to_contain_text(f"(failing since {clock(status['failing_since'])})")
    page.route("**/consumers/status", with_kafka_gone)
    expect(page.locator("#last-error")).to_contain_text(f"(since {clock(KAFKA_GONE['last_error_at'])}): Kafka")
    expect(page.locator("#failing")).to_be_hidden()  # the record that fails is none of Kafka's error
    page.unroute("**/consumers/status")
    page.route("**/consumers/status", lambda route: with_kafka_gone(route, lasts=False))
    expect(page.locator("#last-error.muted")).to_contain_text(f"(at {clock(KAFKA_GONE['last_error_at'])}): Kafka")
    page.unroute("**/consumers/status")
    size = page.viewport_size
    page.set_viewport_size({"width": 240, "height": 800})
    expect(page.locator("#health[data-cut]")).to_be_visible()
    page.locator("#health").click()
    expect(page.locator("#health[data-cut]")).to_have_count(0)  # all of it is shown
    page.set_viewport_size(size or {"width": 1280, "height": 720})
    expect(page.locator("#next-retry")).to_have_text(re.compile(r"^The next retry is due at \S+\.$"))


def test_the_record_that_fails_alone_is_one_click_away(page: Page, site: Site) -> None:
    site.steer("fail")
    site.write(4)
    agreed(page, site, "retrying", fit=False, when=lambda status: status["failing_record"] is not None)
    failing = site.service.status()["failing_record"]
    place = f"partition {failing['partition']}, offset {failing['offset']}"
    page.get_by_role("link", name=f"Show the record: {place}").click()
    expect(page.locator("#record h3")).to_have_text(place.capitalize())
    expect(page.locator("#record pre")).to_be_visible()
    expect(page.locator("#record .trouble")).to_contain_text("RuntimeError: the database is down")
    expect(page.get_by_role("link", name="Dead letters like it (none to send back)")).to_be_visible()
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("#control")).to_be_visible()


def test_a_batch_that_takes_too_long_is_not_shown_as_a_healthy_run(page: Page, site: Site) -> None:
    site.steer("wait")
    site.write(500)
    agreed(page, site, "running", fit=False)


def test_a_start_of_a_consumer_that_halts_again_is_answered_by_that(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Stop").click()
    agreed(page, site, "stopped", fit=True)
    site.write_bad(120)
    page.get_by_role("button", name="Start", exact=True).click()
    agreed(page, site, "halted", fit=False, when=lambda status: status["member_id"] is None)
    expect(page.locator("#rebalance")).to_contain_text("This instance is not in the group now.")
    page.route("**/consumers/status", with_kafka_gone)
    expect(page.locator("#last-error")).to_contain_text("Kafka at nowhere is out of reach")
    expect(page.locator("#failing")).to_be_hidden()
    expect(page.get_by_role("link", name="Show the first refused record")).to_be_visible()
    page.unroute("**/consumers/status")
    page.get_by_role("link", name="Show the first refused record").click()
    expect(page.locator("#record .trouble").first).to_contain_text("DecodeError")
    page.get_by_role("link", name=re.compile("^Dead letters [0-9]")).click()
    expect(page.locator("#no-letters")).to_contain_text("What was refused waits on the topic")
    page.get_by_role("link", name="Overview").click()
    for _ in range(2):  # the first was answered before it halted, the second while it was halted
        expect(page.locator("#control-said")).to_have_text(re.compile(r"^Start of events at \S+: it is halted\.$"))
        page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#control-said")).to_have_text(re.compile(r"^Start of events at \S+: it is halted\.$"))
    page.get_by_role("button", name="Start and dead-letter").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#control-said")).to_have_text("Nothing was changed.")
    page.get_by_role("button", name="Start and dead-letter").click()
    expect(page.locator("#ask-question")).to_have_text(re.compile("up to [0-9]+ records wait"))
    page.get_by_role("button", name="Dead-letter the bad ones").click()
    agreed(page, site, "running", fit=True, when=lambda status: status["dead_lettered_count"] == 120)


def test_what_waits_behind_an_open_transaction_is_shown_while_it_does(page: Page, site: Site) -> None:
    with site.open_transaction(6):
        agreed(page, site, "running", fit=True, when=lambda status: status["waiting_for_transaction"] == 6)


def is_throttled_by_more(site: Site) -> bool:
    """Write more events: a quota holds some time after Kafka has taken it, and counts nothing that was read before.

    It has to last until the page has shown it.
    """
    site.write(500)
    return bool(site.service.status()["throttled_seconds"] > 3)


def test_throttling_by_a_quota_is_shown_while_it_lasts(page: Page, site: Site) -> None:
    elsewhere(lambda: set_quota(site.pipeline.bootstrap_servers, "consumer", "consumer_byte_rate", 50_000))
    try:
        until(page, lambda: is_throttled_by_more(site))
        agreed(page, site, "running", fit=True, when=lambda status: status["throttled_seconds"] > 0)
    finally:
        elsewhere(lambda: set_quota(site.pipeline.bootstrap_servers, "consumer", "consumer_byte_rate", None))


def test_an_answer_that_was_asked_for_before_a_button_was_pressed_does_not_undo_it(page: Page, site: Site) -> None:
    held: list[tuple[Route, APIResponse]] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append((route, route.fetch()))

    page.route("**/consumers/status", hold_the_first)
    until(page, lambda: bool(held))
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#state")).to_have_text("paused")
    page.evaluate(
        """() => {
          window.states = [];
          const note = ([{ target }]) => window.states.push(target.textContent);
          new MutationObserver(note).observe(document.getElementById("state"), { childList: true });
        }"""
    )
    ((route, response),) = held
    with page.expect_response("**/consumers/status"):
        route.fulfill(response=response)
    agreed(page, site, "paused", fit=True)
    page.unroute("**/consumers/status")
    assert "running" not in page.evaluate("window.states")


@pytest.mark.parametrize("path", ["consumers/status", "health-check?*"])
def test_behind_a_proxy_that_finds_no_service_nothing_is_shown_as_current(page: Page, site: Site, path: str) -> None:
    page.route(f"**/{path}", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    expect(page.locator("#state")).to_have_text("unknown")
    assert_gone(page.evaluate(SHOWN), "it answers 502")
    page.get_by_role("button", name="Stop").click(force=True)
    expect(page.locator("#control-said")).to_have_text("The service does not answer.")
    page.unroute(f"**/{path}")
    agreed(page, site, "running", fit=True)
    expect(page.locator("#control-said")).to_have_text("")


def test_buttons_that_need_kafka_are_called_off_only_while_they_are(page: Page, site: Site) -> None:
    def in_state(name: str) -> Callable[[Route], None]:
        def answer(route: Route) -> None:
            document = route.fetch().json()
            for one in (document, *document["streams"].values()):
                one.update(state=name, running=False)
            route.fulfill(json=document)

        return answer

    seek, without_kafka = page.locator("#seek button"), page.locator("[data-only=without-kafka]")
    page.route("**/consumers/status", in_state("starting"))
    expect(page.get_by_text("It joins the group.")).to_be_visible()
    expect(seek).to_have_attribute("title", "It is starting.")
    page.route("**/consumers/status", in_state("reconnecting"))
    expect(page.get_by_text("Kafka answers meanwhile.")).to_be_visible()
    expect(seek).to_be_enabled()
    expect(without_kafka).to_have_count(3)
    assert without_kafka.evaluate_all("nodes => nodes.map((node) => getComputedStyle(node).display)") == ["none"] * 3
    page.unroute("**/consumers/status")
    agreed(page, site, "running", fit=True)


def test_what_health_says_of_a_kafka_that_was_just_lost_is_shown_before_the_status_answers(
    page: Page, site: Site
) -> None:
    held: list[Route] = []
    detail = "Kafka at nowhere is out of reach"
    lost = {"status": "unavailable", "service": "consumer", "version": "0", "kafka": "connecting", "detail": detail}

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/consumers/status", hold)
    until(page, lambda: bool(held))  # its health was asked for while all was well
    page.route("**/health-check?*", lambda route: route.fulfill(status=503, json=lost))
    expect(page.locator("#health")).to_have_text(f"Health unavailable: {detail}")
    shown = page.evaluate(SHOWN)
    assert (shown["state"], shown["state colour"], shown["health colour"]) == ("unknown", "bad", "bad")
    assert {"facts", "rate-now", "lag-total", "lag-rows"} <= set(shown["dimmed"])
    assert shown["banner"] == "Kafka is out of reach. What is dimmed is from before. Trying again."
    expect(page.locator("#seek button")).to_have_attribute("title", "The service does not reach Kafka.")
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()  # it needs no Kafka
    page.unroute("**/consumers/status")
    page.unroute("**/health-check?*")
    agreed(page, site, "running", fit=True)


def test_while_kafka_is_gone_no_lag_is_shown(page: Page, site: Site) -> None:
    site.kafka.kill(0)  # it stays down: reconnecting is tested elsewhere
    agreed(page, site, "reconnecting", fit=False, when=lambda status: status["lag"] is None)


def as_if_paused(route: Route) -> None:
    document = route.fetch().json()
    for one in document["streams"].values():
        one["paused_partitions"] = [0]
    route.fulfill(json=document)


def test_while_kafka_is_gone_each_tab_says_why_and_since_when_and_what_needs_it_is_off(
    open_page: Page, site: Site
) -> None:
    page = open_page.context.new_page()  # nothing was read before
    page.goto(f"http://localhost:{site.port}/?tab=records")
    address = site.pipeline.bootstrap_servers
    expect(page.locator("#records-said")).to_contain_text("The records cannot be read: Kafka ")
    expect(page.locator("#last-error")).to_contain_text(f"Kafka at {address} is out of reach")
    since = clock(site.service.status()["last_error_at"])
    expect(page.locator("#last-error")).to_contain_text(f"(since {since})")
    for name in ("Search", "Look up", "Seek …"):
        expect(button := page.locator(f'button:text-is("{name}")')).to_be_disabled()
        expect(button).to_have_attribute("title", "The service does not reach Kafka.")
    expect(page.get_by_role("button", name="Export CSV")).to_have_attribute("title", "There is nothing to export.")
    page.locator("#search [name=key]").fill("ada")
    page.keyboard.press("Enter")
    expect(page.locator("#records-said")).to_have_text("The service does not reach Kafka.")
    expect(page.locator("#dead-count")).to_have_text("…")
    page.get_by_role("link", name="Dead letters").click()
    expect(page.locator("#no-letters")).to_contain_text("The dead letters cannot be read: Kafka ")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("#notices")).to_contain_text("Kafka is out of reach. Trying again.")  # nothing is from before
    expect(page.locator("#control [data-only=without-kafka]")).to_be_visible()
    page.route("**/consumers/status", as_if_paused)
    expect(page.get_by_text("events stays paused until it is resumed.")).to_be_visible()
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    expect(page.get_by_role("button", name="Pause")).to_have_attribute("title", "It is paused.")
    page.unroute("**/consumers/status")
    expect(page.locator("#lag-rows td:last-child")).to_have_text(["…"] * PARTITIONS)  # not nobody: it was not read
    expect(page.locator("#group")).to_have_text("…")
    assert (page.locator("#head").text_content() or "").count("connection refused") == 1  # the cause stands there once
    assert re.findall(r"since \d", page.locator("#head").text_content() or "") == [f"since {since[0]}"]
    assert "AddressFamily" not in page.content()
    page.close()


def test_once_the_service_hangs_or_is_gone_nothing_is_shown_as_current(open_page: Page, site: Site) -> None:
    page = open_page
    site.service.process.send_signal(signal.SIGSTOP)
    expect(page.locator("#notices")).to_contain_text("Service gone since ")
    since = (page.locator("#notices").text_content() or "").split()[3]
    assert_gone(page.evaluate(SHOWN), ": no answer for 4 s.")
    site.service.kill()
    expect(page.locator("#notices")).to_contain_text(": no answer.")
    shown = page.evaluate(SHOWN)
    assert_gone(shown, ": no answer.")
    assert shown["banner"].split()[3] == since
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("#notices")).to_be_in_viewport()


def assert_gone(shown: Mapping[str, Any], reason: str) -> None:
    """Check that the page calls the service gone, and dims what was read before."""
    assert shown["banner"].startswith("Service gone since ")
    assert reason in shown["banner"]
    assert (shown["state"], shown["health"]) == ("unknown", "Health unknown")
    assert (shown["state colour"], shown["health colour"]) == ("bad", "bad")
    assert shown["title"] == f"{shown['state']} · Consumer"
    assert {"facts", "rate-now", "rate-line", "lag-total", "lag-rows", "member-rows"} <= set(shown["dimmed"])
