"""Reads the headers of a request once for all that look at them."""

from litestar.types import Scope

HEADERS = "headers_by_name"
"""Set in the scope of a request: its headers by name."""


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers of a request by their lower-case names; a repeated header has all its values, with commas."""
    found: dict[bytes, bytes] | None = scope.get(HEADERS)  # type: ignore[assignment]  # a key of our own
    if found is None:
        headers = list(scope["headers"])
        found = dict(headers)
        if len(found) < len(headers):
            found = {one: b", ".join(value for name, value in headers if name == one) for one in found}
        scope[HEADERS] = found  # type: ignore[literal-required]  # a key of our own
    return found
