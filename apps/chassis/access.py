"""Who may do what over HTTP: a key for whatever changes something, and what browsers are told of every answer."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from litestar import Router
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi.spec import Components, SecurityScheme

from apps.chassis.keys import HEADER, Keys
from apps.chassis.problems import documented, problem

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
COMPONENTS = Components(
    security_schemes={"ApiKey": SecurityScheme(type="apiKey", name=HEADER, security_scheme_in="header")}
)
"""How the keys stand in an OpenAPI document."""

SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
"""What every answer tells a browser, unless it says something else itself, as pages do."""


def guarded(routes: Sequence[BaseRouteHandler | Router], keys: Keys) -> Sequence[BaseRouteHandler | Router]:
    """Return the routes; those that change something ask for a key from now on, if any is needed."""

    def check(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        if keys.name_of(connection.headers.get(HEADER, "")) is None:
            raise problem(
                HTTPStatus.UNAUTHORIZED,
                f"this call needs a key in the header {HEADER}, and none that is accepted was given",
                headers={"WWW-Authenticate": f'ApiKey header="{HEADER}"'},
            )

    for route in routes if keys.needed else ():
        if isinstance(route, HTTPRouteHandler) and not route.http_methods <= SAFE_METHODS:
            route.guards = [check]
            route.security = [{"ApiKey": []}]
            unauthorized = HTTPStatus.UNAUTHORIZED
            route.responses = {**(route.responses or {}), unauthorized: documented(unauthorized)[unauthorized]}
    return routes


def security_headers_beside(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    """Return those of `SECURITY_HEADERS` that an answer has not itself."""
    said = dict(headers)
    if SECURITY_HEADERS.keys().isdisjoint(said):
        return SECURITY_HEADERS.items()
    return [header for header in SECURITY_HEADERS.items() if header[0] not in said]
