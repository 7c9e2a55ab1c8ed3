"""Pages of a service: their files, with a policy that lets the browser do only what such a page needs."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import PurePath
from typing import Any

from litestar import get
from litestar.connection import Request
from litestar.datastructures import ResponseHeader
from litestar.handlers import BaseRouteHandler

from apps.chassis.http.query import ANY_QUERY
from apps.chassis.http.roles import ANYONE

SELF = "'self'"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


FRESH = ResponseHeader(name="cache-control", value="no-cache")
"""For a page's files: a browser checks each again, so that it never mixes those of two versions."""


def to_root(request: Request[Any, Any, Any]) -> str:
    """Return the relative path from an answer to the root of the service, which works behind any prefix."""
    path: bytes = request.scope["raw_path"]
    return "../" * (path.count(b"/") - 1)


def page_policy(*, scripts: str = SELF, connects_to: Sequence[str] = ()) -> ResponseHeader:
    """Return the header of a page that runs only files of this service, and that no other page may frame.

    `scripts` is the policy of scripts. The page calls this service and the origins that it `connects_to`.
    """
    value = (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; connect-src {' '.join([SELF, *connects_to])}; "
        f"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return ResponseHeader(name="content-security-policy", value=value)


def page_file(
    path: str,
    name: str,
    content: bytes,
    *,
    connects_to: Sequence[str] = (),
    before_request: Callable[[Request[Any, Any, Any]], Awaitable[Any]] | None = None,
) -> BaseRouteHandler:
    """Return the route of a file of a page; the suffix of its name determines the media type."""

    @get(
        path,
        before_request=before_request,
        media_type=MEDIA_TYPES[PurePath(name).suffix],
        response_headers=[page_policy(connects_to=connects_to), FRESH],
        include_in_schema=False,
        linkable=True,
        role=ANYONE,  # it holds no record, and asks for a key itself
        opt={ANY_QUERY: True},  # its script reads it
        sync_to_thread=False,
        unlimited=True,  # it is needed most while all other calls hang
    )
    def show() -> bytes:
        return content

    return show
