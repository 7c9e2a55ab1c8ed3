"""The consumer's HTTP: what a call says becomes a call of what it steers, and the result an answer."""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import get, post
from litestar.connection import Request
from litestar.handlers import BaseRouteHandler
from litestar.params import Parameter

from apps.chassis.problems import Fault, documented, problem
from apps.consumer.control import Control, State
from apps.consumer.lag import PartitionLag
from apps.consumer.window import Cursor, Record, Window
from contracts.person import Person, decode

MOST_MESSAGES = 1_000


class Status(msgspec.Struct):
    """What the consumer is doing.

    `failures` counts the attempts of the batch in hand that failed, `restarts` the connections that were replaced;
    `notes` says where a topic differs from the settings: it is used as it is.
    """

    running: bool
    state: State
    messages_consumed_count: int
    dead_lettered_count: int
    topic: str
    group_id: str
    member_id: str | None
    lag: int | None
    lag_seconds: float | None
    partitions: list[PartitionLag]
    restarts: int
    failures: int
    last_error: str | None
    started_at: str
    notes: list[str]


class Start(msgspec.Struct, forbid_unknown_fields=True):
    """How to start; `accept` after a halt lets the bad records through, until a batch holds none."""

    accept: bool = False


decode_start = msgspec.json.Decoder(Start).decode


class Message(msgspec.Struct):
    """A consumed record; `timestamp` in milliseconds since 1970 UTC, `key` as text."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str | None
    value: Person


class Messages(msgspec.Struct):
    """Consumed records, oldest first; `next` given as `before` leads to those before them, null when there are none.

    `total` counts what this service has consumed since it started.
    """

    total: int
    messages: list[Message]
    next: str | None


def consumer_routes(
    control: Control, window: Window, status: Callable[[], Awaitable[Status]], total: Callable[[], int]
) -> Sequence[BaseRouteHandler]:
    """Return the routes that show and steer the consumer."""

    @get("/consumers/status", summary="What the consumer is doing")
    async def show_status() -> Status:
        return await status()

    @get(
        "/consumers/messages",
        summary="The newest people consumed",
        responses=documented(HTTPStatus.BAD_REQUEST),
        sync_to_thread=False,
    )
    def messages(
        limit: Annotated[int, Parameter(ge=1, le=MOST_MESSAGES, description="How many at most.")] = 10,
        key: Annotated[str | None, Parameter(description="Only records with this key (a person's id).")] = None,
        partition: Annotated[int | None, Parameter(ge=0, description="Only records of this partition.")] = None,
        before: Annotated[str | None, Parameter(description="Only those before: the `next` of an answer.")] = None,
    ) -> Messages:
        try:
            cursor = None if before is None else Cursor.parse(before)
        except ValueError as error:
            raise problem(
                HTTPStatus.BAD_REQUEST, f"before: {error}", [Fault(parameter="before", detail=str(error))]
            ) from None
        records, earlier = window.newest(
            limit, key=None if key is None else key.encode(), partition=partition, before=cursor
        )
        return Messages(total(), [_message(record) for record in records], None if earlier is None else str(earlier))

    @post("/consumers/stop", summary="Leave the group", status_code=HTTPStatus.OK)
    async def stop() -> Status:
        await control.stop()
        return await status()

    @post("/consumers/start", summary="Join the group and consume", status_code=HTTPStatus.OK)
    async def start(request: Request[Any, Any, Any]) -> Status:
        await control.start(accept=_read_order(await request.body()).accept)
        return await status()

    return show_status, messages, stop, start


def _read_order(body: bytes) -> Start:
    """Return what a body asks for; an empty one asks for nothing special."""
    try:
        return decode_start(body) if body else Start()
    except msgspec.MsgspecError as error:
        detail, _, path = str(error).partition(" - at ")
        fault = Fault(path=path.strip("`") or "$", detail=detail)
        raise problem(HTTPStatus.BAD_REQUEST, str(error), [fault]) from None


def _message(record: Record) -> Message:
    key = None if record.key is None else record.key.decode("utf-8", "backslashreplace")
    return Message(record.topic, record.partition, record.offset, record.timestamp, key, decode(record.value or b""))
