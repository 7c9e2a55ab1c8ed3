"""Query parameters, read strictly: what Litestar would convert, drop or overlook is an error here."""

import re
from collections.abc import Sequence
from typing import Any

from litestar.connection import Request
from litestar.params import HeaderParameter, ParameterKwarg, PathParameter
from litestar.typing import FieldDefinition

from apps.chassis.http.problems import BAD_PARAMETER, Fault, problem

PLAIN_INTEGER = re.compile(r"0|[1-9][0-9]*")
MOST_DIGITS = 18
"""Digits of an integer: one that has more is larger than anything that may be asked for."""
ANY_NUMBER = {"minimum": 0, "maximum": 10**MOST_DIGITS - 1}
"""For the document: Litestar leaves the bounds of a parameter out of it where the parameter may also be null."""


def check_query(request: Request[Any, Any, Any]) -> None:
    """Refuse a query with an unknown parameter, one given twice, or an integer that is not plain digits.

    Raises 400 with every fault. Litestar itself takes `1e3` for 1000, the last
    of two values, and ignores a parameter whose name is misspelt.
    """
    if not request.scope["query_string"]:
        return
    expected = {
        field.kwarg_definition.name or name: field
        for name, field in request.route_handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, ParameterKwarg)
        and not isinstance(field.kwarg_definition, HeaderParameter | PathParameter)
    }
    faults = []
    for name in request.query_params:
        if name not in expected:
            known = ", ".join(sorted(expected)) or "none"
            faults.append(Fault(parameter=name, detail=f"no such parameter; this call knows: {known}"))
        elif wrong := _what_is_wrong(expected[name], request.query_params.getall(name)):
            faults.append(Fault(parameter=name, detail=wrong))
    if faults:
        detail = "; ".join(f"{fault.parameter}: {fault.detail}" for fault in faults)
        raise problem(BAD_PARAMETER, detail, faults)


def _what_is_wrong(field: FieldDefinition, values: Sequence[str]) -> str | None:
    """Return what is wrong with a parameter that there is, as far as Litestar would not see it."""
    if len(values) > 1:
        return f"given {len(values)} times"
    if int not in (field.annotation, *getattr(field.annotation, "__args__", ())):
        return None
    (value,) = values
    if not PLAIN_INTEGER.fullmatch(value):
        return f"a whole number in digits is expected, not {value[:40]!r}"
    if len(value) > MOST_DIGITS:
        most = getattr(field.kwarg_definition, "le", None)
        return f"a number of {len(value)} digits is too large" + ("" if most is None else f"; at most {most:g}")
    return None
