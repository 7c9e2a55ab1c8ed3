"""The purge of dead letters over HTTP: it deletes them for good."""

import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Controller, post
from litestar.connection import Request
from litestar.openapi.spec import Example
from litestar.params import Parameter, SkipValidation

from apps.chassis.audit import hash_of
from apps.chassis.http.problem_kinds import NOT_NOW, OUT_OF_REACH, UNREADABLE
from apps.chassis.http.problems import bad_parameter, documented, problem
from apps.chassis.http.request_body import BODY_ERRORS, refuse_content
from apps.chassis.http.roles import OPERATE, ROLE
from apps.consumer.browsing.cursors import read_offsets, write_offsets
from apps.consumer.browsing.routes import TIME, key_filter, read_time, view_of
from apps.consumer.redriving.purge import Doomed, Purged, PurgedInPart
from apps.consumer.redriving.refusals import RedriveRefused
from apps.consumer.redriving.routes import DryRun, answer_refusal
from apps.consumer.stream_consumer import StreamConsumer

log = logging.getLogger(__name__)

Before = Annotated[
    str | None, Parameter(schema_extra=TIME, description="All that were first written before this time (RFC 3339).")
]
RetiredGroup = Annotated[
    str | None,
    Parameter(min_length=1, description="A group that is given up: also the deletions that it has not carried out."),
]


class Purges(msgspec.Struct):
    """How many dead letters were deleted, and how many others were written again because they stood before one.

    `next` given as `after` continues the purge; null when all dead letters were searched. `would_purge` is for
    `dry_run=true`. `kept_deletions` would have gone too, but are deletions that the handler has not carried out: send
    them back or discard them first, or name their `retired_group`. `waiting_for_transaction` letters were not searched,
    as they stand behind another client's open transaction: purge again when that has ended; null when it is unknown.
    """

    purged: int
    written_again: int
    next: str | None
    would_purge: int | None = None
    kept_deletions: int = 0
    waiting_for_transaction: int | None = None


class PurgeController(Controller):
    """Deletes dead letters for good."""

    path = "/consumers/dead-letters/purge"
    opt = {ROLE: OPERATE}  # noqa: RUF012 - Litestar's own attribute
    exception_handlers: dict[int | type[Exception], Any] = {RedriveRefused: answer_refusal}  # noqa: RUF012 - Litestar's own

    @post(
        summary="Delete dead letters for good: of a key, or before a time",
        status_code=HTTPStatus.OK,
        responses=documented(*BODY_ERRORS, NOT_NOW, HTTPStatus.UNPROCESSABLE_ENTITY, OUT_OF_REACH, UNREADABLE),
    )
    async def purge(  # noqa: PLR0913 - the parameters of its query
        self,
        *,
        request: Request[Any, Any, Any],
        served_streams: SkipValidation[Mapping[str, StreamConsumer]],
        key: Annotated[
            str | None,
            Parameter(description="All dead letters whose record has this key.", examples=[Example(value="ada")]),
        ] = None,
        before: Before = None,
        retired_group: RetiredGroup = None,
        after: Annotated[str | None, Parameter(description="Continues a purge: the `next` of its answer.")] = None,
        dry_run: DryRun = False,
    ) -> Purges:
        """Delete dead letters of one stream, those of other groups too."""
        await refuse_content(request)
        if len(served_streams) > 1:
            raise bad_parameter("stream", "name the stream: what is purged is gone for good")
        ((name, one),) = served_streams.items()
        key_filter(await view_of(request, one), key)
        doomed, purger = read_doomed(key, before, retired_group), one.redriver.purger
        try:
            cursor = read_offsets(after or "")
        except ValueError as error:
            raise bad_parameter("after", str(error)) from None
        waiting = await one.redriver.letters.waiting_if_known()  # before the purge has a transaction of its own
        if dry_run:
            counted = await purger.count(doomed, cursor)
            return Purges(0, 0, _next_of(counted), counted.letters, counted.kept_deletions, waiting)
        try:
            done = await purger.purge(doomed, cursor)
        except PurgedInPart as error:
            members = msgspec.to_builtins(_purges_of(error.purged, waiting))
            raise problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), members=members) from None
        details = {"action": "purge", "stream": name}
        of = name if key is None else f"{name}, key {hash_of(key)}"
        log.info("an operator asked for purge of %s: %d were purged", of, done.letters, extra=details)
        return _purges_of(done, waiting)


def _purges_of(done: Purged, waiting: int | None) -> Purges:
    return Purges(done.letters, done.written_again, _next_of(done), None, done.kept_deletions, waiting)


def _next_of(done: Purged) -> str | None:
    return None if done.cursor is None else write_offsets(done.cursor)


def read_doomed(key: str | None, before: str | None, retired_group: str | None) -> Doomed:
    """Return which letters a call wants to purge."""
    if (key is None) == (before is None):
        raise bad_parameter("key", "give either `key` or `before`")
    time_ms = read_time("before", before)
    if time_ms is not None and time_ms > time.time() * 1_000:
        raise bad_parameter("before", "expected a time that has passed")
    return Doomed(None if key is None else key.encode(), time_ms, retired_group)
