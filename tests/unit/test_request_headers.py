"""The headers of a request, as everything that looks at them reads them."""

from typing import Any

import pytest

from apps.chassis.http.request_headers import headers_of


@pytest.mark.parametrize(
    ("headers", "read"),
    [
        ([], {}),
        ([(b"host", b"a"), (b"origin", b"b")], {b"host": b"a", b"origin": b"b"}),
        ([(b"host", b"a"), (b"origin", b"b"), (b"host", b"c")], {b"host": b"a, c", b"origin": b"b"}),
    ],
)
def test_a_repeated_header_has_all_its_values(headers: list[tuple[bytes, bytes]], read: dict[bytes, bytes]) -> None:
    scope: Any = {"headers": headers}
    assert headers_of(scope) == read
    assert headers_of(scope) is headers_of(scope)
