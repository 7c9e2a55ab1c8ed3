"""Trace a call from HTTP through the headers of its records to the handler. Off by default, and then without cost."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

from litestar.types import ASGIApp

from contracts.record import Record

TraceHeaders = dict[str, str]
"""The record headers that carry a call's trace (W3C Trace Context)."""


class Traces:
    """Traces nothing; `OpenTelemetry` replaces it when traces are on."""

    header_bytes = 0
    """Most bytes that trace headers add to a record."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Send the remaining spans at the end of the block."""
        yield

    def follow_http(self, app: ASGIApp) -> ASGIApp:
        """Return the application with its requests traced."""
        return app

    def headers(self) -> TraceHeaders | None:
        """Return the trace headers for the records of the current call; None when the call is not traced."""
        return None

    def publishing(self, topic: str, records: int) -> AbstractContextManager[None]:  # noqa: ARG002 - `OpenTelemetry` uses them
        """Trace the sending of records, until they are acknowledged."""
        return nullcontext()

    def handling(self, records: Sequence[Record]) -> AbstractContextManager[None]:  # noqa: ARG002 - likewise
        """Trace the handling of a batch, in the traces of its records."""
        return nullcontext()
