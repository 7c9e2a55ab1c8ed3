"""The headers of a request, as everything that looks at them reads them."""

from typing import Any

import pytest

from apps.chassis.http.request_headers import cookie_of, headers_of


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


def test_a_head_of_many_names_is_looked_through_once_also_when_one_of_them_is_repeated() -> None:
    comparisons = 0

    class Name(bytes):
        def __eq__(self, other: object) -> bool:
            nonlocal comparisons
            comparisons += 1
            return super().__eq__(other)

        __hash__ = bytes.__hash__

    scope: Any = {"headers": [(Name(b"name-%d" % (number % 999)), b"") for number in range(1_000)]}
    assert len(headers_of(scope)) == 999
    assert comparisons < 10_000


@pytest.mark.parametrize("cookies", [[b"a=1", b"b=2"], [b"b=2", b"a=1"], [b"b=2; a=1"], [b"c; b=2"]])
def test_a_cookie_is_found_in_whichever_header_it_stands(cookies: list[bytes]) -> None:
    scope: Any = {"headers": [(b"cookie", cookie) for cookie in cookies] + [(b"x", b"b=3")]}
    assert cookie_of(scope, "b") == "2"
    assert not cookie_of(scope, "d")
