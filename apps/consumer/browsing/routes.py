"""Records over HTTP: the newest consumed, any record of the topic, and the live tail."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Controller, get
from litestar.connection import Request
from litestar.di import Provide
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example, Operation
from litestar.params import HeaderParameter, Parameter, PathParameter, QueryParameter, SkipValidation
from litestar.response import Response

from apps.chassis.deadline import CALL_S, within
from apps.chassis.http.admission import Share, share_of
from apps.chassis.http.authorization import access_of
from apps.chassis.http.problem_kinds import BUSY, MISSING_ROLE, OUT_OF_REACH, UNREADABLE
from apps.chassis.http.problems import bad_parameter, documented, problem
from apps.chassis.http.query import ANY_NUMBER, PLAIN_INTEGER
from apps.chassis.http.record_value import RecordValue
from apps.chassis.http.roles import READ, READ_SENSITIVE, ROLE
from apps.chassis.http.streaming import Streamed
from apps.chassis.kafka.open_transactions import OpenTransactions
from apps.chassis.kafka.search import SEARCH_BYTES
from apps.consumer.browsing.counted_answers import MAKE_LATER, counted, memory_of_answer
from apps.consumer.browsing.cursors import read_offsets, write_offsets
from apps.consumer.browsing.record_view import StoredMessage, View, show
from apps.consumer.browsing.topic_search import Filter, NoSuchRecord, newest, record_at
from apps.consumer.browsing.window import Cursor, StaleCursor, Window
from apps.consumer.consuming.decode import decode_value
from apps.consumer.stream_consumer import StreamConsumer
from contracts.record import Record, memory_of
from contracts.sensitive import MASK

MAX_MESSAGES = 1_000
EVENTS = "text/event-stream"
UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Headers of the live tail: by default nginx delays even the head of the answer until it has 1,460 bytes."""
SEARCH_MEMORY_BYTES = 2 * SEARCH_BYTES
"""What a search finds, and the answer that is made of it."""
RECORD_MEMORY_BYTES = 1024 * 1024
"""What reading one record takes; what that and its answer take more is counted once it is read."""
COPIES_IN_MEMORY = 3
"""How many times a value of the window is in memory during a call: in the window, decoded, and in the answer."""
TIME = {"format": "date-time"}
PLACE = re.compile(rf"/({PLAIN_INTEGER.pattern})/({PLAIN_INTEGER.pattern})/?\Z")

T = TypeVar("T")
AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]

Total = Annotated[int, msgspec.Meta(description="Records that this service has consumed since it started.")]
Limit = Annotated[int, Parameter(ge=1, le=MAX_MESSAGES, description="How many at most.")]
Key = Annotated[str | None, Parameter(description="Only records with this key.")]
Number = Annotated[int | None, Parameter(ge=0, schema_extra=ANY_NUMBER, description="Only records of this partition.")]
Text = Annotated[
    str | None,
    Parameter(
        min_length=1,
        description="Only records whose value contains this text anywhere, in this case: `Ada` finds `Adambury` too.",
    ),
]
Before = Annotated[str | None, Parameter(description="Only those before: the `next` of an answer.")]
Where = Annotated[
    str,
    QueryParameter(
        schema_extra={"enum": ["window", "topic"]},
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
        description="`scope=topic`: only those older than this time; a record behind one in its partition that is more "
        "than an hour newer than this time is skipped.",
        schema_extra=TIME,
    ),
]
LastEvent = Annotated[
    str | None, HeaderParameter(name="Last-Event-ID", description="Continues after the event with this id.")
]


class Message(msgspec.Struct, omit_defaults=True):
    """A consumed record; `timestamp` in milliseconds since 1970 UTC, `key` as text.

    A deletion (`deleted`) has no value. `masked`: the caller may not see what is sensitive.
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str | None
    value: RecordValue | None
    deleted: bool = False
    masked: bool | msgspec.UnsetType = msgspec.UNSET


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
    `waiting_for_transaction` newer records stand behind another client's open transaction, and were not searched.
    """

    total: Total
    messages: list[StoredMessage]
    next: str | None
    scanned: int
    reached: int | None
    waiting_for_transaction: int = 0


@dataclass
class EitherKind(Operation):
    """Documents either kind of answer as `anyOf`: without messages it is of both, which Litestar's `oneOf` denies."""

    def __post_init__(self) -> None:
        schema: Any = self.responses["200"].content["application/json"].schema  # type: ignore[index, union-attr]  # it is there
        schema.any_of, schema.one_of = schema.one_of, None


async def view_of(request: Request[Any, Any, Any], served_stream: SkipValidation[StreamConsumer]) -> View:
    """Return how the caller sees the records of a stream."""
    may_see = served_stream.view is served_stream.masked_view or access_of(request).may_read(request, READ_SENSITIVE)
    return served_stream.view if may_see else served_stream.masked_view


class MessageController(Controller):
    """Shows records."""

    path = "/consumers/messages"
    opt = {ROLE: READ}  # noqa: RUF012 - Litestar's own attribute
    dependencies = {"view": Provide(view_of)}  # noqa: RUF012 - Litestar's own attribute
    type_encoders = MAKE_LATER

    @get(
        summary="The newest records",
        description="The records that this instance consumed last, in the order of consumption, not of their "
        "timestamps (after a restart first the earlier committed ones, merged by timestamp). With "
        "`scope=topic` the newest of the whole topic, straight from it: merged by timestamp, each partition in the "
        "order of its offsets; a record dated more than a minute ahead counts as old as the one before it. A search "
        "looks at some 100,000 records at a time, and `next` goes on.",
        responses=documented(OUT_OF_REACH, UNREADABLE),
        operation_class=EitherKind,
    )
    async def newest(  # noqa: PLR0913 - each is a query parameter
        self,
        *,
        request: Request[Any, Any, Any],
        served_stream: SkipValidation[StreamConsumer],
        view: SkipValidation[View],
        limit: Limit = 10,
        key: Key = None,
        partition: Number = None,
        q: Text = None,
        since: Since = None,
        until: Until = None,
        before: Before = None,
        where: Where = "window",
    ) -> Messages | StoredMessages:
        """Show the newest records of the window, or of the topic."""
        share = share_of(request.scope)
        if where == "topic":
            times = read_time("from", since), read_time("to", until)
            wanted = Filter(key_filter(view, key), partition, *times, _has_text(view, q))
            cursor = _read("before", before, read_offsets)
            share.require(SEARCH_MEMORY_BYTES)
            return await within(CALL_S, _newest_of_topic(served_stream, view, wanted, limit, cursor, share))
        if where != "window":
            raise bad_parameter("scope", f"expected window or topic, got {where[:40]!r}")
        for name, value in {"q": q, "from": since, "to": until}.items():
            if value is not None:
                raise bad_parameter(name, "only together with scope=topic")
        cursor_of_window = _read("before", before, Cursor.parse)
        await share.turn(needed := bytes_of(served_stream.window, limit))
        share.require(needed)
        return _newest_of_window(served_stream, view, limit, key_filter(view, key), partition, cursor_of_window, share)

    @get(
        "/{partition:int}/{offset:int}",
        summary="One record, straight from the topic",
        description="Consumed or not. Where there is none, `detail` says why, and `next` is the next offset in the "
        "partition that has one, null without any.",
        responses=documented(HTTPStatus.NOT_FOUND, OUT_OF_REACH, UNREADABLE),
    )
    async def one(
        self,
        request: Request[Any, Any, Any],
        served_stream: SkipValidation[StreamConsumer],
        view: SkipValidation[View],
        partition: Annotated[int, PathParameter(description="The partition.", examples=[Example(value=0)])],
        offset: Annotated[int, PathParameter(description="The offset in it.", examples=[Example(value=0)])],
    ) -> StoredMessage:
        """Show one record."""
        if not PLACE.search(request.scope["path"]):  # Litestar takes -1, +1, 1_0 and the digits of any script too
            raise problem(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND.phrase)
        (share := share_of(request.scope)).require(RECORD_MEMORY_BYTES)
        log, uncommitted, count = served_stream.log, served_stream.uncommitted, served_stream.partition_count()
        try:
            found = await within(CALL_S, record_at(log, uncommitted, count, partition, offset))
        except NoSuchRecord as error:
            raise problem(HTTPStatus.NOT_FOUND, str(error), members={"next": error.next}) from None
        await share.turn(share.taken_bytes)
        share.require_in_all(memory_of([found]) + memory_of_answer([found]))
        return show(view, found)

    @get(
        "/stream",
        summary="The live tail of the topic",
        description="Server-sent events: one a record, and its id is the offset reached in each partition, so that "
        "`Last-Event-ID` continues without a gap, on any instance. `gap` reports records that were deleted in between "
        "or cannot be read, `cut-off` a caller that read too slowly.",
        responses={
            **documented(OUT_OF_REACH, BUSY),
            200: ResponseSpec(str, generate_examples=False, description="An event a record", media_type=EVENTS),
        },
        unlimited=True,  # the tail has a limit of its own
    )
    async def live_tail(  # noqa: PLR0913, PLR0917 - each is a parameter of the call
        self,
        request: Request[Any, Any, Any],
        served_stream: SkipValidation[StreamConsumer],
        view: SkipValidation[View],
        key: Key = None,
        partition: Number = None,
        q: Text = None,
        last_event: LastEvent = None,
    ) -> Response[Any]:
        """Send records as they are written."""
        tail = served_stream.tails[view]
        start = _read("Last-Event-ID", last_event, read_offsets)
        if tail.is_full:
            raise problem(BUSY, "too many callers watch already")
        wanted = Filter(key_filter(view, key), partition, also=_has_text(view, q))
        beginning = await within(CALL_S, tail.begin(start))
        events = tail.events(beginning, None if wanted == Filter() else wanted.matches)
        role = READ_SENSITIVE if view is not served_stream.masked_view else READ
        events = access_of(request).while_allowed(request, events, role)
        return Streamed(events, EVENTS, HTTPStatus.OK, UNBUFFERED, reads_body=False, endless=True)


async def _newest_of_topic(  # noqa: PLR0913, PLR0917 - the parameters of a call
    one: StreamConsumer, view: View, wanted: Filter, limit: int, cursor: dict[int, int] | None, share: Share
) -> StoredMessages:
    found = await newest(one.log, one.partition_count(), wanted, limit, cursor)
    waiting = await OpenTransactions(one.log, one.uncommitted).waiting(one.partition_count(), wanted.partition)
    await share.turn(share.taken_bytes)
    shown = counted(share, found.records[::-1], partial(show, view), memory_of(found.records))
    following = None if found.before is None else write_offsets(found.before)
    return StoredMessages(one.consumption.consumed, shown, following, found.scanned, found.reached, waiting)


def _newest_of_window(  # noqa: PLR0913, PLR0917 - the parameters of a call
    one: StreamConsumer,
    view: View,
    limit: int,
    key: bytes | None,
    partition: int | None,
    cursor: Cursor | None,
    share: Share,
) -> Messages:
    try:
        records, earlier = one.window.newest(limit, key=key, partition=partition, before=cursor)
    except StaleCursor as stale:
        raise bad_parameter("before", str(stale)) from None
    shown = counted(share, records, partial(_message, view))
    return Messages(one.consumption.consumed, shown, None if earlier is None else str(earlier))


def bytes_of(window: Window, limit: int) -> int:
    """Return about how many bytes of memory a call for some records of a window takes."""
    return COPIES_IN_MEMORY * window.bytes_of(limit)


def key_filter(view: View, key: str | None) -> bytes | None:
    """Return the bytes of a key that is searched for. Raises 403 where the caller may not see keys: it could guess."""
    if key is not None and view.hides_key:
        raise problem(MISSING_ROLE, f"a search by key needs a key with the role {READ_SENSITIVE}: it is sensitive here")
    return None if key is None else key.encode()


def _has_text(view: View, text: str | None) -> Callable[[Record], bool] | None:
    return None if text is None else partial(view.finds, text.encode())


def read_time(parameter: str, text: str | None) -> int | None:
    """Return a time in milliseconds since 1970 UTC; no record is older than that."""
    if text is None:
        return None
    try:
        time = msgspec.convert(text, AwareTime)
    except msgspec.ValidationError:
        raise bad_parameter(parameter, f"expected a time like 2026-01-31T12:00:00Z, got {text[:40]!r}") from None
    return max(0, int(time.timestamp() * 1_000))


def _read(parameter: str, text: str | None, reader: Callable[[str], T]) -> T | None:
    try:
        return None if text is None else reader(text)
    except ValueError as error:
        raise bad_parameter(parameter, str(error)) from None


def _message(view: View, record: Record) -> Message:
    key = None if record.key is None else MASK if view.hides_key else record.key.decode("utf-8", "backslashreplace")
    value, deleted = decode_value(view.decode, record), record.value is None
    value, place = None if deleted else view.value(value), (record.topic, record.partition, record.offset)
    return Message(*place, record.timestamp, key, value, deleted, view.masked)
