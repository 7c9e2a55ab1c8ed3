"""The OpenAPI page at `/schema`, with no internet: its files come from an installed package."""

from collections.abc import Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path

from litestar import Router, get
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.response import Redirect
from litestar.static_files import create_static_files_router

from apps.chassis.health import VERSION

ASSETS = "/schema-ui"


def openapi_config(title: str, description: str) -> OpenAPIConfig:
    """Return the configuration of the page at `/schema` and the document at `/schema/openapi.json`."""
    swagger = SwaggerRenderPlugin(
        path="/",
        js_url=f"{ASSETS}/swagger_bundle.js",
        standalone_preset_js_url=f"{ASSETS}/swagger_preset.js",
        css_url=f"{ASSETS}/swagger_style.css",
        favicon='<link rel="icon" href="data:,">',
    )
    return OpenAPIConfig(
        title=title, version=VERSION, description=description, path="/schema", render_plugins=[swagger]
    )


def document_routes() -> Sequence[BaseRouteHandler | Router]:
    """Return the routes of the page's files and of `/docs`, which leads to it."""
    found = find_spec("offapi")  # importing it would read 9 MB of templates into memory
    assert found is not None  # noqa: S101 - a dependency of this project
    folders: list[Path | PathLike[str] | str] = [Path(folder) for folder in found.submodule_search_locations or ()]
    return home, docs, create_static_files_router(ASSETS, folders, include_in_schema=False)


@get("/", include_in_schema=False, sync_to_thread=False)
def home() -> Redirect:
    """Lead whoever opens the bare address to the page."""
    return Redirect("/schema")


@get("/docs", include_in_schema=False, sync_to_thread=False)
def docs() -> Redirect:
    """Lead to the page under the name by which others know it."""
    return Redirect("/schema")
