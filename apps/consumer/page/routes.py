"""Serves the files of the live page as they lie here; only the producer's address is written into it."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from litestar.handlers import BaseRouteHandler

from apps.chassis.pages import MEDIA_TYPES, page_file

FOLDER = Path(__file__).parent
PRODUCER_URL = "{{ PRODUCER_URL }}"


def page_routes(producer_url: str | None) -> Sequence[BaseRouteHandler]:
    """Return the page at `/` and its files under `/page`; without `producer_url` it creates no people."""
    page = (FOLDER / "index.html").read_text("utf-8").replace(PRODUCER_URL, escape(producer_url or ""))
    files = [file for file in sorted(FOLDER.iterdir()) if file.suffix in MEDIA_TYPES and file.suffix != ".html"]
    return (
        page_file("/", "index.html", page.encode(), connects_to=[producer_url] if producer_url else []),
        *(page_file(f"/page/{file.name}", file.name, file.read_bytes()) for file in files),
    )
