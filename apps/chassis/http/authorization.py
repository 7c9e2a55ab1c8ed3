"""Authorization over HTTP: every call that changes something needs an API key, where any is set."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextvars import Context
from http import HTTPStatus
from typing import Any

from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.openapi.spec import Components, SecurityScheme
from prometheus_client import CollectorRegistry, Counter

from apps.chassis.http.api_keys import HEADER, Keys
from apps.chassis.http.problems import problem
from apps.chassis.observability.logs import key_name

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
COMPONENTS = Components(
    security_schemes={"ApiKey": SecurityScheme(type="apiKey", name=HEADER, security_scheme_in="header")}
)
"""How an OpenAPI document describes the keys."""
KEY_NEEDED: list[dict[str, list[str]]] = [{"ApiKey": []}]
"""The `security` of a route that changes something, for the document."""
LOGGED_EVERY_S = 60.0
"""Seconds between two log lines about refused keys; those in between are counted."""

SECURITY_HEADERS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
}
"""The headers of every answer for browsers, unless it sets them itself, as pages do."""


class RefusedKeys:
    """Count calls without a key or with a wrong one. Log wrong keys at once, then in one line a minute."""

    def __init__(self, registry: CollectorRegistry, logged_every_s: float = LOGGED_EVERY_S) -> None:
        self._logged_every_s = logged_every_s
        counter = Counter("api_key_refusals", "Calls refused without a valid API key.", ["reason"], registry=registry)
        self._missing, self._wrong = counter.labels("missing"), counter.labels("wrong")
        self._unlogged = 0
        self._waiting = False

    def note(self, offered: str) -> None:
        """Count a refused call."""
        if not offered:
            self._missing.inc()
            return
        self._wrong.inc()
        self._unlogged += 1
        if not self._waiting:
            self._log()

    def _log(self) -> None:
        self._waiting = self._unlogged > 0
        if self._unlogged:
            log.warning("calls refused because of a wrong API key: %d", self._unlogged)
            self._unlogged = 0
            later = Context()  # the line belongs to no request, so it gets no request id
            asyncio.get_running_loop().call_later(self._logged_every_s, self._log, context=later)


class ApiKeyGuard:
    """A guard of a whole application: calls that change something need an accepted key."""

    def __init__(self, keys: Keys, registry: CollectorRegistry) -> None:
        self._keys = keys
        self._refused = RefusedKeys(registry)
        keys.name_of("")  # reads the file, which may be half written at the first call

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Let a call through, and log it with the name of its key. Raises 401."""
        if connection.scope.get("method") in SAFE_METHODS:
            return
        offered = connection.headers.get(HEADER, "")
        name = self._keys.name_of(offered)
        if name is None:
            self._refused.note(offered)
            raise problem(
                HTTPStatus.UNAUTHORIZED,
                f"this call needs a key in the header {HEADER}, and none that is accepted was given",
                headers={"WWW-Authenticate": f'ApiKey header="{HEADER}"'},
            )
        key_name.set(name)  # needs the request's own task: a synchronous guard would run in a thread


def cors(origins: list[str]) -> CORSConfig | None:
    """Let pages of these origins call the service, and no other."""
    if not origins:
        return None
    return CORSConfig(allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["Content-Type", HEADER])


def missing_security_headers(own: Mapping[bytes, bytes]) -> Iterable[tuple[bytes, bytes]]:
    """Return the `SECURITY_HEADERS` that an answer does not set itself."""
    if SECURITY_HEADERS.keys().isdisjoint(own):
        return SECURITY_HEADERS.items()
    return [header for header in SECURITY_HEADERS.items() if header[0] not in own]
