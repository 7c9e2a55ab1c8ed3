"""The pages that document a service, with no internet: their files come from installed packages.

`/schema` shows what the service answers over HTTP (OpenAPI), `/asyncapi` what it writes to Kafka and reads from it.
All addresses in them are relative: a proxy in front may have stripped a path prefix.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from litestar import MediaType, Router, get
from litestar.connection import Request
from litestar.datastructures import CacheControlHeader
from litestar.exceptions import InternalServerException, NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Server
from litestar.response import Redirect, Response
from litestar.routes import HTTPRoute
from litestar.static_files import create_static_files_router

from apps.chassis.http.admission import LARGE
from apps.chassis.http.api_keys import HEADER
from apps.chassis.http.authorization import Access, access_of
from apps.chassis.http.health import VERSION
from apps.chassis.http.origins import LINKABLE
from apps.chassis.http.pages import page_policy, to_root
from apps.chassis.http.problem_kinds import PATH as PROBLEMS
from apps.chassis.http.problems import answer_error, problem
from apps.chassis.http.roles import READ, ROLE
from apps.chassis.settings import Settings
from contracts.sensitive import MARK
from contracts.stream import Stream

PAGES = Path(__file__).parent / "document_pages"
COOKIE = b"{{ COOKIE }}"
"""Stands for the name of the cookie in the encoded document: it depends on the host that a caller names."""
OTHER_ANSWERS = (
    "\n\nAnything that goes wrong is answered by a problem (RFC 9457) whose `type` leads to what it means; 404 for a "
    "path that is not listed here, 405 for another method, with `Allow`."
)


def _filled(page: str, request: Request[Any, Any, Any], title: str, **names: str) -> bytes:
    """Return a page, in which all addresses begin with the way to the root of the service."""
    text = (PAGES / page).read_text("utf-8")
    for name, value in {"ROOT": to_root(request), "TITLE": escape(title), **names}.items():
        text = text.replace("{{ " + name + " }}", value)
    return text.encode()


class SwaggerPage(OpenAPIRenderPlugin):
    """Swagger UI: a page that fetches the document."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: Mapping[str, Any]) -> bytes:
        """Return the page."""
        return _filled("openapi.html", request, str(openapi_schema["info"]["title"]))


class OpenApiDocument(JsonRenderPlugin):
    """The document with what Litestar leaves out: the prefix of problem types, roles of calls, and sensitive fields.

    It is encoded once for all callers.
    """

    def __init__(self, settings: Settings, streams: Iterable[Stream[Any]]) -> None:
        super().__init__()
        self._encoded: dict[tuple[bool, bool], bytes] = {}
        self._root_path = settings.root_path
        _, self._types = msgspec.json.schema_components([one.record_type for one in streams], ref_template="{name}")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the document as JSON."""
        access = access_of(request)
        needed = access.keys.needed, access.keys.needed and access.keys.needed_to_read
        if needed not in self._encoded:
            self._encoded[needed] = self._encode(request, openapi_schema, access)
        return self._encoded[needed].replace(COOKIE, access.authenticator.cookie_of(request).encode())

    def _encode(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any], access: Access) -> bytes:
        schemes: dict[str, Any] = {
            "ApiKey": {"type": "apiKey", "in": "header", "name": HEADER},
            "Session": {"type": "apiKey", "in": "cookie", "name": COOKIE.decode()},
        }
        if access.authenticator.tokens:
            schemes["Token"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        openapi_schema["components"]["securitySchemes"] = schemes
        for route in (route for route in request.app.routes if isinstance(route, HTTPRoute)):
            for method, operation in openapi_schema["paths"].get(route.path_format, {}).items():
                operation.pop("security", None)
                if role := access.role_of(route.route_handler_map[method.upper()][0]):
                    operation["security"] = [{scheme: [role]} for scheme in schemes]
        for name, kind in self._types.items():
            properties = openapi_schema["components"]["schemas"].get(name, {}).get("properties", {})
            for field, schema in kind.get("properties", {}).items():
                if MARK in str(schema) and field in properties:
                    properties[field][MARK] = True
        document = super().render(request, openapi_schema)
        return document.replace(f'"type":"{PROBLEMS}/'.encode(), f'"type":"{self._root_path}{PROBLEMS}/'.encode())


def openapi_config(title: str, description: str, settings: Settings, streams: Iterable[Stream[Any]]) -> OpenAPIConfig:
    """Return the configuration of the page at `/schema` and the document at `/schema/openapi.json`."""
    router = Router(
        "/schema",
        after_request=_raise_not_found,
        opt={ROLE: READ, LINKABLE: True, LARGE: True},
        route_handlers=[],
        include_in_schema=False,
        response_headers=[page_policy()],
    )
    return OpenAPIConfig(
        title=title,
        version=VERSION,
        description=description + OTHER_ANSWERS,
        openapi_router=router,
        servers=[Server(url=settings.root_path or "../")],  # relative to the document
        render_plugins=[SwaggerPage(path="/"), OpenApiDocument(settings, streams)],
    )


async def _raise_not_found(response: Response[Any]) -> Response[Any]:
    """Answer an unknown path by a problem, as everywhere else: Litestar has an HTML page for it."""
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise NotFoundException
    return response


def document_routes(asyncapi: Mapping[str, Any]) -> Sequence[BaseRouteHandler | Router]:
    """Return the routes of both pages' files, of `/docs`, which leads to `/schema`, and of the AsyncAPI document."""
    return docs, _files_of("schema-ui", _folder_of("offapi"), PAGES), *_asyncapi_routes(asyncapi)


@get("/docs", include_in_schema=False, role=READ, linkable=True, sync_to_thread=False)
def docs(request: Request[Any, Any, Any]) -> Redirect:
    """Redirect from a usual name of the page."""
    return Redirect(to_root(request) + "schema")


def _asyncapi_routes(asyncapi: Mapping[str, Any]) -> Sequence[BaseRouteHandler | Router]:
    document = msgspec.json.encode(asyncapi)
    title = str(asyncapi["info"]["title"])
    files = _folder_of("litestar_asyncapi") / "assets"
    manifest = msgspec.json.decode((files / "ui/manifest.json").read_bytes())
    (react,) = (piece for piece in manifest.values() if piece.get("isEntry") and piece["name"] == "react")
    (style,) = react["css"]

    @get(
        "/asyncapi.json",
        media_type=MediaType.JSON,
        include_in_schema=False,
        large=True,
        role=READ,
        linkable=True,
        sync_to_thread=False,
    )
    def asyncapi_document() -> bytes:
        return document

    @get(
        "/asyncapi",
        media_type=MediaType.HTML,
        include_in_schema=False,
        role=READ,
        linkable=True,
        sync_to_thread=False,
        # AsyncAPI's parser, which the page draws from, compiles the JSON schemas that it checks the document with
        response_headers=[page_policy(scripts="'self' 'unsafe-eval'")],
    )
    def asyncapi_page(request: Request[Any, Any, Any]) -> bytes:
        return _filled("asyncapi.html", request, title, STYLE=style, MODULE=react["file"])

    return asyncapi_document, asyncapi_page, _files_of("asyncapi-ui", files)


def _files_of(path: str, *folders: Path) -> Router:
    return create_static_files_router(
        f"/{path}",
        [*folders],
        include_in_schema=False,
        opt={ROLE: READ, LARGE: True},
        cache_control=CacheControlHeader(no_cache=True),
        exception_handlers=dict.fromkeys((NotFoundException, InternalServerException, ValueError), _no_such_file),
    )


def _no_such_file(request: Request[Any, Any, Any], _: Exception) -> Response[Any]:
    """Answer 404 without Litestar's text, which names folders of this machine, also for a name no file can have."""
    return answer_error(request, problem(HTTPStatus.NOT_FOUND, "there is no such file"))


def _folder_of(package: str) -> Path:
    found = find_spec(package)  # importing them costs time, and offapi 9 MB of templates in memory
    assert found is not None  # noqa: S101 - a dependency of this project
    assert found.origin is not None  # noqa: S101 - it has a file
    return Path(found.origin).parent
