"""Authentication over HTTP: whose key a call has, in its header or by a session that was made from the key.

A session is a cookie that is signed with the key itself: every instance that has the key accepts it, and none does once
the key is gone.
"""

import asyncio
import hmac
import logging
import re
import time
from contextvars import Context
from http import HTTPStatus
from typing import Any

from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.plugins.problem_details import ProblemDetailsException
from prometheus_client import CollectorRegistry, Counter

from apps.chassis.http.api_keys import HEADER, ApiKey
from apps.chassis.http.guess_limit import GuessLimit
from apps.chassis.http.problem_kinds import FOREIGN_ORIGIN, TOO_MANY_GUESSES
from apps.chassis.http.problems import problem
from apps.chassis.settings import Settings

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_S = 8 * 60 * 60
"""Seconds for which a session lasts: a working day."""
SESSION = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,32})\.(?P<until>[0-9]{1,12})\.(?P<signature>[0-9a-f]{64})")
LOGGED_EVERY_S = 60.0
"""Seconds between two log lines about refused keys; those in between are counted."""

Connection = ASGIConnection[Any, Any, Any, Any]


class RefusedKeys:
    """Count refused calls by reason. Log wrong keys at once, then in one line a minute."""

    def __init__(self, registry: CollectorRegistry, logged_every_s: float = LOGGED_EVERY_S) -> None:
        self._logged_every_s = logged_every_s
        self._counter = Counter("api_key_refusals", "Calls refused for their API key.", ["reason"], registry=registry)
        for reason in ("missing", "wrong", "expired", "role", "slowed"):
            self._counter.labels(reason)
        self._unlogged = 0
        self._waiting = False

    def note(self, reason: str) -> None:
        """Count a refused call."""
        self._counter.labels(reason).inc()
        if reason not in {"wrong", "slowed"}:
            return
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


class Authenticator:
    """Returns the key of a call."""

    def __init__(self, settings: Settings, service: str, registry: CollectorRegistry) -> None:
        self.keys = settings.api_keys
        self.cookie_name = f"{service}_session"
        self._path = settings.root_path or "/"
        self.refused = RefusedKeys(registry)
        self._guesses = GuessLimit()
        if self.keys.needed:
            _ = self.keys.current  # reads the file, which may be half written at the first call

    def identify(self, connection: Connection) -> ApiKey | None:
        """Return the key of a call, None for a call without any. Raises 401, 403 or 429."""
        if offered := connection.headers.get(HEADER):
            return self.check(connection, self.keys.find(offered))
        match = SESSION.fullmatch(connection.cookies.get(self.cookie_name, ""))
        key = match and self.keys.current.get(match["name"])
        if match is None or key is None or int(match["until"]) < time.time():
            return None
        is_signed = hmac.compare_digest(match["signature"], self._signature(key, match["until"]))
        removal = {"Set-Cookie": self.end_of_session().to_header(header="")}
        found = self.check(connection, key if is_signed else None, removal)
        if connection.scope.get("method") not in SAFE_METHODS:
            _require_own_page(connection)
        return found

    def check(self, connection: Connection, key: ApiKey | None, headers: dict[str, str] | None = None) -> ApiKey:
        """Return a key that is accepted; None stands for a wrong one. Raises 401 with the headers, or 429."""
        address = connection.client.host if connection.client else ""
        if self._guesses.blocks(address, key.name if key else None):
            self.refused.note("slowed")
            raise problem(TOO_MANY_GUESSES, "too many wrong keys came from this address: wait before you try another")
        if key is None:
            self._guesses.note_wrong(address)
            raise self.refusal("wrong", "the key is not accepted", headers)
        if key.has_expired:
            raise self.refusal("expired", f"the key {key.name} has expired", headers)
        self._guesses.note_used(address, key.name)
        return key

    def refusal(self, reason: str, detail: str, headers: dict[str, str] | None = None) -> ProblemDetailsException:
        """Count a refused call, and return the 401 that answers it."""
        self.refused.note(reason)
        asked_for = {"WWW-Authenticate": f'ApiKey header="{HEADER}"'}
        return problem(HTTPStatus.UNAUTHORIZED, detail, headers={**asked_for, **(headers or {})})

    def session_of(self, key: ApiKey, *, secure: bool) -> Cookie:
        """Return the cookie of a new session of a key."""
        until = str(int(time.time()) + SESSION_S)
        return self._cookie(f"{key.name}.{until}.{self._signature(key, until)}", SESSION_S, secure=secure)

    def end_of_session(self) -> Cookie:
        """Return the cookie that removes the one of a session."""
        return self._cookie("", 0, secure=False)

    def _cookie(self, value: str, max_age: int, *, secure: bool) -> Cookie:
        return Cookie(
            key=self.cookie_name,
            value=value,
            path=self._path,
            max_age=max_age,
            secure=secure,
            httponly=True,
            samesite="strict",
        )

    def _signature(self, key: ApiKey, until: str) -> str:
        signed = f"{self.cookie_name}\n{key.name}\n{until}"
        return hmac.digest(key.secret.encode(), signed.encode(), "sha256").hex()


def _require_own_page(connection: Connection) -> None:
    """Refuse a change by a session whose page a browser does not name; `OriginPolicy` has checked a given name."""
    if "Origin" not in connection.headers and connection.headers.get("Sec-Fetch-Site") != "same-origin":
        detail = "a call with a session needs the header Origin; callers other than browsers send their key instead"
        raise problem(FOREIGN_ORIGIN, detail)
