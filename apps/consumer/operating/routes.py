"""Operate the consumption over HTTP: status, history, group, stop, start, pause, resume and seek."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from litestar import Controller, get, post
from litestar.connection import Request
from litestar.params import Parameter, SkipValidation

from apps.chassis.audit import AUDIT, AuditRecord
from apps.chassis.deadline import CALL_S, within
from apps.chassis.http.authorization import access_of
from apps.chassis.http.problem_kinds import NOT_NOW, OUT_OF_REACH
from apps.chassis.http.problems import answer_as, bad_body, bad_parameter, documented
from apps.chassis.http.request_body import (
    BODY_ERRORS,
    JSON,
    documents_body,
    either,
    read_json,
    refuse_content,
    schema_of,
)
from apps.chassis.http.roles import OPERATE, READ, READ_SENSITIVE, ROLE
from apps.chassis.observability.logs import one_line
from apps.consumer.operating.control import Control, NotNow
from apps.consumer.operating.group import Group
from apps.consumer.operating.history import History
from apps.consumer.operating.places import Place, Spot
from apps.consumer.operating.status import Status, StreamStatus, status_of
from apps.consumer.stream_consumer import StreamConsumer

log = logging.getLogger(__name__)

T = TypeVar("T")

EPOCH = datetime.fromtimestamp(0, UTC)
"""No record is older: Kafka counts from here."""
END_OR_TIME = {"anyOf": [{"enum": ["beginning", "end"]}, {"format": "date-time"}]}


class Start(msgspec.Struct, forbid_unknown_fields=True):
    """How to start; `accept`, after a halt or while retrying, dead-letters the bad records that wait."""

    accept: bool = False


class Seek(msgspec.Struct, forbid_unknown_fields=True):
    """Where to consume from, in all partitions or in one: an end or a time (RFC 3339 with its zone); or an offset."""

    to: Annotated[str, msgspec.Meta(extra_json_schema=END_OR_TIME)] | None = None
    partition: Annotated[int, msgspec.Meta(ge=0)] | None = None
    offset: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Sought(msgspec.Struct):
    """The next offset of each requested partition of this instance: of the first sought stream, and of each.

    With `dry_run=true` nothing moved: `would_handle_again` offsets are committed and `would_skip` are not. Those of the
    in-flight batch are not, and `seek` abandons it when it fails or takes too long.
    """

    partitions: dict[int, int]
    streams: dict[str, dict[int, int]]
    would_handle_again: int | None = None
    would_skip: int | None = None


class Actions(msgspec.Struct):
    """Operator actions, the newest first."""

    actions: list[AuditRecord]


Streams = SkipValidation[Mapping[str, StreamConsumer]]
action = partial(post, status_code=HTTPStatus.OK, role=OPERATE)
"""Declares a route for an operator action."""
ERRORS = documented(*BODY_ERRORS, NOT_NOW)
START_BODY = documents_body({JSON: (schema_of(Start), {"accept": False})}, required=False)
SEEK_BODY = documents_body(
    {JSON: (either(Seek, ["to"], ["to", "partition"], ["partition", "offset"]), {"to": "beginning"})}, required=True
)


class OperatingController(Controller):
    """Shows and controls the consumption of each stream."""

    path = "/consumers"
    opt = {ROLE: READ}  # noqa: RUF012 - Litestar's own attribute
    exception_handlers: dict[int | type[Exception], Any] = {NotNow: answer_as(NOT_NOW)}  # noqa: RUF012 - Litestar's own

    @get("/status", summary="What the consumer is doing", responses=documented())
    async def status(self, request: Request[Any, Any, Any], served_streams: Streams) -> Status:
        """Show what the consumption of each stream is doing."""
        return await _status(request, served_streams)

    @get(
        "/history",
        summary="Rate and lag over the last hour",
        description="Of this instance, since its start: a point every 10 s. Missing points mean that it did not run.",
        responses=documented(),
    )
    async def history(self, served_stream: SkipValidation[StreamConsumer]) -> History:
        """Show how fast a stream was consumed, and its lag."""
        return served_stream.history.history

    @get("/group", summary="The whole group, from any instance", responses=documented(OUT_OF_REACH))
    async def group(self, served_stream: SkipValidation[StreamConsumer]) -> Group:
        """Show the whole group."""
        return await within(CALL_S, served_stream.shared_reads.read("group", served_stream.group))

    @get(
        "/actions",
        summary="The last operator actions on this instance",
        description="The last 100 since its start, the newest first, without values. `AUDIT_TOPIC` keeps all of them.",
        role=OPERATE,  # it names colleagues, and a hash of a short parameter can be guessed
        responses=documented(),
    )
    async def actions(self, request: Request[Any, Any, Any]) -> Actions:
        """Show the last operator actions."""
        return Actions([*request.app.state[AUDIT].newest])

    @action("/start", summary="Join the group and consume", responses=ERRORS, operation_class=START_BODY)
    async def start(self, request: Request[Any, Any, Any], served_streams: Streams) -> Status:
        """Start the consumption."""
        wanted = await read_json(request, Start)
        return await _act(request, served_streams, "start", partial(Control.start, accept=wanted.accept))

    @action("/stop", summary="Leave the group", responses=ERRORS)
    async def stop(self, request: Request[Any, Any, Any], served_streams: Streams) -> Status:
        """Stop the consumption."""
        await refuse_content(request)
        return await _act(request, served_streams, "stop", Control.stop)

    @action("/pause", summary="Stop reading and keep the partitions", responses=ERRORS)
    async def pause(self, request: Request[Any, Any, Any], served_streams: Streams) -> Status:
        """Pause the consumption."""
        await refuse_content(request)
        return await _act(request, served_streams, "pause", Control.pause)

    @action("/resume", summary="Resume reading after a pause", responses=ERRORS)
    async def resume(self, request: Request[Any, Any, Any], served_streams: Streams) -> Status:
        """Resume the consumption."""
        await refuse_content(request)
        return await _act(request, served_streams, "resume", Control.resume)

    @action(
        "/seek",
        summary="Move the position: consume from another place",
        responses=documented(*BODY_ERRORS, NOT_NOW, OUT_OF_REACH),
        operation_class=SEEK_BODY,
    )
    async def seek(
        self,
        request: Request[Any, Any, Any],
        served_streams: Streams,
        dry_run: Annotated[bool, Parameter(description="Move nothing, and answer with the counts.")] = False,  # noqa: FBT002 - a query parameter
    ) -> Sought:
        """Seek in each stream."""
        try:
            place = place_of(await read_json(request, Seek))
            if isinstance(place, Mapping) and len(served_streams) > 1:
                raise bad_parameter("stream", "name the stream whose partition is sought")
            return await (_preview if dry_run else _seek)(served_streams, place)
        except ValueError as error:
            raise bad_body(str(error)) from None


async def _seek(wanted: Mapping[str, StreamConsumer], place: Place) -> Sought:
    sought = await at_once(wanted, lambda _, control: control.seek(place))
    for name, offsets in sought.items():
        details = {"action": "seek", "stream": name}
        log.info("an operator asked for seek of %s: it consumes from %s", name, offsets, extra=details)
    return Sought(next(iter(sought.values())), sought)


async def _preview(wanted: Mapping[str, StreamConsumer], place: Place) -> Sought:
    found = await at_once(wanted, lambda _, control: control.preview_seek(place))
    partitions = {name: one.partitions for name, one in found.items()}
    again, skipped = (sum(counts) for counts in zip(*((one.again, one.skipped) for one in found.values()), strict=True))
    return Sought(next(iter(partitions.values())), partitions, again, skipped)


async def _status(
    request: Request[Any, Any, Any], wanted: Mapping[str, StreamConsumer], *, shared: bool = True
) -> Status:
    """Return the status of some streams, with errors as far as the caller may see them: they may quote a record.

    One that is not `shared` waits for no other caller's: while Kafka does not answer, each takes 4 s.
    """
    may_read = access_of(request).may_read
    may_see = may_read(request, READ_SENSITIVE)
    found = await asyncio.gather(
        *(_status_of_one(one, quotes=may_see or not one.stream.masking, shared=shared) for one in wanted.values())
    )
    if not may_read(request):
        hidden = {"last_error": None, "last_error_at": None, "last_error_lasts": False, "failing_record": None}
        found = [msgspec.structs.replace(one, **hidden) for one in found]
    return status_of(dict(zip(wanted, found, strict=True)))


async def _status_of_one(one: StreamConsumer, *, quotes: bool, shared: bool) -> StreamStatus:
    read = partial(one.status, quotes=quotes)
    return await (one.shared_reads.read(("status", quotes), read) if shared else read())


async def at_once(wanted: Mapping[str, StreamConsumer], act: Callable[[str, Control], Awaitable[T]]) -> dict[str, T]:
    """Act on some streams at once; return the results.

    Raises the error of a stream; it names the streams for which the action was done nevertheless.
    """
    acts = (act(name, one.control) for name, one in wanted.items())
    results = dict(zip(wanted, await asyncio.gather(*acts, return_exceptions=True), strict=True))
    done = {name: result for name, result in results.items() if not isinstance(result, BaseException)}
    for name, result in results.items():
        if isinstance(result, BaseException):
            if len(wanted) == 1 or not (done or isinstance(result, NotNow)):
                raise result
            reason = str(result) if isinstance(result, NotNow) else one_line(result)
            raise NotNow(f"{name}: {reason}" + (f" (done for {', '.join(done)})" if done else "")) from result
    return done


async def _act(
    request: Request[Any, Any, Any],
    wanted: Mapping[str, StreamConsumer],
    action: str,
    act: Callable[[Control], Awaitable[None]],
) -> Status:
    """Take an operator action on some streams at once; return what they do then."""
    await at_once(wanted, lambda _, control: act(control))
    status = await _status(request, wanted, shared=False)  # starting may have taken 6 of the 10 s already
    for name, one in status.streams.items():
        details = {"action": action, "stream": name}
        log.info("an operator asked for %s of %s: it is %s", action, name, one.state, extra=details)
    return status


def place_of(wanted: Seek) -> Place:
    """Return the place that a body asks for. Raises `ValueError` when it is none."""
    match wanted:
        case Seek(to=str(to), offset=None):
            spot: Spot = _end_or_time(to)
        case Seek(to=None, partition=int(), offset=int(offset)):
            spot = offset
        case _:
            raise ValueError("give either `to`, with a `partition` or without, or `partition` and `offset`")
    return spot if wanted.partition is None else {wanted.partition: spot}


def _end_or_time(to: str) -> Literal["beginning", "end"] | datetime:
    if to == "beginning":
        return "beginning"
    if to == "end":
        return "end"
    try:
        time: datetime = msgspec.convert(to, Annotated[datetime, msgspec.Meta(tz=True)])
    except msgspec.ValidationError:
        raise ValueError(
            f"`to`: expected beginning, end or a time like 2026-01-31T12:00:00Z, got {to[:40]!r}"
        ) from None
    return max(time, EPOCH)
