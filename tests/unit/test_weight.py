"""What a call counts for among those under way."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from litestar.types import Scope
from samples import Stored

from apps.chassis.http.admission import FREE_BYTES, Limit, Share, share_of
from apps.chassis.http.served_streams import Served
from apps.consumer.browsing.routes import SEARCH_IN_MEMORY, TIMES_IN_MEMORY, weight_of
from apps.consumer.browsing.window import Window
from apps.producer.publishing.intake import split_lines
from apps.producer.publishing.publisher import Busy


def weight(path: str, query: bytes = b"") -> int | None:
    scope: dict[str, Any] = {"path": path, "query_string": query}
    window = Window(100)
    window.extend([Stored(offset=offset, value=b"a" * 1_000) for offset in range(100)])
    served: Any = Served({"people": SimpleNamespace(window=window)})
    return weight_of(cast("Scope", scope), served)


@pytest.mark.parametrize(
    ("query", "records"),
    [(b"", 10), (b"limit=30", 30), (b"limit=1000&scope=window", 100), (b"key=scope%3Dtopic", 10), (b"limit=x", 0)],
)
def test_the_newest_of_the_window_count_for_the_records_that_are_asked_for(query: bytes, records: int) -> None:
    assert weight("/consumers/messages", query) == TIMES_IN_MEMORY * records * 1_000


@pytest.mark.parametrize("query", [b"scope=topic", b"q=x&scope=%74opic", b"scope=window&scope=topic"])
def test_a_search_counts_for_what_it_holds(query: bytes) -> None:
    assert weight("/consumers/messages", query) == SEARCH_IN_MEMORY
    assert weight("/consumers/dead-letters") == SEARCH_IN_MEMORY


def shares(number: int, most_bytes: int) -> tuple[Limit, list[Share]]:
    limit = Limit(most_bytes)
    scopes: list[Any] = [{"path": "/", "state": {}} for _ in range(number)]
    for scope in scopes:
        limit.let_in(scope)
    return limit, [share_of(scope) for scope in scopes]


def test_bodies_that_arrive_slowly_leave_room_for_those_that_have_arrived() -> None:
    limit, (one, other, third) = shares(3, 100 * FREE_BYTES)
    assert one.hold(31 * FREE_BYTES)
    assert other.hold(21 * FREE_BYTES)
    assert not other.hold(22 * FREE_BYTES)
    assert not third.hold(2 * FREE_BYTES)
    assert third.hold(FREE_BYTES)  # as much as the server reads anyway
    assert third.take(50 * FREE_BYTES)
    assert not third.take(1)
    one.release()
    assert third.take(30 * FREE_BYTES)
    assert other.hold(0)
    other.release()
    third.release()
    assert (limit.taken_bytes, limit.held_bytes) == (0, 0)


def test_a_call_that_takes_more_than_all_of_it_is_let_in_when_it_is_alone() -> None:
    _, (one, other) = shares(2, 100 * FREE_BYTES)
    assert one.take(200 * FREE_BYTES)
    assert not other.take(1)
    assert one.take(1)


def test_a_body_that_takes_more_than_half_of_it_is_let_in_when_it_is_alone() -> None:
    _, (one, other) = shares(2, 100 * FREE_BYTES)
    assert one.hold(60 * FREE_BYTES)
    assert not other.hold(2 * FREE_BYTES)
    assert one.hold(61 * FREE_BYTES)


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
    assert other.hold(8 * FREE_BYTES)
    split = split_lines(lines(*[unfinished] * 9, b"\n"), 100 * FREE_BYTES, one)
    with pytest.raises(Busy):
        await anext(split)
