"""What Schemathesis must know about the services, which their documents cannot say."""

import json
import os
import re
from collections import Counter
from http import HTTPStatus
from typing import Any

import requests
import schemathesis
from schemathesis.core.failures import Failure

NDJSON = "application/x-ndjson"
MAX_MADE, MAX_ALLOWED = 500, 100_000
"""Events that a call makes here, and that it may make: that many take minutes."""

KEYS: dict[str, str] = json.loads(os.environ.get("KEYS", "{}"))
"""A key for each role; without any, every call is open."""
CALLERS = [*KEYS.items(), ("no role", "")]
EXAMPLES = 1
"""Calls of each operation that are made again without its role; the first one is made with its role alone, too."""
REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
GUARDED = {200, 201, 207, 400, 409, 422}
"""How calls are answered that came as far as to their route: who makes them is checked before."""
ENDLESS = "/consumers/messages/stream"
repeated = Counter[str]()

UNSAYABLE = {
    # JSON Schema counts 17.0 as an integer; the contract wants a type never converted.
    "Expected `int`, got `float`",
    "Expected `int | null`, got `float`",
    # `before` is opaque: only what an answer gave as `next` is one.
    "not a cursor",
    # Which offsets there are, the topic knows alone.
    " has offsets ",
    # OpenAPI has no parameters that depend on one another.
    "only together with scope=topic",
    "without filters",
    "only with `limit`",
    "give either `key` or `before`",
    # Nor a time that must have passed.
    "expected a time that has passed",
}
"""What a refusal may say although the document allows what was sent."""
WRONG_TYPE_OF_TEXT = re.compile(r"parameter `(key|reason)` in query - incorrect type")
"""What Schemathesis says of a number sent as one of these parameters: in a query it is a text like any other."""


@schemathesis.serializer(NDJSON)
def lines(_: schemathesis.SerializationContext, body: object) -> bytes:
    """Send text as it is: each line of it is answered by a line."""
    return body if isinstance(body, bytes) else str(body).encode("utf-8", "replace")


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, object]) -> None:
    """Make fewer events."""
    for name in ("number", "number_of_people"):
        wanted = str(case.query.get(name, ""))
        if re.fullmatch(r"[0-9]{3,6}", wanted) and MAX_MADE < int(wanted) <= MAX_ALLOWED:
            case.query[name] = int(wanted) % MAX_MADE + 1


@schemathesis.hook
def filter_failure(
    _: schemathesis.HookContext, failure: Failure, case: schemathesis.Case[Any], response: schemathesis.Response
) -> bool:
    """Drop what is no failure: see `UNSAYABLE`."""
    if "positive_data_acceptance" in failure.checks and any(said in response.text for said in UNSAYABLE):
        return False
    if "negative_data_rejection" not in failure.checks:
        return True
    # Any bytes are lines, so nothing that could be sent is wrong as a whole: each line is answered by itself.
    return not (case.media_type == NDJSON or WRONG_TYPE_OF_TEXT.search(failure.message))


@schemathesis.check
def is_answered_to_its_role_alone(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Make some calls again with the key of each role and without one: all but its own role are refused."""
    operation = case.operation
    needed = {role for way in operation.definition.raw.get("security", ()) for role in way.get("ApiKey", ())}
    if not KEYS or not needed or case.method != operation.method.upper() or response.status_code not in GUARDED:
        return
    repeated[operation.label] += 1
    for role, key in CALLERS if repeated[operation.label] <= EXAMPLES else ():
        may = role in needed
        if may and (repeated[operation.label] > 1 or operation.path == ENDLESS):
            continue
        request = response.request.copy()
        request.headers["X-API-Key"] = key
        status = requests.Session().send(request, timeout=30).status_code
        assert (status not in REFUSED) == may, f"{status} for the role {role}, of {needed}"
        assert status < HTTPStatus.INTERNAL_SERVER_ERROR, f"{status} for the role {role}"
