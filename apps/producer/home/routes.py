"""Serve the home page at `/`: it links to the documents, and to the consumer's live page if that is known."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from litestar.handlers import BaseRouteHandler

from apps.chassis.http.pages import page_file
from apps.chassis.settings import Settings

FOLDER = Path(__file__).parent
LIVE_PAGE = "{{ LIVE_PAGE }}"


def home_routes(settings: Settings) -> Sequence[BaseRouteHandler]:
    """Return the routes of the page and its style. The first origin of `CORS_ORIGINS` is taken for the live page.

    Behind a proxy with path prefixes an origin is not the address of the live page: then there is no link.
    """
    live = settings.allowed_origins[0] if settings.allowed_origins and not settings.root_path else ""
    link = (
        f'<li><a href="{escape(live)}/">The live page</a>: what the consumer does with the records</li>' if live else ""
    )
    page = (FOLDER / "index.html").read_text("utf-8").replace(LIVE_PAGE, link)
    return (
        page_file("/", "index.html", page.encode()),
        page_file("/home.css", "home.css", (FOLDER / "home.css").read_bytes()),
    )
