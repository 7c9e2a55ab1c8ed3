"""Dead letters over HTTP: show them, and send them back."""

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Controller, get, post
from litestar.connection import Request
from litestar.di import Provide
from litestar.params import Parameter, QueryParameter, SkipValidation
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
from apps.chassis.kafka.errors import KAFKA_ERRORS
from apps.chassis.observability.logs import one_line
from apps.chassis.observability.operator_actions import operator_action
from apps.consumer.browsing.cursors import read_offsets, write_offsets
from apps.consumer.browsing.routes import SEARCH_MEMORY_BYTES, TIME, read_time
from apps.consumer.browsing.topic_search import Filter, newest
from apps.consumer.redriving.letter_view import DeadLetter, view
from apps.consumer.redriving.letters import letter_of
from apps.consumer.redriving.redrive import Redriven, Returned
from apps.consumer.redriving.refusals import NoSuchLetter, RedriveNotNow, RedriveRefused, SentBefore, TooLarge
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


class Reason(msgspec.Struct):
    """Dead letters with one type of error: how many, how many can be sent back, and the time of the newest (ms)."""

    error_type: str | None
    letters: int
    redrivable: int
    newest: int


class Reasons(msgspec.Struct):
    """The newest 1,000 dead letters that match, by the type of their error, the most frequent first.

    `redrivable` counts those that can be sent back and were not; `more` is whether there are older ones.
    """

    letters: int
    redrivable: int
    reasons: list[Reason]
    more: bool


class Redrive(msgspec.Struct, forbid_unknown_fields=True):
    """What to send back: the oldest `limit` of a stream that were not, or one by its place among the dead letters."""

    limit: Limit | None = None
    partition: Number | None = None
    offset: Number | None = None


class Redrives(msgspec.Struct):
    """The dead letters that were sent back, by their place among them.

    `more` is whether there may be others to send back: fewer than asked for are when they are large. `would_redrive`
    is how many would be sent back, with `dry_run=true`: nothing is sent then.
    """

    redriven: int
    dead_letters: list[Redriven]
    more: bool
    would_redrive: int | None = None


async def letter_filter(
    *,
    partition: Annotated[
        int | None, Parameter(ge=0, schema_extra=ANY_NUMBER, description="Only those of this partition.")
    ] = None,
    key: Annotated[str | None, Parameter(description="Only those whose record has this key.")] = None,
    reason: Annotated[str | None, Parameter(description="Only those whose error, or its type, has this text.")] = None,
    since: Annotated[
        str | None,
        QueryParameter(name="from", schema_extra=TIME, description="None written before this time (RFC 3339)."),
    ] = None,
    until: Annotated[
        str | None, QueryParameter(name="to", schema_extra=TIME, description="Only those written before this time.")
    ] = None,
) -> Filter:
    """Return which dead letters a call means, for the list and the redrive alike."""

    def has_reason(record: Record) -> bool:
        letter = letter_of(record)
        return (reason or "") in f"{letter.error_type or ''}: {letter.error or ''}"

    return Filter(
        None if key is None else key.encode(),
        partition,
        None,
        read_time("from", since),
        read_time("to", until),
        None if reason is None else has_reason,
    )


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
    dependencies = {"only": Provide(letter_filter)}  # noqa: RUF012 - Litestar's own attribute
    exception_handlers: dict[int | type[Exception], Any] = {RedriveRefused: answer_refusal}  # noqa: RUF012 - Litestar's own

    @get(summary="The newest dead letters", responses=documented(OUT_OF_REACH, UNREADABLE))
    async def newest(
        self,
        *,
        request: Request[Any, Any, Any],
        served_stream: SkipValidation[StreamConsumer],
        only: SkipValidation[Filter],
        limit: Annotated[int, Parameter(ge=1, le=MAX_LETTERS, description="How many at most.")] = 10,
        before: Annotated[str | None, Parameter(description="Only those before: the `next` of an answer.")] = None,
    ) -> DeadLetters:
        """Show the newest dead letters."""
        try:
            cursor = None if before is None else read_offsets(before)
        except ValueError as error:
            raise bad_parameter("before", str(error)) from None
        share_of(request.scope).require(SEARCH_MEMORY_BYTES)
        return await within(CALL_S, _newest(served_stream, limit, only, cursor))

    @get("/reasons", summary="The newest 1,000 dead letters, by reason", responses=documented(OUT_OF_REACH, UNREADABLE))
    async def by_reason(
        self,
        request: Request[Any, Any, Any],
        served_stream: SkipValidation[StreamConsumer],
        only: SkipValidation[Filter],
    ) -> Reasons:
        """Count dead letters by reason."""
        share_of(request.scope).require(SEARCH_MEMORY_BYTES)
        return _reasons_of(await within(CALL_S, _newest(served_stream, MAX_LETTERS, only, None)))

    @post(
        "/redrive",
        summary="Send dead letters back to their topic, each once",
        status_code=HTTPStatus.OK,
        security=KEY_NEEDED,
        responses=documented(*BODY_ERRORS, *REFUSALS, OUT_OF_REACH, UNREADABLE),
        operation_class=REDRIVE_BODY,
    )
    async def redrive(
        self,
        request: Request[Any, Any, Any],
        served_streams: SkipValidation[Mapping[str, StreamConsumer]],
        only: SkipValidation[Filter],
        dry_run: Annotated[bool, Parameter(description="Send nothing, and answer how many would be sent.")] = False,  # noqa: FBT002 - a query parameter
    ) -> Redrives:
        """Send dead letters of each stream back, all streams at once."""
        wanted = await read_json(request, Redrive)
        if wanted.limit is None and len(served_streams) > 1:
            raise bad_parameter("stream", "name the stream of the dead letter")
        act = _count if dry_run else _redrive
        redrives = (act(name, one, wanted, only) for name, one in served_streams.items())
        results = await asyncio.gather(*redrives, return_exceptions=True)
        returned = [result for result in results if isinstance(result, Returned)]
        done = [letter for result in returned for letter in result.letters]
        for name, result in zip(served_streams, results, strict=True):
            if isinstance(result, BaseException):
                raise of_one_stream(name, result, 0 if dry_run else len(done)) if len(results) > 1 else result
        more = any(result.more for result in returned)
        return Redrives(0, [], more, len(done)) if dry_run else Redrives(len(done), done, more)


def of_one_stream(name: str, error: BaseException, sent: int) -> BaseException:
    """Return the error of one of several streams; it says how many letters were sent back of the others."""
    elsewhere = f"; of other streams {sent} dead letters were sent back"
    if isinstance(error, RedriveRefused):
        return type(error)(f"{name}: {error}{elsewhere}")
    if sent and isinstance(error, KAFKA_ERRORS):
        return RedriveNotNow(f"{name}: {one_line(error)}{elsewhere}")
    return error


async def _newest(one: StreamConsumer, limit: int, only: Filter, cursor: Mapping[int, int] | None) -> DeadLetters:
    found = await newest(one.dead_reader, one.cluster.partitions.get(one.dead_reader.topic, 0), only, limit, cursor)
    marks = await one.redriver.marks()
    letters = [view(record, marks, one.redriver) for record in found.records]
    return DeadLetters(letters, write_offsets(found.before) if found.before else None)


def _reasons_of(found: DeadLetters) -> Reasons:
    letters: dict[str | None, Reason] = {}
    for one in found.dead_letters:  # the newest first
        reason = letters.setdefault(one.error_type, Reason(one.error_type, 0, 0, one.timestamp))
        reason.letters += 1
        reason.redrivable += one.redrivable
    reasons = sorted(letters.values(), key=lambda reason: -reason.letters)
    redrivable = sum(reason.redrivable for reason in reasons)
    return Reasons(len(found.dead_letters), redrivable, reasons, found.next is not None)


async def _count(_: str, one: StreamConsumer, wanted: Redrive, only: Filter) -> Returned:
    """Return which dead letters of a stream would be sent back."""
    match wanted:
        case Redrive(limit=int(limit), partition=None, offset=None):
            return await one.redriver.count(limit, only)
    raise bad_parameter("dry_run", "only with `limit`")


async def _redrive(name: str, one: StreamConsumer, wanted: Redrive, only: Filter) -> Returned:
    """Send dead letters of a stream back."""
    with operator_action("redrive", name):
        match wanted:
            case Redrive(limit=int(limit), partition=None, offset=None):
                done = await one.redriver.redrive(limit, only)
            case Redrive(limit=None, partition=int(partition), offset=int(offset)) if only == Filter():
                done = await one.redriver.redrive_one(partition, offset)
            case _:
                raise bad_body("give either `limit`, or `partition` and `offset` without filters")
    details = {"action": "redrive", "stream": name}
    log.info("an operator asked for redrive of %s: %d were sent back", name, len(done.letters), extra=details)
    return done._replace(letters=[msgspec.structs.replace(letter, stream=name) for letter in done.letters])
