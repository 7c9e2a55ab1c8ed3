import asyncio
import logging
import re
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from litestar.testing import TestClient
from prometheus_client import CollectorRegistry
from samples import LONG, until
from services import wait_until

from apps.chassis.liveness import DEAD_AFTER_S, LivenessServer
from apps.chassis.loop_watch import BLOCKED_AFTER_S, LOOP_WATCH, Block, LoopWatch
from apps.chassis.service import listen
from apps.chassis.settings import Settings
from apps.consumer.operating.control import Control
from tests.event_services import create_consumer, create_producer
from tools.ports import free_ports


@contextmanager
def running_loop(watch: LoopWatch) -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop that is watched, in a thread of its own."""
    loop, ended, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    async def run() -> None:
        with watch.open():
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    started.wait(LONG)
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(LONG)
        loop.close()


def serving(watch: LoopWatch, dead_after_s: float = DEAD_AFTER_S, **limits: Any) -> str:  # noqa: ANN401 - those of the server
    """Serve liveness until the process ends, and return its address."""
    (port,) = free_ports(1)
    LivenessServer(listen("127.0.0.1", port, "LIVENESS_PORT"), watch, dead_after_s, **limits).start()
    return f"http://127.0.0.1:{port}"


def block_until(free: threading.Event) -> None:
    free.wait(LONG)


def status_of(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=LONG) as answer:  # noqa: S310 - of this machine
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_blocked_loop_is_logged_with_the_code_that_blocks_it_counted_and_reported_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch, free, registry = LoopWatch(ask_every_s=0.01, blocked_after_s=0.05), threading.Event(), CollectorRegistry()
    registry.register(watch)
    with running_loop(watch) as loop, caplog.at_level(logging.INFO):
        assert watch.recent_block() is None
        loop.call_soon_threadsafe(block_until, free)
        wait_until(lambda: caplog.messages)
        free.set()
        wait_until(lambda: watch.blocks)
    first, last = caplog.messages
    assert first.startswith("the event loop is blocked for ")
    assert re.search(r" by \S*threading\.py:\d+ wait < \S*threading\.py:\d+ wait < \S+ block_until < ", first)
    assert last.startswith("the event loop turns again")
    assert registry.get_sample_value("event_loop_blocks_total") == 1
    assert registry.get_sample_value("event_loop_blocked_seconds_total") == watch.blocked_s > 0
    assert "the event loop was blocked for " in (watch.recent_block() or "")


def test_the_port_of_liveness_answers_while_the_loop_is_blocked_and_says_no_only_after_its_limit() -> None:
    watch, free = LoopWatch(ask_every_s=0.01, blocked_after_s=0.02), threading.Event()
    patient, strict = serving(watch, 1e9), serving(watch, 0.1)
    with running_loop(watch) as loop:
        assert status_of(f"{patient}/livez") == HTTPStatus.OK
        assert status_of(f"{patient}/livez?probe=1") == HTTPStatus.OK
        assert status_of(f"{patient}/other") == HTTPStatus.NOT_FOUND
        loop.call_soon_threadsafe(block_until, free)
        wait_until(lambda: status_of(f"{strict}/livez") == HTTPStatus.SERVICE_UNAVAILABLE)
        assert status_of(f"{patient}/livez") == HTTPStatus.OK
        free.set()
        wait_until(lambda: status_of(f"{strict}/livez") == HTTPStatus.OK)


@pytest.mark.parametrize("limits", [{"caller_s": 0.2}, {"caller_s": 1e6, "max_callers": 3}], ids=["time", "number"])
def test_callers_that_never_end_their_requests_are_closed_and_probes_are_answered(limits: dict[str, Any]) -> None:
    address = serving(LoopWatch(), **limits)
    port = int(address.rpartition(":")[2])
    with ExitStack() as opened:
        slow = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(10)]
        for one in slow:
            one.sendall(b"GET /livez HTTP/1.1\r\n")
        assert status_of(f"{address}/livez") == HTTPStatus.OK
        wait_until(lambda: has_ended(slow[0]))  # though it goes on sending
        assert status_of(f"{address}/livez") == HTTPStatus.OK


def has_ended(caller: socket.socket) -> bool:
    """Send another header; return whether the other side has closed the connection."""
    try:
        caller.sendall(b"X: y\r\n")
        return caller.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(("method", "status", "has_body"), [("HEAD", 200, False), ("POST", 405, True)])
def test_the_port_of_liveness_answers_other_methods_briefly(method: str, status: int, has_body: bool) -> None:  # noqa: FBT001 - as it is parametrized
    answer = httpx.request(method, f"{serving(LoopWatch())}/livez")
    assert (answer.status_code, answer.headers["allow"], bool(answer.content)) == (status, "GET, HEAD", has_body)
    assert answer.headers["content-type"] == "application/json"


def test_a_head_that_is_too_long_or_no_head_ends_its_connection_alone() -> None:
    address = serving(LoopWatch())
    for head in (b"x" * 100_000, b"\r\n\r\n", b"GET\r\n\r\n"):
        port = int(address.rpartition(":")[2])
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), LONG) as caller:
            caller.sendall(head)  # it may be closed before all is sent
            caller.recv(1_000)
        assert status_of(f"{address}/livez") == HTTPStatus.OK


def test_a_loop_that_has_ended_or_not_begun_is_not_blocked() -> None:
    watch = LoopWatch(ask_every_s=0.01, blocked_after_s=0.02)
    assert watch.without_turn_s == 0
    with running_loop(watch):
        pass
    wait_until(lambda: watch.without_turn_s == 0)
    assert watch.blocks == 0


@pytest.mark.parametrize("create_app", [create_producer, create_consumer])
def test_health_of_both_services_mentions_a_block_that_has_just_ended(create_app: object) -> None:
    assert callable(create_app)
    app = create_app(Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    with TestClient(app) as client:
        assert "blocked" not in client.get("/health-check").json()["detail"]
        app.state[LOOP_WATCH]._last = Block(3.04, time.monotonic() - 12)
        detail = client.get("/health-check").json()["detail"]
        assert detail.endswith("the event loop was blocked for 3.0 s until 12 s ago: the log has the stack")
        app.state[LOOP_WATCH]._last = Block(3.04, time.monotonic() - 61)
        assert "blocked" not in client.get("/health-check").json()["detail"]


class Looking(Control):
    """Finds its consume loop stuck at every look, and counts the looks until it replaces the connection."""

    def __init__(self) -> None:
        self.looks = 0
        self.replaced_at: list[int] = []
        connection = SimpleNamespace(current=object(), replace=lambda *_: self.replaced_at.append(self.looks))
        cluster, consumption = SimpleNamespace(trouble=self._no_trouble), SimpleNamespace(halted=None)
        seen = cast(Any, connection), cast(Any, cluster), cast(Any, consumption)
        of_no_matter: Any = None
        super().__init__(*seen, of_no_matter, of_no_matter, 0, "events", of_no_matter, of_no_matter)

    def trouble(self) -> str | None:
        return "the consume loop has not polled since 12:00:00 UTC"

    def _apply_pause(self) -> None:
        self.looks += 1

    async def _no_trouble(self) -> None: ...


@pytest.mark.anyio
async def test_a_look_that_came_late_because_the_loop_was_blocked_replaces_nothing() -> None:
    control = Looking()
    watch = asyncio.create_task(control.watch(every_s=0.01))
    await asyncio.sleep(0)
    time.sleep(BLOCKED_AFTER_S + 0.1)  # noqa: ASYNC251 - that is the case
    await until(lambda: control.replaced_at)
    watch.cancel()
    assert control.replaced_at[0] > 1


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\n\r\n"])
def test_a_probe_that_resets_its_connection_writes_no_traceback(sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    address = serving(LoopWatch())
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            probe.sendall(sent)
    assert status_of(f"{address}/livez") == 200
    assert capfd.readouterr().err == ""
