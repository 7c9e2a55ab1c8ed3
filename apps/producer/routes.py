"""The producer's HTTP: what a call says becomes a call of `sending`, and its result an answer."""

from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

import msgspec
from litestar import post
from litestar.connection import Request
from litestar.enums import MediaType
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import Parameter
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.response import Response
from litestar.types import Receive, Scope, Send

from apps.chassis.body import (
    BODY_ERRORS,
    JSON,
    NDJSON,
    documents_body,
    head_of,
    read_whole,
    refuse_other_bodies,
    schema_of,
)
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
from apps.chassis.spool import Spools
from apps.chassis.streaming import Streamed
from apps.producer.line_answers import LineAnswers
from apps.producer.publisher import Busy, OutOfReach, Publisher
from apps.producer.sending import CHUNK, TIMES_IN_MEMORY, Answer, BadPeople, is_list, make, read_people, send
from contracts.person import Person, StrictPerson

MOST_PEOPLE = 100_000
LARGEST_BODY = 16 * 1024 * 1024
"""Bytes of a JSON body; lines of JSON may go on for ever."""
MAKE, SEND = "/producers/basic_producer", "/producers/people"
MOST_IN_MEMORY = 256 * 1024 * 1024
"""Bytes that all calls under way may take, about."""
ACCEPTED = (JSON, NDJSON)
SEND_LINES = f"; send more people as {NDJSON}"
PERSON_IN_MEMORY = 1_200
"""Bytes of a generated person, as measured."""

encode_answer = msgspec.json.Encoder().encode


def example_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the first example of each field that has some."""
    properties = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return {name: field["examples"][0] for name, field in properties.items() if "examples" in field}


EXAMPLE = example_of(Person)
PERSON = schema_of(StrictPerson)
PEOPLE_BODY = documents_body(
    {
        JSON: (
            {"oneOf": [PERSON, {"type": "array", "items": PERSON}]},
            EXAMPLE,
        ),
        NDJSON: ({"type": "string"}, encode_answer(EXAMPLE).decode() + "\n"),
    },
    required=True,
)


def weight_of(scope: Scope) -> int:
    """Return the approximate bytes of memory that a call takes at its start. Bodies count once they have arrived."""
    if scope["path"] != MAKE:
        return 0
    number = parse_qs(scope["query_string"].decode("latin-1")).get("number_of_people", ["10"])[-1]
    return PERSON_IN_MEMORY * min(int(number) if PLAIN_INTEGER.fullmatch(number) else 0, MOST_PEOPLE)


def producer_routes(publisher: Publisher, root_path: str) -> Sequence[BaseRouteHandler]:
    """Return the routes that generate and accept people; `root_path` is the prefix that a proxy strips."""
    spools = Spools()

    @post(
        MAKE,
        summary="Make people and send them",
        description="Answers after the last acknowledgement, with the people made.",
        responses={
            **documented(*BODY_ERRORS, OUT_OF_REACH, BUSY, NOT_ACKNOWLEDGED),
            207: ResponseSpec(Answer, generate_examples=False, description="Some were delivered, others not"),
        },
    )
    async def basic_producer(
        request: Request[Any, Any, Any],
        number_of_people: Annotated[int, Parameter(ge=1, le=MOST_PEOPLE, description="How many people to make.")] = 10,
    ) -> Response[list[Person]]:
        await refuse_other_bodies(request)
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
        "line (`application/x-ndjson`): each is answered by a line with its receipt, in order, while the rest is read. "
        "With a `Content-Length`, or with `receipts=at-end`, the answer follows the whole body.",
        operation_class=PEOPLE_BODY,
        responses={
            **documented(*BODY_ERRORS, OUT_OF_REACH, BUSY, NOT_ACKNOWLEDGED),
            200: ResponseSpec(str, generate_examples=False, description="A receipt a line", media_type=NDJSON),
            207: ResponseSpec(Answer, generate_examples=False, description="Some were delivered, others not"),
        },
        request_max_body_size=None,  # lines may go on for ever; JSON has its own limit
    )
    async def people(
        request: Request[Any, Any, Any],
        receipts: Annotated[
            Literal["at-end"] | None,
            Parameter(description="`at-end` answers lines only after the last, with a status for all of them."),
        ] = None,
    ) -> Response[Answer]:
        if head_of(request.scope).media_type == NDJSON:
            at_end = receipts is not None
            answers = LineAnswers(request, publisher, spools, at_end=at_end, root_path=root_path)
            return await answers.respond()
        try:
            body = await read_whole(request, ACCEPTED, LARGEST_BODY, times_in_memory=TIMES_IN_MEMORY, hint=SEND_LINES)
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
    retry_after = str(error.retry_after) if isinstance(error, Busy) else RETRY_AFTER
    return problem(what, str(error), headers={"Retry-After": retry_after})
