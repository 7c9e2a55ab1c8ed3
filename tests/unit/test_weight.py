"""What a call counts for among those under way."""

from typing import Any, cast

import pytest
from litestar.types import Scope
from samples import Stored

from apps.consumer.message_routes import SEARCH_IN_MEMORY, TIMES_IN_MEMORY, weight_of
from apps.consumer.window import Window
from apps.producer import routes as producer


def weight(path: str, query: bytes = b"") -> int | None:
    scope: dict[str, Any] = {"path": path, "query_string": query}
    window = Window(100)
    window.extend([Stored(offset=offset, value=b"a" * 1_000) for offset in range(100)])
    return weight_of(cast("Scope", scope), window)


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


@pytest.mark.parametrize(
    ("length", "bytes_of_it"),
    [
        (b"300", 300),
        (b"0" * 4_400 + b"5", producer.LARGEST_BODY),  # as HTTP lets it in, and Python's `int` does not
        (b"9" * 18, producer.LARGEST_BODY),
        (None, producer.LARGEST_BODY),
    ],
)
def test_a_body_counts_for_its_length_and_for_the_largest_where_that_is_not_told(
    length: bytes | None, bytes_of_it: int
) -> None:
    headers = [] if length is None else [(b"content-length", length)]
    scope: Any = {"path": producer.SEND, "query_string": b"", "headers": headers}
    assert producer.weight_of(scope) == producer.TIMES_IN_MEMORY * bytes_of_it
