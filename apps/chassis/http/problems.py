"""Errors over HTTP: every one is `application/problem+json` (RFC 9457) and names what was wrong with the request."""

import errno
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from aiokafka.errors import (
    BrokerResponseError,
    CorruptRecordException,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    RequestTimedOutError,
)
from litestar import Controller, get
from litestar.connection import Request
from litestar.exceptions import HTTPException
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import Parameter
from litestar.plugins.problem_details import ProblemDetailsException
from litestar.response import Response
from litestar.types import ExceptionHandler

from apps.chassis.http.problem_kinds import (
    BAD_BODY,
    BAD_PARAMETER,
    BUSY,
    FOREIGN_ORIGIN,
    KINDS,
    MISSING_ROLE,
    OUT_OF_REACH,
    PATH,
    TOO_MANY_GUESSES,
    UNKNOWN_HOST,
    UNREADABLE,
    Kind,
)
from apps.chassis.http.roles import READ
from apps.chassis.kafka.errors import NoTurn
from apps.chassis.observability.logs import MISSING_PERMISSIONS, one_line

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
ANY_ERROR = "an error of this service; its log says more"
RETRY_AFTER = "2"
"""Seconds after which a caller may try again."""
MAX_DETAIL_CHARACTERS = 500
"""Most that is said of a wrong parameter: what Litestar says may quote its whole value."""
ANSWERED = "answered_problem"
"""Set in the scope of a request: the detail of the problem that answers it."""
UNREACHED = (KafkaConnectionError, NodeNotReadyError, OSError)
"""The errors of a Kafka that cannot be reached, but for those of this host."""
OF_THIS_HOST = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC}
"""The codes of an `OSError` that this host lacks what a connection takes."""
ROOT_PATH = "root_path"
"""The key of an application's state that holds the path prefix that a proxy strips."""


class Fault(msgspec.Struct, omit_defaults=True):
    """One error in a request: the parameter or the JSON path in the body, and what it should be."""

    detail: str
    parameter: str | None = None
    path: str | None = None


class Problem(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The body of every error (RFC 9457).

    `type` links to an explanation of such problems; it is `about:blank` where the status is enough. `detail` explains
    this occurrence.
    """

    type: str
    title: str
    status: int
    detail: str
    errors: list[Fault] = []


KNOWN = ", ".join(kind.name for kind in KINDS)
EVERYWHERE = (
    BAD_PARAMETER,
    HTTPStatus.UNAUTHORIZED,
    MISSING_ROLE,
    FOREIGN_ORIGIN,
    UNKNOWN_HOST,
    TOO_MANY_GUESSES,
    HTTPStatus.INTERNAL_SERVER_ERROR,
)
"""Errors that every route may answer."""


def _kind_of(what: Kind | HTTPStatus) -> Kind:
    if isinstance(what, Kind):
        return what
    return Kind("", what, what.phrase, what.description)


def problem(
    what: Kind | HTTPStatus,
    detail: str,
    errors: Sequence[Fault] = (),
    *,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, object] | None = None,
) -> ProblemDetailsException:
    """Return an error to raise; `members` are added to the answer's object (RFC 9457, section 3.2).

    `what` is a status where that is enough: the type is `about:blank` then.
    """
    kind = _kind_of(what)
    retry = {"Retry-After": RETRY_AFTER} if kind.retry else {}
    return ProblemDetailsException(
        detail=detail,
        status_code=kind.status.value,
        headers={**retry, **(headers or {})} or None,
        extra={**(members or {}), **({"errors": list(errors)} if errors else {})},
        type_=kind.type,
        title=kind.title,
    )


class BrokenBody(ProblemDetailsException):
    """A body that is incomplete, damaged or not of its declared type."""

    def __init__(self, status: HTTPStatus, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(
            detail=reason, status_code=status.value, headers=headers, type_="about:blank", title=status.phrase
        )

    def __str__(self) -> str:
        return self.detail


def bad_parameter(name: str, detail: str) -> ProblemDetailsException:
    """Return an error to raise for a query parameter."""
    return problem(BAD_PARAMETER, f"{name}: {detail}", [Fault(parameter=name, detail=detail)])


def bad_body(detail: str, path: str = "$") -> ProblemDetailsException:
    """Return an error to raise for a place in a JSON body; `$` means the whole body."""
    return problem(BAD_BODY, detail if path == "$" else f"{detail} - at `{path}`", [Fault(path=path, detail=detail)])


def to_problem(error: Exception) -> ProblemDetailsException:
    """Return the problem that answers an error. An unexpected error is a 500 without details."""
    match error:
        case ProblemDetailsException():
            return error
        case HTTPException():
            return _from_http_exception(error)
        case UnicodeDecodeError():
            return problem(HTTPStatus.BAD_REQUEST, "the request is not valid UTF-8")
        case NoTurn():
            return problem(BUSY, str(error), headers={"Retry-After": RETRY_AFTER})
        case KafkaError() | OSError() if getattr(error, "filename", None) is None:  # else an error of a file
            return _kafka_problem(error)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, ANY_ERROR)


def _kafka_problem(error: KafkaError | OSError) -> ProblemDetailsException:
    """Return the problem for a Kafka that does not answer, refuses, or whose answer cannot be read."""
    if isinstance(error, CorruptRecordException):
        return problem(UNREADABLE, str(error))
    if isinstance(error, TimeoutError | KafkaTimeoutError | RequestTimedOutError):
        why = str(error) if isinstance(error, TimeoutError) else ""
        return problem(OUT_OF_REACH, f"Kafka did not answer in time{why and ': '}{why}")
    reason = one_line(error)
    if type(error).__name__ in MISSING_PERMISSIONS:
        return problem(OUT_OF_REACH, reason)
    if isinstance(error, UNREACHED) and getattr(error, "errno", None) not in OF_THIS_HOST:
        return problem(OUT_OF_REACH, f"Kafka is out of reach: {reason.removeprefix('KafkaConnectionError: ')}")
    answered = isinstance(error, BrokerResponseError)
    return problem(OUT_OF_REACH, f"Kafka {'answers with an error' if answered else 'cannot be used'}: {reason}")


def _from_http_exception(error: HTTPException) -> ProblemDetailsException:
    faults = [
        Fault(detail=str(entry["message"])[:MAX_DETAIL_CHARACTERS], parameter=str(entry.get("key", "")) or None)
        for entry in (error.extra if isinstance(error.extra, list) else [])
        if isinstance(entry, dict) and "message" in entry
    ]
    if faults:  # of parameters: bodies are read by the routes themselves
        detail = "; ".join(f"{f.parameter}: {f.detail}" for f in faults)
        return problem(BAD_PARAMETER, detail, faults, headers=error.headers)
    status = HTTPStatus(error.status_code)
    return problem(status, error.detail or status.phrase, headers=error.headers)


def with_root_path(root_path: str, error: ProblemDetailsException) -> ProblemDetailsException:
    """Return the error with a `type` that is reachable through a proxy that strips `root_path`."""
    if error.type_ is not None and error.type_.startswith(PATH):
        error.type_ = root_path + error.type_
    return error


def encoded(error: ProblemDetailsException) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return the status, the headers and the body of an answer that is sent without Litestar."""
    found = Problem(type=str(error.type_), title=str(error.title), status=error.status_code, detail=error.detail)
    body = msgspec.json.encode(found)
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **(error.headers or {})}
    return error.status_code, [(name.lower().encode(), value.encode()) for name, value in headers.items()], body


def answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """Answer an error by its problem: the exception handler of all routes. Log an unexpected error."""
    answer = to_problem(error)
    request.scope[ANSWERED] = answer.detail  # type: ignore[literal-required]  # a key of our own
    if answer.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s failed", request.method, request.scope.get("path_template"), exc_info=error)
    return with_root_path(request.app.state.get(ROOT_PATH, ""), answer).to_response(request)


def answer_as(what: Kind | HTTPStatus) -> ExceptionHandler:  # type: ignore[type-arg]  # it is a text at run time
    """Return an exception handler, for a controller, that answers an error of its domain as a kind of problem."""

    def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
        return answer_error(request, problem(what, str(error)))

    return answer


def documented(*what: Kind | HTTPStatus) -> dict[int, ResponseSpec]:
    """Return the responses that document the errors of a route, and those of every route."""
    by_status: dict[HTTPStatus, list[Kind]] = {}
    for one in dict.fromkeys((*EVERYWHERE, *what)):
        kind = _kind_of(one)
        by_status.setdefault(kind.status, []).append(kind)
    return {
        status.value: ResponseSpec(
            Problem,
            generate_examples=False,
            description=". ".join(kind.title for kind in kinds),
            media_type=MEDIA_TYPE,
            examples=[_example(kind) for kind in kinds],
        )
        for status, kinds in by_status.items()
    }


def _example(kind: Kind) -> Example:
    value = Problem(type=kind.type, title=kind.title, status=kind.status.value, detail="what is wrong this time")
    return Example(summary=kind.title, description=kind.meaning, value=msgspec.to_builtins(value))


class Meaning(msgspec.Struct):
    """The explanation of a type of problem."""

    type: str
    status: int
    title: str
    meaning: str


class ProblemController(Controller):
    """The pages to which the `type` of a problem links."""

    path = PATH

    @get(
        "/{name:str}",
        summary="What a type of problem means",
        role=READ,
        linkable=True,
        responses=documented(HTTPStatus.NOT_FOUND),
        sync_to_thread=False,
    )
    def meaning_of(
        self,
        request: Request[Any, Any, Any],
        name: Annotated[
            str,
            Parameter(
                description=f"The last part of a problem's `type`: {KNOWN}.",
                examples=[Example(value=kind.name) for kind in KINDS],
            ),
        ],
    ) -> Meaning:
        """Return the explanation of a type of problem."""
        for kind in KINDS:
            if kind.name == name:
                root_path = request.app.state.get(ROOT_PATH, "")
                return Meaning(root_path + kind.type, kind.status.value, kind.title, kind.meaning)
        raise problem(HTTPStatus.NOT_FOUND, f"there is no such type of problem; there are: {KNOWN}")
