"""Errors over HTTP: every one is `application/problem+json` (RFC 9457) and names what was wrong with the request."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from aiokafka.errors import CorruptRecordException, KafkaTimeoutError, RequestTimedOutError
from litestar import get
from litestar.connection import Request
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import Parameter
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin
from litestar.response import Response

from apps.chassis.observability.logs import MISSING_RIGHTS, one_line

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PATH = "/problems"
ANY_ERROR = "an error of this service; its log says more"
RETRY_AFTER = "2"
"""Seconds after which a caller may try again."""


class Fault(msgspec.Struct, omit_defaults=True):
    """One thing that is wrong with a request: the parameter or the JSON path in the body, and what it should be."""

    detail: str
    parameter: str | None = None
    path: str | None = None


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What every error answers (RFC 9457).

    `type` leads to what is to be known about such problems; `about:blank` where the status says it all. `detail` tells
    what it was this time.
    """

    type: str
    title: str
    status: int
    detail: str
    errors: list[Fault] = []


class Kind(msgspec.Struct, frozen=True):
    """A type of problem: by its name, the status and the title of each, what it means, and a detail as an example."""

    name: str
    status: HTTPStatus
    title: str
    meaning: str
    detail: str

    @property
    def type(self) -> str:
        """The `type` of such a problem: a reference that this service answers itself."""
        return f"{PATH}/{self.name}"


BAD_PARAMETER = Kind(
    "bad-parameter",
    HTTPStatus.BAD_REQUEST,
    "A parameter is wrong",
    "A query parameter is unknown, given twice, or not what it must be; `errors` names each. Nothing was done.",
    "limit: a whole number in digits is expected, not 'ten'",
)
BAD_BODY = Kind(
    "bad-body",
    HTTPStatus.BAD_REQUEST,
    "The body is wrong",
    "The body is not the JSON that the call takes; `errors` names the path in it. Nothing was done.",
    "Expected `int` <= 150 - at `$.age`",
)
NOT_NOW = Kind(
    "not-now",
    HTTPStatus.CONFLICT,
    "Not in this state",
    "The call does not fit the current state of this instance; nothing was done. Try again later, "
    "or call another instance.",
    "this instance holds none of the requested partitions",
)
DONE_BEFORE = Kind(
    "done-before",
    HTTPStatus.CONFLICT,
    "It was done before",
    "What may be done only once was done by an earlier call; nothing was done by this one.",
    "dead letter 0/12 was sent back before",
)
OUT_OF_REACH = Kind(
    "out-of-reach",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "Kafka is out of reach",
    "Kafka cannot be reached or did not answer in time; the service goes on trying. Nothing was written unless the "
    "answer's `receipts` say so. Try again after `Retry-After`.",
    "Kafka did not answer in time",
)
UNREADABLE = Kind(
    "unreadable",
    HTTPStatus.BAD_GATEWAY,
    "A record cannot be read",
    "Kafka answered with records that cannot be read: they are damaged, or compressed in a way that this service does "
    "not understand; `detail` tells where they stand. Nothing was done. Trying again is in vain: ask for other "
    "partitions, or for what stands behind them.",
    "orders-1 offset 10 cannot be read: BadGzipFile",
)
BUSY = Kind(
    "busy",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "Too much is in flight",
    "This instance has as many calls under way as it accepts at a time; nothing was done. Try again after "
    "`Retry-After`, or call another instance.",
    "50331648 bytes are waiting for their acknowledgement",
)
NOT_ACKNOWLEDGED = Kind(
    "not-acknowledged",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "No record was acknowledged",
    "Records were tried, and none was acknowledged. `receipts` has one for each: an `outcome` of `not_written` is safe "
    "to send again, one that is `unknown` may have been written.",
    "none of 10 records was acknowledged: not acknowledged within 8 s",
)

FOREIGN_ORIGIN = Kind(
    "foreign-origin",
    HTTPStatus.FORBIDDEN,
    "A page of another origin",
    "A browser made the call for a web page of another origin (`Origin`, `Sec-Fetch-Site`); nothing was done. "
    "`CORS_ORIGINS` names the origins whose pages may call. Callers that are no browser send neither header.",
    "the call comes from a web page of another origin; CORS_ORIGINS names those that may call",
)
UNKNOWN_HOST = Kind(
    "unknown-host",
    HTTPStatus.MISDIRECTED_REQUEST,
    "The host name is not allowed",
    "`Host` names a host that is not allowed, as with DNS rebinding; "
    "nothing was done. `ALLOWED_HOSTS` lists the allowed hosts.",
    "the host 'orders.example' is not allowed; if it is this service, add it to ALLOWED_HOSTS",
)

KINDS = (
    BAD_PARAMETER,
    BAD_BODY,
    NOT_NOW,
    DONE_BEFORE,
    OUT_OF_REACH,
    UNREADABLE,
    BUSY,
    NOT_ACKNOWLEDGED,
    FOREIGN_ORIGIN,
    UNKNOWN_HOST,
)
EVERYWHERE = (BAD_PARAMETER, FOREIGN_ORIGIN, UNKNOWN_HOST, HTTPStatus.INTERNAL_SERVER_ERROR)
"""Errors that every route may answer."""


def problem(
    what: Kind | HTTPStatus,
    detail: str,
    errors: Sequence[Fault] = (),
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> ProblemDetailsException:
    """Return an error to raise; `members` are added to the answer's object (RFC 9457, section 3.2).

    `what` is a status where that says all: the type is `about:blank` then.
    """
    extra = {**(members or {}), **({"errors": list(errors)} if errors else {})}
    status = what.status if isinstance(what, Kind) else what
    return ProblemDetailsException(
        detail=detail,
        status_code=status.value,
        headers=dict(headers) if headers else None,
        extra=extra,
        type_=what.type if isinstance(what, Kind) else "about:blank",
        title=what.title if isinstance(what, Kind) else status.phrase,
    )


def out_of_reach(error: BaseException) -> ProblemDetailsException:
    """Return an error to raise when Kafka cannot be asked, or what it answers cannot be read."""
    if isinstance(error, CorruptRecordException):
        return problem(UNREADABLE, str(error))
    if isinstance(error, TimeoutError | KafkaTimeoutError | RequestTimedOutError):
        detail = "Kafka did not answer in time"
    elif type(error).__name__ in MISSING_RIGHTS:
        detail = one_line(error)
    else:
        detail = f"Kafka is out of reach: {one_line(error)}"
    return problem(OUT_OF_REACH, detail, headers={"Retry-After": RETRY_AFTER})


def documented(*what: Kind | HTTPStatus) -> dict[int, ResponseSpec]:
    """Return how a route's errors stand in its OpenAPI document, with those that every route may answer."""
    by_status: dict[HTTPStatus, list[Kind | HTTPStatus]] = {}
    for one in dict.fromkeys((*EVERYWHERE, *what)):
        by_status.setdefault(one.status if isinstance(one, Kind) else one, []).append(one)
    return {
        status.value: ResponseSpec(
            Problem,
            generate_examples=False,
            description=". ".join(one.title if isinstance(one, Kind) else one.phrase for one in those),
            media_type=MEDIA_TYPE,
            examples=[_example(one) for one in those],
        )
        for status, those in by_status.items()
    }


def _example(what: Kind | HTTPStatus) -> Example:
    if isinstance(what, Kind):
        value = Problem(type=what.type, title=what.title, status=what.status.value, detail=what.detail)
        return Example(summary=what.title, description=what.meaning, value=msgspec.to_builtins(value))
    detail = ANY_ERROR if what == HTTPStatus.INTERNAL_SERVER_ERROR else what.description
    value = Problem(type="about:blank", title=what.phrase, status=what.value, detail=detail)
    return Example(summary=what.phrase, value=msgspec.to_builtins(value))


class Meaning(msgspec.Struct):
    """What is to be known about a type of problem."""

    type: str
    status: int
    title: str
    meaning: str


def problem_routes(root_path: str) -> Sequence[BaseRouteHandler]:
    """Return the routes of the pages that explain problem types; `root_path` is the prefix that a proxy strips."""

    @get(
        PATH + "/{name:str}",
        summary="What a type of problem means",
        responses=documented(HTTPStatus.NOT_FOUND),
        sync_to_thread=False,
    )
    def meaning_of(
        name: Annotated[
            str,
            Parameter(
                description="The last part of a problem's `type`: " + ", ".join(kind.name for kind in KINDS) + ".",
                examples=[Example(value=kind.name) for kind in KINDS],
            ),
        ],
    ) -> Meaning:
        for kind in KINDS:
            if kind.name == name:
                return Meaning(root_path + kind.type, kind.status.value, kind.title, kind.meaning)
        known = ", ".join(kind.name for kind in KINDS)
        raise problem(HTTPStatus.NOT_FOUND, f"there is no such type of problem; there are: {known}")

    return (meaning_of,)


def _from_http_exception(error: HTTPException) -> ProblemDetailsException:
    status = HTTPStatus(error.status_code)
    faults = [
        Fault(detail=str(entry["message"]), parameter=str(entry.get("key", "")) or None)
        for entry in (error.extra if isinstance(error.extra, list) else [])
        if isinstance(entry, dict) and "message" in entry
    ]
    if faults:  # of parameters: bodies are read by the routes themselves
        detail = "; ".join(f"{f.parameter}: {f.detail}" for f in faults)
        return problem(BAD_PARAMETER, detail, faults, headers=error.headers)
    return problem(status, error.detail or status.phrase, headers=error.headers)


def _from_undecodable(_: UnicodeDecodeError) -> ProblemDetailsException:
    return problem(HTTPStatus.BAD_REQUEST, "the request is not valid UTF-8")


def _from_anything_else(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer 500 and tell the log alone what happened."""
    log.error("%s %s failed", request.method, request.scope.get("path_template"), exc_info=error)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, ANY_ERROR).to_response(request)


def with_root_path(root_path: str, error: ProblemDetailsException) -> ProblemDetailsException:
    """Return the error with a `type` that is reachable through a proxy that strips `root_path`."""
    if error.type_ is not None and error.type_.startswith(PATH):
        error.type_ = root_path + error.type_
    return error


def problem_plugin(root_path: str) -> ProblemDetailsPlugin:
    """Return the Litestar configuration for the answers above; it needs `handlers` too.

    `root_path` is the prefix that a proxy strips.
    """

    def answer(request: Request[Any, Any, Any], error: ProblemDetailsException) -> Response[Any]:
        return with_root_path(root_path, error).to_response(request)

    return ProblemDetailsPlugin(
        ProblemDetailsConfig(
            exception_handler=answer,
            exception_to_problem_detail_map={
                HTTPException: lambda error: with_root_path(root_path, _from_http_exception(error)),
                UnicodeDecodeError: _from_undecodable,
            },
        )
    )


handlers: dict[int | type[Exception], Any] = {Exception: _from_anything_else}
"""The exception handlers for what nobody foresaw."""
