"""The producer's HTTP: what a call says becomes a call of `sending`, and its result an answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec
from litestar import post
from litestar.connection import Request
from litestar.enums import MediaType
from litestar.exceptions import InternalServerException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import Parameter
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.response import Response
from litestar.types import Receive, Scope, Send

from apps.chassis.body import documents_body, schema_of
from apps.chassis.http_limits import ALL_HERE
from apps.chassis.problems import (
    BAD_BODY,
    BUSY,
    NOT_ACKNOWLEDGED,
    OUT_OF_REACH,
    RETRY_AFTER,
    Fault,
    documented,
    problem,
)
from apps.chassis.settings import PLAIN_INTEGER
from apps.chassis.streaming import Streamed
from apps.producer.publisher import Busy, OutOfReach, Publisher
from apps.producer.sending import CHUNK, Answer, BadPeople, is_list, make, read_people, send, send_lines
from contracts.person import Person, StrictPerson

MOST_PEOPLE = 100_000
LARGEST_BODY = 16 * 1024 * 1024
"""Bytes of a JSON body; lines of JSON may go on for ever."""
NDJSON = "application/x-ndjson"
MAKE, SEND = "/producers/basic_producer", "/producers/people"
MOST_IN_MEMORY = 256 * 1024 * 1024
"""Bytes that all calls under way may take, about."""
PERSON_IN_MEMORY, TIMES_IN_MEMORY, LINES_IN_MEMORY = 1_200, 6, 4 * 1024 * 1024
"""Bytes of a person that was made, times that a JSON body is held, bytes of a call that sends lines: as measured."""
SILENT = 60.0
"""Seconds after which a caller that sends nothing more is taken to have ended."""

encode_receipt = encode_answer = msgspec.json.Encoder().encode


def example_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the first example of each field that has some."""
    properties = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return {name: field["examples"][0] for name, field in properties.items() if "examples" in field}


EXAMPLE = example_of(Person)
PERSON = schema_of(StrictPerson)
PEOPLE_BODY = documents_body(
    {
        "application/json": (
            {"oneOf": [PERSON, {"type": "array", "items": PERSON}]},
            EXAMPLE,
        ),
        NDJSON: ({"type": "string"}, encode_answer(EXAMPLE).decode() + "\n"),
    },
    required=True,
)


def weight_of(scope: Scope) -> int:
    """Return the bytes of memory that a call may take, about: several times what it sends or is sent."""
    if scope["path"] == MAKE:
        number = parse_qs(scope["query_string"].decode("latin-1")).get("number_of_people", ["10"])[-1]
        return PERSON_IN_MEMORY * min(int(number) if PLAIN_INTEGER.fullmatch(number) else 0, MOST_PEOPLE)
    if scope["path"] != SEND:
        return 0
    headers = dict(scope["headers"])
    if _media_type_of(headers) == NDJSON:
        return LINES_IN_MEMORY
    length = headers.get(b"content-length", b"").decode("latin-1")
    return TIMES_IN_MEMORY * min(int(length) if PLAIN_INTEGER.fullmatch(length) else LARGEST_BODY, LARGEST_BODY)


def _media_type_of(headers: Mapping[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


def producer_routes(publisher: Publisher) -> Sequence[BaseRouteHandler]:
    """Return the routes that make people and take them."""

    @post(
        MAKE,
        summary="Make people and send them",
        description="Answers after the last acknowledgement, with the people made.",
        responses={
            **documented(OUT_OF_REACH, BUSY, NOT_ACKNOWLEDGED),
            207: ResponseSpec(Answer, generate_examples=False, description="Some were delivered, others not"),
        },
    )
    async def basic_producer(
        number_of_people: Annotated[int, Parameter(ge=1, le=MOST_PEOPLE, description="How many people to make.")] = 10,
    ) -> Response[list[Person]]:
        try:
            made = await make(publisher, number_of_people)
        except (Busy, OutOfReach) as error:
            raise _unavailable(error) from None
        if made.answer:
            return _answer(made.answer)
        return _list_of(made.people)

    @post(
        SEND,
        summary="Send people",
        description="One person or a list as JSON: all are checked before any is sent. Or any number of them, one a "
        "line (`application/x-ndjson`): each is answered by a line with its receipt, in order, while the rest is read.",
        operation_class=PEOPLE_BODY,
        responses={
            **documented(
                BAD_BODY,
                HTTPStatus.REQUEST_TIMEOUT,
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                OUT_OF_REACH,
                BUSY,
                NOT_ACKNOWLEDGED,
            ),
            200: ResponseSpec(str, generate_examples=False, description="A receipt a line", media_type=NDJSON),
            207: ResponseSpec(Answer, generate_examples=False, description="Some were delivered, others not"),
        },
        request_max_body_size=None,  # lines may go on for ever; JSON has its own limit
    )
    async def people(request: Request[Any, Any, Any]) -> Response[Answer]:
        media_type = _media_type_of(dict(request.scope["headers"]))
        if media_type == NDJSON:
            return _stream(send_lines(publisher, _pieces(request, publisher.ending)))
        if media_type not in {"", "application/json"}:
            raise problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send application/json or {NDJSON}, not {media_type}")
        try:
            body = await (_body(request) if request.scope.get(ALL_HERE) else _body_in_time(request))
            return _answer(await send(publisher, read_people(body), "$[{}]" if is_list(body) else "$"))
        except BadPeople as error:
            fault = Fault(path=error.path, detail=str(error))
            raise problem(BAD_BODY, f"{error} - at `{error.path}`", [fault]) from None
        except (Busy, OutOfReach) as error:
            raise _unavailable(error) from None

    return basic_producer, people


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


def _list_of(people: Sequence[bytes]) -> Response[Any]:
    """Answer 201 with a list of people that are encoded already: 25 MB of them, without a copy of it all."""
    length = sum(map(len, people)) + max(len(people) - 1, 0) + len(b"[]")

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"["
        for start in range(0, len(people), CHUNK):
            yield (b"," if start else b"") + b",".join(people[start : start + CHUNK])
        yield b"]"

    return Streamed(pieces(), MediaType.JSON, HTTPStatus.CREATED, {"content-length": str(length)}, reads_body=False)


def _unavailable(error: Exception) -> ProblemDetailsException:
    what = BUSY if isinstance(error, Busy) else OUT_OF_REACH
    return problem(what, str(error), headers={"Retry-After": RETRY_AFTER})


def _stream(results: AsyncIterator[Sequence[msgspec.Struct]]) -> Response[Answer]:
    async def lines() -> AsyncGenerator[bytes, None]:
        async for receipts in results:
            yield b"".join(encode_receipt(receipt) + b"\n" for receipt in receipts)

    return Streamed(lines(), NDJSON, HTTPStatus.OK, reads_body=True)


async def _pieces(request: Request[Any, Any, Any], ending: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield the body as it arrives, until its end, a silence of 60 s, or the end of the service."""
    pieces = request.stream()
    end = asyncio.create_task(ending.wait())
    try:
        while True:
            arriving = asyncio.create_task(anext(pieces, None))
            await asyncio.wait([arriving, end], timeout=SILENT, return_when=asyncio.FIRST_COMPLETED)
            if not arriving.done():
                arriving.cancel()
                return
            try:
                piece = arriving.result()
            except InternalServerException:  # what Litestar raises when the caller has gone
                return
            if piece is None:
                return
            yield piece
    finally:
        end.cancel()


async def _body_in_time(request: Request[Any, Any, Any]) -> bytes:
    """Return a JSON body that is still arriving. Raises 408 after 60 s, and what `_body` raises."""
    try:
        async with asyncio.timeout(SILENT):
            return await _body(request)
    except TimeoutError:
        raise problem(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {SILENT:g} s") from None


async def _body(request: Request[Any, Any, Any]) -> bytes:
    """Return a JSON body. Raises 413 as soon as it is larger than 16 MiB, 400 when it breaks off."""
    body, more = bytearray(), True
    while more:  # Litestar's own stream takes twice as long for a small body
        message: Any = await request.receive()
        if message["type"] == "http.disconnect":
            raise problem(HTTPStatus.BAD_REQUEST, "the body broke off")
        body += message["body"]
        more = message["more_body"]
        if len(body) > LARGEST_BODY:
            detail = f"the body is larger than {LARGEST_BODY} bytes; send more people as {NDJSON}"
            raise problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    return bytes(body)
