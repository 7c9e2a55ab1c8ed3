"""The producer's HTTP: what a call says becomes a call of `intake`, and its result an answer."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

import msgspec
from litestar import post
from litestar.connection import Request
from litestar.enums import MediaType
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Operation
from litestar.params import Parameter
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.response import Response
from litestar.types import Receive, Scope, Send

from apps.chassis.http.problems import (
    BAD_BODY,
    BUSY,
    NOT_ACKNOWLEDGED,
    OUT_OF_REACH,
    RETRY_AFTER,
    Fault,
    documented,
    problem,
)
from apps.chassis.http.request_body import (
    BODY_ERRORS,
    JSON,
    NDJSON,
    documents_body,
    head_of,
    read_whole,
    refuse_other_bodies,
    schema_of,
)
from apps.chassis.http.spool import Spools
from apps.chassis.http.streaming import Streamed
from apps.chassis.settings import PLAIN_INTEGER
from apps.producer.publishing.intake import CHUNK, TIMES_IN_MEMORY, Answer, BadRecords, is_list, make, read_values, send
from apps.producer.publishing.line_answers import LineAnswers
from apps.producer.publishing.publisher import Busy, OutOfReach, Publisher
from contracts.stream import Stream

MOST_GENERATED = 100_000
LARGEST_BODY = 16 * 1024 * 1024
"""Bytes of a JSON body; lines of JSON may go on for ever."""
SEED_PATH = "/producers/basic_producer"
GENERATE = "/generate"
MOST_IN_MEMORY = 256 * 1024 * 1024
"""Bytes that all calls under way may take, about."""
ACCEPTED = (JSON, NDJSON)
SEND_LINES = f"; send more records as {NDJSON}"
GENERATED_RECORD_BYTES = 1_200
"""Bytes of memory that a generated record of some 300 bytes takes, as measured."""

encode_answer = msgspec.json.Encoder().encode


def body_of(stream: Stream[Any]) -> type[Operation]:
    """Return the operation that documents a body of one value, a list, or lines."""
    schema = schema_of(stream.strict_type)
    lines = None if stream.example is None else encode_answer(stream.example).decode() + "\n"
    one_or_list = {"oneOf": [schema, {"type": "array", "items": schema}]}
    return documents_body({JSON: (one_or_list, stream.example), NDJSON: ({"type": "string"}, lines)}, required=True)


def weight_of(scope: Scope) -> int:
    """Return the approximate bytes of memory that a call takes at its start. Bodies count once they have arrived."""
    if scope["path"] == SEED_PATH:
        name = "number_of_people"
    elif scope["path"].endswith(GENERATE):
        name = "number"
    else:
        return 0
    number = parse_qs(scope["query_string"].decode("latin-1")).get(name, ["10"])[-1]
    return GENERATED_RECORD_BYTES * min(int(number) if PLAIN_INTEGER.fullmatch(number) else 0, MOST_GENERATED)


def producer_routes(publishers: Mapping[Stream[Any], Publisher], root_path: str) -> Sequence[BaseRouteHandler]:
    """Return the routes of all streams; `root_path` is the prefix that a proxy strips.

    The first stream's records can also be generated with the project's first call, `basic_producer`.
    """
    spools = Spools()
    routes: list[BaseRouteHandler] = []
    for stream, publisher in publishers.items():
        if not routes:
            routes.append(_basic_producer_route(stream, publisher))
        routes += [_send_route(stream, publisher, spools, root_path), _generate_route(stream, publisher)]
    return routes


GENERATED = {
    **documented(*BODY_ERRORS, OUT_OF_REACH, BUSY, NOT_ACKNOWLEDGED),
    207: ResponseSpec(Answer, generate_examples=False, description="Some were delivered, others not"),
}


def _basic_producer_route(stream: Stream[Any], publisher: Publisher) -> BaseRouteHandler:
    @post(
        SEED_PATH,
        summary=f"Make {stream.name} and send them",
        description=f"Answers after the last acknowledgement, with the {stream.name} made.",
        responses=GENERATED,
    )
    async def basic_producer(
        request: Request[Any, Any, Any],
        number_of_people: Annotated[int, Parameter(ge=1, le=MOST_GENERATED, description="How many to make.")] = 10,
    ) -> Response[Any]:
        return await _generate(request, stream, publisher, number_of_people)

    return basic_producer


def _generate_route(stream: Stream[Any], publisher: Publisher) -> BaseRouteHandler:
    @post(
        f"/producers/{stream.name}{GENERATE}",
        summary=f"Make {stream.name} and send them",
        description=f"Answers after the last acknowledgement, with the {stream.name} made.",
        responses=GENERATED,
    )
    async def generate(
        request: Request[Any, Any, Any],
        number: Annotated[int, Parameter(ge=1, le=MOST_GENERATED, description="How many to make.")] = 10,
    ) -> Response[Any]:
        return await _generate(request, stream, publisher, number)

    return generate


async def _generate(
    request: Request[Any, Any, Any], stream: Stream[Any], publisher: Publisher, number: int
) -> Response[Any]:
    await refuse_other_bodies(request)
    try:
        made = await make(stream, publisher, number)
    except (Busy, OutOfReach) as error:
        raise _unavailable(error) from None
    if made.answer:
        return _answer(made.answer)
    return _list_of(made.values)


def _send_route(stream: Stream[Any], publisher: Publisher, spools: Spools, root_path: str) -> BaseRouteHandler:
    @post(
        f"/producers/{stream.name}",
        summary=f"Send {stream.name}",
        description="One value or a list as JSON: all are checked before any is sent. Or any number of them, one a "
        "line (`application/x-ndjson`): each is answered by a line with its receipt, in order, while the rest is read. "
        "With a `Content-Length`, or with `receipts=at-end`, the answer follows the whole body.",
        operation_class=body_of(stream),
        responses={
            **documented(*BODY_ERRORS, OUT_OF_REACH, BUSY, NOT_ACKNOWLEDGED),
            200: ResponseSpec(str, generate_examples=False, description="A receipt a line", media_type=NDJSON),
            207: ResponseSpec(Answer, generate_examples=False, description="Some were delivered, others not"),
        },
        request_max_body_size=None,  # lines may go on for ever; JSON has its own limit
    )
    async def send_values(
        request: Request[Any, Any, Any],
        receipts: Annotated[
            Literal["at-end"] | None,
            Parameter(description="`at-end` answers lines only after the last, with a status for all of them."),
        ] = None,
    ) -> Response[Answer]:
        if head_of(request.scope).media_type == NDJSON:
            at_end = receipts is not None
            answers = LineAnswers(request, stream, publisher, spools, at_end=at_end, root_path=root_path)
            return await answers.respond()
        try:
            body = await read_whole(request, ACCEPTED, LARGEST_BODY, times_in_memory=TIMES_IN_MEMORY, hint=SEND_LINES)
            return _answer(await send(stream, publisher, read_values(stream, body), "$[{}]" if is_list(body) else "$"))
        except BadRecords as error:
            fault = Fault(path=error.path, detail=str(error))
            raise problem(BAD_BODY, f"{error} - at `{error.path}`", [fault]) from None
        except (Busy, OutOfReach) as error:
            raise _unavailable(error) from None

    return send_values


class Encoded(Response[Answer]):
    """An answer as JSON, and nothing that Litestar would look for beside it: a third of what an answer costs."""

    def __init__(self, answer: Answer, status: HTTPStatus) -> None:
        self._body = encode_answer(answer)
        self._status = status

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:  # noqa: ANN401 - Litestar's signature
        """Return what sends it."""
        return self._send

    async def _send(self, _: Scope, __: Receive, send: Send) -> None:
        length = str(len(self._body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


def _answer(answer: Answer) -> Response[Any]:
    """Answer 201 when all were delivered, 207 when some were, 503 when none was."""
    if answer.delivered == len(answer.receipts):
        return Encoded(answer, HTTPStatus.CREATED)
    if answer.delivered:
        return Encoded(answer, HTTPStatus.MULTI_STATUS)
    raise problem(
        NOT_ACKNOWLEDGED,
        f"none of {len(answer.receipts)} records was acknowledged: {answer.receipts[0].error}",
        headers={"Retry-After": RETRY_AFTER},
        members={"delivered": 0, "receipts": answer.receipts},
    )


def _list_of(values: Sequence[bytes]) -> Response[Any]:
    """Answer 201 with a list of values that are encoded already: 25 MB of them, without a copy of it all."""
    length = sum(map(len, values)) + max(len(values) - 1, 0) + len(b"[]")

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"["
        for start in range(0, len(values), CHUNK):
            yield (b"," if start else b"") + b",".join(values[start : start + CHUNK])
        yield b"]"

    return Streamed(pieces(), MediaType.JSON, HTTPStatus.CREATED, {"content-length": str(length)}, reads_body=False)


def _unavailable(error: Exception) -> ProblemDetailsException:
    what = BUSY if isinstance(error, Busy) else OUT_OF_REACH
    retry_after = str(error.retry_after) if isinstance(error, Busy) else RETRY_AFTER
    return problem(what, str(error), headers={"Retry-After": retry_after})
