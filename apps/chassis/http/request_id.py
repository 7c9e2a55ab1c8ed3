"""A name for every request: in its answer, and in all that is logged while it is answered."""

import re
from random import Random

from litestar.types import Scope

from apps.chassis.observability.logs import request_id

HEADER = b"x-request-id"
SANE = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""What is taken over from a caller: nothing that could make a line of the log say something else."""
made_up = Random()  # noqa: S311 - a name is no secret, and the system's randomness is a system call


def name_request(scope: Scope) -> bytes:
    """Take over the `X-Request-Id` of a request, or make one where it is not sane; return it.

    What the request starts and awaits from now on is logged with it; what runs in the background belongs to no request.
    """
    given = dict(scope["headers"]).get(HEADER, b"")
    name = given if SANE.fullmatch(given) else b"%016x" % made_up.getrandbits(64)
    request_id.set(name.decode())  # in the context of the request's own task
    return name
