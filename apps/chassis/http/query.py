"""Query parameters, read strictly: what Litestar would convert, drop or ignore is an error here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

from litestar.connection import Request
from litestar.handlers import BaseRouteHandler
from litestar.params import HeaderParameter, ParameterKwarg, PathParameter
from litestar.typing import FieldDefinition

from apps.chassis.http.problem_kinds import BAD_PARAMETER
from apps.chassis.http.problems import Fault, problem

ANY_QUERY = "any_query"
"""The option of a route that is called with any query: a page."""
PLAIN_INTEGER = re.compile(r"0|[1-9][0-9]*")
MAX_PARAMETERS = 50
"""Most parameters of a query, known or not: no call has half as many."""
FAULTS_NAMED = 5
MAX_QUOTED_CHARACTERS = 40
MAX_DIGITS = 18
"""Digits of an integer: one that has more is larger than anything that may be asked for."""
MAX_NUMBERS_BYTES = 100
"""Longest query whose numbers are remembered."""
ANY_NUMBER = {"minimum": 0, "maximum": 10**MAX_DIGITS - 1}
"""For the document: Litestar omits the bounds of a parameter that may also be null."""


def check_query(request: Request[Any, Any, Any]) -> None:
    """Refuse a query with an unknown parameter, one given twice, or a value that is not plain.

    Raises 400 with the first faults. Litestar itself takes `1e3` for 1000, the last of two values, and ignores a
    parameter whose name is misspelt.
    """
    if not request.scope["query_string"] or request.method == "OPTIONS" or request.route_handler.opt.get(ANY_QUERY):
        return
    if request.scope["query_string"].count(b"&") >= MAX_PARAMETERS:
        raise problem(BAD_PARAMETER, f"the query has more than {MAX_PARAMETERS} parameters")
    expected = _parameters(request.route_handler)
    faults = []
    for name in request.query_params:
        if name not in expected:
            known = ", ".join(sorted(expected)) or "none"
            quoted = name[:MAX_QUOTED_CHARACTERS]
            faults.append(Fault(parameter=quoted, detail=f"no such parameter; this call knows: {known}"))
        elif wrong := _find_fault(expected[name], request.query_params.getall(name), request.scope["query_string"]):
            faults.append(Fault(parameter=name, detail=wrong))
    if faults:
        named = faults[:FAULTS_NAMED]
        texts = [f"{fault.parameter}: {fault.detail}" for fault in named]
        if len(named) < len(faults):
            texts.append(f"and {len(faults) - len(named)} more")
        raise problem(BAD_PARAMETER, "; ".join(texts), named)


def numbers_of(request: Request[Any, Any, Any]) -> Mapping[str, int] | None:
    """Return the parameters of a query when all of them are plain numbers within their bounds, otherwise None.

    Such a query needs no `check_query`, which takes ten times as long.
    """
    query = request.scope["query_string"]
    return _numbers_in(request.route_handler, query) if len(query) <= MAX_NUMBERS_BYTES else None


@lru_cache(maxsize=256)  # nearly all callers send the same numbers
def _numbers_in(handler: BaseRouteHandler, query: bytes) -> Mapping[str, int] | None:
    expected, numbers = _parameters(handler), dict[str, int]()
    for pair in query.decode("latin-1").split("&") if query else ():
        name, _, value = pair.partition("=")
        if name in numbers or name not in expected or not _is_allowed(expected[name], value):
            return None
        numbers[name] = int(value)
    return numbers


def _is_allowed(field: FieldDefinition, value: str) -> bool:
    bounds: Any = field.kwarg_definition
    is_number = field.annotation is int and len(value) <= MAX_DIGITS and PLAIN_INTEGER.fullmatch(value)
    return bool(is_number) and bounds.ge <= int(value) <= bounds.le


@lru_cache(maxsize=256)
def _parameters(handler: BaseRouteHandler) -> Mapping[str, FieldDefinition]:
    """Return the query parameters of a route and of its dependencies, by their names in the query."""
    return {
        field.kwarg_definition.name or name: field
        for name, field in _fields(handler)
        if name not in handler.resolve_dependencies()
        and isinstance(field.kwarg_definition, ParameterKwarg)
        and not isinstance(field.kwarg_definition, HeaderParameter | PathParameter)
    }


def _fields(handler: BaseRouteHandler) -> Iterator[tuple[str, FieldDefinition]]:
    provided = handler.resolve_dependencies()
    waiting, seen = [handler.parsed_fn_signature], set[str]()
    while waiting:
        parameters = waiting.pop().parameters
        yield from parameters.items()
        needed = (parameters.keys() & provided.keys()) - seen
        seen |= needed
        waiting += [provided[name].parsed_fn_signature for name in needed]


def _find_fault(field: FieldDefinition, values: Sequence[str], query: bytes) -> str | None:
    """Return the error of a known parameter that Litestar would not see."""
    if len(values) > 1:
        return f"given {len(values)} times"
    (value,) = values
    if "\ufffd" in value and not _is_utf8(query):  # Litestar puts it where bytes are none: they would name another key
        return "the query is not UTF-8"
    if field.annotation is bool and value not in {"true", "false"}:
        return f"expected true or false, got {value[:MAX_QUOTED_CHARACTERS]!r}"
    is_number = int in (field.annotation, *getattr(field.annotation, "__args__", ()))
    return _find_fault_of_number(field, value) if is_number else None


def _is_utf8(query: bytes) -> bool:
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


def _find_fault_of_number(field: FieldDefinition, value: str) -> str | None:
    if not PLAIN_INTEGER.fullmatch(value):
        return f"expected a whole number in digits, got {value[:MAX_QUOTED_CHARACTERS]!r}"
    if len(value) > MAX_DIGITS:
        maximum = getattr(field.kwarg_definition, "le", None)
        return f"a number of {len(value)} digits is too large" + ("" if maximum is None else f"; at most {maximum:g}")
    return None
