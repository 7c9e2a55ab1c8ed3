"""What Schemathesis must know about the services, which their documents cannot say."""

import re
from typing import Any

import schemathesis
from schemathesis.core.failures import Failure

NDJSON = "application/x-ndjson"
MAX_MADE, MAX_ALLOWED = 500, 100_000
"""Events that a call makes here, and that it may make: that many take minutes."""

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
