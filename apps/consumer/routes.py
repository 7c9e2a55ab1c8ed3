"""The consumer's HTTP: what a call says becomes a call of what it steers, and the result an answer."""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from aiokafka.errors import KafkaError
from litestar import get, post
from litestar.connection import Request
from litestar.handlers import BaseRouteHandler

from apps.chassis.body import (
    BODY_ERRORS,
    JSON,
    documents_body,
    either,
    read_json,
    refuse_other_bodies,
    schema_of,
)
from apps.chassis.deadline import CALL_S, within
from apps.chassis.logs import one_line
from apps.chassis.problems import (
    BAD_BODY,
    NOT_NOW,
    OUT_OF_REACH,
    Fault,
    documented,
    out_of_reach,
    problem,
)
from apps.consumer.commits import Move
from apps.consumer.control import Control, NotNow, Place, State
from apps.consumer.group import Group
from apps.consumer.lag import PartitionLag

log = logging.getLogger(__name__)

EPOCH = datetime.fromtimestamp(0, UTC)
"""No record is older: Kafka counts from here."""
END_OR_TIME = {"anyOf": [{"enum": ["beginning", "end"]}, {"format": "date-time"}]}


class Status(msgspec.Struct):
    """What the consumer is doing.

    `lag` is high watermark - committed, in records; `waiting_for_transaction` is the part of it behind an open
    transaction of another client. `failures` counts the failed attempts of the in-flight batch, `restarts` the
    connections that were replaced, `commit_failures` the commits that Kafka refused. `skipped_count` records were not
    consumed because a position moved; `moves` are the newest such moves, without consuming and operator actions.
    `notes` are differences between a topic and the settings: the topic is used as it is. `passed_over_count` records
    were sent back from the dead letters for another group.
    """

    running: bool
    state: State
    messages_consumed_count: int
    dead_lettered_count: int
    topic: str
    group_id: str
    member_id: str | None
    lag: int | None
    waiting_for_transaction: int | None
    lag_seconds: float | None
    partitions: list[PartitionLag]
    paused_partitions: list[int]
    restarts: int
    failures: int
    batch_age_seconds: float
    commit_failures: int
    skipped_count: int
    moves: list[Move]
    last_error: str | None
    started_at: str
    notes: list[str]
    throttled_seconds: float = 0.0
    passed_over_count: int = 0


class Start(msgspec.Struct, forbid_unknown_fields=True):
    """How to start; `accept`, after a halt or while retrying, dead-letters bad records until a batch has none."""

    accept: bool = False


class Seek(msgspec.Struct, forbid_unknown_fields=True):
    """Where to consume from: an end of the topic or a time (RFC 3339, with its offset from UTC); or one offset."""

    to: Annotated[str, msgspec.Meta(extra_json_schema=END_OR_TIME)] | None = None
    partition: Annotated[int, msgspec.Meta(ge=0)] | None = None
    offset: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Sought(msgspec.Struct):
    """The next offset of each requested partition that this instance holds."""

    partitions: dict[int, int]


def consumer_routes(
    control: Control, status: Callable[[], Awaitable[Status]], group: Callable[[], Coroutine[Any, Any, Group]]
) -> Sequence[BaseRouteHandler]:
    """Return the routes that show and steer the consumer."""

    @get("/consumers/status", summary="What the consumer is doing", responses=documented())
    async def show_status() -> Status:
        return await status()

    @get(
        "/consumers/group",
        summary="The whole group, from any instance",
        responses=documented(OUT_OF_REACH),
    )
    async def show_group() -> Group:
        try:
            return await within(CALL_S, group())
        except (KafkaError, OSError, TimeoutError) as error:
            raise out_of_reach(error) from None

    async def done(action: str) -> Status:
        now = await status()
        log.info("an operator asked for %s: the consumer is %s", action, now.state, extra={"action": action})
        return now

    @post("/consumers/stop", summary="Leave the group", responses=documented(*BODY_ERRORS), status_code=HTTPStatus.OK)
    async def stop(request: Request[Any, Any, Any]) -> Status:
        await refuse_other_bodies(request)
        await control.stop()
        return await done("stop")

    @post(
        "/consumers/pause",
        summary="Stop reading and keep the partitions",
        responses=documented(*BODY_ERRORS),
        status_code=HTTPStatus.OK,
    )
    async def pause(request: Request[Any, Any, Any]) -> Status:
        await refuse_other_bodies(request)
        await control.pause()
        return await done("pause")

    @post(
        "/consumers/resume",
        summary="Read on after a pause",
        responses=documented(*BODY_ERRORS),
        status_code=HTTPStatus.OK,
    )
    async def resume(request: Request[Any, Any, Any]) -> Status:
        await refuse_other_bodies(request)
        await control.resume()
        return await done("resume")

    @post(
        "/consumers/seek",
        summary="Consume from another place on",
        responses=documented(*BODY_ERRORS, NOT_NOW, OUT_OF_REACH),
        operation_class=documents_body(
            {JSON: (either(Seek, ["to"], ["partition", "offset"]), {"to": "beginning"})}, required=True
        ),
        status_code=HTTPStatus.OK,
    )
    async def seek(request: Request[Any, Any, Any]) -> Sought:
        return Sought(await _seek(control, await read_json(request, Seek)))

    @post(
        "/consumers/start",
        summary="Join the group and consume",
        responses=documented(*BODY_ERRORS),
        operation_class=documents_body({JSON: (schema_of(Start), {"accept": False})}, required=False),
        status_code=HTTPStatus.OK,
    )
    async def start(request: Request[Any, Any, Any]) -> Status:
        await control.start(accept=(await read_json(request, Start)).accept)
        return await done("start")

    return show_status, show_group, stop, start, pause, resume, seek


async def _seek(control: Control, order: Seek) -> dict[int, int]:
    try:
        sought = await control.seek(place_of(order))
    except ValueError as error:
        raise problem(BAD_BODY, str(error), [Fault(path="$", detail=str(error))]) from None
    except NotNow as error:
        log.info("an operator asked for seek, in vain: %s", error, extra={"action": "seek"})
        raise problem(NOT_NOW, str(error)) from None
    except (KafkaError, OSError, TimeoutError) as error:
        log.info("an operator asked for seek, in vain: %s", one_line(error), extra={"action": "seek"})
        raise out_of_reach(error) from None
    log.info("an operator asked for seek: it consumes from %s", sought, extra={"action": "seek"})
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
