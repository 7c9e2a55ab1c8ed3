"""Reads the head of a request: its headers once for all that look at them, and what no call may have."""

import re
from http import HTTPStatus

from litestar.plugins.problem_details import ProblemDetailsException
from litestar.types import Scope

from apps.chassis.http.problems import problem

HEADERS = "headers_by_name"
"""Set in the scope of a request: its headers by name."""
NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
"""A `%` in a path that the server leaves as it is: it would name another record than the caller means."""
GIVEN_ONCE = (
    "Host",
    "X-API-Key",
    "Authorization",
    "Content-Type",
    "Origin",
    "Sec-Fetch-Site",
    "Sec-Fetch-Mode",
    "Last-Event-ID",
    "traceparent",
)
"""Headers with one value: of two, a proxy and this service could believe different ones."""


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers of a request by their lower-case names; a repeated header has all its values, with commas."""
    found: dict[bytes, bytes] | None = scope.get(HEADERS)  # type: ignore[assignment]  # a key of our own
    if found is None:
        headers = list(scope["headers"])
        found = dict(headers)
        if len(found) < len(headers):
            values: dict[bytes, list[bytes]] = {}
            for name, value in headers:
                values.setdefault(name, []).append(value)
            found = {name: b", ".join(given) for name, given in values.items()}
        scope[HEADERS] = found  # type: ignore[literal-required]  # a key of our own
    return found


def cookie_of(scope: Scope, name: str) -> str:
    """Return the value of a cookie that needs no quotes, empty without one.

    No other cookie is read. Litestar would keep all of a caller in its cache, and `http.cookies` may take seconds for
    their quotes (CVE-2024-7592).
    """
    given = b";" + b";".join(value for header, value in scope["headers"] if header == b"cookie")
    _, found, rest = given.replace(b"; ", b";").rpartition(b";%b=" % name.encode())
    return rest.partition(b";")[0].decode("latin-1") if found else ""


def find_fault(scope: Scope) -> ProblemDetailsException | None:
    """Return the problem of a request without a host, with several values where one is allowed, or with an odd path.

    HTTP/1.0 has requests without a host (RFC 9112, section 3.2).
    """
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    if b"//" in path or (b"%" in path and b"%2f" in path.lower()):  # Litestar would take both for one slash
        return problem(HTTPStatus.NOT_FOUND, "no path here has an empty segment or an encoded slash")
    if b"%" in path and NO_ESCAPE.search(path):
        return problem(HTTPStatus.BAD_REQUEST, "the path has a % without two hexadecimal digits behind it: send %25")
    if "\ufffd" in scope["path"]:  # the server puts it where bytes are no UTF-8: they would name another record
        return problem(HTTPStatus.BAD_REQUEST, "the path is not UTF-8, or has the character U+FFFD")
    given = headers_of(scope)
    if b"host" not in given and scope.get("http_version") == "1.1":
        return problem(HTTPStatus.BAD_REQUEST, "the header Host is missing")
    names = [name for name, _ in scope["headers"]]
    if len(given) < len(names):
        for name in GIVEN_ONCE:
            if (times := names.count(name.lower().encode())) > 1:
                return problem(HTTPStatus.BAD_REQUEST, f"the header {name} is given {times} times: send one")
    return None
