"""Pages of a service: their files, held by the browser to what such a page needs and no more."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from litestar import get
from litestar.connection import Request
from litestar.datastructures import ResponseHeader
from litestar.handlers import BaseRouteHandler

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


FRESH = ResponseHeader(name="cache-control", value="no-cache")
"""For a page's files: a browser checks each again, so that it never mixes those of two versions."""


def to_root(request: Request[Any, Any, Any]) -> str:
    """Return the relative path from an answer to the root of the service, whatever prefix a proxy stripped."""
    path: bytes = request.scope["raw_path"]
    return "../" * (path.count(b"/") - 1)


def page_policy(
    *, scripts: Sequence[str] = (), styles: Sequence[str] = (), connects_to: Sequence[str] = ()
) -> ResponseHeader:
    """Return the header of a page in which nothing runs but files of this service, and that no other page may frame.

    `scripts` and `styles` are allowed besides, as a policy names them; the page calls this service and the origins
    that it `connects_to`.
    """
    policy = {
        "default-src": ["'none'"],
        "script-src": ["'self'", *scripts],
        "style-src": ["'self'", *styles],
        "connect-src": ["'self'", *connects_to],
        "img-src": ["'self'", "data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    value = "; ".join(" ".join([name, *sources]) for name, sources in policy.items())
    return ResponseHeader(name="content-security-policy", value=value)


def page_file(path: str, name: str, content: bytes, *, connects_to: Sequence[str] = ()) -> BaseRouteHandler:
    """Return the route of a file of a page, whose kind its name tells."""

    @get(
        path,
        media_type=MEDIA_TYPES[PurePath(name).suffix],
        response_headers=[page_policy(connects_to=connects_to), FRESH],
        include_in_schema=False,
        sync_to_thread=False,
    )
    def show() -> bytes:
        return content

    return show
