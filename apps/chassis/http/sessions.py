"""Sessions over HTTP: a page signs in with a key once, and asks who uses it and what they may do."""

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Controller, get, post
from litestar.connection import Request
from litestar.response import Response

from apps.chassis.http.admission import FOR_STRANGERS
from apps.chassis.http.authorization import access_of
from apps.chassis.http.problems import documented
from apps.chassis.http.request_body import BODY_ERRORS, JSON, documents_body, read_json, refuse_content, schema_of
from apps.chassis.http.roles import ANYONE, ROLE, Role
from apps.chassis.observability.logs import key_name

log = logging.getLogger(__name__)

EXAMPLE = "a-key-of-16-characters-or-more"


class SignIn(msgspec.Struct, forbid_unknown_fields=True):
    """The key to sign in with."""

    key: str


class Session(msgspec.Struct):
    """Who makes the call, null without a key, and the roles that a call has."""

    name: str | None
    roles: list[Role]


class SessionController(Controller):
    """Signs in and out, and tells who is signed in."""

    path = "/session"
    opt = {ROLE: ANYONE, FOR_STRANGERS: True}  # noqa: RUF012 - Litestar's own attribute

    @get(summary="Who makes the call, and what they may do", responses=documented())
    async def show(self, request: Request[Any, Any, Any]) -> Session:
        """Return who makes the call."""
        await access_of(request).authenticator.prepare(request)
        return Session(*access_of(request).roles_of(request))

    @post(
        "/start",
        summary="Sign in with a key: the answer sets a cookie",
        description="For pages: the cookie stands for the key, for 8 hours or until the key is gone.",
        status_code=HTTPStatus.OK,
        responses=documented(*BODY_ERRORS),
        operation_class=documents_body({JSON: (schema_of(SignIn), {"key": EXAMPLE})}, required=True),
    )
    async def sign_in(self, request: Request[Any, Any, Any]) -> Response[Session]:
        """Sign in."""
        access, offered = access_of(request), (await read_json(request, SignIn)).key
        if not access.keys.needed:
            return Response(Session(None, [*Role]))
        removal = access.authenticator.removal(request)
        key = access.authenticator.check(request, access.keys.find(offered), headers=removal)
        key_name.set(key.name)
        log.info("signed in")
        # a proxy may have ended TLS: then only the browser knows
        secure = request.scope["scheme"] == "https" or request.headers.get("Origin", "").startswith("https:")
        return Response(
            Session(key.name, key.roles), cookies=[access.authenticator.session_of(request, key, secure=secure)]
        )

    @post(
        "/end",
        summary="Sign out: the answer removes the cookie",
        status_code=HTTPStatus.OK,
        responses=documented(*BODY_ERRORS),
    )
    async def sign_out(self, request: Request[Any, Any, Any]) -> Response[Session]:
        """Sign out."""
        await refuse_content(request)
        access = access_of(request)
        return Response(Session(None, access.roles_without_key), cookies=[access.authenticator.end_of_session(request)])
