"""The roles of keys, which each route declares where it stands: `@get(..., role=READ)`."""

from enum import StrEnum


class Role(StrEnum):
    """What a key allows."""

    SEND = "send"
    READ = "read"
    OPERATE = "operate"


ROLE = "role"
"""The option of a route that declares the role that its calls need; a route without it is refused."""
SEND, READ, OPERATE = Role.SEND, Role.READ, Role.OPERATE
ANYONE = "anyone"
"""Declared by a route that needs no role."""
METRICS = "metrics"
"""Declared by a route that needs `read` unless `METRICS_PUBLIC` says otherwise."""
