"""Errors over HTTP: every one is `application/problem+json` (RFC 9457) and names what was wrong with the request."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.connection import Request
from litestar.exceptions import HTTPException
from litestar.openapi import ResponseSpec
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin
from litestar.response import Response

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Fault(msgspec.Struct, omit_defaults=True):
    """One thing that is wrong with a request: the parameter or the JSON path in the body, and what it should be."""

    detail: str
    parameter: str | None = None
    path: str | None = None


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What every error answers (RFC 9457): `type` is `about:blank`, `title` the status in words."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[Fault] = []


def problem(
    status: HTTPStatus,
    detail: str,
    errors: Sequence[Fault] = (),
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> ProblemDetailsException:
    """Return an error to raise; `members` are added to the answer's object (RFC 9457, section 3.2)."""
    extra = {**(members or {}), **({"errors": list(errors)} if errors else {})}
    return ProblemDetailsException(
        detail=detail,
        status_code=status.value,
        headers=dict(headers) if headers else None,
        extra=extra,
        type_="about:blank",
        title=status.phrase,
    )


def documented(*statuses: HTTPStatus) -> dict[int, ResponseSpec]:
    """Return how a route's errors stand in its OpenAPI document."""
    return {
        status.value: ResponseSpec(Problem, generate_examples=False, description=status.phrase, media_type=MEDIA_TYPE)
        for status in statuses
    }


def _from_http_exception(error: HTTPException) -> ProblemDetailsException:
    status = HTTPStatus(error.status_code)
    faults = [
        Fault(detail=str(entry["message"]), parameter=str(entry.get("key", "")) or None)
        for entry in (error.extra if isinstance(error.extra, list) else [])
        if isinstance(entry, dict) and "message" in entry
    ]
    if faults:
        return problem(status, "; ".join(f"{f.parameter}: {f.detail}" for f in faults), faults, headers=error.headers)
    return problem(status, error.detail or status.phrase, headers=error.headers)


def _from_undecodable(_: UnicodeDecodeError) -> ProblemDetailsException:
    return problem(HTTPStatus.BAD_REQUEST, "the request is not valid UTF-8")


def _from_anything_else(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer 500 and tell the log alone what happened."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "an error of this service; its log says more").to_response(request)


plugin = ProblemDetailsPlugin(
    ProblemDetailsConfig(
        exception_to_problem_detail_map={
            HTTPException: _from_http_exception,
            UnicodeDecodeError: _from_undecodable,
        }
    )
)
"""Gives a Litestar application the answers above; `handlers` belong with it."""

handlers: dict[int | type[Exception], Any] = {Exception: _from_anything_else}
"""The exception handlers for what nobody foresaw."""
