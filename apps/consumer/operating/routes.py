"""The consumer's HTTP: what a call says becomes a call of what it steers, and the result an answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from aiokafka.errors import KafkaError
from litestar import get, post
from litestar.connection import Request
from litestar.handlers import BaseRouteHandler
from litestar.plugins.problem_details import ProblemDetailsException

from apps.chassis.deadline import CALL_S, within
from apps.chassis.http.authorization import KEY_NEEDED
from apps.chassis.http.problems import (
    BAD_BODY,
    BAD_PARAMETER,
    NOT_NOW,
    OUT_OF_REACH,
    Fault,
    documented,
    out_of_reach,
    problem,
)
from apps.chassis.http.request_body import (
    BODY_ERRORS,
    JSON,
    documents_body,
    either,
    read_json,
    refuse_other_bodies,
    schema_of,
)
from apps.chassis.http.served_streams import OneStream, Served, SomeStreams
from apps.chassis.observability.logs import one_line
from apps.consumer.operating.control import Control, NotNow, Place
from apps.consumer.operating.group import Group
from apps.consumer.operating.status import Status, status_of
from apps.consumer.stream_consumer import StreamConsumer

log = logging.getLogger(__name__)

EPOCH = datetime.fromtimestamp(0, UTC)
"""No record is older: Kafka counts from here."""
END_OR_TIME = {"anyOf": [{"enum": ["beginning", "end"]}, {"format": "date-time"}]}


class Start(msgspec.Struct, forbid_unknown_fields=True):
    """How to start; `accept`, after a halt or while retrying, dead-letters the bad records that wait."""

    accept: bool = False


class Seek(msgspec.Struct, forbid_unknown_fields=True):
    """Where to consume from: an end of the topic or a time (RFC 3339, with its offset from UTC); or one offset."""

    to: Annotated[str, msgspec.Meta(extra_json_schema=END_OR_TIME)] | None = None
    partition: Annotated[int, msgspec.Meta(ge=0)] | None = None
    offset: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Sought(msgspec.Struct):
    """The next offset of each requested partition that this instance holds: of the first sought stream, and of each."""

    partitions: dict[int, int]
    streams: dict[str, dict[int, int]]


def consumer_routes(served: Served[StreamConsumer]) -> Sequence[BaseRouteHandler]:
    """Return the routes that show and steer the consumption of each stream."""
    return (
        _status_route(served),
        _group_route(served),
        _start_route(served),
        _seek_route(served),
        *(_action_route(served, *action) for action in ACTIONS),
    )


Act = Callable[[Control], Awaitable[None]]
ACTIONS: tuple[tuple[str, str, Act], ...] = (
    ("stop", "Leave the group", Control.stop),
    ("pause", "Stop reading and keep the partitions", Control.pause),
    ("resume", "Read on after a pause", Control.resume),
)


def _status_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @get("/consumers/status", summary="What the consumer is doing", responses=documented())
    async def show_status(stream: SomeStreams = None) -> Status:
        return await _status(served.some(stream))

    return show_status


async def _status(wanted: Mapping[str, StreamConsumer]) -> Status:
    found = await asyncio.gather(*(one.status() for one in wanted.values()))
    return status_of(dict(zip(wanted, found, strict=True)))


def _group_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @get("/consumers/group", summary="The whole group, from any instance", responses=documented(OUT_OF_REACH))
    async def show_group(stream: OneStream = None) -> Group:
        try:
            return await within(CALL_S, served.one(stream).group())
        except (KafkaError, OSError, TimeoutError) as error:
            raise out_of_reach(error) from None

    return show_group


async def _act(wanted: Mapping[str, StreamConsumer], action: str, act: Act) -> Status:
    """Do the same with some streams at once; return what they do then."""
    await asyncio.gather(*(act(one.control) for one in wanted.values()))
    status = await _status(wanted)
    for name, one in status.streams.items():
        details = {"action": action, "stream": name}
        log.info("an operator asked for %s of %s: it is %s", action, name, one.state, extra=details)
    return status


def _action_route(served: Served[StreamConsumer], action: str, summary: str, act: Act) -> BaseRouteHandler:
    @post(
        f"/consumers/{action}",
        summary=summary,
        responses=documented(*BODY_ERRORS),
        status_code=HTTPStatus.OK,
        security=KEY_NEEDED,
    )
    async def take_action(request: Request[Any, Any, Any], stream: SomeStreams = None) -> Status:
        wanted = served.some(stream)
        await refuse_other_bodies(request)
        return await _act(wanted, action, act)

    return take_action


def _start_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @post(
        "/consumers/start",
        summary="Join the group and consume",
        responses=documented(*BODY_ERRORS),
        operation_class=documents_body({JSON: (schema_of(Start), {"accept": False})}, required=False),
        status_code=HTTPStatus.OK,
        security=KEY_NEEDED,
    )
    async def start(request: Request[Any, Any, Any], stream: SomeStreams = None) -> Status:
        wanted = served.some(stream)
        order = await read_json(request, Start)
        return await _act(wanted, "start", partial(Control.start, accept=order.accept))

    return start


def _seek_route(served: Served[StreamConsumer]) -> BaseRouteHandler:
    @post(
        "/consumers/seek",
        summary="Consume from another place on",
        responses=documented(*BODY_ERRORS, NOT_NOW, OUT_OF_REACH),
        operation_class=documents_body(
            {JSON: (either(Seek, ["to"], ["partition", "offset"]), {"to": "beginning"})}, required=True
        ),
        status_code=HTTPStatus.OK,
        security=KEY_NEEDED,
    )
    async def seek(request: Request[Any, Any, Any], stream: SomeStreams = None) -> Sought:
        wanted = served.some(stream)
        place = _place(await read_json(request, Seek))
        if isinstance(place, Mapping) and len(wanted) > 1:
            detail = "name the stream whose partition is sought"
            raise problem(BAD_PARAMETER, f"stream: {detail}", [Fault(parameter="stream", detail=detail)])
        sought: dict[str, dict[int, int]] = {}
        for name, one in wanted.items():
            try:
                sought[name] = await _seek(one, place)
            except ProblemDetailsException as error:
                raise _named(error, name, sought) if len(wanted) > 1 else error from None
        return Sought(next(iter(sought.values())), sought)

    return seek


def _place(order: Seek) -> Place:
    try:
        return place_of(order)
    except ValueError as error:
        raise problem(BAD_BODY, str(error), [Fault(path="$", detail=str(error))]) from None


def _named(error: ProblemDetailsException, name: str, done: Collection[str]) -> ProblemDetailsException:
    """Return an error that names the stream, and those that were sought before it."""
    error.detail = f"{name}: {error.detail}" + (f" ({', '.join(done)} was sought before)" if done else "")
    return error


async def _seek(one: StreamConsumer, place: Place) -> dict[int, int]:
    details = {"action": "seek", "stream": one.stream.name}
    try:
        sought = await one.control.seek(place)
    except ValueError as error:
        raise problem(BAD_BODY, str(error), [Fault(path="$", detail=str(error))]) from None
    except NotNow as error:
        log.info("an operator asked for seek, in vain: %s", error, extra=details)
        raise problem(NOT_NOW, str(error)) from None
    except (KafkaError, OSError, TimeoutError) as error:
        log.info("an operator asked for seek, in vain: %s", one_line(error), extra=details)
        raise out_of_reach(error) from None
    log.info("an operator asked for seek of %s: it consumes from %s", one.stream.name, sought, extra=details)
    return sought


def place_of(order: Seek) -> Place:
    """Return the place that a body asks for. Raises `ValueError` when it is none."""
    if order.to is not None and order.partition is None and order.offset is None:
        return _end_or_time(order.to)
    if order.to is None and order.partition is not None and order.offset is not None:
        return {order.partition: order.offset}
    raise ValueError("give either `to`, or `partition` and `offset`")


def _end_or_time(to: str) -> Literal["beginning", "end"] | datetime:
    if to == "beginning":
        return "beginning"
    if to == "end":
        return "end"
    try:
        time: datetime = msgspec.convert(to, Annotated[datetime, msgspec.Meta(tz=True)])
    except msgspec.ValidationError:
        raise ValueError(f"`to` is beginning, end or a time like 2026-01-31T12:00:00Z, not {to[:40]!r}") from None
    return max(time, EPOCH)
