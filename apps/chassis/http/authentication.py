"""Authentication over HTTP: whose key or token a call has, in a header or by a session that was made from the key.

A session is a cookie that is signed with the key itself: every instance that has the key accepts it, and none does once
the key is gone.
"""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from contextvars import Context
from hashlib import sha256
from http import HTTPStatus
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.plugins.problem_details import ProblemDetailsException
from prometheus_client import CollectorRegistry, Counter

from apps.chassis.http.api_keys import HEADER, ApiKey
from apps.chassis.http.callers import Caller, ExpiredToken, InvalidToken, KeysOutOfReach
from apps.chassis.http.guess_limit import GuessLimit
from apps.chassis.http.problem_kinds import FOREIGN_ORIGIN, TOO_MANY_GUESSES
from apps.chassis.http.problems import RETRY_AFTER, problem
from apps.chassis.http.request_headers import cookie_of
from apps.chassis.setting_types import WrongSetting
from apps.chassis.settings import Settings

if TYPE_CHECKING:
    from apps.chassis.http.tokens import Tokens

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SESSION_S = 8 * 60 * 60
"""Seconds for which a session lasts: a working day."""
PORT = re.compile(r":([0-9]{1,5})$")
"""The port of a `Host`."""
SESSION = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,32})\.(?P<until>[0-9]{1,12})\.(?P<signature>[0-9a-f]{64})")
BEARER = re.compile(r"bearer(?: +(?P<token>.*))?", re.IGNORECASE)
INVALID_TOKEN = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
WRONG_KEY = "the key is not accepted"
MISSING_KEY = ApiKey("", secret=token_hex())
"""Stands for a key that does not exist."""
LOGGED_EVERY_S = 60.0
"""Seconds between two log lines about refused keys; those in between are counted."""

AnyCaller = TypeVar("AnyCaller", bound=Caller)
Connection = ASGIConnection[Any, Any, Any, Any]


class RefusedKeys:
    """Count refused calls by reason. Log wrong keys at once, then in one line a minute."""

    def __init__(self, registry: CollectorRegistry, logged_every_s: float = LOGGED_EVERY_S) -> None:
        self._logged_every_s = logged_every_s
        self._counter = Counter(
            "api_key_refusals", "Calls refused for their API key or token.", ["reason"], registry=registry
        )
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
            log.warning("calls refused because of a wrong API key or token: %d", self._unlogged)
            self._unlogged = 0
            later = Context()  # the line belongs to no request, so it gets no request id
            asyncio.get_running_loop().call_later(self._logged_every_s, self._log, context=later)


class Authenticator:
    """Returns who makes a call."""

    def __init__(self, settings: Settings, service: str, registry: CollectorRegistry) -> None:
        self.keys = settings.api_keys
        self._service = service
        self._path = settings.root_path or "/"
        self.refused = RefusedKeys(registry)
        self._guesses = GuessLimit(workers=settings.producer_workers)
        self.tokens = _tokens_of(settings) if settings.jwt_issuer else None
        if self.keys.needed:
            _ = self.keys.current  # reads the file, which may be half written at the first call

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep the keys that verify tokens up to date until the end of the block."""
        async with self.tokens.open() if self.tokens else nullcontext():
            yield

    @property
    def note(self) -> str:
        """What health should say of the keys that verify tokens; empty when there are some, up to date."""
        if self.tokens is None:
            return ""
        if failure := self.tokens.failure:
            return f"the token keys (JWT_JWKS) cannot be fetched: {failure}"
        return "" if self.tokens.has_keys else "no token is accepted: no key of JWT_JWKS can verify one"

    async def prepare(self, connection: Connection) -> None:
        """Wait for the keys of the issuer when the token of a call needs them."""
        if self.tokens and (token := _bearer_token(connection)) is not None:
            await self.tokens.prepare(token)

    def identify(self, connection: Connection) -> Caller | None:
        """Return the caller, None for a call without a key or a token. Raises 401, 403, 429 or 503."""
        if offered := connection.headers.get(HEADER):
            return self.check(connection, self.keys.find(offered))
        if self.tokens and (token := _bearer_token(connection)) is not None:
            return self._check_token(connection, self.tokens, token)
        match = SESSION.fullmatch(cookie_of(connection.scope, cookie := self.cookie_of(connection)))
        if match is None or not self.keys.needed or int(match["until"]) < time.time():
            return None
        key = self.keys.current.get(match["name"])
        # without one the answer, and the time that it takes, are the same: it tells no names
        is_signed = hmac.compare_digest(
            match["signature"], self._signature(cookie, match["name"], key or MISSING_KEY, match["until"])
        )
        found = self.check(connection, key if is_signed else None, headers=self.removal(connection), session=match[0])
        if connection.scope.get("method") not in SAFE_METHODS:
            _require_own_page(connection)
        return found

    def check(
        self,
        connection: Connection,
        key: AnyCaller | None,
        wrong: str = WRONG_KEY,
        headers: dict[str, str] | None = None,
        session: str | None = None,
    ) -> AnyCaller:
        """Return a key that is accepted; None stands for a wrong one, of a `session` if that is given.

        Raises 401 with the headers, or 429: first of all, as an address that is slowed learns nothing of what it sent.
        """
        address = _address_of(connection)
        if self._guesses.blocks(address, key.name if key else None):
            self.refused.note("slowed")
            detail = "too many wrong keys or tokens came from this address: wait before you try another"
            raise problem(TOO_MANY_GUESSES, detail)
        if key is None:
            self._guesses.note_wrong(address, session)
            raise self.refusal("wrong", wrong, headers)
        if key.has_expired:
            raise self.refusal("expired", f"the key {key.name} has expired", headers)
        self._guesses.note_used(address, key.name)
        return key

    def _check_token(self, connection: Connection, tokens: "Tokens", token: str) -> Caller:
        try:
            return self.check(connection, tokens.verify(token))
        except ExpiredToken:
            raise self.refusal("expired", "the token has expired", INVALID_TOKEN) from None
        except InvalidToken as error:
            return self.check(connection, None, f"the token is not accepted: {error}", INVALID_TOKEN)
        except KeysOutOfReach:  # not 401: the caller would throw away a token that may be valid
            detail = "the keys that sign tokens cannot be fetched now: try again later"
            raise problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": RETRY_AFTER}) from None

    def refusal(self, reason: str, detail: str, headers: dict[str, str] | None = None) -> ProblemDetailsException:
        """Count a refused call, and return the 401 that answers it."""
        self.refused.note(reason)
        asked_for = {"WWW-Authenticate": f'ApiKey header="{HEADER}"' + (", Bearer" if self.tokens else "")}
        return problem(HTTPStatus.UNAUTHORIZED, detail, headers={**asked_for, **(headers or {})})

    def cookie_of(self, connection: Connection) -> str:
        """Return the name of the cookie. Browsers send the cookies of all ports of a host, and of shorter paths."""
        port = PORT.search(connection.headers.get("Host", ""))
        place = f"{self._path} {port[1] if port else ''}"
        return f"{self._service}_session_{sha256(place.encode()).hexdigest()[:8]}"

    def session_of(self, connection: Connection, key: ApiKey, *, secure: bool) -> Cookie:
        """Return the cookie of a new session of a key."""
        until, cookie = str(int(time.time()) + SESSION_S), self.cookie_of(connection)
        signature = self._signature(cookie, key.name, key, until)
        return self._cookie(cookie, f"{key.name}.{until}.{signature}", SESSION_S, secure=secure)

    def end_of_session(self, connection: Connection) -> Cookie:
        """Return the cookie that removes the one of a session."""
        return self._cookie(self.cookie_of(connection), "", 0, secure=False)

    def removal(self, connection: Connection) -> dict[str, str]:
        """Return the headers of a refusal that ends the session too."""
        return {"Set-Cookie": self.end_of_session(connection).to_header(header="")}

    def _cookie(self, name: str, value: str, max_age: int, *, secure: bool) -> Cookie:
        return Cookie(
            key=name,
            value=value,
            path=self._path,
            max_age=max_age,
            secure=secure,
            httponly=True,
            samesite="strict",
        )

    @staticmethod
    def _signature(cookie: str, name: str, key: ApiKey, until: str) -> str:
        signed = f"{cookie}\n{name}\n{until}"
        return hmac.digest(key.secret.encode(), signed.encode(), "sha256").hex()


def _tokens_of(settings: Settings) -> "Tokens":
    """Return what verifies tokens. Raises `WrongSetting` for a file without keys."""
    from apps.chassis.http.token_keys import key_source  # noqa: PLC0415 - only with the extra `oidc`
    from apps.chassis.http.tokens import Tokens  # noqa: PLC0415 - likewise

    source = key_source(settings.jwt_jwks)
    try:
        source.check()
    except ValueError as error:
        raise WrongSetting(f"JWT_JWKS: {error}") from None
    except OSError as error:
        raise WrongSetting(f"JWT_JWKS: cannot read {settings.jwt_jwks!r}: {error.strerror}") from None
    roles = settings.jwt_roles_claim, settings.token_roles
    return Tokens(settings.jwt_issuer, settings.token_audiences, source, *roles)


def _address_of(connection: Connection) -> str:
    return connection.client.host if connection.client else ""


def _bearer_token(connection: Connection) -> str | None:
    found = BEARER.fullmatch(connection.headers.get("Authorization", ""))
    return None if found is None else found["token"] or ""


def _require_own_page(connection: Connection) -> None:
    """Refuse a change by a session whose page a browser does not name; `OriginPolicy` has checked a given name."""
    if not connection.headers.get("Origin") and connection.headers.get("Sec-Fetch-Site") != "same-origin":
        detail = "a call with a session needs the header Origin; callers other than browsers send their key instead"
        raise problem(FOREIGN_ORIGIN, detail)
