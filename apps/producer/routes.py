"""The producer's routes: they translate HTTP calls to `publishing`, and results to answers."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from litestar import Router, delete, get, post
from litestar.connection import Request
from litestar.enums import MediaType
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Operation
from litestar.params import Parameter, PathParameter
from litestar.response import Response
from litestar.types import ExceptionHandler

from apps.chassis.http.admission import share_of
from apps.chassis.http.direct_calls import DIRECTLY, Encoded
from apps.chassis.http.problem_kinds import BUSY, NO_DELETIONS, NOT_ACKNOWLEDGED, OUT_OF_REACH
from apps.chassis.http.problems import ROOT_PATH, answer_error, bad_body, bad_parameter, documented, problem
from apps.chassis.http.request_body import (
    BODY_ERRORS,
    JSON,
    NDJSON,
    documents_body,
    head_of,
    read_whole,
    refuse_content,
    schema_of,
)
from apps.chassis.http.roles import READ, SEND
from apps.chassis.http.streaming import Streamed
from apps.producer.generating.generators import CannotGenerate
from apps.producer.publishing.calls import generate_and_send, generate_value, send_deletion, send_records
from apps.producer.publishing.line_answers import LineAnswers
from apps.producer.publishing.lines import TIMES_IN_MEMORY
from apps.producer.publishing.publisher import Busy, OutOfReach
from apps.producer.publishing.receipts import Answer
from apps.producer.publishing.values import BadRecords, expected_size, memory_of, read_records
from apps.producer.stream_producer import StreamProducer
from contracts.stream import Stream

T = TypeVar("T")

MAX_GENERATED = 100_000
MAX_BODY_BYTES = 16 * 1024 * 1024
"""Most bytes of a JSON body; lines of JSON have no limit."""
LARGE_BODY_BYTES = 1024 * 1024
"""A larger JSON body is read in a thread: it may take seconds, and other calls go on meanwhile."""
READING_TURN_S = 2.0
"""Seconds that a large body waits to be read: they share one processor core, and the time of all would be too long."""
MAX_DECODED_BYTES = 192 * 1024 * 1024
"""Most bytes of memory that the values of a JSON body may take: small ones take 26 times as much as their JSON."""
MAX_RECORDS = 200_000
"""Records of a JSON body: the smallest ones take far more memory than their JSON."""
SEED_PATH = "/producers/basic_producer"
GENERATE = "/generate"
SAMPLE = "/sample"
SENDING = (
    "One value or a list as JSON: all are checked before any is sent. Or any number of values, one per line "
    "(`application/x-ndjson`): each is answered by a line with its receipt, in order, while the rest is read. With a "
    "`Content-Length`, or with `receipts=at-end`, the answer follows the whole body."
)
ACCEPTED = (JSON, NDJSON)
SEND_LINES = f"; send more records as {NDJSON}"
WHOLE_ANSWER_BYTES = 64 * 1024
"""A longer list of generated values is sent in pieces, without a copy of all of it."""
GENERATED_RECORD_BYTES = 1_200
"""Bytes of memory that a generated record of about 300 bytes takes (measured)."""

encode_answer = msgspec.json.Encoder().encode


def body_of(stream: Stream[Any]) -> type[Operation]:
    """Return the OpenAPI operation of a body that is one value, a list, or lines."""
    schema = schema_of(stream.strict_type)
    lines = None if stream.example is None else encode_answer(stream.example).decode() + "\n"
    one_or_list = {"oneOf": [schema, {"type": "array", "items": schema}]}
    return documents_body({JSON: (one_or_list, stream.example), NDJSON: ({"type": "string"}, lines)}, required=True)


def _publishing_problem(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer an error of publishing or of a body with a problem."""
    match error:
        case Busy():
            found = problem(BUSY, str(error), headers={"Retry-After": str(error.retry_after)})
        case BadRecords():
            found = bad_body(str(error), error.path)
        case CannotGenerate():
            found = problem(HTTPStatus.NOT_IMPLEMENTED, str(error))
        case _:
            found = problem(OUT_OF_REACH, str(error))
    return answer_error(request, found)


PUBLISHING_ERRORS: dict[int | type[Exception], Any] = dict.fromkeys(
    (Busy, OutOfReach, BadRecords, CannotGenerate), _publishing_problem
)
Number = Annotated[int, Parameter(ge=1, le=MAX_GENERATED, description="How many to generate.")]
Key = Annotated[str, PathParameter(description="The key of the record, percent-encoded; it cannot have a slash.")]
AnyKey = Annotated[str, Parameter(min_length=1, description="The key of the record, whatever characters it has.")]
Receipts = Annotated[
    Literal["at-end"] | None,
    Parameter(description="`at-end` answers after the last line, with one status for all lines."),
]
RESPONSES = {
    **documented(*BODY_ERRORS, OUT_OF_REACH, BUSY, NOT_ACKNOWLEDGED),
    207: ResponseSpec(Answer, generate_examples=False, description="Some were delivered, others not"),
}
SENT = {
    **RESPONSES,
    200: ResponseSpec(str, generate_examples=False, description="A receipt per line", media_type=NDJSON),
}
GENERATED = {**RESPONSES, **documented(HTTPStatus.NOT_IMPLEMENTED)}


def stream_router(producer: StreamProducer) -> Router:
    """Return the routes of a stream."""
    stream = producer.stream

    # injecting `producer` would take 3 % of a short call
    async def send_to_stream(request: Request[Any, Any, Any], receipts: Receipts = None) -> Response[Answer]:
        return await send_values(request, producer, receipts)

    async def generate_for_stream(request: Request[Any, Any, Any], number: Number = 10) -> Response[Any]:
        return await generate(request, producer, number)

    return Router(
        f"/producers/{stream.name}",
        exception_handlers=PUBLISHING_ERRORS,
        route_handlers=[
            post(
                summary=f"Send {stream.name}",
                description=SENDING,
                operation_class=body_of(stream),
                opt={DIRECTLY: send_to_stream},
                role=SEND,
                responses=SENT,
            )(send_to_stream),
            post(
                GENERATE,
                summary=f"Generate {stream.name} and send them",
                description=f"Answers after the last acknowledgement, with the generated {stream.name}.",
                opt={DIRECTLY: generate_for_stream},
                responses=GENERATED,
                role=SEND,
            )(generate_for_stream),
            sample_of(producer),
            *(deletions_of(producer) if stream.deletes else ()),
        ],
    )


def deletions_of(producer: StreamProducer) -> Iterator[HTTPRouteHandler]:
    """Yield the routes that delete a key of the query or of the path, and those for keys that are other paths too."""
    name = producer.stream.name

    async def delete_any_key(request: Request[Any, Any, Any], key: AnyKey) -> Response[Any]:
        await refuse_content(request)
        longest = producer.publisher.max_record_bytes
        if (size := len(key.encode())) > longest:
            raise bad_parameter("key", f"got {size} bytes, {expected_size(longest)}")
        return _answer(await send_deletion(producer.publisher, key))

    async def delete_key(request: Request[Any, Any, Any], key: Key) -> Response[Any]:
        if request.scope["raw_path"].endswith(b"/"):  # Litestar drops it, and the key that is left is another record's
            raise problem(HTTPStatus.NOT_FOUND, "a key cannot end with a slash here: send it in the query, as `key`")
        return await delete_any_key(request, key)

    def delete_named(key: str) -> Callable[..., Any]:
        async def delete_this_key(request: Request[Any, Any, Any]) -> Response[Any]:
            return await delete_key(request, key)

        return delete_this_key

    for at, deleting in (("/", delete_any_key), ("/{key:str}", delete_key)):
        yield delete(
            at,
            status_code=HTTPStatus.CREATED,
            summary=f"Delete one of {name}",
            description="Writes a tombstone: a record with the key and no value.",
            responses=RESPONSES,
            role=SEND,
        )(deleting)
    for path in (GENERATE, SAMPLE):
        hidden = delete(path, status_code=HTTPStatus.CREATED, include_in_schema=False, role=SEND)
        yield hidden(delete_named(path.removeprefix("/")))


def answer_with_reason(streams: Iterable[Stream[Any]]) -> ExceptionHandler:  # type: ignore[type-arg]  # a text at run time
    """Return an exception handler that says of a DELETE why these streams have no such call."""
    without = {stream.name for stream in streams if not stream.deletes}

    def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        match request.method, request.scope["path"].split("/"):
            case "DELETE", ["", "producers", name, *_] if name in without:
                detail = f"{name} takes no deletions: declare it with deletes=True"
                allowed = getattr(error, "headers", None) or {"Allow": ""}
                return answer_error(request, problem(NO_DELETIONS, detail, headers=allowed))
        return answer_error(request, error)

    return answer


def sample_of(producer: StreamProducer) -> HTTPRouteHandler:
    """Return the route of a generated value of a stream that is not sent."""

    async def generate_without_sending() -> Response[Any]:
        value = await generate_value(producer.stream, producer.publisher.max_record_bytes)
        return Response(value, media_type=MediaType.JSON)

    return get(
        SAMPLE,
        summary=f"Generate one value of {producer.stream.name} without sending it",
        responses=documented(HTTPStatus.NOT_IMPLEMENTED),
        role=READ,
    )(generate_without_sending)


def seed_route(producer: StreamProducer) -> HTTPRouteHandler:
    """Return the call `basic_producer`, which generates records of the first stream."""

    async def basic_producer(request: Request[Any, Any, Any], number_of_people: Number = 10) -> Response[Any]:
        return await generate(request, producer, number_of_people)

    return post(
        SEED_PATH,
        summary="Generate records of the first stream and send them",
        description="Answers after the last acknowledgement, with the generated records.",
        exception_handlers=PUBLISHING_ERRORS,
        opt={DIRECTLY: basic_producer},
        responses=GENERATED,
        role=SEND,
    )(basic_producer)


async def generate(request: Request[Any, Any, Any], producer: StreamProducer, number: int) -> Response[Any]:
    """Generate records of a stream, send them, and answer with them."""
    share_of(request.scope).require(GENERATED_RECORD_BYTES * number)
    await refuse_content(request)
    generated = await generate_and_send(producer.stream, producer.publisher, number, producer.turns)
    return _answer(generated.answer) if generated.answer else _list_of(generated.pieces)


async def send_values(
    request: Request[Any, Any, Any],
    producer: StreamProducer,
    receipts: Literal["at-end"] | None,
) -> Response[Answer]:
    """Send one value, a list, or lines, and answer with receipts."""
    stream, publisher = producer.stream, producer.publisher
    if head_of(request.scope).media_type == NDJSON:
        at_end, root_path = receipts is not None, request.app.state[ROOT_PATH]
        answers = LineAnswers(request, stream, publisher, producer.spools, at_end=at_end, root_path=root_path)
        return await answers.respond()
    body = await read_whole(request, ACCEPTED, MAX_BODY_BYTES, times_in_memory=TIMES_IN_MEMORY, hint=SEND_LINES)
    since = time.monotonic()
    read = partial(read_records, stream, body, publisher.max_record_bytes)
    if len(body) > LARGE_BODY_BYTES:
        require_memory(request, body)
        keys, values = await read_in_turn(producer.reading, read)
    else:
        keys, values = read()
    if len(keys) > MAX_RECORDS:
        detail = f"the body has {len(keys)} records, expected at most {MAX_RECORDS}{SEND_LINES}"
        raise problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    return _answer(await send_records(publisher, keys, values, since=since))


async def read_in_turn(turn: asyncio.Semaphore, read: Callable[[], T], within_s: float = READING_TURN_S) -> T:
    """Read a large body in a thread, one after the other. Raises 503 when others take too long."""
    try:
        async with asyncio.timeout(within_s):
            await turn.acquire()
    except TimeoutError:
        raise problem(BUSY, "too many large bodies are being read: send fewer records at a time") from None
    try:
        return await asyncio.to_thread(read)
    finally:
        turn.release()


def require_memory(request: Request[Any, Any, Any], body: bytes) -> None:
    """Take the memory that the values of a large body need. Raises 413 when that is too much, 503 when it is in use."""
    needed = memory_of(body)
    if needed > MAX_DECODED_BYTES:
        detail = f"the body has so many values that they take {needed} bytes of memory, expected at most "
        raise problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{detail}{MAX_DECODED_BYTES}{SEND_LINES}")
    share_of(request.scope).require(max(needed - TIMES_IN_MEMORY * len(body), 0))


def _answer(answer: Answer) -> Response[Any]:
    """Answer 201 when all were delivered, 207 when some were, 503 when none was."""
    if answer.delivered == len(answer.receipts):
        return Encoded(encode_answer(answer), HTTPStatus.CREATED)
    if answer.delivered:
        return Encoded(encode_answer(answer), HTTPStatus.MULTI_STATUS)
    raise problem(
        NOT_ACKNOWLEDGED,
        f"none of {len(answer.receipts)} records was acknowledged: {answer.receipts[0].error}",
        members={"delivered": 0, "receipts": answer.receipts},
    )


def _list_of(pieces: Sequence[bytes]) -> Response[Any]:
    """Answer 201 with a list of encoded values: up to 25 MB, sent in pieces without a copy of all of it."""
    length = sum(map(len, pieces)) + len(pieces) - 1 + len(b"[]")
    if length <= WHOLE_ANSWER_BYTES:
        return Encoded(b"[" + b",".join(pieces) + b"]", HTTPStatus.CREATED)

    async def parts() -> AsyncGenerator[bytes, None]:
        for number, piece in enumerate(pieces):
            yield b"," if number else b"["
            yield piece
        yield b"]"

    return Streamed(parts(), MediaType.JSON, HTTPStatus.CREATED, {"content-length": str(length)}, reads_body=False)
