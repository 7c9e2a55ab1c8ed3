"""What a call counts for among those under way."""

from typing import Any, cast

import pytest
from litestar.types import Scope

from apps.consumer.message_routes import SEARCH_IN_MEMORY, weight_of
from apps.producer import routes as producer


def weight(path: str, query: bytes = b"") -> int | None:
    scope: dict[str, Any] = {"path": path, "query_string": query}
    return weight_of(cast("Scope", scope))


@pytest.mark.parametrize("query", [b"", b"limit=30", b"scope=window", b"key=scope%3Dtopic"])
def test_however_many_pages_show_the_newest_none_is_refused_for_its_memory(query: bytes) -> None:
    assert weight("/consumers/messages", query) == 0


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
