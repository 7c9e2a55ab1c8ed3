"""Keeps long calls out of the caches of Litestar, each of which holds up to 1,024 paths or queries of any size."""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from litestar import Litestar
from litestar.datastructures import URL
from litestar.types import Scope

SHORT_BYTES = 500
"""Longest path and query, together, that stay in the caches."""


class LitestarCaches:
    """Clears all caches that may hold the path or the query of a call, when it was a long one.

    They are found by what they are: Litestar has no setting for them.
    """

    def __init__(self, app: Litestar) -> None:
        self._clear = [*_clear_shared_caches(), app.asgi_router.handle_routing.cache_clear]

    def forget(self, scope: Scope) -> None:
        """Forget a call that has ended, if it was long."""
        if len(scope["path"]) + len(scope["query_string"]) > SHORT_BYTES:
            for clear in self._clear:
                clear()


@cache
def _clear_shared_caches() -> list[Callable[[], object]]:
    """Return what clears the caches that all applications of the process share."""
    return list({clear for holder in _holders() for clear in _clear_caches_of(holder)})


def _holders() -> Iterator[Any]:
    yield URL
    yield from [module for name, module in sys.modules.items() if name.partition(".")[0] == "litestar"]


def _clear_caches_of(holder: Any) -> Iterator[Callable[[], object]]:  # noqa: ANN401 - a module or a class
    for name in list(vars(holder)):
        if callable(clear := getattr(getattr(holder, name, None), "cache_clear", None)):
            yield clear
