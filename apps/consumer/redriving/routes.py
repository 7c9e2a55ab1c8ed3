"""The dead letters over HTTP: what they are, and sending them back."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from aiokafka.errors import KafkaError
from litestar import get, post
from litestar.connection import Request
from litestar.handlers import BaseRouteHandler
from litestar.params import Parameter
from litestar.plugins.problem_details import ProblemDetailsException

from apps.chassis.deadline import CALL_S, within
from apps.chassis.http.authorization import KEY_NEEDED
from apps.chassis.http.problems import (
    BAD_BODY,
    BAD_PARAMETER,
    DONE_BEFORE,
    NOT_NOW,
    OUT_OF_REACH,
    RETRY_AFTER,
    UNREADABLE,
    Fault,
    documented,
    out_of_reach,
    problem,
)
from apps.chassis.http.query import ANY_NUMBER
from apps.chassis.http.request_body import BODY_ERRORS, JSON, documents_body, either, read_json
from apps.chassis.http.served_streams import OneStream, Served, SomeStreams
from apps.chassis.kafka.search import Newest
from apps.chassis.observability.logs import one_line
from apps.consumer.browsing.cursors import read_offsets, write_offsets
from apps.consumer.browsing.record_view import Content, Header, content_of, headers_of
from apps.consumer.redriving.letters import letter_of, owner_of
from apps.consumer.redriving.marks import Marks
from apps.consumer.redriving.redrive import (
    NoSuchLetter,
    Redriven,
    RedriveNotNow,
    Redriver,
    Returned,
    SentBefore,
    TooLarge,
)
from apps.consumer.stream_consumer import StreamConsumer
from contracts.dead_letter import DeadLetter as Letter
from contracts.dead_letter import history
from contracts.record import Record

log = logging.getLogger(__name__)

MOST = 1_000
"""Dead letters of one answer, and of one redrive."""
Limit = Annotated[int, msgspec.Meta(ge=1, le=MOST)]
Number = Annotated[int, msgspec.Meta(ge=0)]


class Origin(msgspec.Struct):
    """The record's original place; `timestamp` in milliseconds since 1970 UTC. Null: the letter does not name it."""

    topic: str | None
    partition: int | None
    offset: int | None
    timestamp: int | None


class DeadLetter(msgspec.Struct):
    """A dead letter by its place, its original record, why it could not be consumed and how often it was tried.

    `rounds` counts how often it was sent back before. `held`: it was sent back too often, or is larger than its topic
    takes, so that it is sent back only when it is requested by itself. `group` could not consume it, and sends it back.
    `redrivable` is whether this consumer does: the letter is of its topic, and of its group or of none. Null is what a
    letter of another writer does not name.
    """

    partition: int
    offset: int
    timestamp: int
    key: Content | None
    value: Content | None
    headers: list[Header]
    origin: Origin
    group: str | None
    error_type: str | None
    error: str | None
    tries: int | None
    rounds: int
    held: bool
    redriven: bool
    redrivable: bool


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


def dead_letter_routes(served: Served[StreamConsumer]) -> Sequence[BaseRouteHandler]:
    """Return the routes that show dead letters and send them back."""
    return _list_route(served), _redrive_route(served)


def _list_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @get(
        "/consumers/dead-letters",
        summary="The newest dead letters",
        responses=documented(OUT_OF_REACH, UNREADABLE),
    )
    async def dead_letters(
        limit: Annotated[int, Parameter(ge=1, le=MOST, description="How many at most.")] = 10,
        partition: Annotated[
            int | None, Parameter(ge=0, schema_extra=ANY_NUMBER, description="Only those of this partition.")
        ] = None,
        reason: Annotated[
            str | None, Parameter(description="Only those whose error, or its type, has this text.")
        ] = None,
        before: Annotated[str | None, Parameter(description="Only those before: the `next` of an answer.")] = None,
        stream: OneStream = None,
    ) -> DeadLetters:
        one = served.one(stream)
        reader, redriver = one.dead_reader, one.redriver

        def wanted(record: Record) -> bool:
            return reason is None or reason in _reason_of(letter_of(record))

        async def look() -> tuple[Newest, Marks]:
            _, end = await reader.offsets(one.cluster.partitions.get(reader.topic, 0))
            start = end if before is None else _read_cursor(before, end)
            if partition is not None:
                start = {number: offset for number, offset in start.items() if number == partition}
            return await reader.newest(start, wanted, limit), await redriver.marks()

        try:
            found, marks = await within(CALL_S, look())
        except (KafkaError, OSError, TimeoutError) as error:
            raise out_of_reach(error) from None
        letters = [_show(record, marks, redriver) for record in found.records]
        return DeadLetters(letters, write_offsets(found.before) if found.before else None)

    return dead_letters


def _redrive_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @post(
        "/consumers/dead-letters/redrive",
        summary="Send dead letters back to their topic, each once",
        status_code=HTTPStatus.OK,
        security=KEY_NEEDED,
        responses=documented(
            *BODY_ERRORS,
            HTTPStatus.NOT_FOUND,
            DONE_BEFORE,
            NOT_NOW,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            OUT_OF_REACH,
            UNREADABLE,
        ),
        operation_class=documents_body(
            {JSON: (either(Redrive, ["limit"], ["partition", "offset"]), {"limit": 10})}, required=True
        ),
    )
    async def redrive(request: Request[Any, Any, Any], stream: SomeStreams = None) -> Redrives:
        wanted = served.some(stream)
        order = await read_json(request, Redrive)
        if order.limit is None and len(wanted) > 1:
            detail = "name the stream of the dead letter"
            raise problem(BAD_PARAMETER, f"stream: {detail}", [Fault(parameter="stream", detail=detail)])
        results = await asyncio.gather(*(_redrive(one, order) for one in wanted.values()), return_exceptions=True)
        done = [letter for result in results if isinstance(result, Returned) for letter in result.letters]
        for name, result in zip(wanted, results, strict=True):
            if isinstance(result, ProblemDetailsException) and len(wanted) > 1:
                result.detail = f"{name}: {result.detail}; of other streams {len(done)} dead letters were sent back"
            if isinstance(result, BaseException):
                raise result
        return Redrives(len(done), done, any(result.more for result in results if isinstance(result, Returned)))

    return redrive


async def _redrive(one: StreamConsumer, order: Redrive) -> Returned:
    """Send dead letters of a stream back. Raises the problem to answer."""
    try:
        if order.limit is not None and order.partition is None and order.offset is None:
            done = await one.redriver.redrive(order.limit)
        elif order.limit is None and order.partition is not None and order.offset is not None:
            done = await one.redriver.redrive_one(order.partition, order.offset)
        else:
            fault = Fault(path="$", detail="give either `limit`, or `partition` and `offset`")
            raise problem(BAD_BODY, fault.detail, [fault])
    except NoSuchLetter as error:
        _tell_in_vain(error)
        raise problem(HTTPStatus.NOT_FOUND, str(error)) from None
    except SentBefore as error:
        _tell_in_vain(error)
        raise problem(DONE_BEFORE, str(error)) from None
    except RedriveNotNow as error:
        _tell_in_vain(error)
        raise problem(NOT_NOW, str(error), headers={"Retry-After": RETRY_AFTER}) from None
    except TooLarge as error:
        _tell_in_vain(error)
        raise problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
    except (KafkaError, OSError, TimeoutError) as error:
        _tell_in_vain(error)
        raise out_of_reach(error) from None
    log.info(
        "an operator asked for redrive of %s: %d dead letters were sent back",
        one.stream.name,
        len(done.letters),
        extra={"action": "redrive", "stream": one.stream.name},
    )
    return done._replace(letters=[msgspec.structs.replace(letter, stream=one.stream.name) for letter in done.letters])


def _tell_in_vain(error: Exception) -> None:
    log.info("an operator asked for redrive, in vain: %s", one_line(error), extra={"action": "redrive"})


def _reason_of(letter: Letter) -> str:
    """Return the text that the `reason` filter searches."""
    return f"{letter.error_type or ''}: {letter.error or ''}"


def _show(record: Record, marks: Marks, redriver: Redriver) -> DeadLetter:
    letter = letter_of(record)
    headers, _, rounds = history(letter.headers)
    return DeadLetter(
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=content_of(letter.key),
        value=content_of(letter.value),
        headers=headers_of(headers),
        origin=Origin(letter.topic, letter.partition, letter.offset, letter.timestamp),
        group=letter.group,
        error_type=letter.error_type,
        error=letter.error,
        tries=letter.tries,
        rounds=rounds,
        held=redriver.letters.is_held(letter),
        redriven=marks.holds(owner_of(letter), record.partition, record.offset),
        redrivable=redriver.is_ours(letter),
    )


def _read_cursor(text: str, end: Mapping[int, int]) -> dict[int, int]:
    """Return where a cursor leads; a partition that it does not name is not gone back in."""
    try:
        wanted = read_offsets(text)
    except ValueError as error:
        raise problem(BAD_PARAMETER, str(error), [Fault(parameter="before", detail=str(error))]) from None
    return {partition: min(offset, end[partition]) for partition, offset in wanted.items() if partition in end}
