"""JSON bodies, read strictly and documented: what Litestar would convert is an error that names the JSON path."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from litestar.connection import Request
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody

from apps.chassis.problems import BAD_BODY, Fault, problem

T = TypeVar("T")

SLOW_BODY = 60.0
"""Seconds that a body of JSON may take to arrive."""


async def body_of(request: Request[Any, Any, Any]) -> bytes:
    """Return the body. Raises 408 when it takes longer than 60 s, 413 when it is larger than Litestar takes."""
    try:
        async with asyncio.timeout(SLOW_BODY):
            return await request.body()
    except TimeoutError:
        raise problem(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {SLOW_BODY:g} s") from None


def read_body(body: bytes, kind: type[T]) -> T:
    """Return what a body asks for; an empty one stands for `{}`. Raises 400 with the JSON path of what is wrong."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        detail, _, path = str(error).partition(" - at ")
        fault = Fault(path=path.strip("`") or "$", detail=detail)
        raise problem(BAD_BODY, str(error), [fault]) from None
    except RecursionError:
        raise problem(BAD_BODY, "the body is nested too deeply") from None


def documents_body(examples: Mapping[str, tuple[Mapping[str, Any], Any]], *, required: bool) -> type[Operation]:
    """Return an operation for a route that reads the body itself: by media type its JSON schema and example."""
    body = RequestBody(
        required=required,
        content={
            media_type: OpenAPIMediaType(schema=dict(schema), example=example)  # type: ignore[arg-type]  # written as it is
            for media_type, (schema, example) in examples.items()
        },
    )

    @dataclass
    class WithBody(Operation):
        def __post_init__(self) -> None:
            self.request_body = body  # takes the place of the one that Litestar did not find in the signature

    return WithBody


def schema_of(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - any type that msgspec knows
    """Return the JSON schema of a Struct without other Structs in it."""
    (_,), components = msgspec.json.schema_components([kind])
    (schema,) = components.values()
    return dict(schema)


def either(kind: Any, *ways: Sequence[str]) -> dict[str, Any]:  # noqa: ANN401 - any Struct
    """Return the JSON schema of a Struct whose fields are given in one of some ways: those of one, and no others."""
    null = {"type": "null"}
    schema = schema_of(kind)
    alternatives = [
        {
            "required": list(way),
            "properties": {name: {"not": null} if name in way else null for name in schema["properties"]},
        }
        for way in ways
    ]
    return {**schema, "oneOf": alternatives}
