"""Run background tasks: they end with the service, and their failures are reported."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from apps.chassis.observability.logs import without_values

log = logging.getLogger(__name__)


class Background:
    """Background tasks. `failure` describes the first that raised, for the health check."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Cancel all tasks at the end of the block, and wait until they have cleaned up."""
        try:
            yield
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                if not task.cancelling():  # a second cancellation would interrupt the cleanup of the first
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` until the service ends. It belongs to no request, even when a request starts it."""
        task = asyncio.create_task(work, name=name, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.failure = self.failure or f"{task.get_name()} has failed: {without_values(error)}"
            log.critical("%s has failed", task.get_name(), exc_info=error)
