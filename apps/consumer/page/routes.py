"""Serves the files of the live page; only the producer's address and the names of the streams are written into it."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from litestar.handlers import BaseRouteHandler

from apps.chassis.http.pages import MEDIA_TYPES, page_file

FOLDER = Path(__file__).parent
PRODUCER_URL = "{{ PRODUCER_URL }}"
STREAMS = "{{ STREAMS }}"


def page_routes(producer_url: str | None, streams: Iterable[str]) -> Sequence[BaseRouteHandler]:
    """Return the page at `/` and its files under `/page`; without `producer_url` it makes no records.

    `producer_url` may have a path prefix, and be that alone where both services have one origin.
    """
    page = (FOLDER / "index.html").read_text("utf-8")
    page = page.replace(PRODUCER_URL, escape(producer_url or "")).replace(STREAMS, " ".join(streams))
    files = [file for file in sorted(FOLDER.iterdir()) if file.suffix in MEDIA_TYPES and file.suffix != ".html"]
    return (
        page_file("/", "index.html", page.encode(), connects_to=_sources(producer_url or "")),
        *(page_file(f"/page/{file.name}", file.name, file.read_bytes()) for file in files),
    )


def _sources(producer_url: str) -> Sequence[str]:
    """Return the producer's addresses for a content security policy: a path needs a slash, or it means one file."""
    if not producer_url or producer_url.startswith("/"):
        return []
    return [f"{producer_url}/" if urlsplit(producer_url).path else producer_url]
