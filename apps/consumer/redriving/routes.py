"""Dead letters over HTTP: show them, and send them back."""

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Controller, get, post
from litestar.connection import Request
from litestar.params import Parameter, SkipValidation
from litestar.response import Response

from apps.chassis.deadline import CALL_S, within
from apps.chassis.http.admission import share_of
from apps.chassis.http.authorization import KEY_NEEDED
from apps.chassis.http.problems import (
    DONE_BEFORE,
    NOT_NOW,
    OUT_OF_REACH,
    RETRY_AFTER,
    UNREADABLE,
    answer_error,
    bad_body,
    bad_parameter,
    documented,
    problem,
)
from apps.chassis.http.query import ANY_NUMBER
from apps.chassis.http.request_body import BODY_ERRORS, JSON, documents_body, either, read_json
from apps.chassis.observability.operator_actions import operator_action
from apps.consumer.browsing.cursors import read_offsets, write_offsets
from apps.consumer.browsing.routes import SEARCH_MEMORY_BYTES
from apps.consumer.redriving.letter_view import DeadLetter, view
from apps.consumer.redriving.letters import letter_of
from apps.consumer.redriving.redrive import NoSuchLetter, Redriven, RedriveRefused, Returned, SentBefore, TooLarge
from apps.consumer.stream_consumer import StreamConsumer
from contracts.record import Record

log = logging.getLogger(__name__)

MAX_LETTERS = 1_000
"""Dead letters of one answer, and of one redrive."""
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_LETTERS)]
Number = Annotated[int, msgspec.Meta(ge=0)]


class DeadLetters(msgspec.Struct):
    """Dead letters, the newest first; `next` given as `before` leads to those before them, null when there are none."""

    dead_letters: list[DeadLetter]
    next: str | None


class Redrive(msgspec.Struct, forbid_unknown_fields=True):
    """What to send back: the oldest `limit` of a stream that were not, or one by its place among the dead letters."""

    limit: Limit | None = None
    partition: Number | None = None
    offset: Number | None = None


class Redrives(msgspec.Struct):
    """The dead letters that were sent back, by their place among them.

    `more` is whether there may be others to send back: fewer than asked for are when they are large.
    """

    redriven: int
    dead_letters: list[Redriven]
    more: bool


REDRIVE_BODY = documents_body(
    {JSON: (either(Redrive, ["limit"], ["partition", "offset"]), {"limit": 10})}, required=True
)
REFUSALS = (HTTPStatus.NOT_FOUND, DONE_BEFORE, NOT_NOW, HTTPStatus.UNPROCESSABLE_ENTITY)


def answer_refusal(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer a redrive that sent nothing back."""
    match error:
        case NoSuchLetter():
            found = problem(HTTPStatus.NOT_FOUND, str(error))
        case SentBefore():
            found = problem(DONE_BEFORE, str(error))
        case TooLarge():
            found = problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        case _:
            found = problem(NOT_NOW, str(error), headers={"Retry-After": RETRY_AFTER})
    return answer_error(request, found)


class DeadLetterController(Controller):
    """Shows dead letters and sends them back."""

    path = "/consumers/dead-letters"
    exception_handlers: dict[int | type[Exception], Any] = {RedriveRefused: answer_refusal}  # noqa: RUF012 - Litestar's own

    @get(summary="The newest dead letters", responses=documented(OUT_OF_REACH, UNREADABLE))
    async def newest(  # noqa: PLR0913 - each is a query parameter
        self,
        *,
        request: Request[Any, Any, Any],
        served_stream: SkipValidation[StreamConsumer],
        limit: Annotated[int, Parameter(ge=1, le=MAX_LETTERS, description="How many at most.")] = 10,
        partition: Annotated[
            int | None, Parameter(ge=0, schema_extra=ANY_NUMBER, description="Only those of this partition.")
        ] = None,
        reason: Annotated[
            str | None, Parameter(description="Only those whose error, or its type, has this text.")
        ] = None,
        before: Annotated[str | None, Parameter(description="Only those before: the `next` of an answer.")] = None,
    ) -> DeadLetters:
        """Show the newest dead letters."""
        try:
            cursor = None if before is None else read_offsets(before)
        except ValueError as error:
            raise bad_parameter("before", str(error)) from None
        share_of(request.scope).require(SEARCH_MEMORY_BYTES)
        return await within(CALL_S, _newest(served_stream, limit, partition, reason, cursor))

    @post(
        "/redrive",
        summary="Send dead letters back to their topic, each once",
        status_code=HTTPStatus.OK,
        security=KEY_NEEDED,
        responses=documented(*BODY_ERRORS, *REFUSALS, OUT_OF_REACH, UNREADABLE),
        operation_class=REDRIVE_BODY,
    )
    async def redrive(
        self, request: Request[Any, Any, Any], served_streams: SkipValidation[Mapping[str, StreamConsumer]]
    ) -> Redrives:
        """Send dead letters of each stream back, all streams at once."""
        wanted = await read_json(request, Redrive)
        if wanted.limit is None and len(served_streams) > 1:
            raise bad_parameter("stream", "name the stream of the dead letter")
        redrives = (_redrive(name, one, wanted) for name, one in served_streams.items())
        results = await asyncio.gather(*redrives, return_exceptions=True)
        returned = [result for result in results if isinstance(result, Returned)]
        done = [letter for result in returned for letter in result.letters]
        for name, result in zip(served_streams, results, strict=True):
            if isinstance(result, RedriveRefused) and len(results) > 1:
                raise type(result)(f"{name}: {result}; of other streams {len(done)} dead letters were sent back")
            if isinstance(result, BaseException):
                raise result
        return Redrives(len(done), done, any(result.more for result in returned))


async def _newest(
    one: StreamConsumer, limit: int, partition: int | None, reason: str | None, cursor: Mapping[int, int] | None
) -> DeadLetters:
    def is_wanted(record: Record) -> bool:
        letter = letter_of(record)
        return reason is None or reason in f"{letter.error_type or ''}: {letter.error or ''}"

    _, end = await one.dead_reader.offsets(one.cluster.partitions.get(one.dead_reader.topic, 0))
    start = {
        number: offset if cursor is None else min(cursor[number], offset)
        for number, offset in end.items()
        if partition in {None, number} and (cursor is None or number in cursor)
    }
    found = await one.dead_reader.newest(start, is_wanted, limit)
    marks = await one.redriver.marks()
    letters = [view(record, marks, one.redriver) for record in found.records]
    return DeadLetters(letters, write_offsets(found.before) if found.before else None)


async def _redrive(name: str, one: StreamConsumer, wanted: Redrive) -> Returned:
    """Send dead letters of a stream back."""
    with operator_action("redrive", name):
        match wanted:
            case Redrive(limit=int(limit), partition=None, offset=None):
                done = await one.redriver.redrive(limit)
            case Redrive(limit=None, partition=int(partition), offset=int(offset)):
                done = await one.redriver.redrive_one(partition, offset)
            case _:
                raise bad_body("give either `limit`, or `partition` and `offset`")
    details = {"action": "redrive", "stream": name}
    log.info("an operator asked for redrive of %s: %d were sent back", name, len(done.letters), extra=details)
    return done._replace(letters=[msgspec.structs.replace(letter, stream=name) for letter in done.letters])
