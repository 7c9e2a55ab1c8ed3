"""The pages that document a service, with no internet: their files come from installed packages.

`/schema` shows what the service answers over HTTP (OpenAPI), `/asyncapi` what it writes to Kafka and reads from it.
All addresses in them are relative: a proxy in front may have stripped a path prefix.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from litestar import MediaType, Router, get
from litestar.connection import Request
from litestar.datastructures import CacheControlHeader
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Server
from litestar.response import Redirect, Response
from litestar.static_files import create_static_files_router

from apps.chassis.http.authorization import COMPONENTS
from apps.chassis.http.health import VERSION
from apps.chassis.http.pages import page_policy, to_root
from apps.chassis.http.problems import PATH as PROBLEMS

OPENAPI_FILES, ASYNCAPI_FILES = "schema-ui", "asyncapi-ui"
STYLE = "body { font-family: system-ui, sans-serif }"
START_SWAGGER = """
SwaggerUIBundle({
  url: location.pathname.replace(/\\/?$/, "/openapi.json"),
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  deepLinking: true,
  showCommonExtensions: true,
});
"""
OTHER_ANSWERS = (
    "\n\nAnything that goes wrong is answered by a problem (RFC 9457) whose `type` leads to what it means; 404 for a "
    "path that is not listed here, 405 for another method, with `Allow`."
)


def _hash_of(content: str) -> str:
    """Return how a policy names a script or a style that stands in the page itself."""
    return f"'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'"


def _page(title: str, styles: Sequence[str], body: str) -> bytes:
    links = "".join(f'<link rel="stylesheet" href="{escape(style)}">' for style in styles)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,">{links}<style>{STYLE}</style></head><body>{body}</body></html>'
    ).encode()


class SwaggerPage(OpenAPIRenderPlugin):
    """Swagger UI; Litestar's own page has the document in a script within it, which no strict policy can allow."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: Mapping[str, Any]) -> bytes:
        """Return the page, which fetches the document."""
        files = to_root(request) + OPENAPI_FILES
        scripts = "".join(f'<script src="{files}/swagger_{name}.js"></script>' for name in ("bundle", "preset"))
        return _page(
            str(openapi_schema["info"]["title"]),
            [f"{files}/swagger_style.css"],
            f'<div id="swagger-ui"></div>{scripts}<script>{START_SWAGGER}</script>',
        )


class OpenApiDocument(JsonRenderPlugin):
    """The document; the types of problems in its examples have the prefix that they have in answers."""

    def __init__(self, root_path: str) -> None:
        super().__init__()
        self._root_path = root_path

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the document as JSON."""
        document = super().render(request, openapi_schema)
        return document.replace(f'"type":"{PROBLEMS}/'.encode(), f'"type":"{self._root_path}{PROBLEMS}/'.encode())


def openapi_config(title: str, description: str, root_path: str) -> OpenAPIConfig:
    """Return the configuration of the page at `/schema` and the document at `/schema/openapi.json`.

    `root_path` is the prefix that a proxy strips, as far as it is known.
    """
    router = Router(
        "/schema",
        after_request=_raise_not_found,
        route_handlers=[],
        include_in_schema=False,
        response_headers=[page_policy(scripts=[_hash_of(START_SWAGGER)], styles=[_hash_of(STYLE)])],
    )
    return OpenAPIConfig(
        title=title,
        version=VERSION,
        description=description + OTHER_ANSWERS,
        openapi_router=router,
        components=COMPONENTS,
        servers=[Server(url=root_path or "../")],  # relative to the document
        render_plugins=[SwaggerPage(path="/"), OpenApiDocument(root_path)],
    )


async def _raise_not_found(response: Response[Any]) -> Response[Any]:
    """Answer an unknown path by a problem, as everywhere else: Litestar has an HTML page for it."""
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise NotFoundException
    return response


def document_routes(asyncapi: Mapping[str, Any]) -> Sequence[BaseRouteHandler | Router]:
    """Return the routes of both pages' files, of `/docs`, which leads to `/schema`, and of the AsyncAPI document."""
    return docs, _files_of("offapi", OPENAPI_FILES), *_asyncapi_routes(asyncapi)


@get("/docs", include_in_schema=False, sync_to_thread=False)
def docs(request: Request[Any, Any, Any]) -> Redirect:
    """Lead to the page under the name by which others know it."""
    return Redirect(to_root(request) + "schema")


def _asyncapi_routes(asyncapi: Mapping[str, Any]) -> Sequence[BaseRouteHandler | Router]:
    document = msgspec.json.encode(asyncapi)
    title = str(asyncapi["info"]["title"])
    ui = _asyncapi_files()

    @get("/asyncapi.json", media_type=MediaType.JSON, include_in_schema=False, sync_to_thread=False)
    def asyncapi_document() -> bytes:
        return document

    @get(
        "/asyncapi",
        media_type=MediaType.HTML,
        include_in_schema=False,
        sync_to_thread=False,
        # AsyncAPI's parser, which the page draws from, compiles the JSON schemas that it checks the document with
        response_headers=[page_policy(scripts=["'unsafe-eval'"], styles=[_hash_of(STYLE)])],
    )
    def asyncapi_page(request: Request[Any, Any, Any]) -> bytes:
        return _asyncapi_page(title, ui, to_root(request))

    return asyncapi_document, asyncapi_page, _files_of("litestar_asyncapi", ASYNCAPI_FILES, "assets")


class AsyncApiFiles(msgspec.Struct):
    """The files of AsyncAPI's own React component: the module to begin with, and its styles."""

    file: str
    css: list[str]


def _asyncapi_files() -> AsyncApiFiles:
    """Return what the component's package says in its manifest."""
    manifest = msgspec.json.decode((_folder_of("litestar_asyncapi") / "assets/ui/manifest.json").read_bytes())
    (entry,) = [piece for piece in manifest.values() if piece.get("isEntry") and piece["name"] == "react"]
    return msgspec.convert(entry, AsyncApiFiles)


def _asyncapi_page(title: str, ui: AsyncApiFiles, root: str) -> bytes:
    started_with = {
        "schemaUrl": f"{root}asyncapi.json",
        "entryUrl": f"./ui/{ui.file}",  # relative to bootstrap.js, which imports it
        "options": {"show": {"errors": True, "sidebar": True}},
    }
    return _page(
        title,
        [f"{root}{ASYNCAPI_FILES}/ui/{style}" for style in ui.css],
        '<p id="asyncapi-status" role="status"></p><div id="asyncapi"></div>'
        f'<script id="asyncapi-config" type="application/json">{msgspec.json.encode(started_with).decode()}</script>'
        f'<script src="{root}{ASYNCAPI_FILES}/bootstrap.js" defer></script>',
    )


def _files_of(package: str, path: str, folder: str = "") -> Router:
    return create_static_files_router(
        f"/{path}",
        [_folder_of(package) / folder],
        include_in_schema=False,
        cache_control=CacheControlHeader(no_cache=True),
    )


def _folder_of(package: str) -> Path:
    found = find_spec(package)  # importing them costs time, and offapi 9 MB of templates in memory
    assert found is not None  # noqa: S101 - a dependency of this project
    assert found.origin is not None  # noqa: S101 - it has a file
    return Path(found.origin).parent
