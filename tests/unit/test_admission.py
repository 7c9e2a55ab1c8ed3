"""What a call counts for among those under way."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import httpx
import pytest
from litestar import Controller, Litestar
from litestar.datastructures import State
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.testing import TestClient
from samples import Stored

from apps.chassis.http import admission
from apps.chassis.http.admission import FREE_BYTES, Limit, Share, share_of
from apps.chassis.http.authorization import ACCESS, Access
from apps.chassis.http.problems import answer_error
from apps.chassis.http.request_middleware import admit
from apps.chassis.http.served_streams import stream_dependencies
from apps.chassis.kafka.search import Newest
from apps.chassis.shared_reads import SharedReads
from apps.consumer.browsing.record_view import View
from apps.consumer.browsing.routes import (
    COPIES_IN_MEMORY,
    RECORD_MEMORY_BYTES,
    SEARCH_MEMORY_BYTES,
    MessageController,
)
from apps.consumer.browsing.window import Window
from apps.consumer.page.routes import page_routes
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.routes import DeadLetterController
from apps.producer.publishing.lines import split_lines
from apps.producer.publishing.publisher import Busy
from contracts.record import RECORD_OVERHEAD_BYTES
from tests.event import EVENTS


class Part:
    """What the routes need of a stream: a window of a hundred records."""

    def __init__(self) -> None:
        self.window = Window(100)
        self.shared_reads = SharedReads()
        self.view = self.masked_view = View(EVENTS.decode)
        content = b"a" * (1_000 - RECORD_OVERHEAD_BYTES)
        self.window.extend([Stored(offset=offset, key=None, value=content) for offset in range(100)])


class Topic:
    """What the routes need of a stream: a topic of records whose values are read as text."""

    def __init__(self, *values: bytes) -> None:
        self.shown = Mock(side_effect=lambda shown: shown.decode() if isinstance(shown, bytes) else False)
        self.view = self.masked_view = View(self.shown)
        self.window = Window(100)
        records = [Stored(offset=offset, value=value) for offset, value in enumerate(values)]
        self.window.extend(records)
        found = Newest([*records], None, len(records), None)
        ends = {0: len(records)}
        self.log = AsyncMock(topic="events", **{"newest.return_value": found, "record.return_value": records[0]})
        self.log.offsets.return_value = {0: 0}, ends
        self.log.ends.return_value = ends
        self.uncommitted = self.log
        self.consumption = SimpleNamespace(consumed=0)
        self.cluster = SimpleNamespace(partitions={"events": 1})
        self.redriver = AsyncMock(is_ours=self.shown, letters=AsyncMock(is_held=self.shown))
        self.letter_log = AsyncMock(dead=self.log)
        self.letter_log.marks.return_value = Marks()
        self.letter_log.waiting.return_value = 0
        self.letter_log.notes.return_value = []

    def partition_count(self) -> int:
        return 1


def app_beside(taken_bytes: int, controller: type[Controller], part: Any = None) -> Litestar:  # noqa: ANN401 - of either kind
    """Return a service of which others take so many bytes of 100 MB."""
    limit = Limit(100_000_000)
    scope: Any = {"path": "/", "state": {}}
    limit.let_in(scope)
    assert share_of(scope).take(taken_bytes)
    return Litestar(
        [controller],
        dependencies=stream_dependencies({"events": part or Part()}),
        before_request=admit(limit),
        state=State({ACCESS: Mock(Access)}),
        exception_handlers={Exception: answer_error},
        logging_config=None,  # Litestar would set the level of all loggers, for later tests too
    )


def status_beside(taken_bytes: int, query: str, controller: type[Controller], path: str, part: Any = None) -> int:  # noqa: ANN401 - of either kind
    """Return how a call is answered while others take so many bytes of 100 MB."""
    with TestClient(app_beside(taken_bytes, controller, part)) as client:
        return client.get(f"{path}?{query}").status_code


@pytest.mark.parametrize(("query", "records"), [("", 10), ("limit=30", 30), ("limit=1000&scope=window", 100)])
def test_the_newest_of_the_window_count_for_the_records_that_are_asked_for(query: str, records: int) -> None:
    needed = COPIES_IN_MEMORY * records * 1_000
    full = 100_000_000 - needed + 1
    assert status_beside(full, query, MessageController, "/consumers/messages") == HTTPStatus.SERVICE_UNAVAILABLE
    answered = status_beside(full - 1, query, MessageController, "/consumers/messages")
    assert answered == HTTPStatus.INTERNAL_SERVER_ERROR  # it is let in, and finds that there is only a window


@pytest.mark.parametrize("query", ["scope=topic", "q=x&scope=%74opic"])
def test_a_call_that_reads_the_topic_counts_for_what_it_holds(query: str) -> None:
    for controller, path, wanted, needed in (
        (MessageController, "/consumers/messages", query, SEARCH_MEMORY_BYTES),
        (MessageController, "/consumers/messages/0/0", "", RECORD_MEMORY_BYTES),
        (DeadLetterController, "/consumers/dead-letters", "", SEARCH_MEMORY_BYTES),
        (DeadLetterController, "/consumers/dead-letters/reasons", "", 8 * 1024**2),
    ):
        full = 100_000_000 - needed + 1
        assert status_beside(full, wanted, controller, path) == HTTPStatus.SERVICE_UNAVAILABLE
        assert status_beside(0, wanted, controller, path) == HTTPStatus.INTERNAL_SERVER_ERROR


@pytest.mark.parametrize(
    ("controller", "path", "room"),
    [
        (MessageController, "/consumers/messages?limit=100", 50_000_000),
        (MessageController, "/consumers/messages?scope=topic", 50_000_000),
        (MessageController, "/consumers/messages/0/0", 5_000_000),
        (DeadLetterController, "/consumers/dead-letters", 50_000_000),
    ],
)
def test_an_answer_without_room_is_refused_before_it_is_made(
    controller: type[Controller], path: str, room: int
) -> None:
    path, _, query = path.partition("?")
    topic = Topic(*[b"\x01" * 500_000] * 20)  # 60 MB in JSON
    refused = status_beside(100_000_000 - room, query, controller, path, topic)
    assert refused == HTTPStatus.SERVICE_UNAVAILABLE
    assert not topic.shown.called
    small = Topic(*[b"\x01" * 5_000] * 20)
    assert status_beside(100_000_000 - room, query, controller, path, small) == HTTPStatus.OK
    assert small.shown.called


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("controller", "path"),
    [
        (MessageController, "/consumers/messages?limit=1"),
        (MessageController, "/consumers/messages?scope=topic"),
        (MessageController, "/consumers/messages/0/0"),
        (DeadLetterController, "/consumers/dead-letters"),
    ],
)
async def test_other_work_gets_its_turn_between_two_large_answers(controller: type[Controller], path: str) -> None:
    """Sixteen lists of the window were made in one turn: that was 1.5 s without heartbeats, fetches and probes."""
    made_in, turn, topic = set[int](), 0, Topic(b"a" * 100_000)

    def make(shown: object) -> object:
        made_in.add(turn)
        return shown.decode() if isinstance(shown, bytes) else False

    topic.shown.side_effect = make
    app: Any = app_beside(0, controller, topic)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as many:
        answers = asyncio.gather(*(many.get(path) for _ in range(2)))
        while not answers.done():
            await asyncio.sleep(0)
            turn += 1
    assert [answer.status_code for answer in answers.result()] == [HTTPStatus.OK] * 2
    assert len(made_in) == 2


def test_the_page_and_its_files_are_served_while_there_is_room_for_no_call() -> None:
    with TestClient(Litestar(page_routes(None, ["events"]), before_request=admit(Limit(1, max_calls=0)))) as client:
        assert client.get("/").status_code == HTTPStatus.OK
        assert client.get("/page/page.css").status_code == HTTPStatus.OK


@pytest.mark.anyio
async def test_a_large_answer_that_waits_too_long_for_its_turn_is_refused_and_takes_no_memory_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "TURN_S", 0.01)
    limit, (one, other) = shares(2, 100)
    async with limit.making:
        await other.turn(FREE_BYTES)
        with pytest.raises(ProblemDetailsException, match="busy with 2 calls"):
            await one.turn(FREE_BYTES + 1)
    await one.turn(FREE_BYTES + 1)
    assert limit.taken_bytes == 0


def test_who_may_change_something_finds_room_however_many_read() -> None:
    limit = Limit(1_000, max_calls=10)

    def let_in(method: str) -> Any:  # noqa: ANN401 - a scope
        scope: Any = {"path_template": f"/{len(limit._calls)}", "method": method, "state": {}}
        limit.let_in(scope)
        return scope

    first, *_ = [let_in("GET") for _ in range(9)]
    with pytest.raises(ProblemDetailsException, match="busy with 9 calls"):
        let_in("GET")
    let_in("POST")
    limit.let_out(first)
    let_in("GET")
    with pytest.raises(ProblemDetailsException, match="busy with 10 calls"):
        let_in("POST")


def shares(number: int, max_bytes: int) -> tuple[Limit, list[Share]]:
    limit = Limit(max_bytes)
    scopes: list[Any] = [{"path": "/", "state": {}} for _ in range(number)]
    for scope in scopes:
        limit.let_in(scope)
    return limit, [share_of(scope) for scope in scopes]


def test_bodies_that_arrive_slowly_leave_room_for_those_that_have_arrived() -> None:
    limit, (one, other, third) = shares(3, 100 * FREE_BYTES)
    assert one.set_arriving(31 * FREE_BYTES)
    assert other.set_arriving(21 * FREE_BYTES)
    assert not other.set_arriving(22 * FREE_BYTES)
    assert not third.set_arriving(2 * FREE_BYTES)
    assert third.set_arriving(FREE_BYTES)  # as much as the server reads anyway
    assert third.take(50 * FREE_BYTES)
    assert not third.take(1)
    one.release()
    assert third.take(30 * FREE_BYTES)
    assert other.set_arriving(0)
    other.release()
    third.release()
    assert (limit.taken_bytes, limit.arriving_bytes) == (0, 0)


def test_a_call_that_takes_more_than_all_of_it_is_let_in_when_it_is_alone() -> None:
    _, (one, other) = shares(2, 100 * FREE_BYTES)
    assert one.take(200 * FREE_BYTES)
    assert not other.take(1)
    assert one.take(1)


def test_a_body_that_takes_more_than_half_of_it_is_let_in_when_it_is_alone() -> None:
    _, (one, other) = shares(2, 100 * FREE_BYTES)
    assert one.set_arriving(60 * FREE_BYTES)
    assert not other.set_arriving(2 * FREE_BYTES)
    assert one.set_arriving(61 * FREE_BYTES)


async def lines(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.anyio
async def test_of_lines_only_what_is_on_its_way_counts_and_an_unfinished_long_one() -> None:
    limit, (one, other) = shares(2, 20 * FREE_BYTES)
    unfinished = b"x" * FREE_BYTES
    split = split_lines(lines(b"a\n", *[unfinished] * 9, b"\n"), 100 * FREE_BYTES, one)
    assert [len(found) async for found in split] == [1, 1]
    assert limit.taken_bytes == 0
    assert other.set_arriving(8 * FREE_BYTES)
    split = split_lines(lines(*[unfinished] * 9, b"\n"), 100 * FREE_BYTES, one)
    with pytest.raises(Busy):
        await anext(split)
