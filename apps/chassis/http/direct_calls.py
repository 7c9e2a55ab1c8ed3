"""Answer short calls without most steps of Litestar around a handler, which take a fifth of such a call's time.

The option `DIRECTLY` of a route names the function that answers its calls. Everything else stays declared in Litestar:
the path, the documents, the role, and how errors are answered. What comes out other than a whole answer, like an error
or a stream, is handed to Litestar, which answers with it.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from litestar import Litestar
from litestar.connection import Request
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response
from litestar.routes import HTTPRoute
from litestar.types import Receive, Scope, Send

from apps.chassis.http.admission import Limit
from apps.chassis.http.query import numbers_of
from apps.chassis.http.request_headers import headers_of

DIRECTLY = "directly"
"""The option of a route: a function that answers a call from its request and its parameters, if those are numbers."""
OUTCOME = "outcome"
"""Set in the scope of a request whose call has been made: the answer to send, or the error to raise."""


class Encoded(Response[Any]):
    """An answer that is already encoded."""

    def __init__(self, body: bytes, status: HTTPStatus) -> None:
        self._body = body
        self._status = status

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - Litestar's signature
        """Return the ASGI application that sends the answer."""
        return self.answer

    async def answer(self, _: Scope, __: Receive, send: Send) -> None:
        """Send the answer."""
        length = str(len(self._body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


class DirectCalls:
    """The calls of an application that are made directly, within its limit."""

    def __init__(self, app: Litestar, limit: Limit) -> None:
        self._app = app
        self._limit = limit
        self._routes: Mapping[tuple[object, str], HTTPRouteHandler] = {
            (method, route.path): handler
            for route in app.routes
            if isinstance(route, HTTPRoute) and not route.path_parameters
            for handler in route.route_handlers
            if DIRECTLY in handler.opt
            for method in handler.http_methods
        }

    async def make(self, scope: Scope, receive: Receive, send: Send) -> Encoded | None:
        """Make a call; return its answer to send, or None when Litestar is to answer it. Raises only cancellations."""
        path = scope["path"].removeprefix(scope.get("root_path") or "")
        handler = self._routes.get((scope.get("method"), path))
        if handler is None or b"origin" in headers_of(scope):  # Litestar adds the headers of CORS
            return None
        scope["app"] = scope["litestar_app"] = self._app
        scope["route_handler"], scope["path_template"], scope["path_params"] = handler, path, {}
        request: Request[Any, Any, Any] = Request(scope, receive, send)
        if (numbers := numbers_of(request)) is None:
            return None
        try:
            if handler.resolve_guards():
                await handler.authorize_connection(request)
            self._limit.let_in(scope)
            answer = await handler.opt[DIRECTLY](request, **numbers)
        except Exception as error:  # noqa: BLE001 - Litestar answers it, as the route declares
            scope[OUTCOME] = error  # type: ignore[literal-required]  # a key of our own
            return None
        if isinstance(answer, Encoded):
            return answer
        scope[OUTCOME] = answer  # type: ignore[literal-required]  # likewise
        return None
