"""Records over HTTP: the newest consumed, any record of the topic, and the live tail."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import parse_qs

import msgspec
from aiokafka.errors import KafkaError
from litestar import get
from litestar.connection import Request
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example, Operation
from litestar.params import HeaderParameter, Parameter, PathParameter, QueryParameter
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.response import Response
from litestar.types import Scope

from apps.chassis.deadline import CALL_S, within
from apps.chassis.http.problems import (
    BAD_PARAMETER,
    BUSY,
    OUT_OF_REACH,
    RETRY_AFTER,
    UNREADABLE,
    Fault,
    documented,
    out_of_reach,
    problem,
)
from apps.chassis.http.query import ANY_NUMBER, PLAIN_INTEGER
from apps.chassis.http.record_value import RecordValue
from apps.chassis.http.served_streams import OneStream, Served
from apps.chassis.http.streaming import Streamed
from apps.chassis.kafka.search import MOST_BYTES, Newest, Wanted
from apps.consumer.browsing.cursors import read_offsets, write_offsets
from apps.consumer.browsing.record_view import StoredMessage, show
from apps.consumer.browsing.window import Cursor, StaleCursor
from apps.consumer.stream_consumer import StreamConsumer
from contracts.record import Record, latest_date

MOST_MESSAGES = 1_000
EVENTS = "text/event-stream"
SENT_AS_THEY_COME = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Headers of the live tail: by default nginx delays even the head of the answer until it has 1,460 bytes."""
SCOPES = ("window", "topic")
STREAM = "/consumers/messages/stream"
NEWEST = "/consumers/messages"
SEARCHES = {NEWEST, "/consumers/dead-letters"}
SEARCH_IN_MEMORY = 2 * MOST_BYTES
"""Bytes: what is found, and the answer that is made of it."""
TIMES_IN_MEMORY = 3
"""How many times a value of the window is held during a call: in the window, decoded, and in the answer."""
TIME = {"format": "date-time"}

PLACE = re.compile(rf"/({PLAIN_INTEGER.pattern})/({PLAIN_INTEGER.pattern})/?\Z")
LATE = 60 * 60 * 1_000
"""Milliseconds by which a record may be older than one that stands before it, and still be found by `to`."""

T = TypeVar("T")
AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]

Total = Annotated[int, msgspec.Meta(description="Records that this service has consumed since it started.")]
Limit = Annotated[int, Parameter(ge=1, le=MOST_MESSAGES, description="How many at most.")]
Key = Annotated[str | None, Parameter(description="Only records with this key.")]
Number = Annotated[int | None, Parameter(ge=0, schema_extra=ANY_NUMBER, description="Only records of this partition.")]
Text = Annotated[str | None, Parameter(min_length=1, description="Only records whose value has this text in it.")]
Before = Annotated[str | None, Parameter(description="Only those before: the `next` of an answer.")]
Where = Annotated[
    str,
    QueryParameter(
        schema_extra={"enum": [*SCOPES]},
        name="scope",
        description="The records that this instance consumed last, or the whole topic, consumed or not.",
    ),
]
Since = Annotated[
    str | None,
    QueryParameter(
        name="from", description="`scope=topic`: none older than this time (RFC 3339, with offset).", schema_extra=TIME
    ),
]
Until = Annotated[
    str | None,
    QueryParameter(
        name="to",
        description="`scope=topic`: only those older than this time; such as stand in their partition behind one that "
        "is more than an hour newer than it are passed over.",
        schema_extra=TIME,
    ),
]
LastEvent = Annotated[
    str | None, HeaderParameter(name="Last-Event-ID", description="Goes on behind the event with this id.")
]


class Message(msgspec.Struct):
    """A consumed record; `timestamp` in milliseconds since 1970 UTC, `key` as text."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str | None
    value: RecordValue


class Messages(msgspec.Struct):
    """Consumed records, the last consumed last; pass `next` as `before` for earlier ones, null without any.

    `total` counts what this service has consumed since it started.
    """

    total: Total
    messages: list[Message]
    next: str | None


class StoredMessages(msgspec.Struct):
    """Records of the topic, oldest first; `next` given as `before` leads to those before them, null without any.

    `total` counts what this service has consumed since it started. `scanned` records were looked at for this answer;
    `reached` is the time (milliseconds since 1970 UTC) to which the search has come back, null at the topic's start.
    """

    total: Total
    messages: list[StoredMessage]
    next: str | None
    scanned: int
    reached: int | None


def weight_of(scope: Scope, served: Served[StreamConsumer]) -> int | None:
    """Return the bytes of memory that a call may take, about; None for the live tail, which has a limit of its own."""
    if scope["path"] == STREAM:
        return None
    if scope["path"] not in SEARCHES:
        return 0
    query = parse_qs(scope["query_string"].decode("latin-1"))
    if scope["path"] == NEWEST and "topic" not in query.get("scope", []):
        limit = query.get("limit", ["10"])[-1]
        one = served.get(query["stream"][-1] if "stream" in query else None)
        count = int(limit) if PLAIN_INTEGER.fullmatch(limit) else 0
        return TIMES_IN_MEMORY * one.window.bytes_of(count) if one else 0
    return SEARCH_IN_MEMORY


@dataclass
class EitherKind(Operation):
    """Documents either kind of answer as `anyOf`: without messages it is of both, which Litestar's `oneOf` denies."""

    def __post_init__(self) -> None:
        schema: Any = self.responses["200"].content["application/json"].schema  # type: ignore[index, union-attr]  # it is there
        schema.any_of, schema.one_of = schema.one_of, None


def message_routes(served: Served[StreamConsumer]) -> Sequence[BaseRouteHandler]:
    """Return the routes that show records."""
    return _newest_route(served), _one_route(served), _stream_route(served)


def _newest_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @get(
        NEWEST,
        summary="The newest records",
        description="The records that this instance consumed last, in the order of consumption, whatever their "
        "timestamps (after a restart first the earlier committed ones, merged by timestamp). With "
        "`scope=topic` the newest of the whole topic, straight from it: merged by timestamp, each partition in the "
        "order of its offsets; a record dated more than a minute ahead counts as old as the one before it. A search "
        "looks at some 100,000 records at a time, and `next` goes on.",
        responses=documented(OUT_OF_REACH, UNREADABLE),
        operation_class=EitherKind,
    )
    async def messages(  # noqa: PLR0913 - each is a query parameter
        *,
        limit: Limit = 10,
        key: Key = None,
        partition: Number = None,
        q: Text = None,
        since: Since = None,
        until: Until = None,
        before: Before = None,
        where: Where = "window",
        stream: OneStream = None,
    ) -> Messages | StoredMessages:
        one = served.one(stream)
        total, decode = one.consumption.consumed, one.stream.decode
        if where not in SCOPES:
            raise _bad("scope", f"window or topic is expected, not {where[:40]!r}")
        if where == "topic":
            span = Span(_time("from", since), _time("to", until), _read("before", before, read_offsets))
            with reaching_kafka():
                found = await within(CALL_S, _search(one, span, partition, _wanted(key, None, q), limit))
            shown = [show(decode, record) for record in reversed(found.records)]
            following = None if found.before is None else write_offsets(found.before)
            return StoredMessages(total, shown, following, found.scanned, found.reached)
        for name, value in {"q": q, "from": since, "to": until}.items():
            if value is not None:
                raise _bad(name, "only together with scope=topic")
        cursor = _read("before", before, Cursor.parse)
        try:
            records, earlier = one.window.newest(
                limit, key=None if key is None else key.encode(), partition=partition, before=cursor
            )
        except StaleCursor as stale:
            raise _bad("before", str(stale)) from None
        return Messages(
            total, [_message(decode, record) for record in records], None if earlier is None else str(earlier)
        )

    return messages


def _one_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @get(
        "/consumers/messages/{partition:int}/{offset:int}",
        summary="One record, straight from the topic",
        description="Whoever consumed it. Where there is none, `detail` says why, and `next` is the next offset that "
        "there is in the partition, null when there is none.",
        responses=documented(HTTPStatus.NOT_FOUND, OUT_OF_REACH, UNREADABLE),
    )
    async def one_message(
        request: Request[Any, Any, Any],
        partition: Annotated[int, PathParameter(description="The partition.", examples=[Example(value=0)])],
        offset: Annotated[int, PathParameter(description="The offset in it.", examples=[Example(value=0)])],
        stream: OneStream = None,
    ) -> StoredMessage:
        if not PLACE.search(request.scope["path"]):  # Litestar takes -1, +1, 1_0 and the digits of any script too
            raise problem(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND.phrase)
        one = served.one(stream)
        with reaching_kafka():
            return show(one.stream.decode, await within(CALL_S, _record(one, partition, offset)))

    return one_message


def _stream_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @get(
        STREAM,
        summary="The live tail of the topic",
        description="Server-sent events: one a record, and its id is the offset reached in each partition, so that "
        "`Last-Event-ID` continues without a gap, on any instance. `gap` reports records that were deleted meanwhile "
        "or cannot be read, `cut-off` a caller that read too slowly.",
        responses={
            **documented(OUT_OF_REACH, BUSY),
            200: ResponseSpec(str, generate_examples=False, description="An event a record", media_type=EVENTS),
        },
    )
    async def live_tail(
        key: Key = None,
        partition: Number = None,
        q: Text = None,
        last_event: LastEvent = None,
        stream: OneStream = None,
    ) -> Response[Any]:
        tail = served.one(stream).tail
        start = _read("Last-Event-ID", last_event, read_offsets)
        if tail.is_full:
            raise problem(BUSY, "too many callers watch already", headers={"Retry-After": RETRY_AFTER})
        with reaching_kafka():
            beginning = await within(CALL_S, tail.begin(start))
        events = tail.events(beginning, _wanted(key, partition, q))
        return Streamed(events, EVENTS, HTTPStatus.OK, SENT_AS_THEY_COME, reads_body=False)

    return live_tail


class Span(NamedTuple):
    """What of the topic is searched: times in milliseconds since 1970 UTC, and the cursor of an answer before."""

    since: int | None
    until: int | None
    before: Mapping[int, int] | None


async def _search(one: StreamConsumer, span: Span, partition: int | None, wanted: Wanted | None, limit: int) -> Newest:
    log = one.log
    first, end = await log.offsets(one.partition_count())
    before = end
    if span.until is not None:
        before = await log.at_time(span.until + LATE, end, latest_date())  # older records may follow it
    if span.before is not None:
        before = {number: min(span.before.get(number, 0), offset) for number, offset in before.items()}
    since = first if span.since is None else await log.at_time(span.since, end)
    if partition is not None:
        before = {number: offset for number, offset in before.items() if number == partition}
    return await log.newest(before, _within(span, wanted), limit, since)


async def _record(one: StreamConsumer, partition: int, offset: int) -> Record:
    """Return a record; raises 404 that says why there is none."""
    first, end = await one.log.offsets(one.partition_count())
    if partition not in end:
        raise _gone(f"{one.log.topic} has no partition {partition}, but 0 to {len(end) - 1}", None)
    if offset >= end[partition]:
        raise _gone(f"nothing was written there yet: the next record will have offset {end[partition]}", None)
    found = await one.log.record(partition, max(offset, first[partition]))
    following = None if found is None else found.offset
    if found is not None and following == offset:
        return found
    if offset < first[partition]:
        raise _gone(f"deleted: the records of partition {partition} begin at offset {first[partition]}", following)
    aborted = await one.uncommitted.record(partition, offset)
    if aborted is not None and aborted.offset == offset:
        raise _gone("its transaction was aborted: it counts as never written", following)
    raise _gone("no record: it was compacted away, or is the mark of a transaction's end", following)


def _within(span: Span, wanted: Wanted | None) -> Wanted:
    """Return the filter of what is wanted in a span of time: the offset of a time leads to it, but does not divide."""

    def within(record: Record) -> bool:
        return (
            (span.since is None or record.timestamp >= span.since)
            and (span.until is None or record.timestamp < span.until)
            and (wanted is None or wanted(record))
        )

    return within


def _wanted(key: str | None, partition: int | None, text: str | None) -> Wanted | None:
    """Return the filter; None when everything is wanted."""
    if key is None and partition is None and text is None:
        return None
    wanted_key, wanted_text = None if key is None else key.encode(), None if text is None else text.encode()

    def wanted(record: Record) -> bool:
        return (
            (wanted_key is None or record.key == wanted_key)
            and (partition is None or record.partition == partition)
            and (wanted_text is None or wanted_text in (record.value or b""))
        )

    return wanted


def _time(parameter: str, text: str | None) -> int | None:
    """Return a time in milliseconds since 1970 UTC; no record is older than that."""
    if text is None:
        return None
    try:
        time = msgspec.convert(text, AwareTime)
    except msgspec.ValidationError:
        raise _bad(parameter, f"a time like 2026-01-31T12:00:00Z is expected, not {text[:40]!r}") from None
    return max(0, int(time.timestamp() * 1_000))


def _read(parameter: str, text: str | None, reader: Callable[[str], T]) -> T | None:
    try:
        return None if text is None else reader(text)
    except ValueError as error:
        raise _bad(parameter, str(error)) from None


@contextmanager
def reaching_kafka() -> Iterator[None]:
    """Answer 503 when Kafka is out of reach, and 502 when a record cannot be read."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise out_of_reach(error) from None


def _bad(parameter: str, detail: str) -> ProblemDetailsException:
    return problem(BAD_PARAMETER, f"{parameter}: {detail}", [Fault(parameter=parameter, detail=detail)])


def _gone(detail: str, following: int | None) -> ProblemDetailsException:
    return problem(HTTPStatus.NOT_FOUND, detail, members={"next": following})


def _message(decode: Callable[[bytes], object], record: Record) -> Message:
    key = None if record.key is None else record.key.decode("utf-8", "backslashreplace")
    return Message(record.topic, record.partition, record.offset, record.timestamp, key, decode(record.value or b""))
