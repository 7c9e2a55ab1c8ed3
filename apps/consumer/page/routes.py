"""Serves the files of the live page; only the producer's address and the names of the streams are written into it."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from litestar.connection import Request
from litestar.handlers import BaseRouteHandler
from litestar.response import Redirect

from apps.chassis.http.pages import MEDIA_TYPES, page_file
from apps.chassis.http.problem_kinds import FOREIGN_ORIGIN
from apps.chassis.http.problems import problem

FOLDER = Path(__file__).parent
PRODUCER_URL = "{{ PRODUCER_URL }}"
STREAMS = "{{ STREAMS }}"
LINKABLE_PART = re.compile(r"(stream|tab)=[a-z0-9_-]*")


def page_routes(producer_url: str | None, streams: Iterable[str]) -> Sequence[BaseRouteHandler]:
    """Return the page at `/` and its files under `/page`; without `producer_url` it makes no records.

    `producer_url` may have a path prefix, and be that alone where both services have one origin.
    """
    page = (FOLDER / "index.html").read_text("utf-8")
    page = page.replace(PRODUCER_URL, escape(producer_url or "")).replace(STREAMS, " ".join(streams))
    files = [file for file in sorted(FOLDER.iterdir()) if file.suffix in MEDIA_TYPES and file.suffix != ".html"]
    return (
        page_file(
            "/",
            "index.html",
            page.encode(),
            connects_to=_sources(producer_url or ""),
            before_request=_without_search,
        ),
        *(page_file(f"/page/{file.name}", file.name, file.read_bytes()) for file in files),
    )


async def _without_search(request: Request[Any, Any, Any]) -> Redirect | None:
    """Let a link of another page name a stream and a tab alone, or it makes the page search.

    Metrics and times would tell what that finds. Raises 403 for a prefetch, which the browser then does without.
    """
    site = request.headers.get("sec-fetch-site", "none")
    prefetched = "sec-purpose" in request.headers
    if site == "same-origin" or (site == "none" and not prefetched):
        return None
    given: str = request.scope["query_string"].decode("latin-1")
    kept = "&".join(part for part in given.split("&") if LINKABLE_PART.fullmatch(part))
    if kept == given:
        return None  # also after the redirect, for which a browser names the same site
    if prefetched:
        raise problem(FOREIGN_ORIGIN, "an address that searches is not prefetched")
    return Redirect(f"./?{kept}" if kept else "./", status_code=303)


def _sources(producer_url: str) -> Sequence[str]:
    """Return the producer's addresses for a content security policy: a path needs a slash, or it means one file."""
    if not producer_url or producer_url.startswith("/"):
        return []
    return [f"{producer_url}/" if urlsplit(producer_url).path else producer_url]
