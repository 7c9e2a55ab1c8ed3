"""Authorization over HTTP: each route declares the role that a call of it needs, where keys are set.

A route that declares nothing is refused.
"""

import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from litestar.config.cors import CORSConfig
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.types import Method

from apps.chassis.http.api_keys import HEADER
from apps.chassis.http.authentication import Authenticator, Connection
from apps.chassis.http.direct_calls import OUTCOME
from apps.chassis.http.problem_kinds import MISSING_ROLE
from apps.chassis.http.problems import problem
from apps.chassis.http.roles import ANYONE, METRICS, READ, READ_SENSITIVE, ROLE, Role
from apps.chassis.observability.logs import key_name

ACCESS = "access"
"""The key of an application's state that holds its `Access`."""
CHECKED_EVERY_S = 2.4
"""Seconds after which a long answer checks again whether its caller may have it.

With the `idle_s` of a live tail, that ends within 5 s.
"""

SECURITY_HEADERS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}
"""The headers of every answer for browsers, unless it sets them itself, as pages do."""


class Access:
    """Decides who may make a call."""

    def __init__(self, authenticator: Authenticator, *, metrics_public: bool) -> None:
        self.authenticator = authenticator
        self.keys = authenticator.keys
        self._metrics_public = metrics_public

    async def guard(self, connection: Connection, route: BaseRouteHandler) -> None:
        """Let a call through, and log it with the name of its caller. Raises 401, 403, 429 or 503."""
        if OUTCOME in connection.scope:
            return  # it was asked before the call was made
        if connection.scope.get("method") == "OPTIONS" or route.opt[ROLE] == ANYONE:
            return  # a probe waits for no identity provider
        await self.authenticator.prepare(connection)
        if (needed := self.role_of(route)) is None:
            return
        caller = self.authenticator.identify(connection)
        if caller is None:
            or_token = " or a bearer token" if self.authenticator.tokens else ""
            detail = f"this call needs a key{or_token} with the role {needed}, in the header {HEADER} or by signing in"
            raise self.authenticator.refusal("missing", detail)
        key_name.set(caller.name)  # needs the request's own task: a synchronous guard would run in a thread
        if not caller.may(needed):
            self.authenticator.refused.note("role")
            raise problem(MISSING_ROLE, f"this call needs the role {needed}; {caller.name} does not have it")

    def role_of(self, route: BaseRouteHandler) -> Role | None:
        """Return the role that a call needs now, None for a call that needs no key."""
        declared = route.opt[ROLE]
        if declared == ANYONE or not self.keys.needed or (declared == METRICS and self._metrics_public):
            return None
        if declared == READ and not self.keys.needed_to_read:
            return None
        return READ if declared == METRICS else Role(declared)

    def roles_of(self, connection: Connection) -> tuple[str | None, list[Role]]:
        """Return the name of the caller's key, None without any, and what the caller may do. Raises 401 or 429."""
        if not self.keys.needed:
            return None, [*Role]
        if key := self.authenticator.identify(connection):
            return key.name, key.roles
        return None, self.roles_without_key

    @property
    def roles_without_key(self) -> list[Role]:
        """What a caller without a key may do: where reading is open, it is open as a whole."""
        return [] if self.keys.needed_to_read else [READ, READ_SENSITIVE]

    def may_read(self, connection: Connection, role: Role = READ) -> bool:
        """Return whether the caller may read, and has a further role for it; a key not accepted counts as none."""
        try:
            roles = self.roles_of(connection)[1]
        except HTTPException:
            roles = self.roles_without_key
        return {READ, role} <= {*roles}

    async def while_allowed(
        self,
        connection: Connection,
        pieces: AsyncGenerator[bytes, None],
        role: Role = READ,
        checked_every_s: float = CHECKED_EVERY_S,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of a long answer until its caller may no longer read, or lacks the role.

        An empty piece is not passed on: it is there for the check.
        """
        checked = time.monotonic()
        async with aclosing(pieces):
            async for piece in pieces:
                if time.monotonic() - checked > checked_every_s:
                    checked = time.monotonic()
                    if not self.may_read(connection, role):
                        return
                if piece:
                    yield piece


async def check_again(connection: Connection) -> None:
    """Refuse a call whose caller has lost its role since the call began. Raises the errors of `Access.guard`."""
    if access := connection.app.state.get(ACCESS):
        await access.guard(connection, connection.route_handler)


def cors(origins: list[str], methods: Sequence[Method]) -> CORSConfig | None:
    """Let pages of these origins call the service, also with a session, and no other."""
    if not origins:
        return None
    return CORSConfig(
        allow_origins=origins,
        allow_methods=[*methods],
        allow_headers=["Content-Type", HEADER, "Authorization"],
        allow_credentials=True,
    )


def missing_security_headers(own: Mapping[bytes, bytes]) -> Iterable[tuple[bytes, bytes]]:
    """Return the `SECURITY_HEADERS` that an answer does not set itself."""
    if SECURITY_HEADERS.keys().isdisjoint(own):
        return SECURITY_HEADERS.items()
    return [header for header in SECURITY_HEADERS.items() if header[0] not in own]


def access_of(connection: Connection) -> Access:
    """Return what decides on the calls of an application."""
    found: Any = connection.app.state[ACCESS]
    assert isinstance(found, Access)  # noqa: S101 - `build_application` put it there
    return found
