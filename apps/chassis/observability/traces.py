"""Traces: a call is followed from HTTP through the headers of its records to the handler. Off by default, and free."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Protocol

from litestar.types import ASGIApp

TraceHeaders = dict[str, str]
"""The headers by which W3C Trace Context tells a call's trace."""


class Followed(Protocol):
    """A record, whose headers may tell what trace it belongs to."""

    topic: str
    partition: int
    offset: int
    headers: Sequence[tuple[str, bytes | None]]


class Traces:
    """What a service tells those who collect traces: nothing."""

    header_bytes = 0
    """Bytes that trace headers add to a record at most."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Send what was not sent yet at the end of the block."""
        yield

    def follow_http(self, app: ASGIApp) -> ASGIApp:
        """Return the application with its requests followed."""
        return app

    def headers(self) -> TraceHeaders | None:
        """Return the headers for the records of the call that is being answered, None when it is not followed."""
        return None

    def publishing(self, topic: str, records: int) -> AbstractContextManager[None]:  # noqa: ARG002 - the other one uses them
        """Follow the sending of records, until they are acknowledged."""
        return nullcontext()

    def handling(self, records: Sequence[Followed]) -> AbstractContextManager[None]:  # noqa: ARG002 - likewise
        """Follow the handling of a batch, in the traces that its records came with."""
        return nullcontext()
