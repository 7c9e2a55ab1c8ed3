"""Query parameters, read strictly: what Litestar would convert, drop or overlook is an error here."""

import re
from http import HTTPStatus
from typing import Any

from litestar.connection import Request
from litestar.params import HeaderParameter, ParameterKwarg, PathParameter

from apps.chassis.problems import Fault, problem

PLAIN_INTEGER = re.compile(r"[0-9]{1,18}")


async def check_query(request: Request[Any, Any, Any]) -> None:
    """Refuse a query with an unknown parameter, one given twice, or an integer that is not plain digits.

    Raises 400 with every fault. For an application's `before_request`: Litestar itself takes `1e3` for 1000, the last
    of two values, and ignores a parameter whose name is misspelt.
    """
    expected = {
        field.kwarg_definition.name or name: field.annotation
        for name, field in request.route_handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, ParameterKwarg)
        and not isinstance(field.kwarg_definition, HeaderParameter | PathParameter)
    }
    faults = []
    for name in request.query_params:
        values = request.query_params.getall(name)
        if name not in expected:
            known = ", ".join(sorted(expected)) or "none"
            faults.append(Fault(parameter=name, detail=f"no such parameter; this call knows: {known}"))
        elif len(values) > 1:
            faults.append(Fault(parameter=name, detail=f"given {len(values)} times"))
        elif int in (expected[name], *getattr(expected[name], "__args__", ())) and not PLAIN_INTEGER.fullmatch(
            values[0]
        ):
            faults.append(Fault(parameter=name, detail=f"a whole number in digits is expected, not {values[0][:40]!r}"))
    if faults:
        detail = "; ".join(f"{fault.parameter}: {fault.detail}" for fault in faults)
        raise problem(HTTPStatus.BAD_REQUEST, detail, faults)
