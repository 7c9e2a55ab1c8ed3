"""The roles of keys, which each route declares where it stands: `@get(..., role=READ)`."""

from enum import StrEnum


class Role(StrEnum):
    """What a key allows."""

    SEND = "send"
    READ = "read"
    READ_SENSITIVE = "read:sensitive"
    OPERATE = "operate"


ROLE = "role"
"""The option of a route that declares the role that its calls need; a route without it is refused."""
SEND, READ, READ_SENSITIVE, OPERATE = Role
ANYONE = "anyone"
"""Declared by a route that needs no role."""
METRICS = "metrics"
"""Declared by a route that needs `read` unless `METRICS_PUBLIC` says otherwise."""
